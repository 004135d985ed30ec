"""The bundled demo model: an OpenAI-compatible, deterministic, streaming server that needs no network and no account.

    POST /v1/chat/completions · POST /v1/responses · GET /v1/models · GET /healthz

A prompt without directives is answered with `You said: <its first 200 characters>`, streamed in 8 deltas. Directives in square
brackets, anywhere in the last user message, script the answer; several may stand in one prompt:

    [say TEXT]                answer exactly TEXT (square brackets inside must pair up)
    [tool NAME {json args}]   call that tool; several are parallel calls in one response. The request that brings the results is
                              answered with `tool said: <results joined by ' | ', at most 500 characters>`
    [then]                    what follows is for the next request of the same turn, once the tools called before it have answered
    [error STATUS]            answer with that HTTP error (400-599)
    [error STATUS xN]         only for the first N attempts at this point of this conversation, then as if it were not there
    [delay SECONDS]           send nothing for so long (at most 600)
    [stream N SECONDS]        stream N deltas (at most 10,000) over SECONDS in all (at most 600); `1 2 3 ... N` if there is no
                              other text
    [size BYTES]              a text of that many bytes (at most 16 MiB)
    [count]                   `user messages: <number of user messages in the request>`
    [recall]                  the texts of all user messages, joined by ' | '
    [who]                     the first 8 hex digits of the SHA-256 of the bearer token
    [tools]                   the sorted names of the tools offered, joined by commas
    [system]                  the system message, at most 2000 characters
    [drop]                    close the connection after half of the answer

What is larger than a bound is cut to it; several texts are joined by newlines; an unknown or malformed directive is text
like any other. Blocks such as <current_datetime>..</current_datetime> that a runtime puts around a prompt are not part of
it, and a user message of nothing else is not counted as one. Requests that a runtime makes on the side (titles, summaries)
are prompts like any other.

`python -m aerodrome.testing.demo_model` serves it by itself: it prints one JSON line `{"base_url", "name", "api_key"}` when
it accepts connections and stops on SIGTERM, SIGINT or, with --exit-with-parent, at the end of its standard input. The key
is the environment's AERODROME_DEMO_MODEL_KEY, or a fresh one. It is deliberately not a model and checks no schema: any
model name is answered, unknown fields are ignored. Neighbours: `demo_script` reads the prompt, `demo_endpoint` answers it
on time, `demo_chat` and `demo_responses` are the wire forms.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import logging
import os
import secrets
import signal
import socket
import sys
import threading
from collections.abc import Sequence
from dataclasses import dataclass, field

import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route

from aerodrome.testing import demo_chat, demo_endpoint, demo_responses, demo_wire

KEY_VARIABLE = "AERODROME_DEMO_MODEL_KEY"


@dataclass(frozen=True, slots=True)
class DemoModel:
    """What a demo model is called, and the key it asks for (None: anyone may call)."""

    name: str = "demo"
    api_key: str | None = field(default=None, repr=False)


def create_app(settings: DemoModel) -> Starlette:
    """Return the demo model as an ASGI application."""
    attempts = demo_endpoint.Attempts()
    chat = demo_endpoint.Endpoint(settings.name, demo_chat, attempts)
    responses = demo_endpoint.Endpoint(settings.name, demo_responses, attempts)
    model = {"id": settings.name, "object": "model", "created": demo_wire.CREATED, "owned_by": "aerodrome"}
    models = JSONResponse({"object": "list", "data": [model]})
    return Starlette(
        routes=[
            Route("/v1/chat/completions", demo_endpoint.KeyGuard(settings.api_key, chat), methods=["POST"]),
            Route("/v1/responses", demo_endpoint.KeyGuard(settings.api_key, responses), methods=["POST"]),
            Route("/v1/models", demo_endpoint.KeyGuard(settings.api_key, models), methods=["GET"]),
            Route("/healthz", _healthz, methods=["GET"]),
        ]
    )


async def _healthz(_: Request) -> JSONResponse:
    return JSONResponse({"status": "ok"})


class Server(uvicorn.Server):
    """A uvicorn server of the demo model that prints one JSON line when it accepts connections."""

    def __init__(self, settings: DemoModel, listener: socket.socket) -> None:
        # No grace at shutdown: an open stream is cut. No access log, no date: benchmarks pay for every request. The logging
        # of the process stays as it is: this server may be a guest in it.
        config = uvicorn.Config(
            create_app(settings),
            lifespan="off",
            ws="none",
            log_config=None,
            access_log=False,
            server_header=False,
            date_header=False,
            timeout_graceful_shutdown=0,
        )
        super().__init__(config)
        self._settings = settings
        self._listener = listener

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Start, then say where."""
        await super().startup(sockets)
        line = {
            "base_url": f"http://{_authority(self._listener)}/v1",
            "name": self._settings.name,
            "api_key": self._settings.api_key,
        }
        print(json.dumps(line), flush=True)

    def stop(self) -> None:
        """Ask the server to stop; may be called from any thread."""
        self.should_exit = True


def _authority(listener: socket.socket) -> str:
    host, port = listener.getsockname()[:2]
    return f"[{host}]:{port}" if listener.family == socket.AF_INET6 else f"{host}:{port}"


def _listen(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.create_server((host, port), family=family, backlog=1024)
    listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)  # accepted sockets inherit it
    return listener


def _stop_at_end_of_input(server: Server) -> None:
    """Stop the server when standard input ends, which is when the parent has gone, however it went."""

    def wait() -> None:
        while os.read(sys.stdin.fileno(), 4096):
            pass
        server.stop()

    threading.Thread(target=wait, name="parent-watch", daemon=True).start()


def _is_news(record: logging.LogRecord) -> bool:
    """Say whether uvicorn has something to tell: dropped answers and streams cut at the end are meant to be so."""
    cut = record.exc_info is not None and isinstance(record.exc_info[1], asyncio.CancelledError)
    return not cut and not record.msg.startswith(("ASGI callable returned without completing", "Cancel %s running"))


def main(arguments: Sequence[str] | None = None) -> None:
    """Serve the demo model until a signal, or the parent's end, stops it."""
    parser = argparse.ArgumentParser(prog="python -m aerodrome.testing.demo_model", description="Serve the demo model.")
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on (default: %(default)s)")
    parser.add_argument(
        "--port", type=int, default=0, help="port to listen on, 0 for a free one (default: %(default)s)"
    )
    parser.add_argument("--exit-with-parent", action="store_true", help="stop when standard input ends")
    options = parser.parse_args(arguments)
    settings = DemoModel(api_key=os.environ.get(KEY_VARIABLE) or secrets.token_urlsafe(24))
    logging.getLogger("uvicorn.error").addFilter(_is_news)
    with _listen(options.host, options.port) as listener:
        server = Server(settings, listener)
        # For a signal before uvicorn takes them over, and for the one it raises again once it has stopped: the process ends well.
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda *_: server.stop())
        if options.exit_with_parent:
            _stop_at_end_of_input(server)
        server.run(sockets=[listener])


if __name__ == "__main__":
    main()
