"""A raw JSON-RPC program that means harm, or is its victim: sends any bytes, and keeps every byte it was sent."""

from __future__ import annotations

import asyncio
import itertools
import json
import uuid
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any

from aerodrome.testing.demo_process import DemoProcess, Principal
from aerodrome.transport import link as links

_MAX_FRAME_BYTES = 64 * 1024 * 1024
ANSWER_SECONDS = 45.0
TURN_SECONDS = 45.0
TOOL = {
    "name": "fact",
    "description": "tells a fact",
    "skipPermission": True,
    "parameters": {"type": "object", "properties": {}},
}


class Program:
    """One connection of a principal."""

    def __init__(self, link: links.Link, demo: DemoProcess, principal: Principal) -> None:
        self._link = link
        self._demo = demo
        self.principal = principal
        #: Every body received, whole; and apart, those that are not answers to a request of this program.
        self.received: list[bytes] = []
        self.unasked: list[bytes] = []
        self._owed: dict[int, asyncio.Future[bytes]] = {}
        self._events: asyncio.Queue[tuple[str, dict[str, Any]]] = asyncio.Queue()
        self._requests: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
        self._numbers = itertools.count(1)
        self._reading = asyncio.create_task(self._read())

    @classmethod
    async def connect(cls, demo: DemoProcess, principal: Principal) -> Program:
        """Connect and authenticate."""
        host, _, port = demo.sdk.rpartition(":")
        program = cls(await links.connect(host, int(port), _MAX_FRAME_BYTES, ANSWER_SECONDS), demo, principal)
        answer = await program.ask("connect", {"token": principal.token})
        assert answer["result"]["ok"] is True
        return program

    async def ask(self, method: str, params: Any = None) -> dict[str, Any]:
        """Make a call; return its answer without the envelope."""
        answer: dict[str, Any] = json.loads(await self.ask_raw(method, json.dumps(params or {}).encode()))
        return {name: answer[name] for name in ("result", "error") if name in answer}

    async def ask_raw(self, method: str, params: bytes) -> bytes:
        """Make a call with params as written; return the whole body of its answer."""
        number = next(self._numbers)
        owed = self._owed[number] = asyncio.get_running_loop().create_future()
        self.send(b'{"jsonrpc":"2.0","id":%d,"method":%b,"params":%b}' % (number, json.dumps(method).encode(), params))
        async with asyncio.timeout(ANSWER_SECONDS):
            return await owed

    def send(self, body: bytes) -> None:
        """Send one body as it is."""
        self._link.send(body)
        self._link.flush()

    async def get(self, method: str, params: Any = None) -> Any:
        """Make a call that must succeed; return its result."""
        answer = await self.ask(method, params)
        assert "result" in answer, (method, answer)
        return answer["result"]

    def opening(self, **more: Any) -> dict[str, Any]:
        """Return ordinary parameters of a create or resume."""
        model = self._demo.model
        provider = {"type": "openai", "baseUrl": model["base_url"], "apiKey": model["api_key"]}
        return {"model": model["name"], "provider": provider, "streaming": True, "tools": [TOOL], **more}

    async def open_session(self, **more: Any) -> str:
        """Create a session with one custom tool; return its id."""
        created = await self.get("session.create", self.opening(**more))
        return str(created["sessionId"])

    async def turn(self, session_id: str, prompt: str, **more: Any) -> str:
        """Run one turn; return all that the model said in it. The custom tool answers `a fact`."""
        self._drop_events()
        await self.get("session.send", {"sessionId": session_id, "prompt": prompt, **more})
        return await self.finish_turn(session_id)

    async def finish_turn(self, session_id: str) -> str:
        """Follow a session until it is idle; return what the model said."""
        said: list[str] = []
        async with asyncio.timeout(TURN_SECONDS):
            while True:
                named, event = await self._events.get()
                if named != session_id:
                    continue
                if event["type"] == "assistant.message":
                    said.append(event["data"].get("content") or "")
                elif event["type"] == "external_tool.requested":
                    self._answer_tool(session_id, event["data"]["requestId"])
                elif event["type"] == "session.error":
                    said.append(f"error: {event['data'].get('message')}")
                elif event["type"] == "session.idle":
                    return "\n".join(text for text in said if text)

    async def wait_for_event(self, session_id: str, kind: str) -> dict[str, Any]:
        """Return the data of the next event of that type."""
        async with asyncio.timeout(TURN_SECONDS):
            while True:
                named, event = await self._events.get()
                if named == session_id and event["type"] == kind:
                    data: dict[str, Any] = event["data"]
                    return data

    async def wait_for_request(self, method: str) -> dict[str, Any]:
        """Return the next request of that method that the runtime makes of this program."""
        async with asyncio.timeout(TURN_SECONDS):
            while True:
                request = await self._requests.get()
                if request["method"] == method:
                    return request

    async def wait_for_unasked(self, count: int) -> None:
        """Wait until so many bodies came that answer no request of this program."""
        async with asyncio.timeout(ANSWER_SECONDS):
            while len(self.unasked) < count:  # noqa: ASYNC110  only tests of broken requests want it
                await asyncio.sleep(0.01)

    def answer(self, number: int | str, result: Any) -> None:
        """Answer a request of the runtime."""
        self.send(json.dumps({"jsonrpc": "2.0", "id": number, "result": result}).encode())

    async def history(self, session_id: str) -> list[dict[str, Any]]:
        """Return the session's events as the runtime keeps them."""
        events: list[dict[str, Any]] = (await self.get("session.getMessages", {"sessionId": session_id}))["events"]
        return events

    async def wait_closed(self) -> None:
        """Wait until the gateway has closed the link."""
        async with asyncio.timeout(ANSWER_SECONDS):
            await asyncio.wait((self._reading,))

    async def aclose(self) -> None:
        """Leave without a word."""
        self._link.abort()
        self._reading.cancel()
        await asyncio.wait((self._reading,))

    def _answer_tool(self, session_id: str, request_id: str) -> None:
        params = {"sessionId": session_id, "requestId": request_id, "result": "a fact"}
        body = {"jsonrpc": "2.0", "id": str(uuid.uuid4()), "method": "session.tools.handlePendingToolCall"}
        self.send(json.dumps({**body, "params": params}).encode())

    def _drop_events(self) -> None:
        with suppress(asyncio.QueueEmpty):
            while True:
                self._events.get_nowait()

    async def _read(self) -> None:
        while batch := await self._link.receive():
            for body in batch:
                self.received.append(bytes(body))
                self._take(bytes(body))
        for owed in self._owed.values():
            if not owed.done():
                owed.set_exception(ConnectionError("the gateway closed the link"))

    def _take(self, body: bytes) -> None:
        message = json.loads(body)
        number = message.get("id")
        if number is None and "error" in message and self._owed:
            number = min(self._owed)  # a body that could not be read has an answer without an id
        owed = self._owed.pop(number, None) if "method" not in message else None
        if owed is not None:
            owed.set_result(body)
            return
        self.unasked.append(body)
        if "method" in message and "id" in message:
            self._requests.put_nowait(message)
        elif message.get("method") == "session.event":
            self._events.put_nowait((message["params"]["sessionId"], message["params"]["event"]))


class Programs:
    """The programs of one test, gone when it is."""

    def __init__(self, demo: DemoProcess) -> None:
        self.demo = demo
        self._open: list[Program] = []

    async def connect(self, principal: Principal) -> Program:
        """Connect one more."""
        program = await Program.connect(self.demo, principal)
        self._open.append(program)
        return program

    async def aclose(self) -> None:
        """Close them all."""
        for program in self._open:
            await program.aclose()


def leaks(bodies: Sequence[bytes], *canaries: str) -> list[str]:
    """Return the bodies, cut short, in which something stands that should not."""
    return [f"{canary}: {body[:300]!r}" for body in bodies for canary in canaries if canary.encode() in body]


def is_refusal(answer: Mapping[str, Any]) -> bool:
    """Say whether an answer is an error."""
    return "error" in answer and "result" not in answer
