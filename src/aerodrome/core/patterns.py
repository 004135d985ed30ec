"""Patterns of models and tools in a policy: how they are written, what they match, and which of several decides.

A model pattern is a name in which `*` stands for any characters. A tool pattern is `SOURCE:NAME` with the source `custom` (the
client's own), `mcp` (NAME is SERVER/TOOL) or `builtin`; `*` alone means every tool, and `!` in front denies. Denials go first,
wherever they stand; a list that only denies allows the rest. Deliberately knows no tool by name: which built-in ones exist and
which may be had at all is for `protocol`.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from aerodrome import errors

SOURCES = ("builtin", "custom", "mcp")

_MODEL = re.compile(r"[!-~]{1,200}\Z")
_NAME = re.compile(r"[A-Za-z0-9_.*-]{1,200}\Z")
#: Of a server's tools a runtime takes exact names, or all (measured): half a name cannot be handed to it.
_MCP_NAME = re.compile(r"[A-Za-z0-9_.*-]{1,200}/(?:\*|[A-Za-z0-9_.-]{1,200})\Z")


@dataclass(frozen=True, slots=True)
class Decision:
    """Whether something is allowed, and the pattern that decides; None where none matches, or there are none."""

    is_allowed: bool
    pattern: str | None = None


def check_model(name: str, pattern: str) -> str:
    """Return a model pattern that can match.

    Raises:
        errors.ConfigError: it is empty, too long, or holds blanks or control characters.
    """
    if not _MODEL.match(pattern):
        raise errors.ConfigError(
            f"{name}: expected a model's name, '*' for any characters, without blanks, found {pattern!r}"
        )
    return pattern


def check_tool(name: str, pattern: str) -> str:
    """Return a tool pattern that can match.

    Raises:
        errors.ConfigError: it is no such pattern; the message says how one looks.
    """
    source, colon, tool = pattern.removeprefix("!").partition(":")
    if pattern.removeprefix("!") == "*":
        return pattern
    form = _MCP_NAME if source == "mcp" and tool != "*" else _NAME
    if not colon or source not in SOURCES or not form.match(tool):
        raise errors.ConfigError(
            f"{name}: expected builtin:NAME, custom:NAME, mcp:SERVER/TOOL (TOOL is a whole name or '*'), mcp:*, or '*', "
            f"with '!' in front to deny, found {pattern!r}"
        )
    return pattern


def matches(pattern: str, text: str) -> bool:
    """Say whether a pattern covers a whole text; takes time linear in both for each `*`, whatever they hold."""
    first, *rest = pattern.split("*")
    if not rest:
        return pattern == text
    *middle, last = rest
    if len(text) < len(first) + len(last) or not text.startswith(first) or not text.endswith(last):
        return False
    at, end = len(first), len(text) - len(last)
    for part in middle:
        found = text.find(part, at, end)
        if found < 0:
            return False
        at = found + len(part)
    return True


def judge_model(patterns: Sequence[str] | None, model: str) -> Decision:
    """Decide on a model by name, as it is written; no list allows every model."""
    if patterns is None:
        return Decision(True)
    deciding = next((pattern for pattern in patterns if matches(pattern, model)), None)
    return Decision(deciding is not None, deciding)


def judge_tool(patterns: Sequence[str] | None, tool: str) -> Decision:
    """Decide on a tool `SOURCE:NAME`; no list allows every tool."""
    if patterns is None:
        return Decision(True)
    return _decide(patterns, [pattern for pattern in patterns if _covers(pattern.removeprefix("!"), tool)])


def judge_source(patterns: Sequence[str] | None, source: str) -> Decision:
    """Decide whether any tool of a source may be had."""
    if patterns is None:
        return Decision(True)
    whole = [pattern for pattern in patterns if pattern in ("!*", f"!{source}:*", f"!{source}:*/*")]
    some = [pattern for pattern in patterns if pattern == "*" or pattern.startswith(f"{source}:")]
    return _decide(patterns, whole or some)


@dataclass(frozen=True, slots=True)
class ServerTools:
    """Which tools of one MCP server may be had: `names` (None: all of them) without `denied`."""

    names: tuple[str, ...] | None
    denied: tuple[str, ...] = ()


def server_tools(patterns: Sequence[str] | None, server: str) -> ServerTools:
    """Return which tools of an MCP server patterns allow, in the form that a runtime takes."""
    if patterns is None:
        return ServerTools(None)
    denied = _tools_of(patterns, server, "!")
    allowed = _tools_of(patterns, server, "")
    if "*" in denied:
        return ServerTools(())
    is_whole = "*" in allowed or (all(pattern.startswith("!") for pattern in patterns) and bool(patterns))
    return ServerTools(None if is_whole else allowed, denied)


def _tools_of(patterns: Sequence[str], server: str, mark: str) -> tuple[str, ...]:
    found = []
    for pattern in patterns:
        if pattern.startswith("!") != bool(mark):
            continue
        plain = pattern.removeprefix("!")
        named, _, tool = plain.removeprefix("mcp:").partition("/")
        if plain in ("*", "mcp:*"):
            found.append("*")
        elif plain.startswith("mcp:") and matches(named, server):
            found.append(tool)
    return tuple(dict.fromkeys(found))


def _decide(patterns: Sequence[str], matching: Sequence[str]) -> Decision:
    denial = next((pattern for pattern in matching if pattern.startswith("!")), None)
    if denial is not None:
        return Decision(False, denial)
    if matching:
        return Decision(True, matching[0])
    only_denials = bool(patterns) and all(pattern.startswith("!") for pattern in patterns)
    return Decision(only_denials)


def _covers(pattern: str, tool: str) -> bool:
    if pattern == "*":
        return True
    wanted, _, name = pattern.partition(":")
    source, _, given = tool.partition(":")
    return wanted == source and matches(name, given)
