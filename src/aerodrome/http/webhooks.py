"""Tools that services answer: each call of one is POSTed there, signed, and what comes back is told to the agent.

A tenant's policy names where calls may go (`webhooks`); it is asked at every call, for it may have changed. The name is looked up
once and the connection made to the address that was found and judged, so that it cannot lead elsewhere a moment later; an
address that is not public must be named by the policy itself. No redirects, no proxies, bounded in time, size and number.
What fails is told to the agent as an error of the tool: it may try another way. Signatures are core.webhook.
"""

from __future__ import annotations

import asyncio
import random
import socket
import ssl
from collections.abc import Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

import httpx
import msgspec
import structlog

from aerodrome import errors
from aerodrome.clock import Clock
from aerodrome.core import egress, policy, webhook
from aerodrome.core.identity import Owner
from aerodrome.core.policy import Policy
from aerodrome.http.options import SessionOptions, WebhookTool
from aerodrome.http.pending import Pending

_log = structlog.get_logger()
MAX_ANSWER_BYTES = 1024 * 1024
#: Calls of one tenant that are under way at once; more wait.
CALLS_AT_ONCE = 16
_FIRST_BACKOFF_SECONDS = 0.25
_MAX_BACKOFF_SECONDS = 5.0
#: Over each step; the whole attempt has the tool's own time.
_CLIENT_SECONDS = 120.0
_RETRIED = frozenset({429, 500, 502, 503, 504})


@dataclass(frozen=True, slots=True)
class Call:
    """One call of a tool, by whom and in which session."""

    owner: Owner
    session_id: str
    pending: Pending
    tool: WebhookTool

    @property
    def call_id(self) -> str:
        """Return what tells a repeated call from a new one."""
        return f"{self.session_id}.{self.pending.request_id}"

    @property
    def body(self) -> bytes:
        """Return what is sent."""
        said = {
            "type": "tool.call",
            "call_id": self.call_id,
            "tool": self.tool.name,
            "arguments": self.pending.data.get("arguments"),
            "session_id": self.session_id,
            "tenant": self.owner.tenant,
            "user": self.owner.user,
        }
        return msgspec.json.encode(said)


class _Failed(Exception):
    """One attempt failed; `is_final`: another will fare no better."""

    def __init__(self, reason: str, is_final: bool = False, wait_seconds: float = 0.0) -> None:
        super().__init__(reason)
        self.reason = reason
        self.is_final = is_final
        self.wait_seconds = wait_seconds


