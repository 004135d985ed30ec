"""Sessions that are open when their policy changes: restricted again, at once where that can be, else before anything new.

What a session was opened with was made from what its client asked for (protocol.hardening; of an open one, only which of the
gateway's providers and tokens it is given). When policy changes, it is made anew from the same: at the next turn the session is
unloaded and comes back with it (gateway.reattach), the one way that holds for all of it. A session at work cannot be unloaded;
it is told its new tool filter, which counts from its next turn on, and its new models, which count from the next call of the
model on (measured). If policy does not allow at all what it was opened with, its turn is aborted. Client tools that policy
denies are never called, turn or not.
"""

from __future__ import annotations

import asyncio
from typing import Any

import msgspec
import structlog
from msgspec import UNSET

from aerodrome import errors
from aerodrome.core.attachment import AttachmentState
from aerodrome.core.policy import Access, Policy
from aerodrome.gateway import model_lists, unloading
from aerodrome.gateway.client import TURN_STARTS, Attachment, Client, Opening
from aerodrome.protocol import hardening, messages, named_providers, stored_tokens
from aerodrome.protocol.messages import Peek, PeekParams

_log = structlog.get_logger()

#: Requests that have a session do something new, as far as a model or a tool is concerned.
BEGINNINGS = frozenset(
    {
        *TURN_STARTS,
        "session.queue.insertAt",
        "session.tasks.startAgent",
        "session.tools.execute",
        "session.ui.ephemeralQuery",
    }
)
_TOOL_CALL = "external_tool.requested"
#: A session that has just fallen idle may seem to be at work a moment longer.
_SETTLE_SECONDS = 1.0
_LOOK_SECONDS = 0.02


def is_stale(client: Client, held: Attachment) -> bool:
    """Say whether a session was opened under restrictions that are not the current ones."""
    opening, policy = held.opening, client.principal.policy
    if opening is None or opening.policy is policy:
        return False
    return _restrictions(opening.policy) != _restrictions(policy)


def is_any_stale(client: Client, session_id: str) -> bool:
    """Say the same of a session, whoever opened it."""
    resident = client.services.residents.find(client.realm.key, session_id)
    return resident is not None and any(is_stale(holder.client, holder.held) for holder in resident.live)


async def restrict(client: Client, session_id: str) -> None:
    """Have a session that any link opened under another policy leave its runtime, so that it comes back restricted.

    Raises:
        errors.OverCapacity: it is at work; the caller may try again when its turn is over.
    """
    resident = client.services.residents.find(client.realm.key, session_id)
    loop = asyncio.get_running_loop()
    ends_at = loop.time() + _SETTLE_SECONDS
    while resident is not None and any(is_stale(holder.client, holder.held) for holder in resident.live):
        if await unloading.unload(client.services, resident, "policy"):
            client.services.audit.restricted(client, session_id)
            return
        if any(holder.held.state is AttachmentState.TURN for holder in resident.live) or loop.time() > ends_at:
            raise errors.OverCapacity(
                f"the policy of session {session_id} has changed while it is at work; try again when its turn is over"
            )
        await asyncio.sleep(_LOOK_SECONDS)


def renew(client: Client, held: Attachment) -> None:
    """Make what a session is opened with anew, for the current policy; before it is opened again.

    Raises:
        errors.PolicyRejected: policy does not allow any more what its client opened it with.
    """
    if held.opening is None or not is_stale(client, held):
        return
    asked, policy = held.opening.asked, client.principal.policy
    was = held.create if held.create is not None else held.resume or {}
    params = _harden(held, asked, policy)
    if "workingDirectory" in was:
        params["workingDirectory"] = was["workingDirectory"]
    if held.create is not None:
        held.create = params
    else:
        held.resume = params
    options = _harden_again("session.options.update", {**held.options, "sessionId": held.session_id}, policy)
    fixed = hardening.OPTIONS_AFTER_OPEN if policy.access is Access.GUARDED else {}
    held.options = {**fixed, **(options or {})} if fixed or held.options else {}
    hardened = {key: (method, _harden_again(method, said, policy)) for key, (method, said) in held.replays.items()}
    held.replays = {key: (method, said) for key, (method, said) in hardened.items() if said is not None}
    if policy.access is Access.GUARDED:
        for method, said in [("session.options.update", held.options), *held.replays.values()]:
            model_lists.add(held, method, said)
    held.opening = Opening(asked, policy)


