"""Which right a member of a shared session needs for a call, and what of its parameters a member may say.

An allow-list: what is not here is the owner's alone. The runtime would let anyone who joins change the session for everybody
(protocol facts 1.4, 1.7), so a member joins with what its owner opened it with; own are only the member's tools and whether it
is asked. Pure data and rules.
"""

from __future__ import annotations

from typing import Any

from aerodrome import errors
from aerodrome.core.membership import Right

RIGHTS: dict[str, Right] = {
    **dict.fromkeys(
        (
            "session.resume",
            "session.detach",
            "session.destroy",
            "session.getMessages",
            "session.getMetadata",
            "sessions.getMetadata",
            "sessions.readPersistedEvents",
            "session.commands.list",
            "session.eventLog.read",
            "session.eventLog.registerInterest",
            "session.eventLog.releaseInterest",
            "session.eventLog.tail",
            "session.metadata.activity",
            "session.metadata.contextInfo",
            "session.metadata.isProcessing",
            "session.metadata.snapshot",
            "session.mode.get",
            "session.model.getCurrent",
            "session.name.get",
            # What a program sets after it has joined concerns nobody: it is answered, and goes nowhere (gateway.seats).
            "session.options.update",
            "session.permissions.pendingRequests",
            "session.plan.read",
            "session.queue.pendingItems",
            "session.tools.getCurrentMetadata",
            "session.tools.listPendingRequests",
            "session.usage.getMetrics",
        ),
        Right.READ,
    ),
    **dict.fromkeys(("session.send", "session.sendMessages", "session.sendAndWait", "session.abort"), Right.SEND),
    **dict.fromkeys(
        (
            "session.permissions.handlePendingPermissionRequest",
            "session.ui.handlePendingElicitation",
            "session.ui.handlePendingExitPlanMode",
            "session.ui.handlePendingUserInput",
        ),
        Right.APPROVE,
    ),
    "session.tools.handlePendingToolCall": Right.ANSWER_TOOL,
}
#: Requests of the runtime that go to a member who may answer them.
ASKED = frozenset({"userInput.request", "exitPlanMode.request"})
#: Requests that a runtime sends to whoever said last what a session is opened with (protocol facts 1.5): a member that joins
#: says it for the owner, whose program alone can answer.
OWNERS = frozenset(
    {
        "canvas.action.invoke",
        "canvas.close",
        "canvas.open",
        "factory.abort",
        "factory.execute",
        "gitHubToken.getToken",
        "providerToken.getToken",
        "skillProvider.list",
        "skillProvider.read",
        "systemMessage.transform",
        "tasks.cancel",
        "workflow.abort",
        "workflow.execute",
    }
)
#: Answered for a member without anything being changed. With an interest (SDKs: mcp.oauth_required) a runtime leaves to its
#: clients what it would do by itself, for the whole session; the answer to what it asks then is the owner's alone.
SWALLOWED: dict[str, dict[str, Any]] = {
    "session.options.update": {"success": True, "pluginHookCount": 0},
    "session.eventLog.registerInterest": {"handle": "member"},
    "session.eventLog.releaseInterest": {"success": True},
}
#: What a member says of its own link when it joins.
_OWN = ("streaming", "includeSubAgentStreamingEvents")
#: What no member is asked.
_NEVER_ASKED = ("requestAutoModeSwitch",)
#: What only some may ask for.
_OWN_ASKED = ("requestPermission", "requestUserInput", "requestElicitation", "requestExitPlanMode")


def right_for(method: str) -> Right:
    """Return what a call needs; what is not known needs the owner."""
    return RIGHTS.get(method, Right.MANAGE)


def refusal(method: str, session_id: str, right: Right) -> errors.PolicyRejected:
    """Return why a member may not make a call."""
    return errors.PolicyRejected(
        f"{method} needs the right to {right.value.replace('_', ' ')} in session {session_id}; its owner gives roles",
        method=method,
        right=right.value,
    )


def join_params(
    session_id: str, said: dict[str, Any], opened: dict[str, Any], rights: frozenset[Right]
) -> dict[str, Any]:
    """Return the parameters with which a member joins: what the session was opened with, and what is the member's own."""
    params = {
        name: value for name, value in opened.items() if name not in ("hooks", "continuePendingWork", "disableResume")
    }
    params["sessionId"] = session_id
    for name in _OWN:
        if name in said:
            params[name] = said[name]
    for name in _OWN_ASKED:
        params[name] = bool(said.get(name)) and Right.APPROVE in rights
    params |= {name: False for name in _NEVER_ASKED if name in params}
    params["tools"] = said.get("tools") or [] if Right.ANSWER_TOOL in rights else []
    return params


def tool_names(params: dict[str, Any]) -> frozenset[str]:
    """Return the tools that a member registers when it joins."""
    tools = params.get("tools")
    named = (tool.get("name") for tool in tools if isinstance(tool, dict)) if isinstance(tools, list) else ()
    return frozenset(name for name in named if isinstance(name, str))
