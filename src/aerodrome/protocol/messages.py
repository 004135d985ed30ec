"""JSON-RPC 2.0 messages with params, results and errors left as raw JSON.

Sans-IO. Only the envelope is decoded: a gateway forwards most messages without looking inside, so a message costs one scan.
Forwarded requests and responses are written anew from the decoded envelope, so that two readers can never disagree about
a doubled or oddly written member; ids follow the runtime's rule (string or integer, measured).
"""

from __future__ import annotations

from typing import Any

import msgspec
from msgspec import UNSET, Raw, UnsetType

from aerodrome import errors

RequestId = str | int


class Envelope(msgspec.Struct, gc=False):
    """One message: a request (method, id), a notification (method only) or a response (id, result or error)."""

    id: str | int | UnsetType | None = UNSET
    method: str | UnsetType = UNSET
    params: Raw | UnsetType = UNSET
    result: Raw | UnsetType = UNSET
    error: Raw | UnsetType = UNSET


class _PeekEvent(msgspec.Struct, gc=False):
    type: str = ""
    agentId: str | None = None


class PeekParams(msgspec.Struct, gc=False):
    """The only members of a runtime's message that the relay reads on its hot path."""

    sessionId: str | UnsetType = UNSET
    event: _PeekEvent | UnsetType = UNSET


class Peek(msgspec.Struct, gc=False):
    """A runtime's message, seen just deep enough to route it; `params` is a PeekParams where it is an object."""

    id: str | int | UnsetType | None = UNSET
    method: str | UnsetType = UNSET
    params: PeekParams | list[Raw] | str | float | bool | UnsetType | None = UNSET
    result: Raw | UnsetType = UNSET
    error: Raw | UnsetType = UNSET


_decode_envelope = msgspec.json.Decoder(Envelope).decode
_decode_peek = msgspec.json.Decoder(Peek).decode
_encode = msgspec.json.Encoder().encode
_NO_PARAMS = b"{}"


def decode(body: bytes) -> Envelope:
    """Decode one message body.

    Raises:
        errors.ParseFailed: not JSON.
        errors.InvalidRequest: JSON, but no request, notification or response (batches, odd ids, neither method nor answer).
    """
    try:
        envelope = _decode_envelope(body)
    except msgspec.ValidationError:
        raise _not_a_message() from None
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise errors.ParseFailed(f"expected JSON, found something else: {error}") from None
    return _checked(envelope)


def _checked(envelope: Envelope) -> Envelope:
    if envelope.method is not UNSET:
        if envelope.id is None:
            raise _not_a_message()
    elif envelope.id is UNSET or (envelope.result is UNSET) == (envelope.error is UNSET):
        raise _not_a_message()
    return envelope


def _not_a_message() -> errors.InvalidRequest:
    return errors.InvalidRequest("not a recognizable JSON-RPC request, notification, or response")


def peek(body: bytes) -> Peek | None:
    """Decode the routing members of a runtime's message; None when it has an unusual shape (then use `decode`)."""
    try:
        return _decode_peek(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None


def request(request_id: RequestId, method: str, params: bytes | UnsetType = UNSET) -> bytes:
    """Return the body of a request with raw params."""
    raw = _NO_PARAMS if params is UNSET else bytes(params)
    return b'{"jsonrpc":"2.0","id":%b,"method":%b,"params":%b}' % (_encode(request_id), _encode(method), raw)


def notification(method: str, params: bytes | UnsetType = UNSET) -> bytes:
    """Return the body of a notification with raw params."""
    raw = _NO_PARAMS if params is UNSET else bytes(params)
    return b'{"jsonrpc":"2.0","method":%b,"params":%b}' % (_encode(method), raw)


def result(request_id: RequestId | None, value: Any) -> bytes:
    """Return the body of a successful response."""
    return raw_result(request_id, _encode(value))


def raw_result(request_id: RequestId | None, raw: bytes) -> bytes:
    """Return the body of a successful response whose result is already JSON."""
    return b'{"jsonrpc":"2.0","id":%b,"result":%b}' % (_encode(request_id), bytes(raw))


def raw_error(request_id: RequestId | None, raw: bytes) -> bytes:
    """Return the body of an error response whose error object is already JSON."""
    return b'{"jsonrpc":"2.0","id":%b,"error":%b}' % (_encode(request_id), bytes(raw))


def response(request_id: RequestId | None, envelope: Envelope) -> bytes:
    """Return a response under another id: the answer of one side, for the request of the other."""
    if envelope.error is not UNSET:
        return raw_error(request_id, bytes(envelope.error))
    return raw_result(request_id, b"null" if envelope.result is UNSET else bytes(envelope.result))


def failure(request_id: RequestId | None, code: int, message: str, data: Any = UNSET) -> bytes:
    """Return the body of an error response."""
    error: dict[str, Any] = {"code": code, "message": message}
    if data is not UNSET:
        error["data"] = data
    return raw_error(request_id, _encode(error))


def params_object(raw: Raw | UnsetType) -> dict[str, Any]:
    """Decode params that must be a JSON object; absent and null params are an empty one.

    Raises:
        errors.InvalidParams: they are something else.
    """
    if raw is UNSET:
        return {}
    try:
        params = msgspec.json.decode(raw)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        raise errors.InvalidParams(
            "expected params that are a JSON object in UTF-8, no deeper than 1,000 levels; found something else"
        ) from None
    if params is None:
        return {}
    if not isinstance(params, dict):
        raise errors.InvalidParams(f"expected params to be an object, found {type(params).__name__}")
    return params


def encode(value: Any) -> bytes:
    """Encode a value as compact JSON."""
    return _encode(value)
