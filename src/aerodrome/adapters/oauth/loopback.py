"""Where a browser of this machine comes back to from a sign-in that a command began (RFC 8252, 7.3): one page on loopback.

Takes the one answer that bears the sign-in's state; whatever else comes by is refused, and ends nothing.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse
from starlette.routing import Route

from aerodrome import errors
from aerodrome.core import sign_in
from aerodrome.core.secret import Secret
from aerodrome.core.sign_in import Kept
from aerodrome.transport.asgi import AsgiServer

PATH = "/callback"
_CONNECTIONS = 16
#: The address in the browser's bar holds a code: it is neither kept nor told to anyone.
_HEADERS = {
    "Cache-Control": "no-store",
    "Referrer-Policy": "no-referrer",
    "Content-Security-Policy": "default-src 'none'",
}


class Loopback:
    """Listens from `start` to `aclose`."""

    def __init__(self) -> None:
        self._server = AsgiServer(Starlette(routes=[Route(PATH, self._answer)]), _CONNECTIONS)
        self._state: Secret | None = None
        self._heard: asyncio.Future[Mapping[str, str]] | None = None

    async def start(self) -> str:
        """Listen on a free port; return the address to come back to."""
        self._heard = asyncio.get_running_loop().create_future()
        return f"http://127.0.0.1:{await self._server.start()}{PATH}"

    async def wait(self, kept: Kept, seconds: float = sign_in.SECONDS) -> Mapping[str, str]:
        """Return the query that the browser comes back with.

        Raises:
            errors.SignInFailed: none came in time.
        """
        assert self._heard is not None
        self._state = kept.state
        try:
            return await asyncio.wait_for(self._heard, seconds)
        except TimeoutError:
            raise errors.SignInFailed("no browser came back in time; begin again") from None

    async def aclose(self) -> None:
        """Stop listening; idempotent."""
        await self._server.aclose()

    async def _answer(self, request: Request) -> PlainTextResponse:
        params = dict(request.query_params)
        assert self._heard is not None
        if self._heard.done() or self._state is None or Secret(params.get("state", "")) != self._state:
            return PlainTextResponse("This is no answer to a sign-in that waits here.\n", 400, _HEADERS)
        self._heard.set_result(params)
        said = "denied" if "error" in params else "done"
        return PlainTextResponse(f"The sign-in is {said}. You can close this page.\n", headers=_HEADERS)
