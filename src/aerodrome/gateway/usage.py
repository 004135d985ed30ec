"""What model calls take, counted where their events pass, for all links alike; written on schedule, as times of use are.

Several links of an owner may hear one event: it is counted once, by its id. Neighbours: downward (who tells), ports.usage.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import Any

import msgspec

from aerodrome import errors
from aerodrome.clock import Clock, SystemClock
from aerodrome.core import usage
from aerodrome.core.identity import Owner
from aerodrome.core.usage import DayUsage, Usage
from aerodrome.gateway import flushing
from aerodrome.ports.usage import UsageStore

EVENT = "assistant.usage"
#: Events that are remembered as counted; another link hears one within moments.
_COUNTED_EVENTS = 20_000
#: Models of one user between two flushes; clients may name models as they like, and rows must not grow with it.
_MODELS_AT_ONCE = 50
OTHER_MODELS = "other"


class _Event(msgspec.Struct):
    id: str = ""
    data: Any = None


class _Params(msgspec.Struct):
    event: _Event = msgspec.field(default_factory=_Event)


class _Message(msgspec.Struct):
    params: _Params = msgspec.field(default_factory=_Params)


_decode = msgspec.json.Decoder(_Message).decode


class UsageLedger:
    """Counts; without a store it counts nothing."""

    def __init__(self, store: UsageStore | None = None, clock: Clock | None = None) -> None:
        self._store = store
        self._clock = clock or SystemClock()
        self._pending: dict[tuple[Owner, str, str], Usage] = {}
        self._counted: OrderedDict[str, None] = OrderedDict()
        self._flushing = asyncio.Lock()

    def note(self, owner: Owner, body: bytes) -> None:
        """Count what an `assistant.usage` event of an owner's session says; one that was counted is not counted again."""
        if self._store is None:
            return
        try:
            event = _decode(body).params.event
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            return
        if not isinstance(event.data, dict) or (event.id and event.id in self._counted):
            return
        if event.id:
            self._counted[event.id] = None
            if len(self._counted) > _COUNTED_EVENTS:
                self._counted.popitem(last=False)
        self._key_of(owner, usage.model_of(event.data)).add(event.data)

    def _key_of(self, owner: Owner, model: str) -> Usage:
        key = (owner, usage.day_of(self._clock.now()), model)
        if key not in self._pending and sum(one[0] == owner for one in self._pending) >= _MODELS_AT_ONCE:
            key = (owner, key[1], OTHER_MODELS)
        return self._pending.setdefault(key, Usage())

    async def list_days(self, owner: Owner, first: str, last: str) -> Sequence[DayUsage]:
        """Return a user's figures of some days, with what was not written yet.

        Raises:
            errors.StoreUnavailable: the store does not answer.
        """
        if self._store is None:
            return []
        await self.flush()
        return await self._store.list_days(owner, first, last)

    async def forget(self, owner: Owner) -> None:
        """Drop what is counted of a user and not written (erasure); what is being written now is waited for."""
        async with self._flushing:
            for key in [key for key in self._pending if key[0] == owner]:
                del self._pending[key]

    async def flush(self) -> None:
        """Write what was counted since the last flush; what cannot be written waits for the next one.

        Raises:
            errors.StoreUnavailable: the store does not answer.
        """
        async with self._flushing:
            pending, self._pending = self._pending, {}
            if self._store is None or not pending:
                return
            try:
                await self._store.add([DayUsage(*key, figures) for key, figures in pending.items()])
            except BaseException:
                for key, figures in pending.items():
                    self._pending.setdefault(key, Usage()).merge(figures)
                raise

    async def flush_every(self, seconds: float, failed: Callable[[errors.StoreUnavailable], None]) -> None:
        """Flush on schedule until cancelled, and once more then; `failed` hears of every flush that did not succeed."""
        await flushing.flush_every(self.flush, seconds, failed)
