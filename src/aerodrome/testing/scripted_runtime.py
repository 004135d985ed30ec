"""A runtime that does as it is told: JSON-RPC over TCP as the Copilot runtime speaks it, no model, and faults on demand.

For tests of the gateway and the fleet: in this process (`ScriptedRuntime`), or as a program that prints `CLI server listening on
port N` like the real one. Only what the gateway relies on is imitated (protocol facts 1.2 to 1.8): `connect`, sessions that
are unloaded with their last connection and are on disk only after a turn, events for the attached, lifecycle for everyone.

Prompts say what a turn does: `[hold]` goes on until aborted, `[size N]` answers N bytes, `[flood COUNT SIZE]` sends events first,
`[ask METHOD]` asks the client something and answers with what it said, `[permit]` asks for a permission and says which decision
came, `[call TOOL]` has the client's tool called and answers with what it said, `[delta N]` streams N pieces first,
`[use MODEL IN OUT]` says what a model call took, `[fail]` ends with an error, `[die]` ends the process. Anything else is echoed.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import re
import signal
import sys
import uuid
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from aerodrome.protocol import framing, messages
from aerodrome.testing.peer import WAIT_SECONDS, Heard, Peer, RpcError

_STEP = re.compile(r"\[(hold|size|flood|ask|permit|call|delta|use|fail|die)((?: [^\] ]+)*)\]")


#: Events that a runtime keeps in no file.
_PASSING = frozenset({"session.idle", "assistant.message_delta", "assistant.usage", "flood"})
#: What runtimes of this process have kept, by session: it outlives them as their files would.
_JOURNALS: dict[str, list[dict[str, Any]]] = {}
#: Permissions that wait, by session and request, likewise.
_WAITING: dict[str, dict[str, dict[str, Any]]] = {}


@dataclass(frozen=True, slots=True)
class Faults:
    """How a runtime misbehaves; the last six name the method at whose call they do."""

    never_ready: bool = False
    exits_at_once: bool = False
    ignores_term: bool = False
    #: Sends events to every connection without end, from its `connect` on.
    floods: bool = False
    refuses: str = ""
    unanswered: str = ""
    never_reads_after: str = ""
    closes_mid_frame_at: str = ""
    closes_after: str = ""
    dies_at: str = ""


@dataclass(slots=True)
class Session:
    """A live session."""

    session_id: str
    attached: set[Peer] = field(default_factory=set)
    options: dict[str, Any] = field(default_factory=dict)
    turn: asyncio.Task[None] | None = None
    #: Whether it says that it works though no turn runs: a shell in the background, for example.
    works: bool = False
    #: Permissions that wait for a decision.
    permissions: dict[str, asyncio.Future[Any]] = field(default_factory=dict)
    #: Calls of the client's tools that wait for a result.
    tools: dict[str, asyncio.Future[Any]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Call:
    """One request as a runtime heard it, and on which connection."""

    peer: Peer
    method: str
    params: dict[str, Any]


On = Callable[[Peer, dict[str, Any]], Awaitable[Any]]


class ScriptedRuntime:
    """A server. `on` replaces what a method does; `calls` has every request in the order of arrival.

    `disk` is what outlives it: give it to the next one to have its sessions resumed. `die` is called for `[die]` and `dies_at`.
    """

    def __init__(self, token: str | None = None, faults: Faults | None = None, disk: set[str] | None = None) -> None:
        self.faults = faults or Faults()
        self.on: dict[str, On] = {}
        self.calls: list[Call] = []
        self.peers: list[Peer] = []
        self.sessions: dict[str, Session] = {}
        own = set() if disk is None else disk
        self.find_disk: Callable[[], set[str]] = lambda: own
        self.die: Callable[[], None] = self.cut
        self.port = 0
        #: Where cursors of the disk lead.
        self.snapshots: dict[str | None, int] = {}
        #: Whether a permission that waits is on disk when it dies; the real one writes some 0.2 s behind.
        self.keeps_permissions = True
        self._token = token
        self._known: set[Peer] = set()
        self._server: asyncio.Server | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._changed = asyncio.Event()
        self._runs = asyncio.Event()
        self._runs.set()
        self._is_dead = False

    @property
    def disk(self) -> set[str]:
        """Return the sessions that are on disk now."""
        return self.find_disk()

    def freeze(self) -> None:
        """Take no request until thawed; what came meanwhile is taken then, in its order."""
        self._runs.clear()

    def thaw(self) -> None:
        """Take requests."""
        self._runs.set()

    async def start(self, host: str = "127.0.0.1", port: int = 0) -> int:
        """Listen; return the port."""
        # In two steps: a caller who gives up in the second must leave a server that can be closed.
        self._server = await asyncio.start_server(self._accept, host, port, backlog=1024, start_serving=False)
        self.port = self._server.sockets[0].getsockname()[1]
        await self._server.start_serving()
        return self.port

    def cut(self) -> None:
        """Stop listening, drop every connection and say and write nothing more, as a killed process does."""
        self._is_dead = True
        if self._server is not None:
            self._server.close()
        for peer in self.peers:
            peer.writer.transport.abort()

    async def aclose(self) -> None:
        """Cut, and end every task."""
        self.cut()
        for task in self._tasks:
            task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks)
        for peer in self.peers:
            await peer.aclose()

    async def wait_for_call(self, method: str, count: int = 1, seconds: float = WAIT_SECONDS) -> Call:
        """Wait until a method has been called so often; return that call. Raises TimeoutError."""
        async with asyncio.timeout(seconds):
            while len(found := [call for call in self.calls if call.method == method]) < count:
                self._changed.clear()
                await self._changed.wait()
        return found[count - 1]

    def called(self, method: str) -> list[dict[str, Any]]:
        """Return the params of every call of a method."""
        return [call.params for call in self.calls if call.method == method]

    def broadcast(self, kind: str, session_id: str) -> None:
        """Tell every connection of a session's lifecycle, as the real one does."""
        for peer in self._known:
            peer.notify("session.lifecycle", {"type": f"session.{kind}", "sessionId": session_id})

    def emit(self, session: Session, kind: str, data: dict[str, Any] | None = None) -> None:
        """Send a session's event to the connections attached to it."""
        if self._is_dead:
            return
        journal = _JOURNALS.setdefault(session.session_id, [])
        parent = journal[-1]["id"] if journal else None
        event: dict[str, Any] = {"type": kind, "data": data or {}, "id": str(uuid.uuid4()), "parentId": parent}
        event["timestamp"] = "2026-01-01T00:00:00.000Z"
        if kind in _PASSING:
            event["ephemeral"] = True
        else:
            journal.append(event)
        for peer in session.attached:
            peer.notify("session.event", {"sessionId": session.session_id, "event": event})

    # -- connections ------------------------------------------------------------------------------------------------------

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        peer = Peer(reader, writer)

        async def take(request: Heard) -> Any:
            return await self._take(peer, request)

        peer.take_request = take
        self.peers.append(peer)
        await asyncio.shield(peer.closed)
        self.peers.remove(peer)
        self._known.discard(peer)
        for session in list(self.sessions.values()):
            self._detach(session, peer)
        await peer.aclose()

    async def _take(self, peer: Peer, request: Heard) -> Any:
        await self._runs.wait()
        method, params = request.method, request.params
        self.calls.append(Call(peer, method, params))
        self._changed.set()
        await self._misbehave(peer, request)
        if method == "connect":
            return self._connect(peer, params)
        if self._token is not None and peer not in self._known:
            raise RpcError(-32001, "AUTHENTICATION_REQUIRED")
        if method in self.on:
            return await self.on[method](peer, params)
        answer = _METHODS.get(method)
        if answer is None:
            raise RpcError(-32601, f"Unhandled method {method}")
        return answer(self, peer, params)

    async def _misbehave(self, peer: Peer, request: Heard) -> None:
        faults, method = self.faults, request.method
        if method == faults.refuses:
            raise RpcError(-32603, f"refused {method}, as it was told")
        if method == faults.dies_at:
            self.die()
        if method == faults.never_reads_after:
            peer.stop_reading()
        if method == faults.closes_mid_frame_at:
            frame = framing.encode(messages.result(request.request_id, {"text": "x" * 1000}))
            peer.send_bytes(frame[: len(frame) // 2])
            peer.writer.close()
        if method == faults.closes_after:
            asyncio.get_running_loop().call_soon(peer.writer.close)
        if method in (faults.unanswered, faults.never_reads_after, faults.closes_mid_frame_at, faults.dies_at):
            await asyncio.get_running_loop().create_future()

    def _connect(self, peer: Peer, params: dict[str, Any]) -> dict[str, Any]:
        if self._token is not None and params.get("token") != self._token:
            raise RpcError(-32002, "AUTHENTICATION_FAILED")
        if not isinstance(params.get("supportedTaskKinds", []), list):
            raise RpcError(-32602, "Invalid connect request: invalid type: expected a sequence")
        self._known.add(peer)
        if self.faults.floods:
            self._spawn(self._flood(peer))
        return {"ok": True, "protocolVersion": 3, "version": "scripted", "taskKinds": ["agent", "shell"]}

    async def _flood(self, peer: Peer) -> None:
        with suppress(OSError):
            while not peer.closed.done():
                peer.notify("session.event", {"sessionId": "flood", "event": {"type": "flood", "data": "x" * 10_000}})
                await peer.writer.drain()

    # -- sessions ---------------------------------------------------------------------------------------------------------

    def _session(self, params: dict[str, Any]) -> Session:
        session = self.sessions.get(params.get("sessionId", ""))
        if session is None:
            raise RpcError(-32603, f"Request failed with message: Session not found: {params.get('sessionId')}")
        return session

    def _open(self, peer: Peer, session_id: str, params: dict[str, Any]) -> dict[str, Any]:
        session = self.sessions.setdefault(session_id, Session(session_id))
        session.attached.add(peer)
        session.options = params
        return {"sessionId": session_id, "nativeSessionId": session_id, "workspacePath": "", "capabilities": {}}

    def _detach(self, session: Session, peer: Peer) -> None:
        if session.attached == {peer}:
            self.emit(session, "session.shutdown")
        session.attached.discard(peer)
        if not session.attached:
            if session.turn is not None:
                session.turn.cancel()
            self.sessions.pop(session.session_id, None)

    def _create(self, peer: Peer, params: dict[str, Any]) -> dict[str, Any]:
        if params.get("sessionId") not in self.sessions:
            _JOURNALS.pop(params.get("sessionId", ""), None)
            _WAITING.pop(params.get("sessionId", ""), None)
        result = self._open(peer, params.get("sessionId") or str(uuid.uuid4()), params)
        self.broadcast("created", result["sessionId"])
        return result

    def _resume(self, peer: Peer, params: dict[str, Any]) -> dict[str, Any]:
        session_id = params["sessionId"]
        if session_id not in self.sessions and session_id not in self.disk:
            reason = f"Failed to load session events: Session not found: {session_id}"
            raise RpcError(-32603, f"Request session.resume failed with message: {reason}")
        is_cold = session_id not in self.sessions
        result = self._open(peer, session_id, params)
        session = self.sessions[session_id]
        self.emit(session, "session.resume")
        if is_cold:
            waiting = _WAITING.get(session_id, {}) if params.get("continuePendingWork") else {}
            for request_id in list(waiting):
                session.turn = self._spawn(self._go_on(session, request_id))
        return result

    async def _go_on(self, session: Session, request_id: str) -> None:
        """Wait for the decision that an earlier runtime asked for, and end the turn with it."""
        decided = session.permissions[request_id] = asyncio.get_running_loop().create_future()
        answer = await decided
        _WAITING[session.session_id].pop(request_id, None)
        self.emit(session, "permission.completed", {"requestId": request_id, "result": answer})
        self.emit(session, "assistant.message", {"content": str(answer.get("kind"))})
        self.emit(session, "assistant.turn_end")
        self.emit(session, "session.idle", {"aborted": False})

    def _send(self, _peer: Peer, params: dict[str, Any]) -> dict[str, Any]:
        session = self._session(params)
        message_id = str(uuid.uuid4())
        session.turn = self._spawn(self._run_turn(session, params.get("prompt", ""), message_id))
        return {"messageId": message_id}

    async def _run_turn(self, session: Session, prompt: str, message_id: str) -> None:
        self.disk.add(session.session_id)
        self.emit(session, "user.message", {"content": prompt, "messageId": message_id})
        self.emit(session, "assistant.turn_start")
        text, aborted = prompt, False
        try:
            for step in _STEP.finditer(prompt):
                text = await self._step(session, step[1], step[2].split(), text)
        except asyncio.CancelledError:
            aborted = True
            self.emit(session, "abort")
        self.emit(session, "assistant.message", {"content": text})
        self.emit(session, "assistant.turn_end")
        self.emit(session, "session.idle", {"aborted": aborted})
        self.broadcast("updated", session.session_id)

    async def _step(self, session: Session, name: str, words: list[str], text: str) -> str:  # noqa: PLR0912  a table
        match name:
            case "hold":
                await asyncio.get_running_loop().create_future()
            case "size":
                return "x" * int(words[0])
            case "flood":
                for number in range(int(words[0])):
                    self.emit(session, "flood", {"number": number, "text": "x" * int(words[1])})
                    for peer in list(session.attached):
                        with suppress(OSError):
                            await peer.writer.drain()
            case "ask":
                answer = await next(iter(session.attached)).ask(words[0], {"sessionId": session.session_id})
                return str(answer)
            case "permit":
                answer = await self._permit(session)
                return str(answer.get("kind"))
            case "call":
                return await self._call(session, words[0])
            case "delta":
                for number in range(int(words[0])):
                    self.emit(session, "assistant.message_delta", {"deltaContent": f"{number} "})
            case "use":
                used = {"model": words[0], "inputTokens": int(words[1]), "outputTokens": int(words[2]), "cost": 0.5}
                self.emit(session, "assistant.usage", used)
            case "fail":
                self.emit(session, "session.error", {"errorType": "query", "message": "the model failed"})
            case "die":
                self.die()
        return text

    async def _permit(self, session: Session) -> Any:
        request_id = str(uuid.uuid4())
        decided = session.permissions[request_id] = asyncio.get_running_loop().create_future()
        asked = {"kind": "custom-tool", "toolName": "lookup"}
        if self.keeps_permissions:
            _WAITING.setdefault(session.session_id, {})[request_id] = asked
        self.emit(session, "permission.requested", {"requestId": request_id, "permissionRequest": asked})
        answer = await decided
        _WAITING.get(session.session_id, {}).pop(request_id, None)
        self.emit(session, "permission.completed", {"requestId": request_id, "result": answer})
        return answer

    def _permissions(self, _peer: Peer, params: dict[str, Any]) -> dict[str, Any]:
        session = self._session(params)
        asked = _WAITING.get(session.session_id, {})
        items = [{"requestId": name, "request": asked.get(name, {})} for name in session.permissions]
        return {"items": items}

    async def _call(self, session: Session, tool: str) -> str:
        request_id = str(uuid.uuid4())
        called = session.tools[request_id] = asyncio.get_running_loop().create_future()
        self.emit(
            session, "external_tool.requested", {"requestId": request_id, "toolName": tool, "arguments": {"n": 1}}
        )
        answer = await called
        self.emit(session, "external_tool.completed", {"requestId": request_id})
        return str(answer.get("result", answer.get("error")))

    def _take_result(self, _peer: Peer, params: dict[str, Any]) -> dict[str, Any]:
        called = self._session(params).tools.pop(params.get("requestId", ""), None)
        if called is None or called.done():
            return {"success": False}
        called.set_result(params)
        return {"success": True}

    def _decide(self, _peer: Peer, params: dict[str, Any]) -> dict[str, Any]:
        decided = self._session(params).permissions.pop(params.get("requestId", ""), None)
        if decided is None or decided.done():
            return {"success": False}
        decided.set_result(params["result"])
        return {"success": True}

    def _abort(self, _peer: Peer, params: dict[str, Any]) -> dict[str, Any]:
        turn = self._session(params).turn
        if turn is not None:
            # Not at once: a task that is cancelled before its first step says nothing, and a turn that was sent has an end.
            asyncio.get_running_loop().call_soon(turn.cancel)
        return {"success": True}

    def _release(self, peer: Peer, params: dict[str, Any]) -> dict[str, Any]:
        session = self.sessions.get(params["sessionId"])
        if session is not None:
            self._detach(session, peer)
        return {"success": True}

    def _delete(self, _peer: Peer, params: dict[str, Any]) -> dict[str, Any]:
        session_id = params["sessionId"]
        found = session_id in self.disk or session_id in self.sessions
        self.disk.discard(session_id)
        self.sessions.pop(session_id, None)
        self.broadcast("deleted", session_id)
        return {"success": True} if found else {"success": False, "error": f"Session file not found for {session_id}"}

    def _list(self, _peer: Peer, _params: dict[str, Any]) -> dict[str, Any]:
        return {"sessions": [{"sessionId": session_id} for session_id in sorted({*self.sessions, *self.disk})]}

    def _update(self, _peer: Peer, params: dict[str, Any]) -> dict[str, Any]:
        session = self._session(params)
        session.options = {**session.options, **params}
        return {"success": True}

    def _activity(self, _peer: Peer, params: dict[str, Any]) -> dict[str, Any]:
        session = self._session(params)
        return {"hasActiveWork": session.works or (session.turn is not None and not session.turn.done())}

    def _setting(self, _peer: Peer, params: dict[str, Any]) -> dict[str, Any]:
        self._session(params)
        return {"success": True}

    def _messages(self, _peer: Peer, params: dict[str, Any]) -> dict[str, Any]:
        session_id = self._session(params).session_id
        return {
            "events": [{"type": "session.start", "data": {"sessionId": session_id}}, *_JOURNALS.get(session_id, [])]
        }

    def _journal(self, _peer: Peer, params: dict[str, Any]) -> dict[str, Any]:
        """Read the disk; a cursor can be used once (measured)."""
        session_id, cursor = params["sessionId"], params.get("cursor")
        if session_id not in self.disk:
            raise RpcError(-32603, f"Request failed with message: cannot read the journal of {session_id}")
        kept, at, size = _JOURNALS.get(session_id, []), self.snapshots.pop(cursor, None), params.get("max", 200)
        if cursor and at is None:
            return {"events": [], "cursor": cursor, "hasMore": False, "cursorStatus": "expired"}
        end = min((at or 0) + size, len(kept))
        following = str(uuid.uuid4())
        if end < len(kept):
            self.snapshots[following] = end
        return {
            "events": kept[at or 0 : end],
            "cursor": following,
            "hasMore": end < len(kept),
            "cursorStatus": "ok",
        }

    def _event_log(self, _peer: Peer, params: dict[str, Any]) -> dict[str, Any]:
        """Read what a live session has kept."""
        session_id = self._session(params).session_id
        kept = _JOURNALS.get(session_id, [])
        at, size = int(str(params.get("cursor") or "|0").partition("|")[2]), params.get("max", 200)
        page = kept[at : at + size]
        cursor = f"{page[-1]['id']}|{at + len(page)}" if page else params.get("cursor") or "|0"
        return {"events": page, "cursor": cursor, "hasMore": at + size < len(kept), "cursorStatus": "ok"}

    def _fork(self, _peer: Peer, params: dict[str, Any]) -> dict[str, Any]:
        session_id = params["sessionId"]
        if session_id not in self.disk:
            raise RpcError(-32603, f"Cannot fork session {session_id}: no persisted or in-memory events found")
        events = list(_JOURNALS.get(session_id, []))
        if "toEventId" in params:
            end = next((at for at, event in enumerate(events) if event["id"] == params["toEventId"]), len(events))
            events = events[:end]
        made = str(uuid.uuid4())
        _JOURNALS[made] = events
        self.disk.add(made)
        return {"sessionId": made}

    def _metrics(self, _peer: Peer, params: dict[str, Any]) -> dict[str, Any]:
        session = self._session(params)
        turns = sum(event["type"] == "assistant.turn_start" for event in _JOURNALS.get(session.session_id, []))
        used = {"inputTokens": 10 * turns, "outputTokens": turns, "cacheReadTokens": 0, "cacheWriteTokens": 0}
        return {
            "totalUserRequests": turns,
            "totalApiDurationMs": 1500,
            "codeChanges": {"linesAdded": 1, "linesRemoved": 2, "filesModifiedCount": 1, "filesModified": ["a"]},
            "modelMetrics": {"scripted": {"requests": {"count": turns, "cost": 0}, "usage": used}},
        }

    def _ping(self, _peer: Peer, params: dict[str, Any]) -> dict[str, Any]:
        return {"message": f"pong: {params.get('message', '')}", "protocolVersion": 3}

    def _spawn(self, work: Any) -> asyncio.Task[None]:
        task: asyncio.Task[None] = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task


_METHODS: dict[str, Callable[[ScriptedRuntime, Peer, dict[str, Any]], Any]] = {
    "ping": ScriptedRuntime._ping,
    "session.create": ScriptedRuntime._create,
    "session.resume": ScriptedRuntime._resume,
    "session.send": ScriptedRuntime._send,
    "session.abort": ScriptedRuntime._abort,
    "session.detach": ScriptedRuntime._release,
    "session.destroy": ScriptedRuntime._release,
    "session.delete": ScriptedRuntime._delete,
    "session.list": ScriptedRuntime._list,
    "session.getMessages": ScriptedRuntime._messages,
    "session.options.update": ScriptedRuntime._update,
    "session.metadata.activity": ScriptedRuntime._activity,
    "session.mode.set": ScriptedRuntime._setting,
    "session.model.switchTo": ScriptedRuntime._setting,
    "session.permissions.handlePendingPermissionRequest": ScriptedRuntime._decide,
    "session.permissions.pendingRequests": ScriptedRuntime._permissions,
    "session.permissions.setApproveAll": ScriptedRuntime._setting,
    "session.provider.add": ScriptedRuntime._setting,
    "session.tools.handlePendingToolCall": ScriptedRuntime._take_result,
    "session.skills.disable": ScriptedRuntime._setting,
    "session.usage.getMetrics": ScriptedRuntime._metrics,
    "sessions.fork": ScriptedRuntime._fork,
    "session.eventLog.read": ScriptedRuntime._event_log,
    "sessions.readPersistedEvents": ScriptedRuntime._journal,
}


class _KeptDisk(set[str]):
    """Session ids that outlive this process, as files of its COPILOT_HOME."""

    def __init__(self, directory: Path) -> None:
        directory.mkdir(parents=True, exist_ok=True)
        self._directory = directory
        super().__init__(path.name for path in directory.iterdir())

    def __contains__(self, session_id: object, /) -> bool:
        return (self._directory / str(session_id)).exists()

    def add(self, session_id: str, /) -> None:
        (self._directory / session_id).touch()
        super().add(session_id)

    def discard(self, session_id: object, /) -> None:
        (self._directory / str(session_id)).unlink(missing_ok=True)
        super().discard(str(session_id))


async def _serve(options: argparse.Namespace, faults: Faults) -> None:
    home = os.environ.get("COPILOT_HOME")
    disk = _KeptDisk(Path(home) / "scripted-sessions") if home is not None else set[str]()
    runtime = ScriptedRuntime(os.environ.get("COPILOT_CONNECTION_TOKEN"), faults, disk)
    runtime.die = lambda: os.kill(os.getpid(), signal.SIGKILL)
    stopped = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(
        signal.SIGTERM, (lambda: None) if faults.ignores_term else stopped.set
    )
    if not faults.never_ready:
        port = await runtime.start(port=options.port)
        print(f"CLI server listening on port {port}", flush=True)
    await stopped.wait()
    await runtime.aclose()


def main() -> None:
    """Run as a program, with the arguments that a real runtime is started with; `--fault NAME[=METHOD]` adds a fault."""
    parser = argparse.ArgumentParser(allow_abbrev=False)
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--fault", action="append", default=[])
    options, _ = parser.parse_known_args()
    pairs: list[tuple[str, str, str]] = [fault.partition("=") for fault in options.fault]
    wanted: dict[str, Any] = {name: value or True for name, _, value in pairs}
    faults = Faults(**wanted)
    if faults.exits_at_once:
        sys.exit("the scripted runtime exits at once, as it was told")
    asyncio.run(_serve(options, faults))


if __name__ == "__main__":
    main()
