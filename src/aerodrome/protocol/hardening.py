"""What a guarded session may ask of a runtime it shares with strangers: the parameter policy, as data and small rules.

The runtime itself protects nothing (protocol facts 1.4): a parameter of `session.create` can run a command, read the host or send
the model's traffic anywhere, and a resume without restrictions lifts them. So each create and resume is rebuilt here from
an allow-list, with the SDK's `mode: "empty"` values forced whether or not the client asked. A dangerous value is refused
with its name; an unknown one is dropped, so that a newer SDK goes on working with what is known to be safe.

Deliberately says nothing about methods as such (methods.tsv) or ownership (gateway.ownership).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from aerodrome import errors
from aerodrome.core.policy import Policy

Params = dict[str, Any]
_Rule = Callable[[str, Any, Policy], Any]


def _names(text: str) -> frozenset[str]:
    return frozenset(text.split())


#: Built-in tools that stay within the session: no host, no network, no other session.
SAFE_BUILTIN_TOOLS = ("ask_user", "exit_plan_mode", "task_complete")

#: The SDK's `mode: "empty"` on the wire (measured), plus switches it leaves to the runtime's default.
_FORCED: Params = {
    "isExperimentalMode": False,
    "enableSessionTelemetry": False,
    "mcpOAuthTokenStorage": "in-memory",
    "embeddingCacheStorage": "in-memory",
    "customAgentsLocalOnly": True,
    "skipEmbeddingRetrieval": True,
    "enableOnDemandInstructionDiscovery": False,
    "enableFileHooks": False,
    "enableHostGitOperations": False,
    "enableSessionStore": False,
    "enableSkills": False,
    "enableConfigDiscovery": False,
    "memory": {"enabled": False},
    "envValueMode": "direct",
    "toolFilterPrecedence": "excluded",
}

#: Sent with `session.options.update` after every create and resume: the half of `mode: "empty"` that create cannot carry.
#: Without `includedBuiltinSkills`, which costs 9 ms of each create (measured) and adds nothing where `enableSkills` is false.
OPTIONS_AFTER_OPEN: Params = {
    "coauthorEnabled": False,
    "customAgentsLocalOnly": True,
    "installedPlugins": [],
    "manageScheduleEnabled": False,
    "skipCustomInstructions": True,
}

#: Values that concern the conversation or the client's own connection only.
_PLAIN = _names(
    """
    agent allowedModels askUserVariant autopilot clientName commands contextTier continuePendingWork
    defaultAgent disableResume disabledMcpServers disabledSkills enableCitations excludedBuiltinAgents
    excludedTools gitHubToken gitHubTokenProviderRegistrationId hooks includeSubAgentStreamingEvents
    infiniteSessions interactiveUser model modelCapabilities models name organizationCustomInstructions
    reasoningEffort reasoningSummary requestAutoModeSwitch requestElicitation requestExitPlanMode
    requestPermission requestUserInput sessionId sessionLimits streaming toolSearch tools traceparent
    tracestate
    """
)

#: Values that reach the host, the network, or the runtime as a whole; refused unless they ask for nothing.
_REFUSED: dict[str, str] = {
    "additionalDirectories": "host directories",
    "agentDirectories": "files on the host",
    "capi": "another service endpoint",
    "cloud": "sessions outside this gateway",
    "configDir": "host directories",
    "copilotUrl": "another service endpoint",
    "eventsLogDirectory": "host directories",
    "extensionSdkPath": "code on the host",
    "featureFlags": "features of the whole runtime",
    "hookDirectories": "commands on the host",
    "instructionDirectories": "files on the host",
    "managedSettings": "the runtime's own policy",
    "pluginDirectories": "code on the host",
    "remoteSession": "sessions outside this gateway",
    "requestExtensions": "code on the host",
    "requestedEnvironmentVariables": "the runtime's environment",
    "sandboxConfig": "the sandbox of the runtime",
    "shell": "commands on the host",
    "shellInitProfile": "commands on the host",
    "shellProcessFlags": "commands on the host",
    "skillDirectories": "files on the host",
    "trajectoryFile": "files on the host",
    "trustWorkingDirectory": "host directories",
    "workflows": "code on the host",
    "workingDirectory": "host directories; every session gets its own",
}

_PROVIDER_MEMBERS = _names(
    """
    name type wireApi transport baseUrl apiKey bearerToken azure modelId modelCapabilities providerName
    modelProvider wireModel maxPromptTokens maxContextWindowTokens maxOutputTokens headers
    hasBearerTokenProvider
    """
)
_AGENT_MEMBERS = _names(
    """
    name prompt displayName description tools infer model modelPolicy reasoningEffort mcpServers
    """
)
_MCP_MEMBERS = _names(
    """
    type url headers tools excludeTools timeout displayName deferTools filterMapping
    """
)
_OPTION_MEMBERS = _names(
    """
    sessionId model modelCapabilitiesOverrides reasoningEffort reasoningSummary verbosity clientName
    excludedTools excludedBuiltinAgents askUserDisabled enableStreaming continueOnAutoMode
    enableReasoningSummaries sessionLimits autopilot organizationCustomInstructions disabledSkills
    disabledInstructionSources contextTier additionalContentExclusionPolicies suppressCustomAgentPrompt
    maxInlineBinaryBytes
    """
)
_SWITCH_MEMBERS = _names(
    """
    sessionId modelId providerId autoTier reasoningEffort reasoningSummary verbosity modelCapabilities
    contextTier deferIfModelChangeQueued compactionDecision runCompactionPreflight requireAvailable
    """
)
_SEND_MEMBERS = _names(
    """
    sessionId prompt displayPrompt messages mode prepend billable requiredTool source agentMode
    responseFormat traceparent tracestate wait
    """
)
_ATTACHMENTS = ("blob", "selection")
#: Answers to a permission request that end with the session, in the old and the new words of the runtime's schema.
_DECISIONS = _names(
    """
    approve-once approve-for-session reject user-not-available approved approved-for-session cancelled
    denied-by-rules denied-no-approval-rule-and-could-not-request-from-user denied-interactively-by-user
    denied-by-content-exclusion-policy denied-by-permission-request-hook
    """
)
_CREDENTIAL_HEADERS = ("authorization", "api-key", "x-api-key", "host", "cookie", "proxy-authorization")


def harden_create(params: Params, policy: Policy) -> Params:
    """Return the `session.create` parameters that a guarded session may have.

    Raises:
        errors.PolicyRejected: a parameter asks for what policy does not give; names it and says what to do.
        errors.InvalidParams: a parameter has the wrong form.
    """
    hardened = _rebuild(params, policy, _PLAIN, _OPEN_RULES)
    hardened.setdefault("availableTools", _safe_tools("availableTools", None, policy))
    hardened.setdefault("systemMessage", _without_environment("systemMessage", {}, policy))
    return hardened | _FORCED


def harden_resume(params: Params, policy: Policy) -> Params:
    """Return the `session.resume` parameters of a guarded session: the same restrictions, for a runtime keeps none."""
    return harden_create(params, policy)


def harden_call(method: str, params: Params, policy: Policy) -> Params:
    """Return the parameters of another call whose verdict is POLICY.

    Raises:
        errors.PolicyRejected: there is no safe form of this call, or of this parameter.
    """
    rule = _CALLS.get(method)
    if rule is None:
        raise errors.PolicyRejected(
            f"{method} is refused where a runtime is shared or its tenant not fully trusted", method=method
        )
    return rule(params, policy)


def _rebuild(params: Params, policy: Policy, plain: frozenset[str], rules: dict[str, _Rule]) -> Params:
    rebuilt: Params = {}
    for name, value in params.items():
        if name in rules:
            rebuilt[name] = rules[name](name, value, policy)
        elif name in plain:
            rebuilt[name] = value
        elif name in _REFUSED and value:
            raise _refusal(name, _REFUSED[name])
    return rebuilt


def _refusal(name: str, what: str) -> errors.PolicyRejected:
    return errors.PolicyRejected(
        f"parameter {name} is refused: it reaches {what}; leave it out, or ask your operator for another isolation",
        parameter=name,
    )


def _object(name: str, value: Any) -> Params:
    if not isinstance(value, dict):
        raise errors.InvalidParams(f"expected {name} to be an object, found {type(value).__name__}")
    return value


def _list(name: str, value: Any) -> list[Any]:
    if not isinstance(value, list):
        raise errors.InvalidParams(f"expected {name} to be a list, found {type(value).__name__}")
    return value


def _provider(name: str, value: Any, policy: Policy) -> Any:
    if value is None:
        return None
    provider = _object(name, value)
    if provider.get("apiKeyCommand"):
        raise _refusal(f"{name}.apiKeyCommand", "commands on the host")
    url = provider.get("baseUrl")
    if not isinstance(url, str) or not policy.allows_provider(url):
        raise errors.PolicyRejected(
            f"parameter {name}.baseUrl is refused: {url!r} is not among the providers of this tenant's policy; "
            "use one that is, or ask your operator to add it",
            parameter=f"{name}.baseUrl",
        )
    return {member: provider[member] for member in provider if member in _PROVIDER_MEMBERS}


def _providers(name: str, value: Any, policy: Policy) -> Any:
    if value is None:
        return None
    return [_provider(f"{name}[{at}]", provider, policy) for at, provider in enumerate(_list(name, value))]


def _mcp_servers(name: str, value: Any, policy: Policy) -> Any:
    if value is None:
        return None
    return {key: _mcp_server(f"{name}.{key}", server, policy) for key, server in _object(name, value).items()}


def _mcp_server(name: str, value: Any, policy: Policy) -> Params:
    server = _object(name, value)
    if server.get("command") or server.get("type") not in ("http", "sse"):
        raise _refusal(name, "commands on the host (only MCP servers of type http or sse may be named)")
    url = server.get("url")
    if not isinstance(url, str) or not policy.allows_mcp(url):
        raise errors.PolicyRejected(
            f"parameter {name}.url is refused: {url!r} is not among the MCP servers of this tenant's policy; "
            "use one that is, or ask your operator to add it",
            parameter=f"{name}.url",
        )
    return {member: server[member] for member in server if member in _MCP_MEMBERS}


def _safe_tools(name: str, value: Any, policy: Policy) -> list[str]:
    """Narrow a tool filter to the client's own tools, MCP tools, and the built-in ones that are safe."""
    if value is None:
        return ["custom:*", "mcp:*", *(f"builtin:{tool}" for tool in SAFE_BUILTIN_TOOLS)]
    narrowed: list[str] = []
    for pattern in _list(name, value):
        if not isinstance(pattern, str):
            raise errors.InvalidParams(f"expected {name} to be a list of strings")
        source, colon, tool = pattern.partition(":")
        if not colon:
            # A bare name means a tool of any source; say which sources may answer to it.
            source, tool = "", pattern
            narrowed += [f"custom:{tool}", f"mcp:{tool}"]
        if source in ("custom", "mcp"):
            narrowed.append(pattern)
        elif source in ("", "builtin"):
            narrowed += [f"builtin:{safe}" for safe in SAFE_BUILTIN_TOOLS if tool in ("*", safe)]
    return narrowed


