"""The runtime's list of allowed models, which takes exact names only, follows the names that a session uses under a wildcard.

Whether a name is allowed has been decided before (protocol.hardening_models); here the runtime is told of one more.
"""

from __future__ import annotations

from typing import Any

from aerodrome.gateway.client import Attachment
from aerodrome.gateway.upstream import Upstream
from aerodrome.protocol import hardening_models

_OWN_LIST = "session.model.setAllowedModels"


async def extend(held: Attachment, upstream: Upstream, method: str, params: dict[str, Any]) -> None:
    """Tell a runtime of the models that a call names, before the call; a list that the client made stays as it is.

    Raises:
        errors.RuntimeLost: the runtime is gone.
    """
    allowed = add(held, method, params)
    if allowed is not None:
        await upstream.call(_OWN_LIST, {"sessionId": held.session_id, "allowedModels": allowed})


def add(held: Attachment, method: str, params: dict[str, Any]) -> list[str] | None:
    """Add the models that a call names to those that a session is opened with; return all if there are new ones."""
    recipe = held.create if held.create is not None else held.resume
    allowed = (recipe or {}).get("allowedModels")
    asked = held.opening.asked.get("allowedModels") if held.opening is not None else None
    if recipe is None or not isinstance(allowed, list) or asked or _OWN_LIST in held.replays or method == _OWN_LIST:
        return None
    new = [model for model in hardening_models.named(method, params) if model not in allowed]
    if not new:
        return None
    recipe["allowedModels"] = [*allowed, *new]
    return [*allowed, *new]
