"""What the agent of one session waits for: kept until it is answered, by a caller, by the session's options, or by a webhook.

Requests that nobody need be asked (permissions that the options decide, tools that are webhooks) are answered here and never
listed. Those that came as events survive a runtime's death where the runtime has written them down: they are listed by it when
the session was brought back (protocol facts 1.8). Which answer is which call is http.pending.
"""

from __future__ import annotations

import asyncio
import functools
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import structlog

from aerodrome import errors
from aerodrome.http import pending
from aerodrome.http.events import Event
from aerodrome.http.options import ClientTool, WebhookTool
from aerodrome.http.pending import Pending, PendingKind
from aerodrome.protocol.messages import RequestId

if TYPE_CHECKING:
    from aerodrome.http.conversation import Conversation
    from aerodrome.http.program import Program

_log = structlog.get_logger()
#: Answers a tool call that is no caller's; returns what the runtime is told.
Tools = Callable[["Conversation", Pending, WebhookTool], Awaitable[dict[str, Any]]]
Decide = Callable[[], Awaitable[Any]]


class Requests:
    """The open requests of one session."""

    def __init__(self, conversation: Conversation) -> None:
        self._conversation = conversation
        self._open: dict[str, Pending] = {}
        #: Those that nobody is asked about, and what answers them.
        self._quiet: dict[str, tuple[Pending, asyncio.Task[None]]] = {}
        #: Those whose answer is on its way, unless they have closed meanwhile; and how many answers are.
        self._answered: dict[str, Pending] = {}
        self._answering = 0

    def __len__(self) -> int:
        return len(self._open) + len(self._quiet) + self._answering

    @property
    def open(self) -> list[Pending]:
        """Return what waits for a caller's answer, oldest first."""
        return list(self._open.values())

    def find(self, request_id: str) -> Pending | None:
        """Return a request that waits for a caller's answer."""
        return self._open.get(request_id)

    def hear(self, event: Event, now: float) -> None:
        """Note an event that opens or closes one."""
        kind, request_id = pending.OPENED.get(event.kind), str(event.data.get("requestId", ""))
        if kind is not None and request_id:
            self._add(Pending(request_id, kind, event.data, now, is_of_agent=event.agent_id is not None))
        elif event.kind in pending.CLOSED:
            self._close(request_id)

    def ask(self, method: str, params: dict[str, Any], rpc_id: RequestId, now: float) -> bool:
        """Note a request of the runtime to this link; say whether callers can answer it."""
        kind = pending.ASKED.get(method)
        if kind is None:
            return False
        self._add(Pending(f"rpc-{rpc_id}", kind, params, now, rpc_id))
        return True

    def cancel(self, rpc_id: RequestId) -> None:
        """Note that a request of the runtime needs no answer any more."""
        self._close(f"rpc-{rpc_id}")

    async def take_up(self, program: Program) -> None:
        """Note what waits in a session that was brought back, and forget what does not.

        Each list is noted before what is said behind it: what has opened or closed since is not undone by it.
        """
        params = {"sessionId": self._conversation.session_id}
        for method, kind in pending.LISTS:
            # A runtime that cannot say: what comes as an event is heard all the same.
            with suppress(errors.RuntimeRefused, errors.PolicyRejected, errors.MethodUnknown):
                await program.call(method, params, heard=functools.partial(self._hear_list, kind))

    def _hear_list(self, kind: PendingKind, result: dict[str, Any]) -> None:
        now = {one.request_id: one for one in pending.listed(kind, result, self._conversation.now())}
        for one in self._all():
            if one.kind is kind and one.rpc_id is None and one.request_id not in now:
                self._close(one.request_id)
        known = {one.request_id for one in self._all()}
        for one in now.values():
            if one.request_id not in known:
                self._add(one)

    def drop(self, is_turn_over: bool, is_link_over: bool = False) -> None:
        """Forget what nobody waits for any more: with the runtime its requests to this link, with a turn all but sub-agents'."""
        for one in self._all():
            if is_link_over or one.rpc_id is not None or (is_turn_over and not one.is_of_agent):
                self._close(one.request_id)

    async def answer(self, one: Pending, answer: Any) -> None:
        """Answer a request: first answer wins.

        Raises:
            errors.AlreadyExists: it was answered by someone else meanwhile.
        """
        if self._open.pop(one.request_id, None) is None:
            raise _answered(one)
        self._answered[one.request_id] = one
        self._answering += 1
        try:
            await self._send_answer(one, answer)
        except errors.AlreadyExists:
            self._tell_closed(one)
            raise
        except BaseException:
            if one.request_id in self._answered:
                self._open[one.request_id] = one
            else:
                self._tell_closed(one)
            raise
        finally:
            self._answering -= 1
            self._answered.pop(one.request_id, None)
        self._tell_closed(one)

    async def _send_answer(self, one: Pending, answer: Any) -> None:
        if one.rpc_id is not None:
            self._conversation.answer_rpc(one.rpc_id, answer)
            return
        method, params = pending.answer_call(one, answer)
        result = await self._conversation.call(method, params)
        if result.get("success") is False:
            raise _answered(one)

    def _all(self) -> list[Pending]:
        return [*self._open.values(), *self._answered.values(), *(one for one, _ in self._quiet.values())]

    def _add(self, one: Pending) -> None:
        tool = self._tool(one) if one.kind is PendingKind.TOOL else None
        if one.kind is PendingKind.TOOL and tool is None:
            return  # another link's of the owner, who answers it
        decide = self._decider(one, tool)
        if decide is not None:
            task = self._conversation.spawn(self._decide(one, decide))
            self._quiet[one.request_id] = one, task
            return
        self._open[one.request_id] = one
        said = {"request_id": one.request_id, "kind": one.kind.value, "data": pending.describe(one.kind, one.data)}
        self._conversation.say("request.opened", said)

    def _tool(self, one: Pending) -> ClientTool | WebhookTool | None:
        wanted = one.data.get("toolName")
        return next((tool for tool in self._conversation.options.tools if tool.name == wanted), None)

    def _decider(self, one: Pending, tool: ClientTool | WebhookTool | None) -> Decide | None:
        """Return what answers in a caller's place; None where a caller is asked."""
        permissions, tools = self._conversation.options.permissions, self._conversation.tools
        if isinstance(tool, WebhookTool) and tools is not None:
            return functools.partial(tools, self._conversation, one, tool)
        if one.kind is PendingKind.PERMISSION and permissions != "ask":
            decision = "approve" if permissions == "approve" else "reject"

            async def decided() -> dict[str, Any]:
                return pending.permission_result(decision, None, one.data)

            return decided
        return None

    async def _decide(self, one: Pending, decide: Decide) -> None:
        try:
            await self._send_answer(one, await decide())
        except errors.AerodromeError as error:
            _log.warning("http.decision_failed", kind=one.kind.value, reason=error.message)
        self._quiet.pop(one.request_id, None)

    def _close(self, request_id: str) -> None:
        _, task = self._quiet.pop(request_id, (None, None))
        if task is not None:
            task.cancel()
        self._answered.pop(request_id, None)
        one = self._open.pop(request_id, None)
        if one is not None:
            self._tell_closed(one)

    def _tell_closed(self, one: Pending) -> None:
        self._conversation.say("request.closed", {"request_id": one.request_id, "kind": one.kind.value})


def _answered(one: Pending) -> errors.AlreadyExists:
    return errors.AlreadyExists(f"request {one.request_id} has been answered")
