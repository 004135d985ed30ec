"""Requests in flight towards one peer: which answer belongs to whom, exactly once.

Sans-IO. Every request that is forwarded gets an id of our own, because ids of different origins collide (the runtime counts
its requests per connection from 1; clients choose theirs). The origin's id comes back with the answer.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Generic, TypeVar

from aerodrome import errors
from aerodrome.protocol.messages import RequestId

Origin = TypeVar("Origin")


class Correlation(Generic[Origin]):
    """The open requests towards one peer, each with its origin: what the caller needs to answer it."""

    def __init__(self, limit: int = 10_000) -> None:
        self._limit = limit
        self._open: dict[int, Origin] = {}
        self._next_id = 1

    def __len__(self) -> int:
        return len(self._open)

    def open(self, origin: Origin) -> int:
        """Take note of a request and return the id to send it under.

        Raises:
            errors.OverCapacity: the peer owes `limit` answers already.
        """
        self.check_room()
        request_id = self._next_id
        self._next_id += 1
        self._open[request_id] = origin
        return request_id

    def check_room(self) -> None:
        """Check that one more request can be opened, before what must not be undone.

        Raises:
            errors.OverCapacity: the peer owes `limit` answers already.
        """
        if len(self._open) >= self._limit:
            raise errors.OverCapacity(
                f"{self._limit} requests wait for their answers on this link; wait for some, then try again"
            )

    def close(self, request_id: RequestId | None) -> Origin | None:
        """Return the origin of an answered request and forget it; None if it is not open (late, doubled or invented)."""
        # A bool is an int to Python, and 1 == True: such an id was never ours.
        if type(request_id) is not int:
            return None
        return self._open.pop(request_id, None)

    def peek(self, request_id: RequestId | None) -> Origin | None:
        """Return the origin of an open request without closing it."""
        return self._open.get(request_id) if type(request_id) is int else None

    def items(self) -> list[tuple[int, Origin]]:
        """Return the open requests, oldest first."""
        return list(self._open.items())

    def origins(self) -> Iterable[Origin]:
        """Return the origins of the open requests, oldest first, to look at before anything is opened or closed."""
        return self._open.values()

    def drain(self) -> list[Origin]:
        """Close everything, oldest first: the peer is gone and will answer none of them."""
        origins = list(self._open.values())
        self._open.clear()
        return origins
