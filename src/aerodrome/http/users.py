"""The programs of HTTP users: one for each owner who calls, with the sessions it has open; closed when nobody needs it.

HTTP callers of one owner share one link, so that a runtime has one connection for all of them, and a session's events come once.
A link ends when its owner is idle, or with its policy; the next call opens another. Turns that are over are remembered beyond
that for a while, within a bound.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable
from contextlib import suppress
from dataclasses import replace
from typing import Any

import msgspec
from msgspec import Raw

from aerodrome import errors
from aerodrome.clock import Clock
from aerodrome.core.identity import Owner, Principal
from aerodrome.gateway.ownership import Ownership
from aerodrome.gateway.service import TenantGateway
from aerodrome.http import conversation, options, program, sealing
from aerodrome.http.conversation import Conversation, Surroundings
from aerodrome.http.events import LogBudget
from aerodrome.http.open_turns import OpenTurns
from aerodrome.http.options import SessionOptions, WebhookTool
from aerodrome.http.pending import Pending
from aerodrome.http.program import Program
from aerodrome.http.sealing import SealedOptions
from aerodrome.http.webhooks import Call, Webhooks
from aerodrome.ports.conversations import ConversationStore
from aerodrome.ports.open_turns import OpenTurnStore
from aerodrome.protocol.messages import RequestId

#: How long turns are remembered after the last use of their session, and what all of them may take.
KEEP_SECONDS = 3600.0
KEPT_BYTES = 64 * 1024 * 1024
KEPT_CONVERSATIONS = 10_000
#: How long a caller who is told that a session could not be made is kept waiting for its end.
_UNDO_SECONDS = 10.0
#: A conversation without a turn, about.
_CONVERSATION_BYTES = 4000


class _EventParams(msgspec.Struct):
    sessionId: str = ""
    event: Raw = Raw(b"null")


class HttpUser:
    """One owner's program, and the sessions it has open. `connect` gives the program, opened if there is none."""

    def __init__(
        self,
        principal: Principal,
        users: HttpUsers,
        ownership: Ownership,
        surroundings: Surroundings,
    ) -> None:
        self.principal = principal
        self.conversations: dict[str, Conversation] = {}
        self.used_at = 0.0
        self._users = users
        self._store = users.store
        self._ownership = ownership
        self._surroundings = replace(
            surroundings,
            connect=self.connect,
            tools=self._answer_tool,
            find_recipe=self._find_recipe,
            is_shared=users.is_shared,
            open_turns=OpenTurns(users.open_turns, principal.owner) if users.open_turns is not None else None,
        )
        self._program: Program | None = None

    @property
    def owner(self) -> Owner:
        """Return whose it is."""
        return self.principal.owner

    @property
    def has_link(self) -> bool:
        """Say whether it has a link now."""
        return self._program is not None and not self._program.is_over.done()

    @property
    def program(self) -> Program:
        """Return the link's program."""
        assert self._program is not None
        return self._program

    @property
    def is_in_use(self) -> bool:
        """Say whether the link must stay."""
        is_busy = self._program is not None and self._program.is_busy
        return is_busy or any(one.is_in_use for one in self.conversations.values())

    async def connect(self) -> Program:
        """Return the link's program, opened if there is none.

        Raises:
            errors.Draining: this gateway stops. errors.OverCapacity: there is no room for one more link.
        """
        if self._program is None or self._program.is_over.done():
            await self._users.connect(self)
        return self.program

    def begin(self, opened: Program) -> None:
        """Use this program."""
        self.end()
        self._program = opened
        opened.is_over.add_done_callback(lambda _: self.end() if self._program is opened else None)

    def end(self) -> None:
        """Note that the link is over."""
        if self._program is not None:
            self._program = None
            for held in list(self.conversations.values()):
                # Turns that end with the gateway are told by whoever opens their session next.
                held.hear_end(keeps_turns=self._users.is_closed)
                if held.has_noted_turns:
                    self._users.spawn(held.note_turns())

    async def create(self, session_id: str, chosen: SessionOptions, is_ephemeral: bool = False) -> Conversation:
        """Make a new session. One that is ephemeral is marked as such before a runtime hears of it.

        Raises:
            errors.AlreadyExists: the id is taken. errors.AerodromeError: it cannot be opened now, or by policy.
        """
        self._check(chosen)
        taken = errors.AlreadyExists(f"session {session_id} is there already; choose another id")
        if await self._ownership.find_owner(session_id) is not None or session_id in self.conversations:
            raise taken
        made = Conversation(session_id, self._surroundings, chosen, is_new=True)
        made.used_at = asyncio.get_running_loop().time()
        self.conversations[session_id] = made
        try:
            if is_ephemeral:
                await self._save(session_id, chosen, is_ephemeral)
            await made.open()
        except errors.AlreadyExists:
            self.conversations.pop(session_id, None)
            raise taken from None
        except errors.AerodromeError:
            self.conversations.pop(session_id, None)
            await self._undo(session_id)
            raise
        except BaseException:
            self.conversations.pop(session_id, None)
            raise
        try:
            await self._save(session_id, chosen, is_ephemeral)
        except BaseException:
            self.conversations.pop(session_id, None)
            await self._undo(session_id)
            raise
        return made

    async def _undo(self, session_id: str) -> None:
        """Delete what there is of a session that was not made whole: without its options it would come back as another."""
        with suppress(errors.AerodromeError, TimeoutError):
            async with asyncio.timeout(_UNDO_SECONDS):
                if await self._ownership.find_owner(session_id) == self.owner:
                    await self.delete(session_id)

    async def find(self, session_id: str) -> Conversation:
        """Return a session of this owner, not opened yet. Whether it is theirs the gateway says when it is opened."""
        found = self.conversations.get(session_id)
        if found is None:
            stored = await self._store.find(session_id, self.owner)
            chosen = self._opened(session_id, stored)
            found = self.conversations.get(session_id)
            if found is None:
                is_ours = sealing.is_made_here(stored)
                found = Conversation(session_id, self._surroundings, chosen, is_new=False, is_ours=is_ours)
                self.conversations[session_id] = found
        found.used_at = asyncio.get_running_loop().time()
        return found

    async def options_of(self, session_id: str) -> SessionOptions:
        """Return what a session is opened with; the defaults for one that was not made over HTTP."""
        return self._opened(session_id, await self._store.find(session_id, self.owner))

    def _find_recipe(self, session_id: str) -> dict[str, Any] | None:
        return self._users.gateway.find_recipe(self.owner, session_id)

    def _check(self, chosen: SessionOptions) -> None:
        if self._users.webhooks is not None:
            self._users.webhooks.check(chosen, self.principal.policy)
        self._users.sealed.check(chosen)

    async def _save(
        self, session_id: str, chosen: SessionOptions, is_ephemeral: bool = False, is_joined: bool = False
    ) -> None:
        kept = self._users.sealed.seal(chosen, self.owner, session_id, is_joined)
        await self._store.save(session_id, self.owner, kept, is_ephemeral)

    def _opened(self, session_id: str, stored: str | None) -> SessionOptions:
        return self._users.options_of(stored, self.owner, session_id)

    async def _answer_tool(self, held: Conversation, asked: Pending, tool: WebhookTool) -> dict[str, Any]:
        if self._users.webhooks is None:
            return {"error": f"nobody answers for {tool.name} here"}
        return await self._users.webhooks.answer(Call(self.owner, held.session_id, asked, tool))

    async def change(self, session_id: str, chosen: SessionOptions) -> None:
        """Keep other options from now on."""
        self._check(chosen)
        held = await self.find(session_id)
        await self._save(session_id, chosen, is_joined=not held.is_ours)
        held.options = chosen

    async def delete(self, session_id: str) -> None:
        """Delete a session and what is kept of it.

        Raises:
            errors.SessionMissing: there is none. errors.RuntimeRefused: it could not be deleted, and nothing has changed.
        """
        held = self.conversations.get(session_id)
        was_known = await self._store.find(session_id, self.owner) is not None
        result = await (await self.connect()).call("session.delete", {"sessionId": session_id})
        refusal = str(result.get("error")) if result.get("success") is False else None
        if refusal is not None and "not found" not in refusal.lower():
            raise errors.RuntimeRefused(refusal)
        self.drop(session_id)
        await self._store.forget(session_id, self.owner)
        if refusal is None:
            return
        if await self._ownership.find_owner(session_id) == self.owner:
            # One that no runtime has on disk (it never had a turn): its id is free again.
            await self._ownership.forget(session_id, self.owner)
        elif not was_known and held is None:
            raise errors.SessionMissing("no such session")

    async def adopt(self, session_id: str, chosen: SessionOptions) -> None:
        """Keep what a session of this owner's is opened with that came to be by itself (a fork)."""
        try:
            await self._save(session_id, chosen)
        except errors.AerodromeError:
            await self._undo(session_id)
            raise

    def drop(self, session_id: str) -> None:
        """Let go of a session that is deleted."""
        held = self.conversations.pop(session_id, None)
        if held is not None:
            held.hear_end(errors.SessionMissing("the session was deleted"), is_gone=True)

    def take(self, method: str, params: Any, rpc_id: RequestId | None) -> None:
        """Hear what the gateway says."""
        if method == "session.event":
            said = msgspec.json.decode(params, type=_EventParams)
            held = self.conversations.get(said.sessionId)
            if held is not None:
                held.hear(bytes(said.event))
                if held.is_gone:
                    self.conversations.pop(said.sessionId, None)
                    self._users.spawn(held.note_turns())
        elif rpc_id is not None:
            asked = conversation.params_of(params)
            held = self.conversations.get(str(asked.get("sessionId")))
            if held is None or not held.hear_request(method, asked, rpc_id):
                self.program.refuse(rpc_id, method)
        elif method == "session.lifecycle":
            said_of = conversation.params_of(params)
            if said_of.get("type") == "session.deleted":
                self.drop(str(said_of.get("sessionId")))
        elif method == "$/cancelRequest":
            cancelled = conversation.params_of(params).get("id")
            for held in self.conversations.values():
                if isinstance(cancelled, (int, str)):
                    held.hear_cancelled(cancelled)

    async def let_go(self, session_ids: list[str], unused_since: float) -> None:
        """Have the link hold these sessions no longer, as far as nothing needs them and nobody has used them since then."""
        for session_id in session_ids:
            held = self.conversations.get(session_id)
            if held is not None and held.used_at <= unused_since:
                await held.let_go()


