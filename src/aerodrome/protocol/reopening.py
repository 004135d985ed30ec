"""How a session is opened again after the link that held it has ended: what is said, and what of the answer is nobody's news.

Sans-IO and without state: `gateway.reattach` does it when a runtime is lost, `forward.ledger` when a gateway is.
What else was set since the session was opened is `replays`.
"""

from __future__ import annotations

import datetime
import uuid
from collections.abc import Mapping
from typing import Any

import msgspec
from msgspec import UNSET

from aerodrome import redaction
from aerodrome.protocol import messages
from aerodrome.protocol.messages import Envelope

CREATE_ONLY = ("cloud", "name", "refreshCustomInstructions", "trustWorkingDirectory")
RESUME_ONLY = (
    "allowTranscriptRecovery",
    "continuePendingWork",
    "disableResume",
    "openCanvases",
    "requestedEnvironmentVariables",
    "workflows",
)
#: What a runtime says when a session is opened, some of it only with the next turn (measured); until that has begun nobody
#: hears it.
OPENING_EVENTS = (
    "session.indexed_search",
    "session.info",
    "session.managed_settings_resolved",
    "session.skills_loaded",
    "session.tools_updated",
)
#: A program that hears of the error may ask again at once, and the npm SDK takes any idle for the end of what it asked last.
IDLE_AFTER_ERROR_SECONDS = 0.5
#: Requests that begin a turn; `session.idle` ends it.
TURN_STARTS = ("session.send", "session.sendMessages", "session.sendAndWait")
#: Events that come only while a turn runs.
TURN_EVENTS = ("assistant.turn_start", "assistant.message", "assistant.streaming", "tool.execution")
#: Hush an event however often it comes.
ALWAYS = 1 << 30


def resume_params(session_id: str, create: Mapping[str, Any] | None, resume: dict[str, Any] | None) -> dict[str, Any]:
    """Return the parameters that resume a session as its client last asked for it."""
    if resume is not None:
        return resume
    kept = {name: value for name, value in (create or {}).items() if name not in CREATE_ONLY}
    return {**kept, "sessionId": session_id}


def create_params(create: dict[str, Any] | None, resume: Mapping[str, Any] | None) -> dict[str, Any]:
    """Return the parameters that make a session again which never had a turn: then it is not on disk (protocol facts 1.8)."""
    if create is not None:
        return create
    return {name: value for name, value in (resume or {}).items() if name not in RESUME_ONLY}


def event(session_id: str, kind: str, data: dict[str, Any]) -> bytes:
    """Return the body of a `session.event` of our own."""
    now = datetime.datetime.now(datetime.UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
    said = {"type": kind, "data": data, "id": str(uuid.uuid4()), "timestamp": now, "parentId": None, "ephemeral": True}
    return messages.notification("session.event", messages.encode({"sessionId": session_id, "event": said}))


def is_missing(answer: Envelope) -> bool:
    """Say whether the runtime does not have the session; it has no machine-readable code for that (measured)."""
    return "not found" in message_of(answer).lower()


def message_of(answer: Envelope) -> str:
    """Return an error answer's message; what looks like a secret in it is blanked out."""
    if answer.error is UNSET:
        return ""
    error = msgspec.json.decode(answer.error)
    return redaction.mask(str(error.get("message", ""))) if isinstance(error, dict) else ""
