"""How the runtime answers for a session that does not exist, method by method, so that a foreign session answers the same.

Measured on release 1.0.102. Pure data and one function; who is foreign is decided by gateway.ownership.
"""

from __future__ import annotations

from typing import Any

from aerodrome.protocol import messages
from aerodrome.protocol.messages import RequestId

_INTERNAL = -32603
_METHOD_UNKNOWN = -32601

#: Methods that answer a missing session with a result.
_RESULTS: dict[str, str] = {
    "session.detach": '{"success":true}',
    "session.destroy": '{"success":false}',
    "session.delete": '{"success":false,"error":"Session file not found for %s"}',
    "session.getMetadata": "{}",
    "session.setForeground": (
        '{"success":false,"error":"Not running in TUI+server mode - cannot set foreground session %s"}'
    ),
    "sessions.close": "{}",
    "sessions.getBoardEntryCount": "{}",
    "sessions.getMetadata": "{}",
    "sessions.getPersistedRemoteSteerable": "{}",
    "sessions.open": '{"status":"not_found"}',
    "sessions.save": "{}",
}

#: Methods whose error differs from the common one.
_ERRORS: dict[str, str] = {
    "session.resume": "Failed to load session events: Session not found: %s",
    "session.getMessages": "Session not found: %s",
    "sessions.fork": "Cannot fork session %s: no persisted or in-memory events found",
    "sessions.delete": "Session file not found for %s",
    "sessions.readPersistedEvents": "Persisted event journal is unavailable for session %s",
}

#: Methods of newer releases: their callers fall back on another, and learn there that the session is missing.
_UNHANDLED = frozenset({"session.sendAndWait"})

#: Methods that name any number of sessions in `sessionIds` and tell in their result which are missing.
LISTS = frozenset({"sessions.bulkDelete", "sessions.checkInUse", "sessions.getClientMetadata"})

_COMMON = "Session not found for sessionId: %s"


def complete(method: str, result: Any, missing_ids: list[str]) -> Any:
    """Return the result of a list method with what the runtime says of missing sessions added; it was not asked about these."""
    match method:
        case "sessions.bulkDelete" if isinstance(result, dict):
            freed = {**result.get("freedBytes", {}), **dict.fromkeys(missing_ids, 0)}
            return {**result, "freedBytes": freed}
        case "sessions.getClientMetadata" if isinstance(result, list):
            return [*result, *({"sessionId": session_id, "status": "notFound"} for session_id in missing_ids)]
    return result


def answer(request_id: RequestId, method: str, session_id: str) -> bytes:
    """Return the body of the runtime's answer for a session it does not have."""
    if method in _UNHANDLED:
        return messages.failure(request_id, _METHOD_UNKNOWN, f"Unhandled method {method}")
    if method in _RESULTS:
        template = _RESULTS[method]
        text = template % messages.encode(session_id).decode()[1:-1] if "%s" in template else template
        return messages.raw_result(request_id, text.encode())
    reason = _ERRORS.get(method, _COMMON) % session_id
    return messages.failure(request_id, _INTERNAL, f"Request {method} failed with message: {reason}")