def _custom_agents(name: str, value: Any, policy: Policy) -> Any:
    if value is None:
        return None
    agents = []
    for at, entry in enumerate(_list(name, value)):
        agent = _object(f"{name}[{at}]", entry)
        if agent.get("hooks"):
            raise _refusal(f"{name}[{at}].hooks", "commands on the host")
        kept = {member: agent[member] for member in agent if member in _AGENT_MEMBERS}
        if "mcpServers" in kept:
            kept["mcpServers"] = _mcp_servers(f"{name}[{at}].mcpServers", kept["mcpServers"], policy)
        kept["tools"] = _safe_tools(f"{name}[{at}].tools", kept.get("tools"), policy)
        agents.append(kept)
    return agents


def _without_environment(name: str, value: Any, policy: Policy) -> Any:
    """Take the host's description out of the system prompt, however the client customised the rest."""
    message = dict(_object(name, value or {}))
    if message.get("mode") == "replace":
        return message
    sections = dict(_object(f"{name}.sections", message.get("sections") or {}))
    return {**message, "mode": "customize", "sections": {**sections, "environment_context": {"action": "remove"}}}


def _large_output(name: str, value: Any, policy: Policy) -> Any:
    if value is None:
        return None
    wanted = _object(name, value)
    if wanted.get("outputDirectory") or wanted.get("outputDir"):
        raise _refusal(f"{name}.outputDirectory", "host directories")
    return {member: wanted[member] for member in wanted if member in ("enabled", "maxSizeBytes")}


