"""Scenarios in which the program serves the runtime: tokens, files, model requests, canvases, MCP sign-in."""

from __future__ import annotations

import asyncio
import json
import posixpath
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from typing import Any

import httpx
from copilot import (
    CanvasAction,
    CanvasDeclaration,
    CanvasError,
    CanvasHandler,
    CopilotRequestContext,
    CopilotRequestHandler,
    SessionFsFileInfo,
    SessionFsProvider,
)
from copilot.generated.rpc import CanvasProviderOpenResult, SessionFSReaddirWithTypesEntry

from aerodrome.testing.direct_and_through import Endpoint

from .transparent_program import Model, Notes, program, say

_LONG_AGO = datetime(2020, 1, 1, tzinfo=UTC)


async def bearer_tokens_are_fetched_for_each_request(endpoint: Endpoint, model: Model) -> Any:
    asked = []

    async def give(arguments: Any) -> str:
        asked.append(dict(arguments))
        return f"{model['api_key']}"

    async with program(endpoint, model) as running:
        provider = {**running.provider, "bearer_token_provider": give}
        del provider["api_key"]
        session = await running.create(provider=provider)
        return [await say(session, "[who]"), await say(session, "[say again]")], asked


class MemoryFiles(SessionFsProvider):
    """A session's files in memory; notes what is asked of it."""

    def __init__(self, files: dict[str, str]) -> None:
        self.files = files
        self.directories = {"/state"}
        self.calls: list[tuple[str, str]] = []

    def _children(self, path: str) -> set[str]:
        prefix = path.rstrip("/") + "/"
        known = {*self.files, *self.directories}
        return {name[len(prefix) :].split("/")[0] for name in known if name.startswith(prefix)}

    def _is_directory(self, path: str) -> bool:
        return path in self.directories or bool(self._children(path))

    def _read(self, path: str) -> str:
        if path not in self.files:
            raise FileNotFoundError(path)
        return self.files[path]

    async def read_file(self, path: str) -> str:
        self.calls.append(("read", path))
        return self._read(path)

    async def write_file(self, path: str, content: str, mode: int | None = None) -> None:
        self.calls.append(("write", path))
        self.files[path] = content

    async def append_file(self, path: str, content: str, mode: int | None = None) -> None:
        self.calls.append(("append", path))
        self.files[path] = self.files.get(path, "") + content

    async def exists(self, path: str) -> bool:
        return path in self.files or self._is_directory(path)

    async def stat(self, path: str) -> SessionFsFileInfo:
        if path in self.files:
            return SessionFsFileInfo(True, False, len(self.files[path]), _LONG_AGO, _LONG_AGO)
        if not self._is_directory(path):
            raise FileNotFoundError(path)
        return SessionFsFileInfo(False, True, 0, _LONG_AGO, _LONG_AGO)

    async def mkdir(self, path: str, recursive: bool, mode: int | None = None) -> None:
        self.calls.append(("mkdir", path))
        self.directories.add(path)

    async def readdir(self, path: str) -> list[str]:
        return sorted(self._children(path))

    async def readdir_with_types(self, path: str) -> Sequence[SessionFSReaddirWithTypesEntry]:
        names = sorted(self._children(path))
        kinds = ["file" if posixpath.join(path, name) in self.files else "directory" for name in names]
        return [
            SessionFSReaddirWithTypesEntry.from_dict({"name": n, "type": k}) for n, k in zip(names, kinds, strict=True)
        ]

    async def rm(self, path: str, recursive: bool, force: bool) -> None:
        for name in [name for name in self.files if name == path or name.startswith(path + "/")]:
            del self.files[name]

    async def rename(self, src: str, dest: str) -> None:
        self.calls.append(("rename", dest))
        self.files[dest] = self.files.pop(src)


