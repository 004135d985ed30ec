"""The rule of models: wherever a guarded call names one, policy must allow that name, and the runtime is told which are allowed.

One table says where calls name models. `allowedModels` is the runtime's own list of exact names; it holds at every switch, for
custom agents, and for the sub-agents that a model starts under a model of its own choice (measured, release 1.0.102). It takes
no wildcards: where policy has some, it gets the exact names and those that the session named itself, and gateway.model_lists
adds to them when it names another.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from aerodrome import errors
from aerodrome.core.policy import Policy

Params = dict[str, Any]

_DEFINITIONS = ("models[].id", "models[].modelId", "models[].wireModel")
_PROVIDER = ("provider.modelId", "provider.wireModel")
_PROVIDERS = ("providers[].modelId", "providers[].wireModel")
OPENING = ("model", *_DEFINITIONS, *_PROVIDER, *_PROVIDERS, "customAgents[].model")

#: Method -> where its params name a model; `[]` is every element of a list, `{}` every value of an object.
NAMED: Mapping[str, tuple[str, ...]] = {
    "session.create": OPENING,
    "session.resume": OPENING,
    "session.limitPrediction.predict": ("modelId",),
    "session.metadata.contextInfo": ("selectedModel",),
    "session.metadata.recomputeContextTokens": ("modelId",),
    "session.mode.set": ("planModel",),
    "session.model.setAllowedModels": ("allowedModels[]",),
    "session.model.switchTo": ("modelId",),
    "session.options.update": ("model", *_PROVIDER),
    "session.permissions.setMode": ("assistedApprovalModel",),
    "session.provider.add": (*_DEFINITIONS, *_PROVIDERS),
    "session.provider.sync": (*_DEFINITIONS, *_PROVIDERS),
    "session.tasks.startAgent": ("model",),
    "session.tools.updateSubagentSettings": ("subagents.agents{}.model",),
    "tools.list": ("model",),
}
#: An empty list is an error to the runtime (measured); no model has this name.
_NO_MODELS = ["no-model-is-allowed"]
#: Calls that have the service choose a model: none that a list of names could hold.
_CHOOSING = ("session.model.switchAutoTier",)


def named(method: str, params: Params) -> list[str]:
    """Return the models that a call names, each once, in order."""
    found = (model for path in NAMED.get(method, ()) for _, model in _find(params, path.split("."), ""))
    return list(dict.fromkeys(found))


def check(method: str, params: Params, policy: Policy) -> None:
    """Check every model that a call names.

    Raises:
        errors.PolicyRejected: policy does not allow one; names the parameter and what is allowed.
        errors.InvalidParams: a model's name is no string.
    """
    if policy.models is None:
        return
    if method in _CHOOSING:
        raise errors.PolicyRejected(
            f"{method} is refused: this tenant's policy names its models; switch to one of them"
        )
    for path in NAMED.get(method, ()):
        for place, model in _find(params, path.split("."), ""):
            if not policy.judge_model(model).is_allowed:
                raise errors.PolicyRejected(
                    f"parameter {place} is refused: model {model[:200]!r} is not among the models of this tenant's policy; "
                    f"use one of {', '.join(policy.models) or 'none'}, or ask your operator to add it",
                    parameter=place,
                )


def restrict_opening(params: Params, policy: Policy, is_new: bool) -> Params:
    """Return what a create or resume must say of models besides what it does: the model of a new session, and the allowed ones.

    Raises:
        errors.PolicyRejected: a new session names no model, and policy names none in full that it could have.
    """
    if policy.models is None:
        return {}
    restricted: Params = {}
    if is_new and not params.get("model"):
        restricted["model"] = _default_model(policy)
    asked = params.get("allowedModels")
    if isinstance(asked, list) and asked:
        check("session.model.setAllowedModels", {"allowedModels": asked}, policy)
        allowed = asked
    else:
        names = [*policy.exact_models, *named("session.create", {**params, **restricted})]
        allowed = list(dict.fromkeys(names))
    return {**restricted, "allowedModels": allowed or _NO_MODELS}


def restrict_list(params: Params, policy: Policy) -> Params:
    """Return the params of `session.model.setAllowedModels`: to lift the restriction is to go back to policy's."""
    if policy.models is None or params.get("allowedModels"):
        return params
    return {**params, "allowedModels": list(policy.exact_models) or _NO_MODELS}


def _default_model(policy: Policy) -> str:
    if not policy.exact_models:
        raise errors.PolicyRejected(
            "parameter model is missing, and this tenant's policy names no model in full; name one of "
            f"{', '.join(policy.models or ()) or 'none'}",
            parameter="model",
        )
    return policy.exact_models[0]


def _find(value: Any, steps: list[str], place: str) -> Iterator[tuple[str, str]]:
    """Yield the place and the name of every model at a path."""
    if not steps:
        if value is None or value == "":
            return
        if not isinstance(value, str):
            raise errors.InvalidParams(f"expected {place} to be a model's name, found {type(value).__name__}")
        yield place, value
        return
    step, *rest = steps
    member = step.removesuffix("[]").removesuffix("{}")
    inner = value.get(member) if isinstance(value, dict) else None
    at = f"{place}.{member}" if place else member
    if step.endswith("[]"):
        for number, element in enumerate(inner if isinstance(inner, list) else ()):
            yield from _find(element, rest, f"{at}[{number}]")
    elif step.endswith("{}"):
        for key, element in (inner if isinstance(inner, dict) else {}).items():
            yield from _find(element, rest, f"{at}.{key}")
    elif inner is not None:
        yield from _find(inner, rest, at)
