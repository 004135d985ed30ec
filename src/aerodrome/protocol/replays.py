"""What a client said of a session after opening it that a runtime forgets when it unloads the session, and how it is said again.

Measured on release 1.0.102, by setting, detaching and resuming: mode, name, agent, effort, working directory and permission mode
came back from disk; the model is what the resume says, and switched-off skills are on again. What was not measured, or may not
come back where the resume names something else, is said again too: a setting that holds already is set to itself.
`session.options.update` is not here: its options are merged into one call (gateway.reattach).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from aerodrome.protocol import messages

#: Setters: only the last call counts.
_LAST = frozenset(
    {
        "session.metadata.setWorkingDirectory",
        "session.model.setAllowedModels",
        "session.model.setReasoningEffort",
        "session.model.switchTo",
        "session.permissions.configure",
        "session.permissions.setApproveAll",
        "session.permissions.setMode",
        "session.permissions.setRequired",
        "session.provider.sync",
        "session.queue.setDrainPaused",
        "session.tools.set",
        "session.tools.updateSubagentSettings",
    }
)
#: Calls that add up, or undo each other: every different one counts, in order.
_EACH = frozenset(
    {
        "session.eventLog.registerInterest",
        "session.extensions.disable",
        "session.extensions.enable",
        "session.mcp.disable",
        "session.mcp.enable",
        "session.permissions.folderTrust.addTrusted",
        "session.permissions.paths.add",
        "session.provider.add",
        "session.provider.withdraw",
        "session.skills.disable",
        "session.skills.enable",
    }
)
#: Choosing and un-choosing an agent: the last of the two counts.
_AGENT = frozenset({"session.agent.deselect", "session.agent.select"})
#: A session is set up with a few calls; more than this is a program in a loop, whose oldest are let go.
_MOST = 256

METHODS = _LAST | _EACH | _AGENT


def note(replays: dict[str, tuple[str, dict[str, Any]]], method: str, params: Mapping[str, Any]) -> None:
    """Add a call that succeeded to the ones to repeat; `replays` keeps them in the order in which they count."""
    if method in _EACH:
        key = f"{method} {messages.encode(dict(params)).decode(errors='replace')}"
    else:
        key = "session.agent" if method in _AGENT else method
    replays.pop(key, None)
    replays[key] = (method, dict(params))
    if len(replays) > _MOST:
        del replays[next(iter(replays))]
