"""What a guarded session may ask of a runtime it shares with strangers: the parameter policy, as data and small rules.

The runtime itself protects nothing (protocol facts 1.4): a parameter of `session.create` can run a command, read the host or send
the model's traffic anywhere, and a resume without restrictions lifts them. So each create and resume is rebuilt here from
an allow-list, with the SDK's `mode: "empty"` values forced whether or not the client asked. A dangerous value is refused
with its name; an unknown one is dropped, so that a newer SDK goes on working with what is known to be safe.

Deliberately says nothing about methods as such (methods.tsv) or ownership (gateway.ownership). The rule of each value is in
`hardening_rules`, those of the other calls are in `hardening_calls`.
"""

from __future__ import annotations

from aerodrome import errors
from aerodrome.core.policy import Access, Policy
from aerodrome.protocol import hardening_calls, hardening_models, hardening_tools, methods
from aerodrome.protocol import hardening_network as network
from aerodrome.protocol import hardening_rules as rules
from aerodrome.protocol.hardening_rules import Params, Rule
from aerodrome.protocol.methods import Verdict

#: Built-in tools that stay within the session: no host, no network, no other session.
SAFE_BUILTIN_TOOLS = rules.SAFE_BUILTIN_TOOLS
is_abbreviation = rules.is_abbreviation

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
#: Without `includedBuiltinSkills`: it costs a create 10 ms (measured) and adds nothing where `enableSkills` is false.
OPTIONS_AFTER_OPEN: Params = {
    "coauthorEnabled": False,
    "customAgentsLocalOnly": True,
    "installedPlugins": [],
    "manageScheduleEnabled": False,
    "skipCustomInstructions": True,
}

#: Values that concern the conversation only.
_PLAIN = rules.names(
    """
    agent allowedModels askUserVariant clientName contextTier disabledMcpServers disabledSkills
    excludedBuiltinAgents excludedTools gitHubToken gitHubTokenProviderRegistrationId
    model modelCapabilities name organizationCustomInstructions reasoningEffort reasoningSummary
    traceparent tracestate
    """
)

#: Switches of the client's own connection or conversation.
_FLAGS = rules.names(
    """
    continuePendingWork disableResume enableCitations hooks includeSubAgentStreamingEvents interactiveUser
    requestAutoModeSwitch requestElicitation requestExitPlanMode requestPermission requestUserInput
    streaming
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

_RULES: dict[str, Rule] = {
    "autopilot": rules.members("continuationEnabled maxContinues"),
    "availableTools": rules.tool_filter,
    "commands": rules.each(rules.members("name description")),
    "customAgents": network.custom_agents,
    "defaultAgent": rules.members("excludedTools"),
    "infiniteSessions": rules.members("enabled backgroundCompactionThreshold bufferExhaustionThreshold"),
    "largeOutput": rules.large_output,
    "mcpServers": network.mcp_servers,
    "models": network.models,
    "provider": network.provider,
    "providers": rules.each(network.provider),
    "sessionId": rules.session_id,
    "sessionLimits": rules.members("maxAiCredits"),
    "systemMessage": rules.system_message,
    "toolSearch": rules.members("enabled deferThreshold"),
    "tools": rules.tools,
    **dict.fromkeys(_FLAGS, rules.flag),
}


def harden_create(params: Params, policy: Policy) -> Params:
    """Return the `session.create` parameters that a guarded session may have.

    Raises:
        errors.PolicyRejected: a parameter asks for what policy does not give; names it and says what to do.
        errors.InvalidParams: a parameter has the wrong form.
    """
    return _harden_opening(params, policy, is_new=True)


def harden_resume(params: Params, policy: Policy) -> Params:
    """Return the `session.resume` parameters of a guarded session: the same restrictions, for a runtime keeps none."""
    return _harden_opening(params, policy, is_new=False)


def _harden_opening(params: Params, policy: Policy, is_new: bool) -> Params:
    _refuse_reaching(params)
    hardening_models.check("session.create", params, policy)
    hardened = rules.rebuild(params, policy, _PLAIN, _RULES)
    if params.get("availableTools") is None:
        hardened["availableTools"] = rules.default_tools(bool(params.get("customAgents")), policy)
    disabled = hardening_tools.disabled_servers(params.get("disabledMcpServers"), policy)
    if disabled is not None:
        hardened["disabledMcpServers"] = disabled
    hardened.setdefault("systemMessage", rules.system_message("systemMessage", {}, policy))
    return hardened | hardening_models.restrict_opening(hardened, policy, is_new) | _FORCED


def harden_call(method: str, params: Params, policy: Policy) -> Params:
    """Return the parameters that a guarded caller's other call may have: its rule's, or as they are where it needs none.

    Raises:
        errors.PolicyRejected: there is no safe form of this call, or of this parameter.
        errors.InvalidParams: a parameter has the wrong form.
    """
    hardening_models.check(method, params, policy)
    hardening_tools.check(method, params, policy)
    rule = hardening_calls.CALLS.get(method)
    if rule is not None:
        if method == "session.options.update":
            _refuse_reaching(params)
        return rule(params, policy)
    row = methods.lookup(method)
    if row is None or row.verdict(Access.GUARDED) is Verdict.POLICY:
        raise errors.PolicyRejected(
            f"{method} is refused where a runtime is shared or its tenant not fully trusted", method=method
        )
    return params


def _refuse_reaching(params: Params) -> None:
    for name, what in _REFUSED.items():
        if params.get(name):
            raise rules.refusal(name, what)