class HttpUsers:
    """The programs of all owners who call. `idle_seconds`: how long one stays when nothing needs it."""

    def __init__(
        self,
        gateway: TenantGateway,
        store: ConversationStore,
        clock: Clock,
        idle_seconds: float = 120.0,
        webhooks: Webhooks | None = None,
    ) -> None:
        self.gateway = gateway
        self.sealed = SealedOptions(())
        self.webhooks = webhooks
        self.store = store
        #: Where open turns are noted, if they are to be taken up after this gateway.
        self.open_turns: OpenTurnStore | None = None
        self._idle_seconds = idle_seconds
        self._users: dict[Owner, HttpUser] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._links: dict[Owner, asyncio.Task[None]] = {}
        self._opening = asyncio.Lock()
        self.is_closed = False
        self._sweeping: asyncio.Task[None] | None = None
        self._surroundings = Surroundings(_unconnected, clock, LogBudget())

    @property
    def users(self) -> list[HttpUser]:
        """Return the users that have a link."""
        return [user for user in self._users.values() if user.has_link]

    def options_of(self, stored: str | None, owner: Owner, session_id: str) -> SessionOptions:
        """Return what a session is opened with, as it is kept; the defaults where nothing is.

        Raises:
            errors.SecretUnavailable: what is sealed in it was sealed with a master key that is not here.
        """
        return SessionOptions() if stored is None else self.sealed.open(stored, owner, session_id)

    def shown_options(self, stored: str | None, owner: Owner, session_id: str) -> SessionOptions:
        """Return the same to be looked at, also where what is sealed cannot be opened any more."""
        return SessionOptions() if stored is None else self.sealed.show(stored, owner, session_id)

    async def is_shared(self, session_id: str) -> bool:
        """Say whether a session has members, or had."""
        sharing = self.gateway.services.sharing
        return sharing is not None and await sharing.sharing(session_id) is not None

    async def recipe_of(self, session_id: str, owner: Owner) -> dict[str, Any] | None:
        """Return the parameters with which an owner's session is opened, for a member who joins while no owner is there."""
        stored = await self.store.find(session_id, owner)
        if not sealing.is_made_here(stored):
            return None
        return options.opening(self.options_of(stored, owner, session_id))

    def start(self) -> None:
        """Begin to close what nobody needs."""
        self._sweeping = asyncio.get_running_loop().create_task(self._sweep_on_schedule(), name="http users")

    def peek(self, owner: Owner) -> HttpUser | None:
        """Return an owner's sessions if any were used lately."""
        return self._users.get(owner)

    async def of(self, principal: Principal) -> HttpUser:
        """Return the program of a principal's owner, opened if there is none.

        Raises:
            errors.Draining: this gateway stops. errors.OverCapacity: there is no room for one more link.
        """
        user = self._users.get(principal.owner)
        if user is None:
            services = self.gateway.services
            user = HttpUser(principal, self, services.ownership, self._surroundings)
            self._users[principal.owner] = user
        user.principal = principal
        user.used_at = asyncio.get_running_loop().time()
        await user.connect()
        return user

    async def connect(self, user: HttpUser) -> Program:
        """Return the program of a user, opened if there is none."""
        async with self._opening:
            if self.is_closed:
                raise errors.Draining("this gateway stops; try again elsewhere")
            if self._users.get(user.owner) is not user:
                # Forgotten meanwhile (erasure): nobody would close its link, and who it is must be proved anew.
                raise errors.RuntimeLost("the link to the gateway has ended; try again")
            if user.has_link:
                return user.program
            # The link outlives the request: it stands on no key, which each request proves anew.
            standing = replace(user.principal, key_id="", expires_at=None)
            opened, running = await program.open_program(self.gateway, standing, user.take)
            user.begin(opened)
            task = asyncio.get_running_loop().create_task(self._run(running), name="http user")
            self._tasks.add(task)
            self._links[user.owner] = task
            task.add_done_callback(self._tasks.discard)
            return opened

    async def _run(self, running: Awaitable[None]) -> None:
        await running

    async def forget(self, session_id: str, owner: Owner) -> None:
        """Keep nothing of a session whose record is removed, whatever it was that deleted it (gateway.ownership)."""
        user = self._users.get(owner)
        if user is not None:
            user.drop(session_id)
        if self.open_turns is not None:
            await self.open_turns.remove(session_id)
        await self.store.forget(session_id, owner)

    async def close_user(self, owner: Owner) -> None:
        """End an owner's program, whatever it does, and forget all of it (erasure)."""
        user, task = self._users.pop(owner, None), self._links.pop(owner, None)
        if user is not None and user.has_link:
            user.program.close()
        if task is not None and not task.done():
            await asyncio.wait((task,))
        if user is not None:
            user.end()

    async def _sweep_on_schedule(self) -> None:
        while True:
            await asyncio.sleep(min(max(self._idle_seconds / 2, 0.01), 30.0))
            self.sweep()

    def sweep(self) -> None:
        """Close links that nobody needs, let go of sessions that nobody uses, forget what is long over."""
        now = asyncio.get_running_loop().time()
        for user in list(self._users.values()):
            if user.is_in_use:
                user.used_at = now
            is_idle = now - user.used_at >= self._idle_seconds
            idle = []
            for session_id, held in list(user.conversations.items()):
                if held.is_in_use:
                    held.used_at = now
                elif held.is_open and now - held.used_at >= self._idle_seconds:
                    idle.append(session_id)
                elif not held.is_open and now - held.used_at >= KEEP_SECONDS:
                    del user.conversations[session_id]
            if user.has_link and is_idle:
                user.program.close()
            elif user.has_link and idle:
                self.spawn(user.let_go(idle, now - self._idle_seconds))
            elif is_idle and not user.has_link and not user.conversations:
                del self._users[user.owner]
                self._links.pop(user.owner, None)
        self._forget_oldest()

    def _forget_oldest(self) -> None:
        """Keep what is remembered within its bound."""
        idle = [
            (held.used_at, user, held)
            for user in self._users.values()
            for held in user.conversations.values()
            if not held.is_open and not held.is_in_use
        ]
        idle.sort(key=lambda entry: entry[0])
        size = sum(held.size_bytes + _CONVERSATION_BYTES for _, _, held in idle)
        for number, (_, user, held) in enumerate(idle):
            if size <= KEPT_BYTES and len(idle) - number <= KEPT_CONVERSATIONS:
                return
            size -= held.size_bytes + _CONVERSATION_BYTES
            del user.conversations[held.session_id]

    def spawn(self, work: Any) -> None:
        """Run what outlives the request that began it; it ends with the users."""
        task: asyncio.Task[None] = asyncio.get_running_loop().create_task(work, name="http user sweep")
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def aclose(self) -> None:
        """End every program. Idempotent."""
        self.is_closed = True
        if self._sweeping is not None:
            self._sweeping.cancel()
            await asyncio.wait((self._sweeping,))
        for user in self.users:
            user.program.close()
        while self._tasks:
            await asyncio.wait(list(self._tasks))


async def _unconnected() -> Program:
    raise errors.RuntimeUnavailable("there is no link; try again")
