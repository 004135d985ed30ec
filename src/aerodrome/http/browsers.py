"""Browsers that have signed in: a cookie with 256 random bits, and whom it stands for, here in memory.

A browser's session lasts so long at most, and so long unused; a restart signs everyone out. Only a hash of the cookie is kept.
Whether its principal still is one is asked at every request (http.callers). Not sessions of Copilot: those are http.conversation.
"""

from __future__ import annotations

import hashlib
import secrets
from collections import OrderedDict
from dataclasses import dataclass, field

from aerodrome.clock import Clock
from aerodrome.core.identity import Principal
from aerodrome.core.sign_in import Kept

MOST_SESSIONS = 10_000
MOST_NOTICES = 5


@dataclass(frozen=True, slots=True)
class BrowserSettings:
    """How long a browser stays signed in, in seconds."""

    longest_seconds: float = 12 * 3600.0
    idle_seconds: float = 3600.0


@dataclass(frozen=True, slots=True)
class Notice:
    """What the next page says first: of what was just done, or why it was not."""

    text: str
    is_error: bool = False
    #: Shown this once, to be copied: a token.
    secret: str | None = field(default=None, repr=False)


@dataclass(slots=True, eq=False)
class BrowserSession:
    """One signed-in browser. `csrf` must come with every form it sends. Times are seconds since the Unix epoch."""

    principal: Principal
    began_at: float
    used_at: float
    csrf: str = field(default_factory=lambda: secrets.token_urlsafe(32), repr=False)
    notices: list[Notice] = field(default_factory=list)

    def tell(self, notice: Notice) -> None:
        """Have the next page say something."""
        self.notices = [*self.notices, notice][-MOST_NOTICES:]

    def take_notices(self) -> list[Notice]:
        """Return what a page is to say, once."""
        said, self.notices = self.notices, []
        return said


class BrowserSessions:
    """The signed-in browsers of this gateway; the one used longest ago gives way to one too many."""

    def __init__(self, clock: Clock, settings: BrowserSettings) -> None:
        self._clock = clock
        self._settings = settings
        self._sessions: OrderedDict[str, BrowserSession] = OrderedDict()

    def __len__(self) -> int:
        return len(self._sessions)

    def begin(self, principal: Principal) -> tuple[str, BrowserSession]:
        """Sign a browser in; return what its cookie is to be."""
        now = self._clock.now()
        for name in [name for name, session in self._sessions.items() if self._is_over(session, now)]:
            del self._sessions[name]
        while len(self._sessions) >= MOST_SESSIONS:
            self._sessions.popitem(last=False)
        cookie, session = secrets.token_urlsafe(32), BrowserSession(principal, now, now)
        self._sessions[_digest(cookie)] = session
        return cookie, session

    def find(self, cookie: str) -> BrowserSession | None:
        """Return the browser's session, used now; None if there is none or it is over."""
        name, now = _digest(cookie), self._clock.now()
        session = self._sessions.get(name)
        if session is None:
            return None
        if self._is_over(session, now):
            del self._sessions[name]
            return None
        session.used_at = now
        self._sessions.move_to_end(name)
        return session

    def end(self, cookie: str) -> None:
        """Sign a browser out. Idempotent."""
        self._sessions.pop(_digest(cookie), None)

    def _is_over(self, session: BrowserSession, now: float) -> bool:
        limits = self._settings
        return now >= session.began_at + limits.longest_seconds or now >= session.used_at + limits.idle_seconds


@dataclass(frozen=True, slots=True)
class BegunSignIn:
    """A sign-in at a provider that this browser has begun, and where it goes on to."""

    kept: Kept
    following: str


class BegunSignIns:
    """Sign-ins that browsers have begun at a provider: each good once, for its cookie's browser, for ten minutes."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._begun: OrderedDict[str, BegunSignIn] = OrderedDict()

    def begin(self, kept: Kept, following: str) -> str:
        """Remember a sign-in; return what the browser's cookie is to be."""
        now = self._clock.now()
        for name in [name for name, begun in self._begun.items() if now >= begun.kept.expires_at]:
            del self._begun[name]
        while len(self._begun) >= MOST_SESSIONS:
            self._begun.popitem(last=False)
        cookie = secrets.token_urlsafe(32)
        self._begun[_digest(cookie)] = BegunSignIn(kept, following)
        return cookie

    def take(self, cookie: str) -> BegunSignIn | None:
        """Return what a browser has begun, once."""
        return self._begun.pop(_digest(cookie), None)


def _digest(cookie: str) -> str:
    return hashlib.sha256(cookie.encode()).hexdigest()
