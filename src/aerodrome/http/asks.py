"""One-shot questions: a session that lives for one turn and is deleted whatever comes of it.

It is marked in the store before a runtime hears of it and until it is deleted: what this gateway leaves behind (killed in
between, its runtime gone) is deleted at its next start, or by the next look. Each question has a task of its own, so that
nothing depends on whoever asked. Neighbours: ask_routes, guide_routes.
"""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field

import structlog

from aerodrome import errors
from aerodrome.core import placement
from aerodrome.core.identity import Owner, Principal
from aerodrome.gateway import workplaces
from aerodrome.gateway.deletion import Outcome, SessionDeletion
from aerodrome.gateway.presence import ResidentPresence
from aerodrome.gateway.service import TenantGateway
from aerodrome.http.conversation import Conversation
from aerodrome.http.options import SessionOptions
from aerodrome.http.turns import Turn
from aerodrome.http.users import HttpUser, HttpUsers

_log = structlog.get_logger()
#: How long an aborted turn may take to end before its session is deleted all the same.
_ABORT_SECONDS = 5.0
_LOOK_SECONDS = 60.0
_SETTLE_SECONDS = 5.0


@dataclass(slots=True, eq=False)
class Ask:
    """A question under way."""

    user: HttpUser
    held: Conversation
    turn: Turn
    #: Whoever asked has left, and nobody waits for the answer.
    left: asyncio.Event = field(default_factory=asyncio.Event)
    #: The turn is over: what came of it can be told. The session is deleted after that.
    told: asyncio.Event = field(default_factory=asyncio.Event)
    is_late: bool = False


class Asks:
    """The questions of this gateway."""

    def __init__(self, gateway: TenantGateway, users: HttpUsers) -> None:
        self._gateway = gateway
        self._users = users
        self._open: set[str] = set()
        #: Of earlier gateways, until they are deleted.
        self._left_behind: set[str] = set()
        #: What those who are listing sessions now must not show.
        self._hidden: list[set[str]] = []
        self._tasks: set[asyncio.Task[None]] = set()
        services = gateway.services
        presence = ResidentPresence(services)
        self._deletion = SessionDeletion(services.fleet, services.ownership, presence, _SETTLE_SECONDS)

    async def find_leftovers(self) -> None:
        """Learn what earlier gateways left, before anybody asks for their sessions."""
        try:
            found = await self._users.store.list_ephemeral()
        except errors.StoreUnavailable as error:
            _log.warning("http.leftover_failed", reason=error.message)
        else:
            self._left_behind = {session_id for session_id, _ in found if session_id not in self._open}

    def start(self) -> None:
        """Begin to delete what earlier gateways left."""
        self._keep(asyncio.create_task(self._look(), name="leftovers of questions"))

    @contextmanager
    def hiding(self) -> Iterator[set[str]]:
        """Yield the sessions of questions, which nobody is to find, while they are being listed.

        What is read from a store may be older than the question's end, so those that end meanwhile stay in it, and those
        that begin come to it.
        """
        hidden = self._open | self._left_behind
        self._hidden.append(hidden)
        try:
            yield hidden
        finally:
            self._hidden = [other for other in self._hidden if other is not hidden]

    async def begin(self, principal: Principal, prompt: str, chosen: SessionOptions, seconds: float) -> Ask:
        """Ask a question that may take so long.

        Raises:
            errors.AerodromeError: no session can be opened now, or by policy; nothing is left of it.
        """
        session_id = f"ask-{uuid.uuid4()}"
        self._open.add(session_id)
        for hidden in self._hidden:
            hidden.add(session_id)
        try:
            user = await self._users.of(principal)
            held = await user.create(session_id, chosen, is_ephemeral=True)
            ask = Ask(user, held, held.ask(prompt, principal.owner.user))
        except BaseException:
            self._open.discard(session_id)
            raise
        self._keep(asyncio.create_task(self._run(ask, seconds), name="question"))
        await held.wait_taken(ask.turn)
        return ask

    async def _run(self, ask: Ask, seconds: float) -> None:
        turn = ask.turn
        try:
            over = asyncio.ensure_future(ask.held.wait_over(turn))
            left = asyncio.ensure_future(ask.left.wait())
            try:
                await asyncio.wait((over, left), timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
            finally:
                for waiting in (over, left):
                    waiting.cancel()
                await asyncio.wait((over, left))
            if not turn.is_over:
                ask.is_late = not ask.left.is_set()
                await self._abort(ask)
        finally:
            ask.told.set()
            await self._delete(ask)

    async def _abort(self, ask: Ask) -> None:
        with suppress(errors.AerodromeError, TimeoutError):
            async with asyncio.timeout(_ABORT_SECONDS):
                await ask.held.abort()
                await ask.held.wait_over(ask.turn)
        if ask.is_late and ask.turn.error is None:
            ask.turn.error = {"code": "timed_out", "message": "the turn took too long and was aborted"}

    async def _delete(self, ask: Ask) -> None:
        session_id = ask.held.session_id
        try:
            await self._remove(session_id, ask.user)
        except errors.AerodromeError as error:
            # It is marked in the store: the next look deletes it.
            self._left_behind.add(session_id)
            _log.info("http.leftover_failed", session=session_id, reason=error.message)
        finally:
            self._open.discard(session_id)

    async def _remove(self, session_id: str, user: HttpUser | None = None, owner: Owner | None = None) -> None:
        """Delete a session, at work or not if its user is at hand, with the files that a runtime leaves of it."""
        whose = user.owner if user is not None else owner
        assert whose is not None
        services = self._gateway.services
        record = await services.ownership.find_record(session_id)
        if record is None or record.owner != whose:
            await self._users.store.forget(session_id, whose)
            return
        policy = await self._gateway.admission.find_policy(whose)
        realm = placement.realm_of_key(record.realm)
        if policy is not None:
            realm = placement.under(realm, policy)
        async with self._deletion.open_runtime(realm) as (handle, link):
            of_realm = handle.work_directory
            place = workplaces.find(policy, whose, of_realm) if policy is not None else None
            outcome = await self._deletion.delete(record, handle, link, _always, place)
            if outcome is Outcome.LEFT and user is not None:
                await user.delete(session_id)
                await self._deletion.remove_files(place, of_realm, session_id)
            elif outcome is Outcome.REAPED:
                await self._users.store.forget(session_id, whose)

    # -- leftovers --------------------------------------------------------------------------------------------------------

    async def _look(self) -> None:
        while True:
            try:
                await self.delete_leftovers()
            except errors.AerodromeError as error:
                _log.warning("http.leftover_failed", reason=error.message)
            except Exception:
                _log.exception("http.leftover_failed")
            await asyncio.sleep(_LOOK_SECONDS)

    async def delete_leftovers(self) -> None:
        """Delete the sessions of questions that are no longer asked.

        Raises:
            errors.StoreUnavailable: the store does not answer.
        """
        for session_id, owner in await self._users.store.list_ephemeral():
            if session_id in self._open:
                continue
            self._left_behind.add(session_id)
            try:
                await self._remove(session_id, owner=owner)
            except errors.AerodromeError as error:
                _log.warning("http.leftover_failed", session=session_id, reason=error.message)
        await self.find_leftovers()

    def _keep(self, task: asyncio.Task[None]) -> None:
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def aclose(self) -> None:
        """End every question; what cannot be deleted now is at the next start. Idempotent."""
        for task in self._tasks:
            task.cancel()
        if self._tasks:
            await asyncio.wait(list(self._tasks), timeout=_SETTLE_SECONDS)


async def _always() -> bool:
    return True
