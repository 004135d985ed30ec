"""The rules of the calls other than create and resume: what of their parameters goes on to a runtime that strangers share.

Every method whose guarded verdict is POLICY has one, and so have calls that pass but take parameters which count, choose or
reach more than the caller's own. The value rules themselves are in `hardening_rules`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from aerodrome import errors
from aerodrome.core.policy import Policy
from aerodrome.protocol import hardening_models
from aerodrome.protocol import hardening_network as network
from aerodrome.protocol import hardening_rules as rules
from aerodrome.protocol.hardening_rules import Params, Rule

CallRule = Callable[[Params, Policy], Params]

_PASSABLE_DECISIONS = rules.names(
    """
    approve-once approve-for-session approved approved-for-session reject user-not-available cancelled
    denied-by-rules denied-no-approval-rule-and-could-not-request-from-user denied-interactively-by-user
    denied-by-content-exclusion-policy denied-by-permission-request-hook
    """
)
_MODE = rules.one_of("interactive", "plan", "autopilot")  # never "shell"


def _only(plain: str, values: Mapping[str, Rule] | None = None) -> CallRule:
    """Make the rule that lets these members through, some of them by a rule of their own."""
    allowed = rules.names(plain)
    return lambda params, policy: rules.rebuild(params, policy, allowed, values or {})


def _never(why: str) -> CallRule:
    def rule(params: Params, policy: Policy) -> Params:
        raise errors.PolicyRejected(f"this call is refused where a runtime is shared: {why}")

    return rule


def _decision(name: str, value: object, policy: Policy) -> Params:
    """Keep decisions that end with the session; the others are kept for a directory or for good."""
    decision = rules.as_object(name, value)
    kind = decision.get("kind")
    if not isinstance(kind, str) or kind not in _PASSABLE_DECISIONS:
        raise rules.refusal(f"{name}.kind", f"beyond the session (a decision of kind {kind!r})")
    return decision


_MESSAGE: dict[str, Rule] = {
    "attachments": rules.attachments,
    "requestHeaders": network.request_headers,
    "agentMode": _MODE,
}
_MESSAGE_MEMBERS = "prompt displayPrompt mode prepend requiredTool wait"
_SEND_MEMBERS = f"sessionId {_MESSAGE_MEMBERS} responseFormat traceparent tracestate"


def _message(name: str, value: object, policy: Policy) -> Params:
    return rules.rebuild(rules.as_object(name, value), policy, rules.names(_MESSAGE_MEMBERS), _MESSAGE, name)


_SEND = _only(_SEND_MEMBERS, {**_MESSAGE, "messages": rules.each(_message)})

_OPTION_MEMBERS = """
    sessionId model modelCapabilitiesOverrides reasoningEffort reasoningSummary verbosity clientName
    excludedTools excludedBuiltinAgents askUserDisabled enableStreaming continueOnAutoMode
    enableReasoningSummaries organizationCustomInstructions disabledSkills disabledInstructionSources
    contextTier additionalContentExclusionPolicies suppressCustomAgentPrompt maxInlineBinaryBytes
"""
_OPTIONS: dict[str, Rule] = {
    "availableTools": rules.tool_filter,
    "autopilot": rules.members("continuationEnabled maxContinues"),
    "provider": network.provider,
    "sessionLimits": rules.members("maxAiCredits"),
    "includedBuiltinSkills": rules.only_empty,
    "installedPlugins": rules.only_empty,
    "skipCustomInstructions": rules.always(True),
    "skipEmbeddingRetrieval": rules.always(True),
    "customAgentsLocalOnly": rules.always(True),
    **dict.fromkeys(
        (
            "coauthorEnabled",
            "manageScheduleEnabled",
            "enableSkills",
            "enableFileHooks",
            "enableHostGitOperations",
            "enableSessionStore",
            "enableOnDemandInstructionDiscovery",
            "isExperimentalMode",
        ),
        rules.always(False),
    ),
}

_SWITCH_MEMBERS = """
    sessionId modelId providerId autoTier reasoningEffort reasoningSummary verbosity modelCapabilities
    contextTier deferIfModelChangeQueued compactionDecision runCompactionPreflight requireAvailable
"""
_MODE_MEMBERS = """
    sessionId expectedMode inheritPlanBaseFromSessionId planModelConfigured planModel
    planModelProviderId planReasoningEffort planContextTier compactionDecision restorePlanModel
    planExitAction
"""
_PROVIDERS: dict[str, Rule] = {"providers": rules.each(network.provider), "models": network.models}
_COMMANDS = _never("slash commands reach the host (/add-dir, /mcp, /plugin ...); run your own command in your program")


def _reset_approvals(params: Params, policy: Policy) -> Params:
    return {**_only("sessionId")(params, policy), "includeLocation": False}


def _modify_rules(params: Params, policy: Policy) -> Params:
    values = {"scope": rules.one_of("session")}
    return {**_only("sessionId add remove removeAll", values)(params, policy), "scope": "session"}


def _allowed_models(params: Params, policy: Policy) -> Params:
    return hardening_models.restrict_list(_only("sessionId allowedModels")(params, policy), policy)


def _headers_answer(name: str, value: object, policy: Policy) -> Params:
    answer = rules.as_object(name, value)
    network.headers(f"{name}.headers", answer.get("headers"), policy)
    return answer


#: Method -> its rule. Ownership of every session named has been checked before.
CALLS: Mapping[str, CallRule] = {
    # POLICY: some values would reach further than the session.
    "models.list": _only(""),
    "session.commands.enqueue": _COMMANDS,
    "session.commands.execute": _COMMANDS,
    "session.commands.invoke": _COMMANDS,
    "session.metadata.setWorkingDirectory": _never("every session works in a directory of its own"),
    "session.mode.set": _only(_MODE_MEMBERS, {"mode": _MODE}),
    "session.model.setAllowedModels": _allowed_models,
    "session.model.switchTo": _only(_SWITCH_MEMBERS),
    "session.options.update": _only(_OPTION_MEMBERS, _OPTIONS),
    "session.permissions.handlePendingPermissionRequest": _only("sessionId requestId", {"result": _decision}),
    "session.permissions.modifyRules": _modify_rules,
    "session.permissions.resetSessionApprovals": _reset_approvals,
    "session.provider.add": _only("sessionId", _PROVIDERS),
    "session.provider.sync": _only("sessionId", _PROVIDERS),
    "session.queue.appendSteering": _only("sessionId messageId expectedPrompt prompt displayPrompt", _MESSAGE),
    "session.queue.insertAt": _only("sessionId position", {"message": _message}),
    "session.send": _SEND,
    "session.sendAndWait": _SEND,
    "session.sendMessages": _SEND,
    # Their own session, but headers and tool definitions keep to the rules of create.
    "session.mcp.headers.handlePendingHeadersRefreshRequest": _only("sessionId requestId", {"result": _headers_answer}),
    "session.tools.set": _only("sessionId", {"tools": rules.tools}),
    # Not about one session: nothing that counts or chooses among everybody's, or that names a host account.
    "agents.getBuiltins": _only(""),
    "commands.list": _only(""),
    "contentExclusion.validatePolicies": _only("policiesJson"),
    "managedSettings.schema": _only(""),
    "mcp.listBuiltinServerNames": _only(""),
    "models.getBuiltInCatalog": _only(""),
    "session.list": _only("filter"),
    "sessions.findByTaskId": _only("taskId"),
    "sessions.getSizes": _only(""),
    "sessions.list": _only("filter includeDetached"),
    "tools.list": _only("model"),
}
