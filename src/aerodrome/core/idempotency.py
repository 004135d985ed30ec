"""Requests that a caller names by a key, so that sending one again does not do it again. Pure values.

A key is its owner's; with it goes a fingerprint of what was asked, so that one key never stands for two things.
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass

from aerodrome.core.identity import Owner

_KEY = re.compile(r"[!-~]{1,255}\Z")


@dataclass(frozen=True, slots=True)
class Answer:
    """What a request was answered with; `headers` as JSON text. `body` is None where it was too large to keep."""

    status: int
    headers: str
    body: str | None


@dataclass(frozen=True, slots=True)
class KeyedRequest:
    """A request under its key. `holder` is the life of the gateway that runs it; no answer yet: it runs, or died with it.

    `resource` names what it made so far, as whoever runs it writes it. Times are Unix seconds.
    """

    owner: Owner
    key: str
    fingerprint: str
    holder: str
    created_at: float
    resource: str = ""
    answer: Answer | None = None


def is_key(text: str) -> bool:
    """Say whether a text can be a key: 1 to 255 printable ASCII characters without spaces."""
    return _KEY.match(text) is not None


def fingerprint(method: str, path: str, body: bytes) -> str:
    """Return what is the same for the same request only."""
    digest = hashlib.sha256()
    for part in (method.encode(), path.encode(), body):
        digest.update(b"%d:" % len(part))
        digest.update(part)
    return digest.hexdigest()
