"""The programs of HTTP users: one for each owner who calls, with the sessions it has open; closed when nobody needs it.

HTTP callers of one owner share one link, so that a runtime has one connection for all of them, and a session's events come once.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable
from dataclasses import replace
from typing import Any

import msgspec
from msgspec import Raw

from aerodrome import errors
from aerodrome.clock import Clock
from aerodrome.core.identity import Owner, Principal
from aerodrome.gateway.ownership import Ownership
from aerodrome.gateway.service import TenantGateway
from aerodrome.http import conversation, program
from aerodrome.http.conversation import Conversation
from aerodrome.http.options import SessionOptions
from aerodrome.http.program import Program
from aerodrome.ports.conversations import ConversationStore
from aerodrome.protocol.messages import RequestId


class _EventParams(msgspec.Struct):
    sessionId: str = ""
    event: Raw = Raw(b"null")


class HttpUser:
    """One owner's program, and the sessions it has open."""

    def __init__(self, owner: Owner, store: ConversationStore, clock: Clock, ownership: Ownership) -> None:
        self.owner = owner
        self._ownership = ownership
        self.conversations: dict[str, Conversation] = {}
        self.used_at = 0.0
        self._store = store
        self._clock = clock
        self._program: Program | None = None

    @property
    def program(self) -> Program:
        """Return the link's program."""
        assert self._program is not None
        return self._program

    @property
    def is_in_use(self) -> bool:
        """Say whether the link must stay."""
        return any(one.is_in_use for one in self.conversations.values())

    def begin(self, opened: Program) -> None:
        """Use this program."""
        self._program = opened

    async def create(self, session_id: str, chosen: SessionOptions, is_ephemeral: bool = False) -> Conversation:
        """Make a new session. One that is ephemeral is marked as such before a runtime hears of it.

        Raises:
            errors.AlreadyExists: the id is taken. errors.AerodromeError: it cannot be opened now, or by policy.
        """
        if session_id in self.conversations or await self._ownership.find_owner(session_id) is not None:
            raise errors.AlreadyExists(f"session {session_id} is there already; choose another id")
        if session_id in self.conversations:
            raise errors.AlreadyExists(f"session {session_id} is being made; choose another id")
        made = Conversation(session_id, self.program, chosen, self._clock, is_new=True)
        self.conversations[session_id] = made
        try:
            if is_ephemeral:
                await self._store.save(session_id, self.owner, chosen.model_dump_json(exclude_defaults=True), True)
            await made.open()
            if not is_ephemeral:
                await self._store.save(session_id, self.owner, chosen.model_dump_json(exclude_defaults=True))
        except BaseException:
            self.conversations.pop(session_id, None)
            raise
        return made

    async def find(self, session_id: str) -> Conversation:
        """Return a session of this owner, not opened yet. Whether it is theirs the gateway says when it is opened."""
        found = self.conversations.get(session_id)
        if found is None:
            stored = await self._store.find(session_id, self.owner)
            chosen = _options(stored)
            found = self.conversations.get(session_id)
            if found is None:
                is_ours = stored is not None
                found = Conversation(session_id, self.program, chosen, self._clock, is_new=False, is_ours=is_ours)
                self.conversations[session_id] = found
        return found

    async def options_of(self, session_id: str) -> SessionOptions:
        """Return what a session is opened with; the defaults for one that was not made over HTTP."""
        return _options(await self._store.find(session_id, self.owner))

    async def change(self, session_id: str, chosen: SessionOptions) -> None:
        """Keep other options from now on."""
        await self._store.save(session_id, self.owner, chosen.model_dump_json(exclude_defaults=True))
        if session_id in self.conversations:
            self.conversations[session_id].options = chosen

    async def delete(self, session_id: str) -> None:
        """Delete a session and what is kept of it.

        Raises:
            errors.SessionMissing: there is none.
        """
        held = self.conversations.get(session_id)
        was_known = await self._store.find(session_id, self.owner) is not None
        result = await self.program.call("session.delete", {"sessionId": session_id})
        self.drop(session_id)
        await self._store.forget(session_id, self.owner)
        if result.get("success") is False and not was_known and held is None:
            raise errors.SessionMissing("no such session")

    def drop(self, session_id: str) -> None:
        """Let go of a session that is deleted."""
        held = self.conversations.pop(session_id, None)
        if held is not None:
            held.hear_end()

    async def adopt(self, session_id: str, chosen: SessionOptions) -> None:
        """Keep what a session of this owner's is opened with that came to be by itself (a fork)."""
        await self._store.save(session_id, self.owner, chosen.model_dump_json(exclude_defaults=True))

    def take(self, method: str, params: Any, rpc_id: RequestId | None) -> None:
        """Hear what the gateway says."""
        if method == "session.event":
            said = msgspec.json.decode(params, type=_EventParams)
            held = self.conversations.get(said.sessionId)
            if held is not None:
                held.hear(bytes(said.event))
        elif rpc_id is not None:
            asked = conversation.params_of(params)
            held = self.conversations.get(str(asked.get("sessionId")))
            if held is None or not held.hear_request(method, asked, rpc_id):
                self.program.refuse(rpc_id, method)

    def end(self) -> None:
        """Note that the link is over."""
        for held in self.conversations.values():
            held.hear_end()


