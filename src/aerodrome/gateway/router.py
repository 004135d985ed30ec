"""Session -> runtime: which runtime holds a live session, and how many of our links hold it there.

A route lives as long as at least one link is attached: a runtime unloads a session when its last connection lets go, and the
session may then be resumed on any runtime of its realm. Routes die with their runtime.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field


@dataclass(slots=True)
class _Route:
    runtime_id: str
    holders: set[int] = field(default_factory=set)


class Router:
    """The routes of the sessions that are live through this gateway."""

    def __init__(self) -> None:
        #: Hears where a session comes to be, None for nowhere, and why: realm, session id, runtime id, reason.
        self.note_place: Callable[[str, str, str | None, str], None] = lambda *_: None
        #: By realm and session: an id that another realm holds, or tries to take, must not lead there or lose its own route.
        self._routes: dict[tuple[str, str], _Route] = {}
        self._watched: set[str] = set()
        #: Where sessions on their way to a certain runtime are opened next (gateway.migration).
        self._directed: dict[tuple[str, str], str] = {}
        #: The sessions live in each runtime, the least recently used first.
        self._live: dict[str, OrderedDict[tuple[str, str], None]] = {}

    def __len__(self) -> int:
        return len(self._routes)

    def find(self, realm: str, session_id: str) -> str | None:
        """Return the id of the realm's runtime that holds the session, None if none does."""
        route = self._routes.get((realm, session_id))
        return route.runtime_id if route else None

    def destination(self, realm: str, session_id: str) -> str | None:
        """Return the runtime in which the session must be opened, None for any: that which holds it, or to which it moves."""
        return self.find(realm, session_id) or self._directed.get((realm, session_id))

    @contextmanager
    def directed(self, realm: str, session_id: str, runtime_id: str) -> Iterator[None]:
        """Have a session opened in a certain runtime, if it is opened within the block."""
        self._directed[realm, session_id] = runtime_id
        try:
            yield
        finally:
            # Another may have directed it elsewhere meanwhile.
            if self._directed.get((realm, session_id)) == runtime_id:
                del self._directed[realm, session_id]

    def live_in(self, runtime_id: str) -> list[tuple[str, str]]:
        """Return (realm, session id) of the sessions live in a runtime, the least recently used first."""
        return list(self._live.get(runtime_id, ()))

    def count_live(self, runtime_id: str) -> int:
        """Return how many sessions are live in a runtime."""
        return len(self._live.get(runtime_id, ()))

    def use(self, realm: str, session_id: str) -> None:
        """Note that a session is used: it is the last of its runtime to be evicted now."""
        route = self._routes.get((realm, session_id))
        if route is not None:
            self._live[route.runtime_id].move_to_end((realm, session_id))

    def attach(self, realm: str, session_id: str, runtime_id: str, holder: int, why: str = "opened") -> None:
        """Note that a link (by its number) holds the session in that runtime."""
        route = self._routes.get((realm, session_id))
        if route is None or route.runtime_id != runtime_id:
            self.forget(realm, session_id)
            route = self._routes[realm, session_id] = _Route(runtime_id)
            self.note_place(realm, session_id, runtime_id, why)
        route.holders.add(holder)
        live = self._live.setdefault(runtime_id, OrderedDict())
        live[realm, session_id] = None
        live.move_to_end((realm, session_id))

    def detach(self, realm: str, session_id: str, holder: int, why: str = "its last link let go") -> None:
        """Note that a link let go; the last one ends the route."""
        route = self._routes.get((realm, session_id))
        if route is not None:
            route.holders.discard(holder)
            if not route.holders:
                self.forget(realm, session_id, why)

    def forget(self, realm: str, session_id: str, why: str = "closed") -> None:
        """End the route of a deleted or closed session, whoever holds it."""
        route = self._routes.pop((realm, session_id), None)
        live = self._live.get(route.runtime_id) if route is not None else None
        if route is not None:
            self.note_place(realm, session_id, None, why)
        if route is not None and live is not None:
            live.pop((realm, session_id), None)
            if not live:
                del self._live[route.runtime_id]

    def watch(self, runtime_id: str, lost: asyncio.Future[str]) -> None:
        """Have the routes into a runtime end with it; however many links it serves, it is watched once."""
        if runtime_id not in self._watched:
            self._watched.add(runtime_id)
            lost.add_done_callback(lambda done: self.lose_runtime(runtime_id, _why(done)))

    def lose_runtime(self, runtime_id: str, why: str = "its runtime is lost") -> None:
        """End every route into a runtime that is gone."""
        for key in self._live.pop(runtime_id, ()):
            del self._routes[key]
            self.note_place(*key, None, why)
        self._watched.discard(runtime_id)


def _why(lost: asyncio.Future[str]) -> str:
    return "its runtime is lost" if lost.cancelled() else f"its runtime is lost: {lost.result()}"