def _only_empty(name: str, value: Any, policy: Policy) -> Any:
    if value:
        raise _refusal(name, "files on the host")
    return value


def _always(forced: Any) -> _Rule:
    return lambda name, value, policy: forced


_OPEN_RULES: dict[str, _Rule] = {
    "availableTools": _safe_tools,
    "customAgents": _custom_agents,
    "largeOutput": _large_output,
    "mcpServers": _mcp_servers,
    "provider": _provider,
    "providers": _providers,
    "systemMessage": _without_environment,
}

_OPTION_RULES: dict[str, _Rule] = {
    "availableTools": _safe_tools,
    "provider": _provider,
    "includedBuiltinSkills": _only_empty,
    "installedPlugins": _only_empty,
    "coauthorEnabled": _always(False),
    "customAgentsLocalOnly": _always(True),
    "manageScheduleEnabled": _always(False),
    "skipCustomInstructions": _always(True),
    "skipEmbeddingRetrieval": _always(True),
    "enableSkills": _always(False),
    "enableFileHooks": _always(False),
    "enableHostGitOperations": _always(False),
    "enableSessionStore": _always(False),
    "enableOnDemandInstructionDiscovery": _always(False),
    "isExperimentalMode": _always(False),
}


def _attachments(name: str, value: Any, policy: Policy) -> Any:
    for at, entry in enumerate(_list(name, value or [])):
        kind = _object(f"{name}[{at}]", entry).get("type")
        if kind not in _ATTACHMENTS:
            raise errors.PolicyRejected(
                f"parameter {name}[{at}] is refused: an attachment of type {kind!r} reaches the host or another service; "
                "send the content itself, as type 'blob'",
                parameter=f"{name}[{at}]",
            )
    return value