class Webhooks:
    """Makes the calls. `find_policy` gives an owner's policy as it is now; without a master key there are no webhooks."""

    def __init__(
        self,
        master: bytes | None,
        find_policy: Callable[[Owner], Policy | None],
        clock: Clock,
        context: ssl.SSLContext | None = None,
    ) -> None:
        self._master = master
        self._find_policy = find_policy
        self._clock = clock
        self._context = context
        self._gates: dict[str, asyncio.Semaphore] = {}

    def check(self, chosen: SessionOptions, allowed: Policy) -> None:
        """Check that a session may have its tools.

        Raises:
            errors.PolicyRejected: policy does not allow where calls of one would go, or this gateway cannot sign them.
        """
        for tool in chosen.tools:
            if isinstance(tool, WebhookTool):
                if self._master is None:
                    raise errors.PolicyRejected(
                        "webhooks need the gateway's master key, to be signed with; ask your operator"
                    )
                if not allowed.allows_webhook(tool.url):
                    raise errors.PolicyRejected(
                        f"tool {tool.name}: its url is not among the webhooks of this tenant's policy; use one that is, or "
                        "ask your operator to add it",
                        parameter=f"tools.{tool.name}.url",
                    )

    async def answer(self, call: Call) -> dict[str, Any]:
        """Make a call; return what the runtime is told of it, an error included."""
        gate = self._gates.setdefault(call.owner.tenant, asyncio.Semaphore(CALLS_AT_ONCE))
        try:
            async with gate:
                return await self._try(call)
        except _Failed as failed:
            _log.warning("http.webhook_failed", session=call.session_id, tool=call.tool.name, reason=failed.reason)
            return {"error": f"the service behind {call.tool.name} could not be used: {failed.reason}"}

    async def _try(self, call: Call) -> dict[str, Any]:
        for attempt in range(call.tool.retries + 1):
            try:
                async with asyncio.timeout(call.tool.timeout_seconds):
                    return await self._attempt(call)
            except TimeoutError:
                failed = _Failed(f"no answer within {call.tool.timeout_seconds:g} s")
            except _Failed as error:
                failed = error
            if failed.is_final or attempt == call.tool.retries:
                raise failed
            backoff = min(_FIRST_BACKOFF_SECONDS * 2**attempt, _MAX_BACKOFF_SECONDS)
            await asyncio.sleep(max(backoff * random.uniform(0.5, 1.0), failed.wait_seconds))  # noqa: S311  no secret
        raise AssertionError("the last attempt returns or raises")

    async def _attempt(self, call: Call) -> dict[str, Any]:
        allowed = self._find_policy(call.owner)
        if self._master is None or allowed is None or not allowed.allows_webhook(call.tool.url):
            raise _Failed("the tenant's policy does not allow it", is_final=True)
        url = urlsplit(call.tool.url)
        host, port = url.hostname or "", url.port or (443 if url.scheme == "https" else 80)
        address = await _resolve(host, port, allowed)
        body = call.body
        secret = webhook.derive_secret(self._master, call.owner.tenant)
        headers = {
            "Host": url.netloc,
            "Content-Type": "application/json",
            "User-Agent": "aerodrome",
            webhook.CALL_HEADER: call.call_id,
            webhook.HEADER: webhook.sign(secret, self._clock.now(), body),
        }
        pinned = f"{url.scheme}://{f'[{address}]' if ':' in address else address}:{port}{url.path or '/'}"
        try:
            async with AsyncExitStack() as stack:
                client = await stack.enter_async_context(self._client())
                # The certificate must be the name's, though the address is dialed.
                extensions = {"sni_hostname": host}
                sending = client.stream("POST", pinned, content=body, headers=headers, extensions=extensions)
                return await _read(await stack.enter_async_context(sending))
        except httpx.HTTPError as error:
            raise _Failed(_reason(error)) from None

    def _client(self) -> httpx.AsyncClient:
        if self._context is None:
            self._context = ssl.create_default_context()
        return httpx.AsyncClient(verify=self._context, trust_env=False, follow_redirects=False, timeout=_CLIENT_SECONDS)


async def _resolve(host: str, port: int, allowed: Policy) -> str:
    """Return the address to connect to.

    Raises:
        _Failed: there is none, or one of them is not public and not named by the policy.
    """
    try:
        found = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError):  # the latter: a part of the name is empty, or longer than names can be
        raise _Failed("its name leads to no address") from None
    addresses = [str(entry[4][0]) for entry in found]
    for address in addresses:
        if not egress.is_public(address) and not policy.names_address(allowed.webhook_urls, address, port):
            raise _Failed("its name leads to an address that is not public", is_final=True)
    return addresses[0]


async def _read(answer: httpx.Response) -> dict[str, Any]:
    if answer.status_code in _RETRIED:
        text = answer.headers.get("Retry-After", "")
        wait = float(text) if text.isascii() and text.isdigit() else 0.0
        raise _Failed(f"it answered {answer.status_code}", wait_seconds=min(wait, _MAX_BACKOFF_SECONDS))
    if not 200 <= answer.status_code < 300:
        raise _Failed(f"it answered {answer.status_code}", is_final=True)
    data = bytearray()
    async for part in answer.aiter_bytes():
        data += part
        if len(data) > MAX_ANSWER_BYTES:
            raise _Failed(f"it answered more than {MAX_ANSWER_BYTES} bytes", is_final=True)
    return _result(bytes(data), answer.headers.get("Content-Type", ""))


def _result(data: bytes, media_type: str) -> dict[str, Any]:
    """Return what the runtime is told: `result` or `error` of a JSON object, or the text as it is."""
    if media_type.partition(";")[0].strip().lower() != "application/json":
        return {"result": data.decode(errors="replace")}
    try:
        said = msgspec.json.decode(data)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        raise _Failed("it answered what is no JSON", is_final=True) from None
    if isinstance(said, dict) and isinstance(said.get("error"), str):
        return {"error": said["error"]}
    result = said["result"] if isinstance(said, dict) and "result" in said else said
    return {"result": result if isinstance(result, str) else msgspec.json.encode(result).decode()}


def _reason(error: httpx.HTTPError) -> str:
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, ssl.SSLCertVerificationError):
            return "its certificate is not trusted, or not for that name"
        cause = cause.__cause__ or cause.__context__
    return "no connection" if isinstance(error, httpx.ConnectError) else "the connection broke"
