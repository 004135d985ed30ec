"""What an agent waits for: permissions, questions, tool calls, forms, plans. One shape for callers, whatever the wire form is.

Some come as events that any link may answer by a call, some as requests of the runtime to this link (protocol facts 1.5).
Pure: which answer is which call.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import Any

from aerodrome import errors
from aerodrome.protocol.messages import RequestId


class PendingKind(Enum):
    """What is waited for."""

    PERMISSION = "permission"
    QUESTION = "question"
    TOOL = "tool"
    FORM = "form"
    PLAN = "plan"


#: Events that open a pending request, and those that close it.
OPENED = {
    "permission.requested": PendingKind.PERMISSION,
    "external_tool.requested": PendingKind.TOOL,
    "elicitation.requested": PendingKind.FORM,
}
CLOSED = frozenset({"permission.completed", "external_tool.completed", "elicitation.completed"})
#: Requests of the runtime that callers answer; all others are refused.
ASKED = {"userInput.request": PendingKind.QUESTION, "exitPlanMode.request": PendingKind.PLAN}


@dataclass(frozen=True, slots=True)
class Pending:
    """One open request. `rpc_id` is there where it is a request of the runtime to this link."""

    request_id: str
    kind: PendingKind
    data: dict[str, Any]
    opened_at: float
    rpc_id: RequestId | None = None
    #: Whether a sub-agent asks: it may work on when the session's own turn is over.
    is_of_agent: bool = False


def describe(kind: PendingKind, data: dict[str, Any]) -> dict[str, Any]:
    """Return what a caller is told of a request: what is asked, without what only the runtime needs."""
    match kind:
        case PendingKind.PERMISSION:
            asked = data.get("permissionRequest")
            return dict(asked) if isinstance(asked, dict) else {}
        case PendingKind.TOOL:
            return {"tool": data.get("toolName"), "arguments": data.get("arguments")}
        case PendingKind.QUESTION:
            return {name: data.get(name) for name in ("question", "choices", "allowFreeform")}
        case _:
            return {name: value for name, value in data.items() if name not in ("sessionId", "requestId")}


def permission_result(decision: str, feedback: str | None, asked: dict[str, Any]) -> dict[str, Any]:
    """Return the runtime's form of a decision."""
    if decision == "approve":
        return {"kind": "approve-once"}
    if decision == "approve_for_session":
        return _for_session(asked)
    result = {"kind": "reject"}
    return {**result, "feedback": feedback} if feedback else result


def _for_session(asked: dict[str, Any]) -> dict[str, Any]:
    """Return an approval that the runtime remembers, for the kinds that it remembers one for."""
    request = asked.get("permissionRequest")
    request = request if isinstance(request, dict) else {}
    kind = request.get("kind")
    if kind == "shell":
        commands = [one.get("identifier") for one in request.get("commands") or [] if isinstance(one, dict)]
        return {
            "kind": "approve-for-session",
            "approval": {"kind": "commands", "commandIdentifiers": [name for name in commands if name]},
        }
    if kind == "mcp":
        approval = {"kind": "mcp", "serverName": request.get("serverName"), "toolName": request.get("toolName")}
        return {"kind": "approve-for-session", "approval": approval}
    if kind == "custom-tool":
        return {"kind": "approve-for-session", "approval": {"kind": "custom-tool", "toolName": request.get("toolName")}}
    if kind in ("read", "write", "memory"):
        return {"kind": "approve-for-session", "approval": {"kind": kind}}
    raise errors.InvalidParams(f"a permission of kind {kind} cannot be given for a session; approve it once")


#: Calls that list what waits in a session which was brought back (protocol facts 1.8), with the kind of it.
LISTS = (
    ("session.permissions.pendingRequests", PendingKind.PERMISSION),
    ("session.tools.listPendingRequests", PendingKind.TOOL),
)


def listed(kind: PendingKind, result: dict[str, Any], now: float) -> list[Pending]:
    """Return the open requests that such a call names."""
    found = []
    items = result.get("items")
    for item in items if isinstance(items, list) else ():
        if isinstance(item, dict) and isinstance(item.get("requestId"), str):
            data = item if kind is PendingKind.TOOL else {**item, "permissionRequest": item.get("request")}
            found.append(Pending(item["requestId"], kind, data, now))
    return found


def answer_call(pending: Pending, answer: Any) -> tuple[str, dict[str, Any]]:
    """Return the call that answers a request which came as an event: method, params without the session's id."""
    if pending.kind is PendingKind.PERMISSION:
        return "session.permissions.handlePendingPermissionRequest", {"requestId": pending.request_id, "result": answer}
    if pending.kind is PendingKind.TOOL:
        return "session.tools.handlePendingToolCall", {"requestId": pending.request_id, **answer}
    return "session.ui.handlePendingElicitation", {"requestId": pending.request_id, "result": answer}
