"""Requests under their keys, in memory (port: ports.idempotency.IdempotencyStore): for tests."""

from __future__ import annotations

from dataclasses import replace

from aerodrome import errors
from aerodrome.core.idempotency import Answer, KeyedRequest
from aerodrome.core.identity import Owner


class MemoryIdempotencyStore:
    """A dict."""

    def __init__(self) -> None:
        self._requests: dict[tuple[Owner, str], KeyedRequest] = {}
        self._is_closed = False

    async def begin(self, wanted: KeyedRequest, expired_before: float, limit: int) -> KeyedRequest:
        """Record a request unless its key is taken; return the one that holds."""
        self._check_open()
        held = self._requests.get((wanted.owner, wanted.key))
        if held is not None and held.created_at >= expired_before:
            return held
        if held is None and sum(owner == wanted.owner for owner, _ in self._requests) >= limit:
            raise errors.OverCapacity(f"{limit} idempotency keys are kept already; wait until some have expired")
        self._requests[wanted.owner, wanted.key] = wanted
        return wanted

    async def note(self, owner: Owner, key: str, resource: str) -> None:
        """Note what a request has made so far."""
        self._check_open()
        if (held := self._requests.get((owner, key))) is not None:
            self._requests[owner, key] = replace(held, resource=resource)

    async def finish(self, owner: Owner, key: str, answer: Answer) -> None:
        """Keep the answer of a request."""
        self._check_open()
        if (held := self._requests.get((owner, key))) is not None:
            self._requests[owner, key] = replace(held, answer=answer)

    async def release(self, owner: Owner, key: str) -> None:
        """Forget a request."""
        self._check_open()
        self._requests.pop((owner, key), None)

    async def purge(self, created_before: float) -> int:
        """Forget what was made before."""
        self._check_open()
        old = [key for key, held in self._requests.items() if held.created_at < created_before]
        for key in old:
            del self._requests[key]
        return len(old)

    async def aclose(self) -> None:
        """Refuse further calls. Idempotent."""
        self._is_closed = True

    def _check_open(self) -> None:
        if self._is_closed:
            raise errors.StoreUnavailable("expected an open store, found a closed one: open it again")
