"""Which runtimes are in use through this gateway, and by which upstream links.

What gateway.hibernation and gateway.unloading look at to find a runtime with nothing at work. Deliberately decides nothing.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from aerodrome.core.attachment import AttachmentState
from aerodrome.ports.fleet import RuntimeHandle

if TYPE_CHECKING:
    from aerodrome.gateway.client import Client
    from aerodrome.gateway.upstream import Upstream

_AT_WORK = (AttachmentState.OPENING, AttachmentState.TURN, AttachmentState.UNLOADING)


@dataclass(slots=True)
class Occupied:
    """A runtime with the upstream links into it."""

    handle: RuntimeHandle
    links: dict[Upstream, Client] = field(default_factory=dict)

    @property
    def used_at(self) -> float:
        """Return when any of its links was last used, in the event loop's time."""
        return max((upstream.used_at for upstream in self.links), default=0.0)

    @property
    def is_at_work(self) -> bool:
        """Say whether a link waits for something: an answer, a turn's end, an opening, a client's answer."""
        return any(_is_at_work(upstream, client) for upstream, client in self.links.items())

    @property
    def serves_a_provider(self) -> bool:
        """Say whether a client of it is its file system or its model: then it lives and dies with that link."""
        return any(upstream.provider_roles for upstream in self.links)


class Occupancy:
    """The runtimes in use."""

    def __init__(self) -> None:
        self._runtimes: dict[str, Occupied] = {}

    def __iter__(self) -> Iterator[Occupied]:
        return iter(list(self._runtimes.values()))

    def find(self, runtime_id: str) -> Occupied | None:
        """Return a runtime if a link leads into it."""
        return self._runtimes.get(runtime_id)

    def enter(self, upstream: Upstream, client: Client) -> None:
        """Note that a link was opened."""
        handle = upstream.handle
        self._runtimes.setdefault(handle.runtime_id, Occupied(handle)).links[upstream] = client

    def leave(self, upstream: Upstream) -> None:
        """Note that a link has ended; idempotent."""
        occupied = self._runtimes.get(upstream.handle.runtime_id)
        if occupied is not None:
            occupied.links.pop(upstream, None)
            if not occupied.links:
                del self._runtimes[upstream.handle.runtime_id]


def _is_at_work(upstream: Upstream, client: Client) -> bool:
    if len(upstream.owed) or any(asked.upstream is upstream for _, asked in client.asked.items()):
        return True
    return any(held.upstream is upstream and held.state in _AT_WORK for held in client.attachments.values())