class HttpUsers:
    """The programs of all owners who call. `idle_seconds`: how long one stays when nothing needs it."""

    def __init__(
        self, gateway: TenantGateway, store: ConversationStore, clock: Clock, idle_seconds: float = 120.0
    ) -> None:
        self.gateway = gateway
        self.store = store
        self._clock = clock
        self._idle_seconds = idle_seconds
        self._users: dict[Owner, HttpUser] = {}
        self._tasks: dict[Owner, asyncio.Task[None]] = {}
        self._opening = asyncio.Lock()
        self._is_closed = False
        self._sweeping: asyncio.Task[None] | None = None

    @property
    def users(self) -> list[HttpUser]:
        """Return the users that have a link."""
        return list(self._users.values())

    def start(self) -> None:
        """Begin to close what nobody needs."""
        self._sweeping = asyncio.get_running_loop().create_task(self._sweep(), name="http users")

    def peek(self, owner: Owner) -> HttpUser | None:
        """Return an owner's program if there is one."""
        return self._users.get(owner)

    async def of(self, principal: Principal) -> HttpUser:
        """Return the program of a principal's owner, opened if there is none.

        Raises:
            errors.Draining: this gateway stops. errors.OverCapacity: there is no room for one more link.
        """
        loop = asyncio.get_running_loop()
        async with self._opening:
            if self._is_closed:
                raise errors.Draining("this gateway stops; try again elsewhere")
            user = self._users.get(principal.owner)
            if user is None or user.program.is_over.done():
                user = await self._open(principal)
            user.used_at = loop.time()
            return user

    async def _open(self, principal: Principal) -> HttpUser:
        user = HttpUser(principal.owner, self.store, self._clock, self.gateway.services.ownership)
        # The link outlives the request: it stands on no key, which each request proves anew.
        standing = replace(principal, key_id="", expires_at=None)
        opened, running = await program.open_program(self.gateway, standing, user.take)
        user.begin(opened)
        self._users[principal.owner] = user
        task = asyncio.get_running_loop().create_task(self._run(user, running), name="http user")
        self._tasks[principal.owner] = task
        return user

    async def _run(self, user: HttpUser, running: Awaitable[None]) -> None:
        try:
            await running
        finally:
            user.end()
            if self._users.get(user.owner) is user:
                del self._users[user.owner]
                self._tasks.pop(user.owner, None)

    async def forget(self, session_id: str, owner: Owner) -> None:
        """Keep nothing of a session whose record is removed, whatever it was that deleted it (gateway.ownership)."""
        user = self._users.get(owner)
        if user is not None:
            user.drop(session_id)
        await self.store.forget(session_id, owner)

    async def close_user(self, owner: Owner) -> None:
        """End an owner's program, whatever it does (erasure)."""
        user, task = self._users.get(owner), self._tasks.get(owner)
        if user is not None and task is not None:
            user.program.close()
            await asyncio.wait((task,))

    async def _sweep(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            await asyncio.sleep(min(self._idle_seconds / 2, 30.0))
            for user in self.users:
                if user.is_in_use:
                    user.used_at = loop.time()
                elif loop.time() - user.used_at >= self._idle_seconds:
                    user.program.close()

    async def aclose(self) -> None:
        """End every program. Idempotent."""
        self._is_closed = True
        if self._sweeping is not None:
            self._sweeping.cancel()
            await asyncio.wait((self._sweeping,))
        tasks = list(self._tasks.values())
        for user in self.users:
            user.program.close()
        if tasks:
            await asyncio.wait(tasks)


def _options(stored: str | None) -> SessionOptions:
    return SessionOptions() if stored is None else SessionOptions.model_validate_json(stored)
