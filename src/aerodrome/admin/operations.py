"""The operator's verbs over gateway and fleet: show, drain, cordon, evict, recycle, reload, erase, mint.

One table of verbs: method name -> the form of its params and the function. Deliberately no policy of its own: a drain is the
signal's, a cordon the pool's, an eviction gateway.unloading's. Under the transparent policy there is no `gateway`: runtimes and
the pool can be seen and cordoned, sessions and links are not known.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Awaitable, Callable, Coroutine
from typing import Annotated, Any, NamedTuple

import msgspec
import structlog
from msgspec import Meta

from aerodrome import errors
from aerodrome.admin import recycling, views
from aerodrome.admin.erasure import Eraser, Report
from aerodrome.admin.views import Facts, GatewayView, LinkPage, RuntimeRow, SessionPage
from aerodrome.core.identity import Owner
from aerodrome.fleet.pool import RuntimePool
from aerodrome.gateway import audit, unloading
from aerodrome.gateway.client import Services
from aerodrome.gateway.minting import Minted, Minter
from aerodrome.gateway.residents import Resident
from aerodrome.gateway.service import TenantGateway
from aerodrome.ports.fleet import RuntimeHandle

_log = structlog.get_logger()
PAGE_RECORDS = 200
_PROGRESS_SECONDS = 1.0
_NAMED_AT_MOST = 20

#: Sends a notification to the operator who asked: method, params.
Notify = Callable[[str, Any], None]

_Name = Annotated[str, Meta(min_length=1, max_length=250)]
_Limit = Annotated[int, Meta(ge=1, le=PAGE_RECORDS)]


class Nothing(msgspec.Struct, forbid_unknown_fields=True):
    """Params of the verbs that take none."""


class ShowSessions(msgspec.Struct, forbid_unknown_fields=True):
    """Which sessions to show."""

    tenant: _Name | None = None
    after: tuple[str, str] | None = None
    limit: _Limit = PAGE_RECORDS


class ShowLinks(msgspec.Struct, forbid_unknown_fields=True):
    """Which links to show."""

    tenant: _Name | None = None
    after: int | None = None
    limit: _Limit = PAGE_RECORDS


class Drain(msgspec.Struct, forbid_unknown_fields=True):
    """Whether to say how far it is until the gateway ends."""

    wait: bool = False


class Cordon(msgspec.Struct, forbid_unknown_fields=True):
    """Which runtime, and what its log and its view say why."""

    runtime_id: _Name
    reason: Annotated[str, Meta(min_length=1, max_length=200)] = "cordoned by the operator"


class Evict(msgspec.Struct, forbid_unknown_fields=True):
    """Which session; the tenant where one id is held in several."""

    session_id: _Name
    tenant: _Name | None = None


class Recycle(msgspec.Struct, forbid_unknown_fields=True):
    """Which runtime, None for all; how long the next of its realm waits for it; whether to say when each is gone."""

    runtime_id: _Name | None = None
    each_seconds: Annotated[float, Meta(gt=0, le=86400)] = 300.0
    wait: bool = False


class Erase(msgspec.Struct, forbid_unknown_fields=True):
    """Whom to erase: one user of a tenant, None for all of them."""

    tenant: _Name
    user: _Name | None = None


class MintToken(msgspec.Struct, forbid_unknown_fields=True):
    """For which user a connection token is wanted, and for how long."""

    tenant: _Name
    user: _Name
    expires_seconds: float = 600.0


class Verb(NamedTuple):
    """A method: the form of its params, what does it, and whether it changes something (then the log says who asked)."""

    params: type[msgspec.Struct]
    run: Callable[[Any, Notify], Awaitable[Any]]
    changes: bool = False


class Operations:
    """The verbs of one gateway. `ask_to_drain` does what a signal would."""

    def __init__(
        self,
        pool: RuntimePool,
        facts: Facts,
        gateway: TenantGateway | None,
        ask_to_drain: Callable[[], None] | None,
        minter: Minter | None = None,
        eraser: Eraser | None = None,
    ) -> None:
        self._pool = pool
        self._facts = facts
        self._gateway = gateway
        self._ask_to_drain = ask_to_drain
        self._audit = gateway.services.audit if gateway is not None else audit.UNAUDITED
        self._eraser = eraser
        self._minter = minter
        self._is_drain_asked = False
        self._rolling: asyncio.Task[None] | None = None
        self._tasks: set[asyncio.Task[Any]] = set()
        self._verbs = {
            "show.runtimes": Verb(Nothing, self._show_runtimes),
            "show.sessions": Verb(ShowSessions, self._show_sessions),
            "show.links": Verb(ShowLinks, self._show_links),
            "show.pool": Verb(Nothing, self._show_pool),
            "drain": Verb(Drain, self._drain, changes=True),
            "cordon": Verb(Cordon, self._cordon, changes=True),
            "evict": Verb(Evict, self._evict, changes=True),
            "recycle": Verb(Recycle, self._recycle, changes=True),
            "erase": Verb(Erase, self._erase, changes=True),
            "token.mint": Verb(MintToken, self._mint_token, changes=True),
            "reload": Verb(Nothing, self._reload, changes=True),
        }
        #: Reads the configuration again; None where there is nothing to read.
        self.reload: Callable[[str], Awaitable[Any]] | None = None

    async def call(self, method: str, params: dict[str, Any], notify: Notify, caller: str) -> Any:
        """Do what a request asks; return its result.

        Raises:
            errors.MethodUnknown, errors.InvalidParams: no such verb, runtime or form of params.
            errors.AerodromeError: it cannot be done; says why.
        """
        verb = self._verbs.get(method)
        if verb is None:
            raise errors.MethodUnknown(f"no such verb; there are {', '.join(self._verbs)}")
        try:
            wanted = msgspec.convert(params, verb.params)
        except msgspec.ValidationError as error:
            raise errors.InvalidParams(f"{method}: {str(error)[:1].lower()}{str(error)[1:]}") from None
        if verb.changes:
            _log.info("admin.called", verb=method, caller=caller, target=_target(wanted))
            self._note(caller, method, wanted)
        try:
            return await verb.run(wanted, notify)
        except errors.AerodromeError as error:
            if verb.changes:
                self._note(caller, method, wanted, error)
            raise

    async def aclose(self) -> None:
        """End what is under way; idempotent."""
        for task in list(self._tasks):
            task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks)

    # -- seeing -----------------------------------------------------------------------------------------------------------

    async def _show_runtimes(self, _: Nothing, _notify: Notify) -> list[RuntimeRow]:
        return views.list_runtimes(self._pool, self._gateway.services if self._gateway is not None else None)

    async def _show_sessions(self, wanted: ShowSessions, _: Notify) -> SessionPage:
        return await views.list_sessions(self._services, wanted.tenant, wanted.after, wanted.limit)

    async def _show_links(self, wanted: ShowLinks, _: Notify) -> LinkPage:
        return views.list_links(self._tenants, wanted.tenant, wanted.after, wanted.limit)

    async def _show_pool(self, _: Nothing, _notify: Notify) -> GatewayView:
        gateway = self._gateway
        return GatewayView(
            pid=os.getpid(),
            runtime_version=self._pool.version,
            is_draining=self._is_draining,
            links=len(gateway.clients) if gateway is not None else None,
            sessions=len(gateway.services.residents) if gateway is not None else None,
            at_work=self._at_work,
            pool=self._pool.describe_pool(),
            settings=self._facts,
        )

    # -- changing ---------------------------------------------------------------------------------------------------------

    async def _drain(self, wanted: Drain, notify: Notify) -> dict[str, Any]:
        """Drain as a signal does; asking again changes nothing, while a second signal would force."""
        if self._ask_to_drain is None:
            raise errors.PolicyRejected("this gateway is part of another program, which alone can end it")
        if not self._is_draining:
            self._is_drain_asked = True
            self._ask_to_drain()
        while wanted.wait:
            # No answer follows: the end of the gateway is it (admin.server says so last).
            notify("drain.progress", {"at_work": self._at_work})
            await asyncio.sleep(_PROGRESS_SECONDS)
        return {"at_work": self._at_work, "drain_seconds": self._facts.drain_seconds}

    async def _cordon(self, wanted: Cordon, _: Notify) -> dict[str, Any]:
        if not wanted.reason.isprintable():
            raise errors.InvalidParams("expected a reason of printable characters on one line")
        handle = self._find_runtime(wanted.runtime_id)
        was = handle.cordoned.result() if handle.cordoned.done() else None
        if was is None:
            self._pool.cordon(handle, wanted.reason)
        return {"runtime_id": handle.runtime_id, "reason": was or wanted.reason, "was_cordoned": was is not None}

    async def _evict(self, wanted: Evict, _: Notify) -> dict[str, Any]:
        resident = self._find_session(wanted.session_id, wanted.tenant)
        if not resident.live and not resident.is_at_work:
            outcome = "absent"
        else:
            is_out = await unloading.unload(self._services, resident, "operator")
            outcome = "evicted" if is_out else "at_work"
        return {"session_id": resident.session_id, "outcome": outcome}

    async def _recycle(self, wanted: Recycle, notify: Notify) -> dict[str, Any]:
        if wanted.runtime_id is not None:
            handles = [self._find_runtime(wanted.runtime_id)]
            self._pool.cordon(handles[0], recycling.REASON)
        elif self._rolling is not None and not self._rolling.done():
            raise errors.AlreadyExists("all runtimes are being recycled already; see aerodrome show runtimes")
        else:
            handles = self._pool.handles()
        left: set[str] = {handle.runtime_id for handle in handles}

        def note(runtime_id: str, is_gone: bool) -> None:
            if is_gone:
                left.discard(runtime_id)
            if wanted.wait:
                notify("recycle.progress", {"runtime_id": runtime_id, "is_gone": is_gone})

        task = self._run(recycling.recycle(self._pool, handles, wanted.each_seconds, note))
        if wanted.runtime_id is None:
            self._rolling = task
        if wanted.wait:
            await asyncio.shield(task)  # who stops watching does not stop it
        return {"runtimes": [handle.runtime_id for handle in handles], "left": sorted(left)}

    async def _erase(self, wanted: Erase, _: Notify) -> list[Report]:
        if self._eraser is None:
            raise errors.PolicyRejected("the transparent policy knows no users; there is nothing to erase")
        # Who stops watching does not stop it half way.
        task = asyncio.ensure_future(self._eraser.erase(wanted.tenant, wanted.user, "operator"))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return await asyncio.shield(task)

    async def _mint_token(self, wanted: MintToken, _: Notify) -> Minted:
        if self._minter is None:
            raise errors.PolicyRejected("the transparent policy has one token, which the environment gives")
        return await self._minter.mint(Owner(wanted.tenant, wanted.user), wanted.expires_seconds)

    async def _reload(self, _: Nothing, _notify: Notify) -> Any:
        if self.reload is None:
            raise errors.PolicyRejected("this gateway has no tenants of a configuration that could be read again")
        return await self.reload("operator")

    def _run(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = asyncio.get_running_loop().create_task(work, name="recycling")
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    def _note(self, caller: str, verb: str, wanted: msgspec.Struct, error: errors.AerodromeError | None = None) -> None:
        """Record a verb; whom it is about is named as a user, so that an erasure of that user holds for this record too."""
        runtime_id = getattr(wanted, "runtime_id", None)
        self._audit.operated(caller, verb, runtime_id, self._about(wanted), error)

    def _about(self, wanted: msgspec.Struct) -> audit.About:
        if isinstance(wanted, (Erase, MintToken)):
            return None, Owner(wanted.tenant, wanted.user) if wanted.user is not None else None
        session_id = getattr(wanted, "session_id", None)
        if session_id is None or self._gateway is None:
            return None, None
        found = [resident for resident in self._services.residents if resident.session_id == session_id]
        return session_id, views.owner_of(found[0]) if found else None

    # -- finding ----------------------------------------------------------------------------------------------------------

    @property
    def _tenants(self) -> TenantGateway:
        if self._gateway is None:
            raise errors.PolicyRejected(
                "the transparent policy knows neither sessions nor links; it passes all bytes on"
            )
        return self._gateway

    @property
    def _services(self) -> Services:
        return self._tenants.services

    @property
    def _is_draining(self) -> bool:
        return self._is_drain_asked or (self._gateway is not None and self._gateway.services.drainer.is_draining)

    @property
    def _at_work(self) -> int | None:
        return self._gateway.services.drainer.at_work if self._gateway is not None else None

    def _find_runtime(self, runtime_id: str) -> RuntimeHandle:
        for handle in self._pool.handles():
            if handle.runtime_id == runtime_id:
                return handle
        if any(view.runtime_id == runtime_id for view in self._pool.describe()):
            raise errors.InvalidParams(f"runtime {runtime_id} is warm: it serves nobody, and nothing is placed on it")
        there = _some(sorted(handle.runtime_id for handle in self._pool.handles()))
        raise errors.InvalidParams(f"no runtime {runtime_id} serves here; there is {there}")

    def _find_session(self, session_id: str, tenant: str | None) -> Resident:
        everywhere = [resident for resident in self._services.residents if resident.session_id == session_id]
        found = [resident for resident in everywhere if tenant in (None, views.owner_of(resident).tenant)]
        if len(found) == 1:
            return found[0]
        if found:
            tenants = ", ".join(sorted(views.owner_of(resident).tenant for resident in found))
            raise errors.InvalidParams(f"session {session_id} is held by tenants {tenants}: name one with --tenant")
        whose = "" if tenant is None else f" of tenant {tenant}"
        held = len(self._services.residents)
        raise errors.SessionMissing(
            f"no link holds a session {session_id}{whose}; {held} others are held: aerodrome show sessions lists them"
        )


def _some(ids: list[str]) -> str:
    """Return ids as words, not too many of them."""
    if len(ids) > _NAMED_AT_MOST:
        return f"{', '.join(ids[:_NAMED_AT_MOST])} and {len(ids) - _NAMED_AT_MOST} more"
    return ", ".join(ids) or "none"


def _target(wanted: msgspec.Struct) -> str | None:
    """Return what a verb is to change, None for everything."""
    return getattr(wanted, "session_id", None) or getattr(wanted, "runtime_id", None)
