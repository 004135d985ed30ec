"""What is wrong with a message, in the runtime's own words.

Sans-IO. For messages that the gateway refuses in a runtime's place (before a link is authenticated): a client must not be able
to tell who answered. Measured on release 1.0.102; only the texts for what is not JSON at all are our own (`messages`).
"""

from __future__ import annotations

from typing import Any

import msgspec

from aerodrome import errors

_NO_MESSAGE = "not a recognizable JSON-RPC request, notification, or response"
_ODD_ID = "data did not match any variant of untagged enum RequestId"
_INT64 = range(-(2**63), 2**63)


def check(body: bytes) -> None:
    """Refuse what the runtime would not take for a message.

    Raises:
        errors.ParseFailed: it is not JSON. errors.InvalidRequest: it is, with the runtime's text.
    """
    try:
        value = msgspec.json.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise errors.ParseFailed(f"expected JSON, found something else: {error}") from None
    text = _find_fault(value)
    if text is not None:
        raise errors.InvalidRequest(text)


def _find_fault(value: Any) -> str | None:
    """Return the runtime's complaint: about the kind of message first, then member by member as they stand."""
    if not isinstance(value, dict) or not _is_recognizable(value):
        return _NO_MESSAGE
    for name, member in value.items():
        if name == "jsonrpc" and member != "2.0":
            return _wrong_version(member)
        if name == "id" and (isinstance(member, float) or (isinstance(member, int) and member not in _INT64)):
            return _ODD_ID
    return None if "jsonrpc" in value else "missing field `jsonrpc`"


def _is_recognizable(message: dict[str, Any]) -> bool:
    request_id = message.get("id", "none")
    is_id = isinstance(request_id, (str, int, float)) and not isinstance(request_id, bool)
    if isinstance(message.get("method"), str):
        return is_id
    return "id" in message and (is_id or request_id is None) and ("result" in message or "error" in message)


def _wrong_version(found: Any) -> str:
    if isinstance(found, str):
        return f'unsupported jsonrpc version: expected "2.0", got "{found}"'
    kind = "null" if found is None else f"integer `{found}`" if type(found) is int else "another type"
    return f"invalid type: {kind}, expected a string"