def _request_headers(name: str, value: Any, policy: Policy) -> Any:
    headers = _object(name, value or {})
    for header in headers:
        if header.strip().lower() in _CREDENTIAL_HEADERS:
            raise _refusal(f"{name}.{header}", "the credentials of the model call")
    return headers


def _messages(name: str, value: Any, policy: Policy) -> Any:
    for at, entry in enumerate(_list(name, value or [])):
        message = _object(f"{name}[{at}]", entry)
        _attachments(f"{name}[{at}].attachments", message.get("attachments"), policy)
        _request_headers(f"{name}[{at}].requestHeaders", message.get("requestHeaders"), policy)
    return value


_SEND_RULES: dict[str, _Rule] = {
    "attachments": _attachments,
    "messages": _messages,
    "requestHeaders": _request_headers,
}


def _send(params: Params, policy: Policy) -> Params:
    return _rebuild(params, policy, _SEND_MEMBERS, _SEND_RULES)


def _update_options(params: Params, policy: Policy) -> Params:
    return _rebuild(params, policy, _OPTION_MEMBERS, _OPTION_RULES)


def _switch_model(params: Params, policy: Policy) -> Params:
    return _rebuild(params, policy, _SWITCH_MEMBERS, {})


def _add_providers(params: Params, policy: Policy) -> Params:
    return _rebuild(params, policy, frozenset({"sessionId", "models"}), {"providers": _providers})


def _decision(name: str, value: Any, policy: Policy) -> Any:
    decision = _object(name, value)
    kind = decision.get("kind")
    if kind not in _DECISIONS:
        raise errors.PolicyRejected(
            f"parameter {name}.kind is refused: {kind!r} is not a decision for this request or this session alone; "
            "use approve-once, approve-for-session or reject",
            parameter=f"{name}.kind",
        )
    return decision


def _decide_permission(params: Params, policy: Policy) -> Params:
    """Let a client decide for its session; what is kept beyond it, or opens host directories, is refused."""
    return _rebuild(params, policy, frozenset({"sessionId", "requestId", "decisionContext"}), {"result": _decision})


def _approve_all(params: Params, policy: Policy) -> Params:
    """Let a client approve everything: all that is left to approve are its own tools and allowed MCP servers."""
    return _rebuild(params, policy, frozenset({"sessionId", "enabled"}), {})


_CALLS: dict[str, Callable[[Params, Policy], Params]] = {
    "session.send": _send,
    "session.sendMessages": _send,
    "session.sendAndWait": _send,
    "session.options.update": _update_options,
    "session.model.switchTo": _switch_model,
    "session.provider.add": _add_providers,
    "session.permissions.handlePendingPermissionRequest": _decide_permission,
    "session.permissions.setApproveAll": _approve_all,
}
