"""Blank out what looks like a secret, in text and in values: the second line of defence for logs and error messages.

The first is that secrets are not put there; so this knows shapes and names, and catches what a library, a runtime or a mistake
lets through. Whole secrets of no known shape pass. Imports nothing of ours; every pattern is linear in the length of the text.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any

MASK = "***"
_NAMES = (
    r"(?:api[_-]?key|bearer[_-]?token|(?:access|refresh|connection|client|github|gitHub|id|session)[_-]?(?:token|secret)"
    r"|client[_-]?secret|secret|password|passwd|authorization|private[_-]?key|audit[_-]?key|master[_-]?key|token)"
)
#: A member's name, what may stand between it and its value, and the value; names of counts (`inputTokens`) are longer.
_MEMBER = re.compile(
    rf"(?P<name>{_NAMES})(?P<between>[\"'\\]{{0,4}}\s{{0,3}}[:=]\s{{0,3}}[\"'\\]{{0,4}})"
    r"(?!(?:bearer|basic|none|null|true|false|\d{1,6}\b|\*\*\*))(?P<value>[^\s\"'\\,;&{}\[\])]{4,})",
    re.IGNORECASE,
)
_UNQUOTED = re.compile(r"(?P<quote>\\{0,3}[\"'])\s{0,3}:\s{0,3}\Z")
_BEGIN, _END = (rf"-----{word} [A-Z ]{{0,30}}PRIVATE KEY-----" for word in ("BEGIN", "END"))


def _mask_member(found: re.Match[str]) -> str:
    """Return a member without its value; a bare number in JSON becomes a string, so that JSON stays JSON."""
    bare = _UNQUOTED.match(found["between"])
    quote = bare["quote"] if bare is not None else ""
    return f"{found['name']}{found['between']}{quote}{MASK}{quote}"


_SHAPES: tuple[tuple[re.Pattern[str], str | Callable[[re.Match[str]], str]], ...] = (
    (re.compile(rf"{_BEGIN}(?:[^\"']*?{_END}|[^\"']*)"), MASK),
    # The id of a key of ours names it in `aerodrome key list`; only the other half is secret.
    (re.compile(r"\b(aero_[0-9a-f]{12}_)[A-Za-z0-9_-]{20,}"), rf"\g<1>{MASK}"),
    (re.compile(r"\beyJ[A-Za-z0-9_-]{6,}\.[A-Za-z0-9_-]{6,}\.[A-Za-z0-9_-]*"), MASK),
    (re.compile(r"\b(gh[pousr]_|github_pat_)[A-Za-z0-9_]{16,}"), rf"\g<1>{MASK}"),
    (re.compile(r"\b(sk-)[A-Za-z0-9_-]{16,}"), rf"\g<1>{MASK}"),
    (re.compile(r"\b(bearer|basic)(\s{1,3})[A-Za-z0-9._~+/=-]{8,}", re.IGNORECASE), rf"\g<1>\g<2>{MASK}"),
    (re.compile(r"://[^\s/@:\"']{0,200}:[^\s/@\"']{1,200}@"), f"://{MASK}@"),
    (_MEMBER, _mask_member),
)
_SECRET_NAME = re.compile(rf"\A[A-Za-z_-]{{0,24}}?{_NAMES}\Z", re.IGNORECASE)


def mask(text: str) -> str:
    """Return a text with what looks like a secret blanked out."""
    for pattern, replacement in _SHAPES:
        text = pattern.sub(replacement, text)
    return text


def mask_value(value: Any, depth: int = 6) -> Any:
    """Return a value with the texts in it masked, and members named like secrets whole; what is no plain value stays."""
    if isinstance(value, str):
        return mask(value)
    if depth and isinstance(value, Mapping):
        return {
            name: MASK if _is_secret(name, member) else mask_value(member, depth - 1) for name, member in value.items()
        }
    if depth and isinstance(value, (list, tuple)):
        return [mask_value(member, depth - 1) for member in value]
    return value


def _is_secret(name: Any, member: Any) -> bool:
    return (
        isinstance(name, str) and bool(member) and isinstance(member, (str, bytes)) and bool(_SECRET_NAME.match(name))
    )
