"""A runtime that does nothing: what remains between a client and it is the gateway.

Answers `connect`, `ping` and any call at once; `null.flood {"frames": N, "bytes": B}` sends N events of B bytes, then answers.
Run as `python bench/null_runtime.py`; prints its port.
"""

from __future__ import annotations

import asyncio
import json
import socket
from contextlib import suppress
from typing import Any

from aerodrome.protocol import framing, messages


class NullRuntime(asyncio.Protocol):
    """One connection."""

    def __init__(self) -> None:
        self.decoder = framing.FrameDecoder(64 * 1024 * 1024)
        self.transport: asyncio.Transport | None = None
        self.writable = asyncio.Event()
        self.tasks: set[asyncio.Task[None]] = set()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport) or hasattr(transport, "write")
        self.transport = transport  # type: ignore[assignment]
        transport.get_extra_info("socket").setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.writable.set()

    def pause_writing(self) -> None:
        self.writable.clear()

    def resume_writing(self) -> None:
        self.writable.set()

    def data_received(self, data: bytes) -> None:
        for body in self.decoder.feed(data):
            call = json.loads(body)
            if call.get("method") == "null.flood":
                task = asyncio.get_running_loop().create_task(self.flood(call))
                self.tasks.add(task)
                task.add_done_callback(self.tasks.discard)
            elif "id" in call and "method" in call:
                self.answer(call)

    def answer(self, call: dict[str, Any]) -> None:
        assert self.transport is not None
        result = {"ok": True, "protocolVersion": 3, "version": "null", "success": True}
        self.transport.write(framing.encode(messages.result(call["id"], result)))

    async def flood(self, call: dict[str, Any]) -> None:
        assert self.transport is not None
        event = {"type": "assistant.message_delta", "data": {"deltaContent": "x" * call["params"]["bytes"]}}
        body = messages.encode({"sessionId": "null", "event": event})
        frame = framing.encode(messages.notification("session.event", body))
        for _ in range(call["params"]["frames"]):
            await self.writable.wait()
            self.transport.write(frame)
        self.answer(call)


async def main() -> None:
    server = await asyncio.get_running_loop().create_server(NullRuntime, "127.0.0.1", 0)
    print(server.sockets[0].getsockname()[1], flush=True)
    await server.serve_forever()


if __name__ == "__main__":
    factory = asyncio.new_event_loop
    with suppress(ImportError):
        import uvloop

        factory = uvloop.new_event_loop
    with asyncio.Runner(loop_factory=factory) as runner:
        runner.run(main())
