"""Session -> runtime: which runtime holds a live session, and how many of our links hold it there.

A route lives as long as at least one link is attached: a runtime unloads a session when its last connection lets go, and the
session may then be resumed on any runtime of its realm. Routes die with their runtime.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field


@dataclass(slots=True)
class _Route:
    runtime_id: str
    holders: set[int] = field(default_factory=set)


class Router:
    """The routes of the sessions that are live through this gateway."""

    def __init__(self) -> None:
        #: By realm and session: an id that another realm holds, or tries to take, must not lead there or lose its own route.
        self._routes: dict[tuple[str, str], _Route] = {}
        self._watched: set[str] = set()

    def __len__(self) -> int:
        return len(self._routes)

    def find(self, realm: str, session_id: str) -> str | None:
        """Return the id of the realm's runtime that holds the session, None if none does."""
        route = self._routes.get((realm, session_id))
        return route.runtime_id if route else None

    def attach(self, realm: str, session_id: str, runtime_id: str, holder: int) -> None:
        """Note that a link (by its number) holds the session in that runtime."""
        route = self._routes.get((realm, session_id))
        if route is None or route.runtime_id != runtime_id:
            route = self._routes[realm, session_id] = _Route(runtime_id)
        route.holders.add(holder)

    def detach(self, realm: str, session_id: str, holder: int) -> None:
        """Note that a link let go; the last one ends the route."""
        route = self._routes.get((realm, session_id))
        if route is not None:
            route.holders.discard(holder)
            if not route.holders:
                del self._routes[realm, session_id]

    def forget(self, realm: str, session_id: str) -> None:
        """End the route of a deleted or closed session, whoever holds it."""
        self._routes.pop((realm, session_id), None)

    def watch(self, runtime_id: str, lost: asyncio.Future[str]) -> None:
        """Have the routes into a runtime end with it; however many links it serves, it is watched once."""
        if runtime_id not in self._watched:
            self._watched.add(runtime_id)
            lost.add_done_callback(lambda _: self.lose_runtime(runtime_id))

    def lose_runtime(self, runtime_id: str) -> None:
        """End every route into a runtime that is gone."""
        for key in [key for key, route in self._routes.items() if route.runtime_id == runtime_id]:
            del self._routes[key]
        self._watched.discard(runtime_id)
