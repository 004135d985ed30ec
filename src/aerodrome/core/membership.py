"""Who may do what in a shared session: roles, the rights they give, and how one comes to have a role.

Pure values and rules. The owner's role comes with the session and cannot be given; other members hold one or more roles.
Which right a method needs is protocol.member_methods.
"""

from __future__ import annotations

import hashlib
import hmac
import re
import secrets
from collections.abc import Iterable
from dataclasses import dataclass
from enum import Enum

from aerodrome import errors
from aerodrome.core.identity import Owner


class Role(Enum):
    """What a member is in a session."""

    OWNER = "owner"
    DRIVER = "driver"
    APPROVER = "approver"
    OBSERVER = "observer"


class Right(Enum):
    """What a call needs."""

    READ = "read"
    SEND = "send"
    APPROVE = "approve"
    #: The tools that the caller's own link registered.
    ANSWER_TOOL = "answer_tool"
    MANAGE = "manage"


class BusyPolicy(Enum):
    """What becomes of a message to a session whose turn runs."""

    ENQUEUE = "enqueue"
    REJECT = "reject"
    INTERRUPT = "interrupt"
    STEER = "steer"


class Billing(Enum):
    """Whose usage a turn in a shared session is."""

    SENDER = "sender"
    OWNER = "owner"


_RIGHTS: dict[Role, frozenset[Right]] = {
    Role.OWNER: frozenset(Right),
    Role.DRIVER: frozenset({Right.READ, Right.SEND, Right.ANSWER_TOOL}),
    Role.APPROVER: frozenset({Right.READ, Right.APPROVE}),
    Role.OBSERVER: frozenset({Right.READ}),
}
#: The roles that can be given.
GIVEN = (Role.DRIVER, Role.APPROVER, Role.OBSERVER)
_LINK = re.compile(r"share_([0-9a-f]{16})_([A-Za-z0-9_-]{43})\Z")


@dataclass(frozen=True, slots=True)
class Member:
    """A person in a session. `is_invited`: asked in, and has not accepted yet. Times are Unix seconds."""

    session_id: str
    person: Owner
    roles: frozenset[Role]
    since: float
    is_invited: bool = False

    @property
    def rights(self) -> frozenset[Right]:
        """Return what the member may do; one who has not accepted may nothing."""
        return frozenset() if self.is_invited else rights_of(self.roles)


@dataclass(frozen=True, slots=True)
class Sharing:
    """How a session is shared."""

    session_id: str
    busy: BusyPolicy = BusyPolicy.ENQUEUE
    billing: Billing = Billing.SENDER


@dataclass(frozen=True, slots=True)
class SentBy:
    """Who sent a message of a shared session; `message_id` is the runtime's."""

    session_id: str
    message_id: str
    turn_id: str
    user: str
    at: float


@dataclass(frozen=True, slots=True)
class ShareLink:
    """Lets whoever has its token become a member, until it expires. Only the token's hash is kept."""

    link_id: str
    session_id: str
    secret_hash: str
    roles: frozenset[Role]
    expires_at: float
    uses_left: int

    def opens(self, secret: str, now: float) -> bool:
        """Say whether a secret opens it at `now`; takes the same time for any wrong secret."""
        matches = hmac.compare_digest(self.secret_hash, _hash(secret))
        return matches and not self.is_spent(now)

    def is_spent(self, now: float) -> bool:
        """Say whether it opens nothing any more."""
        return now >= self.expires_at or self.uses_left < 1


def rights_of(roles: Iterable[Role]) -> frozenset[Right]:
    """Return what these roles may do together."""
    return frozenset().union(*(_RIGHTS[role] for role in roles))


def check_roles(words: Iterable[str]) -> frozenset[Role]:
    """Return the roles that somebody may be given.

    Raises:
        errors.InvalidParams: there is none, or one that cannot be given.
    """
    known = {role.value: role for role in GIVEN}
    wanted = list(words)
    if not wanted or any(word not in known for word in wanted):
        found = ", ".join(map(str, wanted)) or "none"
        raise errors.InvalidParams(f"roles: expected some of {', '.join(known)}, found {found}")
    return frozenset(known[word] for word in wanted)


def create_link(
    session_id: str, roles: frozenset[Role], now: float, seconds: float, uses: int
) -> tuple[ShareLink, str]:
    """Make a share link and its token `share_<id>_<secret>`; the token cannot be had again."""
    link_id, secret = secrets.token_hex(8), secrets.token_urlsafe(32)
    link = ShareLink(link_id, session_id, _hash(secret), roles, now + seconds, uses)
    return link, f"share_{link_id}_{secret}"


def split_link(token: str) -> tuple[str, str] | None:
    """Return (link id, secret) of a share token, None if it has not the form of one."""
    match = _LINK.match(token)
    return (match[1], match[2]) if match else None


def _hash(secret: str) -> str:
    # 256 random bits need no slow hash (core.identity).
    return hashlib.sha256(secret.encode()).hexdigest()
