"""The first messages of a client link: nothing but `connect` is heard until a token is proved.

Answers exactly as the runtime does (measured): -32001 before, -32002 for a wrong or missing token, and the link stays open for
another try. What a runtime leaves unbounded is bounded here: the time, the size of a frame, the number of tries.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field, replace
from typing import Any

from msgspec import UNSET

from aerodrome import errors
from aerodrome.core import identity
from aerodrome.core.identity import Principal
from aerodrome.gateway import audit
from aerodrome.gateway.admission import Admission
from aerodrome.gateway.settings import GatewaySettings
from aerodrome.protocol import messages, refusals
from aerodrome.protocol.messages import Envelope, RequestId
from aerodrome.transport.link import Link


@dataclass(frozen=True, slots=True)
class Greeting:
    """What a finished handshake leaves: who calls, its `connect` (still unanswered), and what came after it.

    `first` is the message that ended it: the `connect`, or, where no token is asked for, any other (`request_id` is None then).
    """

    principal: Principal
    request_id: RequestId | None
    params: dict[str, Any]
    first: bytes
    rest: list[bytes] = field(default_factory=list)
    #: Digest of the token that was proved: a later `connect` on the same link must bring the same.
    proof: str = ""


#: Refusals that a runtime would speak too; it sends no data with them.
_RUNTIMES_OWN = ("authentication_failed", "authentication_required", "request_invalid", "parse_failed")


def answer_error(request_id: RequestId | None, error: errors.AerodromeError) -> bytes:
    """Return the wire form of an error: the one place where domain errors become JSON-RPC ones."""
    data = UNSET if error.code in _RUNTIMES_OWN else errors.data(error)
    return messages.failure(request_id, errors.wire(error).jsonrpc, error.message, data)


async def greet(
    link: Link, admission: Admission, settings: GatewaySettings, auditor: audit.Auditor = audit.UNAUDITED
) -> Greeting | None:
    """Hear the client until it has proved who it is; None if it leaves, stalls, or guesses too often.

    What is refused here is audited here; that a principal is let in is for the caller to record.

    Raises:
        errors.InvalidRequest: it broke the framing (the caller answers and closes).
    """
    failures = 0
    deadline = None if admission.is_open else settings.handshake_seconds
    try:
        async with asyncio.timeout(deadline):
            while batch := await link.receive():
                for at, body in enumerate(batch):
                    greeting = await _hear(link, body, admission, auditor)
                    if greeting is not None:
                        link.limit_frames(settings.max_frame_bytes)
                        return replace(greeting, rest=batch[at + 1 :])
                    failures += 1
                    if failures >= settings.failed_tokens:
                        return None
                link.flush()
    except TimeoutError:
        return None
    return None


async def _hear(link: Link, body: bytes, admission: Admission, auditor: audit.Auditor) -> Greeting | None:
    """Handle one message before authentication; a refusal is answered here."""
    try:
        refusals.check(body)
        envelope = messages.decode(body)
    except errors.InvalidRequest as error:
        if admission.is_open:
            return Greeting(await admission.authenticate(None), None, {}, body)
        auditor.broke_off(link.peer, None, error)
        link.send(answer_error(None, error))
        return None
    request_id = envelope.id if isinstance(envelope.id, (str, int)) else None
    try:
        if envelope.method == "connect" and request_id is not None:
            params = connect_params(envelope)
            token = take_token(params)
            auditor.check()
            principal = await admission.authenticate(token)
            return Greeting(principal, request_id, params, body, proof=identity.hash_secret(token or ""))
        if admission.is_open:
            return Greeting(await admission.authenticate(None), None, {}, body)
        raise errors.AuthenticationRequired
    except errors.AerodromeError as error:
        auditor.not_authenticated(link.peer, connect_params(envelope).get("token"), error)
        if _expects_answer(envelope):
            link.send(answer_error(request_id, error))
        return None


def _expects_answer(envelope: Envelope) -> bool:
    return envelope.method is not UNSET and envelope.id is not UNSET


def connect_params(envelope: Envelope) -> dict[str, Any]:
    """Return the params of `connect`; what is no object counts as empty, so that it proves nothing."""
    try:
        return messages.params_object(envelope.params)
    except errors.InvalidParams:
        return {}


def take_token(params: dict[str, Any]) -> str | None:
    """Take the token out of `connect` params; anything but a string counts as none."""
    token = params.pop("token", None)
    return token if isinstance(token, str) else None


def connect_result(params: dict[str, Any], version: str) -> dict[str, Any]:
    """Return the runtime's answer to `connect`: task kinds are its own plus `client` where the client can take it."""
    wanted = params.get("supportedTaskKinds")
    kinds = ["agent", "shell", *(["client"] if isinstance(wanted, list) and "client" in wanted else [])]
    return {"ok": True, "protocolVersion": 3, "version": version, "taskKinds": kinds}
