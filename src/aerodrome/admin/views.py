"""What an operator sees: runtimes, sessions, links and the gateway, as frozen values made from gateway and fleet.

Never a token, a prompt, a parameter or a key: a view is built member by member from ids, names, states and counts. Only what is
held now is here; sessions that no link holds are the registry's (`aerodrome session list`).
"""

from __future__ import annotations

import asyncio
import heapq
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TypeVar

from aerodrome import errors
from aerodrome.core.attachment import AttachmentState
from aerodrome.core.identity import Owner
from aerodrome.fleet.pool import RuntimePool
from aerodrome.gateway.client import Client, Services
from aerodrome.gateway.residents import Resident
from aerodrome.gateway.service import TenantGateway
from aerodrome.ports.fleet import PoolView, RuntimeView

Item = TypeVar("Item")

#: What a session is said to be when its links do not agree: the first of these that any of them has it in.
_FIRST_STATES = (
    AttachmentState.TURN,
    AttachmentState.OPENING,
    AttachmentState.UNLOADING,
    AttachmentState.IDLE,
    AttachmentState.EVICTED,
    AttachmentState.LOST,
)


@dataclass(frozen=True, slots=True)
class RuntimeRow:
    """A runtime, with how many sessions are live in it; None where the gateway does not know of sessions."""

    runtime: RuntimeView
    live_sessions: int | None


@dataclass(frozen=True, slots=True)
class SessionView:
    """A session that a link holds. `runtime_id` is None while it is in no runtime; `idle_seconds` is since its last use."""

    session_id: str
    tenant: str
    user: str
    realm: str
    runtime_id: str | None
    state: str
    links: int
    is_at_work: bool
    idle_seconds: float | None


@dataclass(frozen=True, slots=True)
class LinkView:
    """A client link: what it holds, and how many requests wait for a runtime's answer."""

    number: int
    peer: str
    tenant: str
    user: str
    sessions: int
    upstreams: int
    requests: int
    age_seconds: float


@dataclass(frozen=True, slots=True)
class Facts:
    """What of the settings an operator wants to see beside the counts. Seconds and counts of 0 mean: never, no limit."""

    policy: str
    address: str
    state_directory: str
    live_sessions: int
    links_per_runtime: int
    freeze_seconds: float
    idle_seconds: float
    drain_seconds: float


@dataclass(frozen=True, slots=True)
class GatewayView:
    """The gateway as a whole; links and sessions are None where it does not know of them."""

    pid: int
    runtime_version: str
    is_draining: bool
    links: int | None
    sessions: int | None
    at_work: int | None
    pool: PoolView
    settings: Facts


@dataclass(frozen=True, slots=True)
class SessionPage:
    """Some of the sessions; `next` is what to continue after, None at the end."""

    sessions: list[SessionView]
    next: tuple[str, str] | None


@dataclass(frozen=True, slots=True)
class LinkPage:
    """Some of the links; `next` is what to continue after, None at the end."""

    links: list[LinkView]
    next: int | None


def list_runtimes(pool: RuntimePool, services: Services | None) -> list[RuntimeRow]:
    """Return every runtime, those of a realm together, warm ones last."""
    views = sorted(pool.describe(), key=lambda view: (view.realm is None, view.realm or "", -view.age_seconds))
    count = services.router.count_live if services is not None else None
    return [RuntimeRow(view, count(view.runtime_id) if count else None) for view in views]


async def list_sessions(
    services: Services, tenant: str | None, after: tuple[str, str] | None, limit: int
) -> SessionPage:
    """Return the sessions that links hold, by realm and id, at most `limit` of them behind `after`."""
    wanted = (
        resident
        for resident in services.residents
        if (after is None or _place(resident) > after) and (tenant is None or owner_of(resident).tenant == tenant)
    )
    page, is_last = _cut(wanted, limit, _place)
    views = [await _view_session(services, resident) for resident in page]
    return SessionPage([view for view in views if view is not None], None if is_last else _place(page[-1]))


def list_links(gateway: TenantGateway, tenant: str | None, after: int | None, limit: int) -> LinkPage:
    """Return the client links, the oldest first, at most `limit` of them behind `after`."""
    wanted = (
        client
        for client in gateway.clients
        if (after is None or client.number > after) and (tenant is None or client.owner.tenant == tenant)
    )
    page, is_last = _cut(wanted, limit, lambda client: client.number)
    return LinkPage([_view_link(client) for client in page], None if is_last else page[-1].number)


def owner_of(resident: Resident) -> Owner:
    """Return whose it is: links of one owner only can hold a session."""
    return next(iter(resident.holders.values())).client.owner


def _cut(items: Iterable[Item], limit: int, key: Callable[[Item], tuple[str, str] | int]) -> tuple[list[Item], bool]:
    """Return the first items by key, and whether they are all."""
    found = heapq.nsmallest(limit + 1, items, key=key)
    return found[:limit], len(found) <= limit


def _place(resident: Resident) -> tuple[str, str]:
    return resident.realm, resident.session_id


async def _view_session(services: Services, resident: Resident) -> SessionView | None:
    try:
        record = await services.ownership.find_record(resident.session_id)
    except errors.StoreUnavailable:
        record = None
    if not resident.holders:
        return None  # let go while we asked the store
    states = {holder.held.state for holder in resident.holders.values()}
    owner = owner_of(resident)
    return SessionView(
        session_id=resident.session_id,
        tenant=owner.tenant,
        user=owner.user,
        realm=resident.realm,
        runtime_id=services.router.find(*_place(resident)),
        state=next(state for state in (*_FIRST_STATES, AttachmentState.CLOSED) if state in states).value,
        links=len(resident.holders),
        is_at_work=resident.is_at_work,
        idle_seconds=max(0.0, time.time() - record.used_at) if record is not None else None,
    )


def _view_link(client: Client) -> LinkView:
    return LinkView(
        number=client.number,
        peer=client.link.peer,
        tenant=client.owner.tenant,
        user=client.owner.user,
        sessions=len(client.attachments),
        upstreams=len(client.upstreams),
        requests=sum(len(upstream.owed) for upstream in client.upstreams.values()),
        age_seconds=asyncio.get_running_loop().time() - client.opened_at,
    )