def tell(client: Client) -> None:
    """Tell the sessions of a client that are at work what the current policy is; it does not wait."""
    for held in list(client.attachments.values()):
        if held.is_live and is_stale(client, held):
            client.spawn(_tell(client, held), f"policy of session {held.session_id}")


def refuse_tool(client: Client, peek: Peek, body: bytes) -> dict[str, Any] | None:
    """Refuse an event that asks the client to run a tool which policy denies: return its answer; None for every other event."""
    params = peek.params
    if client.principal.policy.tools is None or client.access is Access.OPEN:
        return None
    if not isinstance(params, PeekParams) or params.event is UNSET or params.event.type != _TOOL_CALL:
        return None
    asked = messages.params_object(messages.decode(body).params)
    data = asked["event"].get("data") or {}
    if client.principal.policy.judge_tool(f"custom:{data.get('toolName')}").is_allowed:
        return None
    client.services.audit.tool_refused(client, str(params.sessionId), data.get("toolName"))
    # Not an `error`, of which a model is told no more than that there was one (measured).
    result = {"textResultForLlm": "this tool is refused by the policy of the tenant", "resultType": "denied"}
    return {"sessionId": params.sessionId, "requestId": data.get("requestId"), "result": result}


async def _tell(client: Client, held: Attachment) -> None:
    upstream, opening, policy = held.upstream, held.opening, client.principal.policy
    if upstream is None or opening is None:
        return
    try:
        try:
            params = _harden(held, opening.asked, policy)
            options = _harden_again("session.options.update", dict(held.options), policy) or {}
        except errors.AerodromeError as error:
            _log.info("policy.turn_aborted", session=held.session_id, reason=error.message)
            client.services.audit.restricted(client, held.session_id, error)
            await upstream.call("session.abort", {"sessionId": held.session_id})
            return
        if policy.access is Access.OPEN:
            return  # it is not told what it has, but given it when it comes back
        tools = _whole_names(options.get("availableTools", params["availableTools"]), params.get("tools"))
        await upstream.call("session.options.update", {"sessionId": held.session_id, "availableTools": tools})
        if "allowedModels" in params:
            allowed = {"sessionId": held.session_id, "allowedModels": params["allowedModels"]}
            await upstream.call("session.model.setAllowedModels", allowed)
        if held.has_turn:  # any other comes back restricted, and that is recorded then
            client.services.audit.restricted(client, held.session_id)
    except errors.RuntimeLost:
        pass  # it comes back restricted


def _harden(held: Attachment, asked: dict[str, Any], policy: Policy) -> dict[str, Any]:
    chosen = stored_tokens.choose(named_providers.choose(asked, policy), policy)
    if policy.access is Access.OPEN:
        return dict(chosen)
    harden = hardening.harden_create if held.create is not None else hardening.harden_resume
    return harden(chosen, policy)


def _harden_again(method: str, said: dict[str, Any], policy: Policy) -> dict[str, Any] | None:
    """Return what may be said again of what a client set; None for what policy does not allow any more."""
    try:
        said = named_providers.check(said, policy)
        return said if policy.access is Access.OPEN else hardening.harden_call(method, said, policy)
    except errors.AerodromeError:
        return None


def _whole_names(names: list[str], tools: Any) -> list[str]:
    """Name each tool of the client in a filter: those it may not have any more are defined in the runtime still."""
    offered = [f"custom:{tool['name']}" for tool in tools or () if isinstance(tool.get("name"), str)]
    return [whole for name in names for whole in (offered if name == "custom:*" else [name])]


def _restrictions(policy: Policy) -> tuple[Any, ...]:
    named = (policy.provider, policy.provider_names, policy.github)
    if policy.access is Access.OPEN:
        return named
    return policy.models, policy.tools, policy.provider_urls, policy.mcp_urls, *named


def answer_tool(client: Client, session_id: str, answer: dict[str, Any]) -> None:
    """Answer the runtime in the client's place; the client hears nothing of it."""
    held = client.attachments.get(session_id)
    if held is not None and held.upstream is not None:
        _log.info("policy.tool_refused", session=session_id)
        client.spawn(_answer(client, held, answer), f"refused tool of session {session_id}")


async def _answer(client: Client, held: Attachment, answer: dict[str, Any]) -> None:
    try:
        if held.upstream is not None:
            await held.upstream.call("session.tools.handlePendingToolCall", answer)
    except (errors.RuntimeLost, msgspec.MsgspecError):
        client.log.debug("policy.tool_refused", session=held.session_id, reason="the runtime is gone")
