"""Signed-in browsers, in memory (port: ports.browsers.BrowserStore): for tests."""

from __future__ import annotations

from dataclasses import replace

from aerodrome import errors
from aerodrome.core.browser import Browser
from aerodrome.core.policy import Policy


class MemoryBrowserStore:
    """A dict."""

    def __init__(self) -> None:
        self._browsers: dict[str, Browser] = {}
        self._is_closed = False

    async def add(self, browser: Browser, limit: int) -> None:
        """Keep a new one."""
        self._check_open()
        standing = replace(browser.principal, policy=Policy())
        self._browsers[browser.token_hash] = replace(browser, principal=standing)
        theirs = [one for one in self._browsers.values() if one.principal.owner == browser.principal.owner]
        for one in sorted(theirs, key=lambda one: (-one.used_at, one.token_hash))[limit:]:
            del self._browsers[one.token_hash]

    async def find(self, token_hash: str) -> Browser | None:
        """Return one."""
        self._check_open()
        return self._browsers.get(token_hash)

    async def touch(self, token_hash: str, used_at: float) -> None:
        """Note a use."""
        self._check_open()
        found = self._browsers.get(token_hash)
        if found is not None and found.used_at < used_at:
            self._browsers[token_hash] = replace(found, used_at=used_at)

    async def remove(self, token_hash: str) -> None:
        """Forget one."""
        self._check_open()
        self._browsers.pop(token_hash, None)

    async def purge(self, now: float, used_before: float) -> int:
        """Forget those that are over."""
        self._check_open()
        before = len(self._browsers)
        self._browsers = {key: one for key, one in self._browsers.items() if _is_there(one, now, used_before)}
        return before - len(self._browsers)

    async def count(self, now: float, used_before: float) -> int:
        """Return how many are not over."""
        self._check_open()
        return sum(_is_there(one, now, used_before) for one in self._browsers.values())

    async def aclose(self) -> None:
        """Refuse further calls. Idempotent."""
        self._is_closed = True

    def _check_open(self) -> None:
        if self._is_closed:
            raise errors.StoreUnavailable("expected an open store, found a closed one: open it again")


def _is_there(browser: Browser, now: float, used_before: float) -> bool:
    return browser.ends_at > now and browser.used_at > used_before