async def session_files_live_with_the_program(endpoint: Endpoint, model: Model) -> Any:
    files: dict[str, str] = {}
    store = MemoryFiles(files)
    config = {"initial_working_directory": "/work", "session_state_path": "/state", "conventions": "posix"}
    async with program(endpoint, model, session_fs=config) as running:
        session = await running.create(session_id="kept", create_session_fs_handler=lambda _: store)
        said = [await say(session, "[say remember ZEBRA]")]
        await session.disconnect()
        resumed = await running.resume("kept", create_session_fs_handler=lambda _: store)
        said.append(await say(resumed, "[recall]"))
        await resumed.disconnect()  # what it has to write is written by then
        kinds = [json.loads(line)["type"] for line in files["/state/events.jsonl"].splitlines()]
        return said, sorted(set(store.calls)), sorted(files), kinds


class CannedModel(CopilotRequestHandler):
    """Answers every model request itself, in two chunks."""

    def __init__(self) -> None:
        self.requests: list[Any] = []

    async def send_request(self, request: httpx.Request, ctx: CopilotRequestContext) -> httpx.Response:
        body = json.loads(request.content)
        headers = {name: value for name, value in request.headers.items() if name in {"authorization", "content-type"}}
        self.requests.append((request.method, str(request.url), headers, sorted(body), ctx.transport))
        return httpx.Response(200, headers={"content-type": "text/event-stream"}, content=self._stream())

    async def _stream(self) -> AsyncIterator[bytes]:
        for text, reason in (("over the ", None), ("wire", "stop")):
            choice = {"index": 0, "delta": {"role": "assistant", "content": text}, "finish_reason": reason}
            chunk = {"id": "canned", "object": "chat.completion.chunk", "created": 1, "model": "m", "choices": [choice]}
            yield b"data: " + json.dumps(chunk).encode() + b"\n\n"
        yield b"data: [DONE]\n\n"


async def model_requests_are_served_by_the_program(endpoint: Endpoint, model: Model) -> Any:
    canned, notes = CannedModel(), Notes()
    async with program(endpoint, model, request_handler=canned) as running:
        provider = {"type": "openai", "base_url": "http://nowhere.invalid/v1", "api_key": "k"}
        session = await running.create(provider=provider, on_event=notes)
        return await say(session, "hello"), canned.requests, notes.durable()


class Board(CanvasHandler):
    """A canvas of the program's own."""

    def __init__(self) -> None:
        self.calls: list[Any] = []

    async def on_open(self, ctx: Any) -> CanvasProviderOpenResult:
        self.calls.append(("open", ctx.to_dict()))
        return CanvasProviderOpenResult(status="ready", title="Board", url="http://127.0.0.1/board")

    async def on_close(self, ctx: Any) -> None:
        self.calls.append(("close", ctx.to_dict()))

    async def on_action(self, ctx: Any) -> Any:
        self.calls.append(("action", ctx.to_dict()))
        if ctx.action_name == "wipe":
            raise CanvasError("board_locked", "somebody draws")
        return {"drawn": ctx.input}


async def canvases_are_opened_used_and_closed(endpoint: Endpoint, model: Model) -> Any:
    board, notes = Board(), Notes()
    actions = [CanvasAction("draw", "Draw."), CanvasAction("wipe", "Wipe.")]
    async with program(endpoint, model) as running:
        session = await running.create(
            canvases=[CanvasDeclaration("board", "Board", "A board.", actions=actions)],
            canvas_handler=board,
            request_canvas_renderer=True,
            on_event=notes,
        )
        name = {"sessionId": session.session_id, "instanceId": "one"}
        heard = [await running.ask("session.canvas.list", {"sessionId": session.session_id})]
        heard.append(await running.ask("session.canvas.open", {**name, "canvasId": "board", "input": {"size": 3}}))
        for action in ("draw", "wipe", "paint"):
            params = {**name, "actionName": action, "input": {"line": 1}}
            heard.append(await running.ask("session.canvas.action.invoke", params))
        heard.append(await running.ask("session.canvas.listOpen", {"sessionId": session.session_id}))
        heard.append(await running.ask("session.canvas.close", name))
        return heard, board.calls, sorted(set(notes.kinds())), [c.instance_id for c in session.open_canvases]


