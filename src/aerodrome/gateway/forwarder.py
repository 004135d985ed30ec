"""Puts the real key into model calls: an HTTP reverse proxy on loopback, between runtimes and the named providers.

A runtime knows its address and a placeholder key (`grants`) only. A request goes to the one endpoint that its placeholder stands
for, with plain paths only and no redirects; its own credentials are dropped, the provider's are put in. The key is read for each
call, and past the memory when the endpoint answers 401, so a rotated key is in use at the next call of every live session. What
an endpoint says is passed on as it comes, its key, should it repeat it, as asterisks. Nothing is logged of a request's content.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass

import httpx
import msgspec
import structlog
from starlette.types import Receive, Scope, Send

from aerodrome import errors
from aerodrome.core.provider import NamedProvider, ProviderKind
from aerodrome.core.secret import Reference
from aerodrome.gateway import forwarding
from aerodrome.gateway.forwarding import Redactor, Refusal
from aerodrome.gateway.supplying import Supplier
from aerodrome.ports.secrets import Secrets

_log = structlog.get_logger()
_CONNECT_SECONDS = 10.0
#: Between two parts of an answer: a model may think for minutes before it says the first word.
_READ_SECONDS = 600.0
_MAX_CONNECTIONS = 4096


@dataclass(frozen=True, slots=True)
class _Call:
    """A request that may go on, without its credentials."""

    provider: NamedProvider
    method: str
    url: str
    headers: list[tuple[str, str]]
    body: bytes


class Forwarder:
    """The ASGI application that runtimes call."""

    def __init__(self, supplier: Supplier, secrets: Secrets, max_body_bytes: int) -> None:
        self._supplier = supplier
        self._secrets = secrets
        self._max_body_bytes = max_body_bytes
        self._http = httpx.AsyncClient(
            timeout=httpx.Timeout(_READ_SECONDS, connect=_CONNECT_SECONDS),
            limits=httpx.Limits(max_connections=_MAX_CONNECTIONS, max_keepalive_connections=64),
            follow_redirects=False,
        )

    async def aclose(self) -> None:
        """Close the connections to endpoints."""
        await self._http.aclose()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Forward one request, and give it up when the runtime does."""
        try:
            call = self._take(scope, await forwarding.read_body(receive, self._max_body_bytes))
        except Refusal as refusal:
            await forwarding.refuse(send, refusal)
            return
        working = asyncio.ensure_future(self._forward(call, send))
        leaving = asyncio.ensure_future(forwarding.wait_gone(receive))
        try:
            await asyncio.wait((working, leaving), return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in (working, leaving):
                task.cancel()
            await asyncio.wait((working, leaving))
        if not working.cancelled():
            working.result()

    def _take(self, scope: Scope, body: bytes) -> _Call:
        headers = [(name.decode("latin-1").lower(), value.decode("latin-1")) for name, value in scope["headers"]]
        grant = self._supplier.grants.find(forwarding.key_of(headers))
        provider = self._supplier.providers.get(grant.provider) if grant is not None else None
        if grant is None or provider is None:
            raise Refusal(401, "no session of this gateway has that key", "invalid_api_key")
        url = provider.base_url + forwarding.plain_target(scope, f"/{provider.name}/")
        return _Call(provider, scope["method"], url, forwarding.onward(headers), _with_model(provider, url, body))

    async def _forward(self, call: _Call, send: Send) -> None:
        try:
            async with _opened(self._http, call, await self._credentials(call.provider, is_anew=False)) as answer:
                fresh = await self._rotated(call.provider, answer)
                if fresh is None:
                    await answer.pass_on(send)
                    return
            async with _opened(self._http, call, fresh) as answer:
                await answer.pass_on(send)
        except errors.SecretUnavailable as error:
            _log.warning("provider.key_unavailable", provider=call.provider.name, reason=error.message)
            await forwarding.refuse(
                send, Refusal(503, "the key of this provider is not to be had now", "key_unavailable")
            )
        except httpx.HTTPError as error:
            _log.warning("provider.call_failed", provider=call.provider.name, reason=type(error).__name__)
            # Once an answer has begun there is nothing to refuse any more: the server cuts the connection.
            with suppress(RuntimeError):
                refusal = Refusal(502, "the model endpoint could not be reached", "upstream_failed")
                await forwarding.refuse(send, refusal)

    async def _rotated(self, provider: NamedProvider, answer: _Answer) -> dict[str, str] | None:
        """Return other credentials than those that an endpoint has just refused, None if there are none or it did not."""
        if answer.response.status_code != 401:
            return None
        fresh = await self._credentials(provider, is_anew=True)
        if fresh != answer.credentials:
            return fresh
        _log.warning("provider.key_refused", provider=provider.name)
        return None

    async def _credentials(self, provider: NamedProvider, is_anew: bool) -> dict[str, str]:
        """Return the headers that prove the gateway to an endpoint."""

        async def read(reference: Reference) -> str:
            reading = self._secrets.read_anew(reference) if is_anew else self._secrets.read(reference)
            return (await reading).reveal()

        found = {name.lower(): await read(reference) for name, reference in provider.headers}
        if provider.bearer_token is not None:
            found["authorization"] = f"Bearer {await read(provider.bearer_token)}"
        if provider.api_key is not None:
            key = await read(provider.api_key)
            found |= _key_headers(provider.kind, key)
        return found


def _key_headers(kind: ProviderKind, key: str) -> dict[str, str]:
    match kind:
        case ProviderKind.AZURE:
            return {"api-key": key}
        case ProviderKind.ANTHROPIC:
            return {"x-api-key": key}
    return {"authorization": f"Bearer {key}"}


class _Named(msgspec.Struct, gc=False):
    model: str | None = None


_decode_named = msgspec.json.Decoder(_Named).decode
_decode_members = msgspec.json.Decoder(dict[str, msgspec.Raw]).decode
_DEPLOYMENT = re.compile(r"/openai/deployments/([^/?]+)/")


def _with_model(provider: NamedProvider, url: str, body: bytes) -> bytes:
    """Return the body under the endpoint's own name of its model: whatever way a session came to name it, it is judged here."""
    found = _DEPLOYMENT.search(url) if provider.kind is ProviderKind.AZURE else None
    try:
        model = found[1] if found is not None else _decode_named(body).model if body else None
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        raise Refusal(400, "expected a JSON object", "invalid_request") from None
    if model is None:
        return body
    wanted = provider.wire_model(model)
    if wanted is None:
        raise Refusal(403, f"the provider {provider.name} does not offer that model", "model_not_found")
    if wanted == model:
        return body
    return msgspec.json.encode({**_decode_members(body), "model": wanted})


class _Answer:
    """An endpoint's answer that has begun."""

    def __init__(self, response: httpx.Response, credentials: dict[str, str]) -> None:
        self.response = response
        self.credentials = credentials

    async def pass_on(self, send: Send) -> None:
        """Send it to the runtime as it comes."""
        values = (value.removeprefix("Bearer ") for value in self.credentials.values())
        redactor = Redactor([value.encode() for value in values])
        await send(
            {
                "type": "http.response.start",
                "status": self.response.status_code,
                "headers": forwarding.back(self.response.headers.raw, redactor),
            }
        )
        async for part in self.response.aiter_bytes():
            clean = redactor.feed(part)
            if clean:
                await send({"type": "http.response.body", "body": clean, "more_body": True})
        await send({"type": "http.response.body", "body": redactor.finish(), "more_body": False})


@asynccontextmanager
async def _opened(http: httpx.AsyncClient, call: _Call, credentials: dict[str, str]) -> AsyncIterator[_Answer]:
    """Send a call with these credentials; the answer is there for the length of a block."""
    headers = [(name, value) for name, value in call.headers if name not in credentials]
    request = http.build_request(call.method, call.url, headers=[*headers, *credentials.items()], content=call.body)
    response = await http.send(request, stream=True)
    try:
        yield _Answer(response, credentials)
    finally:
        await response.aclose()
