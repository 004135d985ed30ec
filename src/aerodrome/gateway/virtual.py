"""The calls that the gateway answers itself, because a runtime would answer for everyone it serves."""

from __future__ import annotations

import datetime
import functools
import hmac
from collections.abc import Awaitable, Callable

from aerodrome import errors
from aerodrome.core import identity
from aerodrome.gateway import handshake
from aerodrome.gateway.client import Client, Request
from aerodrome.protocol import messages
from aerodrome.protocol.messages import RequestId

_PROTOCOL_VERSION = 3


def answer(client: Client, request: Request) -> Callable[[], Awaitable[None]] | None:
    """Answer a call, now or after a look into the registry.

    Raises:
        errors.PolicyRejected: the table says the gateway answers, and there is no answer here: a gap, never a pass.
    """
    match request.method:
        case "ping":
            result: object = _pong(request)
        case "status.get":
            result = {"version": client.services.fleet.version, "protocolVersion": _PROTOCOL_VERSION}
        case "connect":
            result = _connect_again(client, request)
        case "auth.getStatus":
            result = {"isAuthenticated": False, "statusMessage": "Not authenticated"}
        case "session.getForeground":
            result = {}
        case "session.getLastId":
            return functools.partial(_last_id, client, request.id)
        case _:
            raise errors.PolicyRejected(
                f"{request.method} is refused by the policy of this tenant", method=request.method
            )
    client.link.send(messages.result(request.id, result))
    return None


def _connect_again(client: Client, request: Request) -> dict[str, object]:
    """Answer a repeated `connect`: the same token again, or the refusal a wrong one gets; the link keeps its principal."""
    params = request.object()
    if not hmac.compare_digest(identity.hash_secret(handshake.take_token(params) or ""), client.proof):
        raise errors.AuthenticationFailed
    return handshake.connect_result(params, client.services.fleet.version)


def _pong(request: Request) -> dict[str, object]:
    message = request.object().get("message")
    now = datetime.datetime.now(datetime.UTC).isoformat().replace("+00:00", "Z")
    return {
        "message": f"pong: {message}" if isinstance(message, str) and message else "pong",
        "timestamp": now,
        "protocolVersion": _PROTOCOL_VERSION,
    }


async def _last_id(client: Client, request_id: RequestId) -> None:
    ids = await client.services.ownership.list_ids(client.owner)
    client.link.send(messages.result(request_id, {"sessionId": ids[0]} if ids else {}))
