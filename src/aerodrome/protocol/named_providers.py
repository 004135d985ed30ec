"""Where parameters may name a provider of the gateway (`baseUrl: "aerodrome:NAME"`), and how the name becomes a provider.

Pure rules: `choose` and `check` run before a call is stored, `fill` at the moment it is sent, so that what is stored has names
only. Other providers are the business of `hardening_network`; keys that of gateway.forwarder.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from aerodrome import errors
from aerodrome.core.policy import Policy

Params = dict[str, Any]
#: Gives the `provider` parameter for a name, and the model of a session that names none.
Resolve = Callable[[str], tuple[Params, str | None]]

PREFIX = "aerodrome:"
OPENS = ("session.create", "session.resume")
#: Calls of an open session that may name a provider.
CALLS = ("session.options.update", "session.provider.add", "session.provider.sync")
#: What a client may say of a provider it only names: it concerns the conversation, not the endpoint.
_OWN_MEMBERS = frozenset({"name", "modelId", "maxPromptTokens", "maxContextWindowTokens", "maxOutputTokens"})
#: What the SDKs always send, or the gateway knows better.
_DROPPED_MEMBERS = frozenset({"type", "wireApi"})


def name_of(provider: Any) -> str | None:
    """Return the name that a `provider` parameter is a reference to; None for any other provider."""
    url = provider.get("baseUrl") if isinstance(provider, dict) else None
    return url.removeprefix(PREFIX) if isinstance(url, str) and url.startswith(PREFIX) else None


def choose(params: Params, policy: Policy) -> Params:
    """Return the parameters of a create or resume, with the tenant's provider where the client names none.

    Raises:
        errors.PolicyRejected: the client names one that its tenant has not, or says more of it than its name.
    """
    if policy.provider is not None and not params.get("provider") and not params.get("providers"):
        params = {**params, "provider": {"baseUrl": PREFIX + policy.provider}}
    return check(params, policy)


def check(params: Params, policy: Policy) -> Params:
    """Return parameters whose references to named providers are bare and allowed.

    Raises:
        errors.PolicyRejected: the client names one that its tenant has not, or says more of it than its name.
    """
    changed: Params = {}
    if name_of(params.get("provider")) is not None:
        changed["provider"] = _checked("provider", params["provider"], policy)
    several = params.get("providers")
    if isinstance(several, list) and any(name_of(one) is not None for one in several):
        changed["providers"] = [
            one if name_of(one) is None else _checked(f"providers[{at}]", one, policy) for at, one in enumerate(several)
        ]
    return {**params, **changed} if changed else params


def _checked(where: str, provider: Params, policy: Policy) -> Params:
    name = name_of(provider)
    if name is None or not policy.allows_named(name):
        raise errors.PolicyRejected(
            f"parameter {where}.baseUrl is refused: {PREFIX}{name} is not among the providers of this tenant; use one that "
            "is, or ask your operator to add it",
            parameter=f"{where}.baseUrl",
        )
    for member, value in provider.items():
        if member not in _OWN_MEMBERS | _DROPPED_MEMBERS | {"baseUrl"} and value:
            raise errors.PolicyRejected(
                f"parameter {where}.{member} is refused: the gateway keeps the address and the keys of {PREFIX}{name}; "
                "leave it out",
                parameter=f"{where}.{member}",
            )
    return {member: value for member, value in provider.items() if member in _OWN_MEMBERS or member == "baseUrl"}


def has_reference(params: Params) -> bool:
    """Say whether any provider in these parameters is a name that must be filled in."""
    several = params.get("providers")
    listed = several if isinstance(several, list) else []
    return any(name_of(provider) is not None for provider in (params.get("provider"), *listed))


def fill(params: Params, resolve: Resolve) -> Params:
    """Return parameters in which every named provider is what `resolve` makes of it; the given ones stay as they are.

    A session's own `provider` brings its default model where the parameters name none; `model` is a member of all these calls.
    """
    if not has_reference(params):
        return params
    filled = dict(params)
    name = name_of(params.get("provider"))
    if name is not None:
        filled["provider"], model = _filled(params["provider"], resolve)
        if model is not None and not params.get("model"):
            filled["model"] = model
    if isinstance(params.get("providers"), list):
        filled["providers"] = [one if name_of(one) is None else _filled(one, resolve)[0] for one in params["providers"]]
    return filled


def _filled(provider: Mapping[str, Any], resolve: Resolve) -> tuple[Params, str | None]:
    described, model = resolve(name_of(provider) or "")
    return {**{member: value for member, value in provider.items() if member != "baseUrl"}, **described}, model
