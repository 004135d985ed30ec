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
        self._routes: dict[str, _Route] = {}
        self._watched: set[str] = set()

    def __len__(self) -> int:
        return len(self._routes)

    def find(self, session_id: str) -> str | None:
        """Return the id of the runtime that holds the session, None if none does."""
        route = self._routes.get(session_id)
        return route.runtime_id if route else None

    def attach(self, session_id: str, runtime_id: str, holder: int) -> None:
        """Note that a link (by its number) holds the session in that runtime."""
        route = self._routes.get(session_id)
        if route is None or route.runtime_id != runtime_id:
            route = self._routes[session_id] = _Route(runtime_id)
        route.holders.add(holder)

    def detach(self, session_id: str, holder: int) -> None:
        """Note that a link let go; the last one ends the route."""
        route = self._routes.get(session_id)
        if route is not None:
            route.holders.discard(holder)
            if not route.holders:
                del self._routes[session_id]

    def forget(self, session_id: str) -> None:
        """End the route of a deleted or closed session, whoever holds it."""
        self._routes.pop(session_id, None)

    def watch(self, runtime_id: str, lost: asyncio.Future[str]) -> None:
        """Have the routes into a runtime end with it; however many links it serves, it is watched once."""
        if runtime_id not in self._watched:
            self._watched.add(runtime_id)
            lost.add_done_callback(lambda _: self.lose_runtime(runtime_id))

    def lose_runtime(self, runtime_id: str) -> None:
        """End every route into a runtime that is gone."""
        for session_id in [sid for sid, route in self._routes.items() if route.runtime_id == runtime_id]:
            del self._routes[session_id]
        self._watched.discard(runtime_id)
