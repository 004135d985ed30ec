"""A fleet of one: a runtime whose address the operator gave. We neither start nor stop it.

Every realm is served by it; only policies that let one tenant in may use it (settings checks that).
"""

from __future__ import annotations

import asyncio

from aerodrome import errors
from aerodrome.core.placement import Realm
from aerodrome.ports.fleet import Broadcast, RuntimeHandle


class GivenUpstream:
    """One upstream by address. Whether it lives is found out by each link for itself."""

    def __init__(self, host: str, port: int, token: str | None) -> None:
        self._host = host
        self._port = port
        self._token = token
        self._closed = False

    @property
    def version(self) -> str:
        """Return that the release is not known before the upstream says it."""
        return "unknown"

    async def acquire(self, realm: Realm, runtime_id: str | None = None) -> RuntimeHandle:
        """Return the upstream; each link gets a handle of its own."""
        if self._closed:
            raise errors.Draining("this gateway is stopping; connect again to reach another")
        lost: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        return RuntimeHandle(runtime_id or "given", realm, self._host, self._port, self._token, lost, links=1)

    def release(self, handle: RuntimeHandle) -> None:
        """Forget the link."""
        handle.links -= 1

    def cordon(self, handle: RuntimeHandle, reason: str) -> None:
        """Tell the link's owner; the upstream itself is not ours to replace."""
        if not handle.cordoned.done():
            handle.cordoned.set_result(reason)

    def retire(self, handle: RuntimeHandle, reason: str) -> None:
        """Tell the link's owner; the upstream itself is not ours to stop."""
        if not handle.lost.done():
            handle.lost.set_result(reason)

    def let_reach(self, realm: Realm) -> None:
        """Do nothing: whatever holds the upstream is not ours."""

    def subscribe(self, broadcast: Broadcast) -> None:
        """Deliver nothing: there is no control link to a runtime of the operator's own."""

    async def aclose(self) -> None:
        """Take no more links."""
        self._closed = True