@asynccontextmanager
async def guarded_mcp_server() -> AsyncIterator[tuple[str, list[str | None]]]:
    """Serve MCP over HTTP to whoever brings the token `granted`; yield its URL and the authorizations it saw."""
    seen: list[str | None] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while line := await reader.readline():
                headers: dict[str, str] = {}
                while header := (await reader.readline()).decode().strip():
                    key, _, value = header.partition(":")
                    headers[key.lower()] = value.strip()
                body = await reader.readexactly(int(headers.get("content-length", "0")))
                method, path, _ = line.decode().split()
                if method == "POST":
                    seen.append(headers.get("authorization"))
                writer.write(answer(method, path, headers, body))
        except (ConnectionError, asyncio.IncompleteReadError):
            pass
        finally:
            writer.close()

    def answer(method: str, path: str, headers: dict[str, str], body: bytes) -> bytes:
        if not path.startswith("/mcp"):
            return _http("404 Not Found")
        if headers.get("authorization") != "Bearer granted":
            metadata = f"http://127.0.0.1:{port}/.well-known/oauth-protected-resource"
            return _http("401 Unauthorized", f'WWW-Authenticate: Bearer resource_metadata="{metadata}", scope="tools"')
        if method != "POST":
            return _http("405 Method Not Allowed")
        message = json.loads(body)
        if "id" not in message:
            return _http("202 Accepted")
        result: dict[str, Any] = {}
        if message["method"] == "initialize":
            version = message["params"]["protocolVersion"]
            info = {"name": "guarded", "version": "1"}
            result = {"protocolVersion": version, "capabilities": {"tools": {}}, "serverInfo": info}
        elif message["method"] == "tools/list":
            result = {"tools": [{"name": "look", "description": "Look.", "inputSchema": {"type": "object"}}]}
        elif message["method"] == "tools/call":
            result = {"content": [{"type": "text", "text": "seen from afar"}]}
        return _http("200 OK", body=json.dumps({"jsonrpc": "2.0", "id": message["id"], "result": result}))

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    try:
        yield f"http://127.0.0.1:{port}/mcp", seen
    finally:
        server.close()


def _http(status: str, header: str | None = None, body: str = "") -> bytes:
    lines = [f"HTTP/1.1 {status}", "Content-Type: application/json", f"Content-Length: {len(body)}"]
    return "\r\n".join([*lines, *([header] if header else []), "", body]).encode()


async def an_mcp_server_wants_a_sign_in(endpoint: Endpoint, model: Model) -> Any:
    asked, notes = [], Notes()

    async def sign_in(request: Any, context: Any) -> Any:
        asked.append((dict(request), dict(context)))
        return {"kind": "token", "accessToken": "granted", "tokenType": "Bearer", "expiresIn": 3600}

    async with guarded_mcp_server() as (url, seen), program(endpoint, model) as running:
        servers = {"guarded": {"type": "http", "url": url, "tools": ["*"]}}
        session = await running.create(mcp_servers=servers, on_mcp_auth_request=sign_in, on_event=notes)
        await notes.first("session.mcp_server_tools_loaded")
        said = await say(session, "[tool guarded-look {}]")
        host = url.removesuffix("/mcp")
        kinds = sorted(set(await notes.kinds_of_turns(1)))
        text = json.dumps([said, asked, sorted(set(map(str, seen))), kinds]).replace(host, "http://mcp")
        return json.loads(text)


async def an_mcp_sign_in_is_declined(endpoint: Endpoint, model: Model) -> Any:
    notes = Notes()
    async with guarded_mcp_server() as (url, seen), program(endpoint, model) as running:
        servers = {"guarded": {"type": "http", "url": url, "tools": ["*"]}}
        session = await running.create(
            mcp_servers=servers, on_mcp_auth_request=lambda *_: {"kind": "cancelled"}, on_event=notes
        )
        await notes.first("mcp.oauth_completed")
        said = await say(session, "[tool guarded-look {}]")
        return said, set(seen) == {None}, sorted(set(await notes.kinds_of_turns(1)))


SCENARIOS = (
    bearer_tokens_are_fetched_for_each_request,
    session_files_live_with_the_program,
    model_requests_are_served_by_the_program,
    canvases_are_opened_used_and_closed,
    an_mcp_server_wants_a_sign_in,
    an_mcp_sign_in_is_declined,
)
