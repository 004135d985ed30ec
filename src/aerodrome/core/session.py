"""A session as the registry knows it: its id, who owns it, and the rule who may name it.

Ids are the client's own (design section 1, choice 4); nothing is read out of them.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from aerodrome.core.identity import Owner

_ID = re.compile(r"[A-Za-z0-9_-]{1,250}\Z")


@dataclass(frozen=True, slots=True)
class SessionRecord:
    """Who owns a session. `realm` names the runtimes that can hold it (core.placement). Times are Unix seconds."""

    session_id: str
    owner: Owner
    realm: str
    created_at: float
    used_at: float


@dataclass(frozen=True, slots=True)
class Claim:
    """The outcome of claiming an id: the record, and whether this claim made it."""

    record: SessionRecord
    created: bool


def is_valid_id(session_id: str) -> bool:
    """Say whether the runtime would take this id (measured: letters, digits, '_' and '-', under 256 bytes)."""
    return _ID.match(session_id) is not None
