"""Whose turn it is: first come, first served within a tenant, tenants in rotation. A pure data structure.

A tenant with a thousand in the queue is served as often as one with a single one; what waits, and for what, the user knows.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from typing import Generic, TypeVar

Item = TypeVar("Item")


class FairQueue(Generic[Item]):
    """Items of tenants. Every operation but `remove` is O(1)."""

    def __init__(self) -> None:
        #: In order of turn; a tenant without items is not in it.
        self._tenants: OrderedDict[str, deque[Item]] = OrderedDict()
        self._length = 0

    def __len__(self) -> int:
        return self._length

    def put(self, tenant: str, item: Item) -> None:
        """Add an item behind those of its tenant; a tenant that had none comes after all others."""
        self._tenants.setdefault(tenant, deque()).append(item)
        self._length += 1

    def take(self) -> Item:
        """Take out the item whose turn it is. Raises KeyError if there is none."""
        tenant, items = self._tenants.popitem(last=False)
        item = items.popleft()
        if items:
            self._tenants[tenant] = items
        self._length -= 1
        return item

    def remove(self, tenant: str, item: Item) -> None:
        """Take an item out before its turn; does nothing if it is not there."""
        items = self._tenants.get(tenant)
        if items is None or item not in items:
            return
        items.remove(item)
        self._length -= 1
        if not items:
            del self._tenants[tenant]
