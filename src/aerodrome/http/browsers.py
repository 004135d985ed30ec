"""Browsers that have signed in: a cookie with 256 random bits, and whom it stands for, kept in the registry by the cookie's hash.

So a browser stays signed in over a restart, and at every gateway of the registry; nothing is remembered here. Its time is up so
long after the sign-in, or so long unused. Whether its principal still is one is asked at every request (http.callers). What a
browser holds itself, sealed, is in http.sealed_cookies. Not sessions of Copilot: those are http.conversation.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import structlog

from aerodrome import errors
from aerodrome.clock import Clock
from aerodrome.core import browser as browsers
from aerodrome.core.browser import Browser
from aerodrome.core.identity import Principal
from aerodrome.ports.browsers import BrowserStore

_log = structlog.get_logger()
#: Of one user; the one used longest ago gives way to one too many.
MOST_BROWSERS = 100
#: A use is noted this often at most, and oftener only where a browser's time without one is short.
_TOUCH_SECONDS = 60.0
_TOUCH_SHARE = 20


@dataclass(frozen=True, slots=True)
class BrowserSettings:
    """How long a browser stays signed in, in seconds."""

    longest_seconds: float = 12 * 3600.0
    idle_seconds: float = 3600.0

    @property
    def touch_seconds(self) -> float:
        """Return how much earlier than its last use a browser's last noted use may be."""
        return min(_TOUCH_SECONDS, self.idle_seconds / _TOUCH_SHARE)


@dataclass(frozen=True, slots=True)
class BrowserSession:
    """A signed-in browser that calls. `began_at` is Unix time."""

    token: str = field(repr=False)
    principal: Principal
    began_at: float

    @property
    def csrf(self) -> str:
        """Return what must come with every form it sends."""
        return browsers.csrf_of(self.token)


class BrowserSessions:
    """The signed-in browsers of all gateways of a registry. Methods raise errors.StoreUnavailable."""

    def __init__(self, store: BrowserStore, clock: Clock, settings: BrowserSettings) -> None:
        self._store = store
        self._clock = clock
        self._settings = settings

    async def begin(self, principal: Principal) -> str:
        """Sign a browser in; return what its cookie is to be."""
        now, token = self._clock.now(), browsers.create_token()
        ends_at = now + self._settings.longest_seconds
        if principal.expires_at is not None:
            ends_at = min(ends_at, principal.expires_at)
        await self._store.add(Browser(browsers.hash_token(token), principal, now, now, ends_at), MOST_BROWSERS)
        return token

    async def find(self, token: str) -> BrowserSession | None:
        """Return the browser's session, used now; None if there is none or it is over."""
        token_hash, now = browsers.hash_token(token), self._clock.now()
        found = await self._store.find(token_hash)
        if found is None:
            return None
        if found.is_over(now, self._settings.idle_seconds):
            await self.end(token)
            return None
        if now - found.used_at >= self._settings.touch_seconds:
            await self._touch(token_hash, now)
        return BrowserSession(token, found.principal, found.began_at)

    async def _touch(self, token_hash: str, now: float) -> None:
        try:
            await self._store.touch(token_hash, now)
        except errors.StoreUnavailable as error:
            # It can be read: the request is served, and the next one notes its use.
            _log.warning("registry.flush_failed", reason=error.message)

    async def end(self, token: str) -> None:
        """Sign a browser out, at every gateway. Idempotent."""
        await self._store.remove(browsers.hash_token(token))

    async def sweep(self) -> None:
        """Forget those that are over."""
        now = self._clock.now()
        await self._store.purge(now, now - self._settings.idle_seconds)

    async def count(self) -> int:
        """Return how many are signed in."""
        now = self._clock.now()
        return await self._store.count(now, now - self._settings.idle_seconds)
