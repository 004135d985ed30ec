"""The value rules of the parameter policy: each takes one parameter apart and returns what of it a guarded session may have.

A rule drops members it does not know and raises on a value that reaches the host, the network beyond policy, or other sessions.
What is said here of the runtime was measured on release 1.0.102. Which parameter has which rule is for `hardening`
(create and resume) and `hardening_calls` (everything else).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any

from aerodrome import errors
from aerodrome.core.policy import Policy
from aerodrome.protocol import hardening_tools

Params = dict[str, Any]
Rule = Callable[[str, Any, Policy], Any]


def names(text: str) -> frozenset[str]:
    """Split a blank-separated list of member names."""
    return frozenset(text.split())


#: Built-in tools without reach beyond the session, which the runtime adds of itself; and those of subagents, to whom the
#: runtime gives no tool that the session's own filter does not pass (measured).
SAFE_BUILTIN_TOOLS = (*hardening_tools.CONVERSATION_TOOLS, *hardening_tools.AGENT_TOOLS)

_TOOL_MEMBERS = (
    "name description title parameters overridesBuiltInTool skipPermission defer isTerminal metadata namespace"
)
_SYSTEM_MODES = ("append", "customize", "replace")
_ATTACHMENTS = {
    "blob": names("type data mimeType displayName"),
    "selection": names("type filePath displayName text selection"),
}
#: What the runtime takes for the beginning of a longer id: 7 to 35 characters of a UUID, in any case (measured).
_ABBREVIATION = re.compile(
    r"[0-9a-f]{7,8}|[0-9a-f]{8}-[0-9a-f]{0,4}|[0-9a-f]{8}(-[0-9a-f]{4}){1,2}-[0-9a-f]{0,4}"
    r"|[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{0,11}",
    re.IGNORECASE,
)


def rebuild(
    params: Params, policy: Policy, plain: frozenset[str], rules: Mapping[str, Rule], within: str = ""
) -> Params:
    """Return the members that are plain or have a rule, the latter as their rule leaves them; `within` is for messages."""
    place = f"{within}." if within else ""
    return {
        name: rules[name](place + name, value, policy) if name in rules else value
        for name, value in params.items()
        if name in rules or name in plain
    }


def refusal(name: str, what: str) -> errors.PolicyRejected:
    """Return the error for a parameter that reaches further than a guarded session may."""
    return errors.PolicyRejected(
        f"parameter {name} is refused: it reaches {what}; leave it out, or ask your operator for another isolation",
        parameter=name,
    )


def as_object(name: str, value: Any) -> Params:
    """Return an object; a missing one is empty."""
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise errors.InvalidParams(f"expected {name} to be an object, found {type(value).__name__}")
    return value


def as_list(name: str, value: Any) -> list[Any]:
    """Return a list; a missing one is empty."""
    if value is None:
        return []
    if not isinstance(value, list):
        raise errors.InvalidParams(f"expected {name} to be a list, found {type(value).__name__}")
    return value


def as_strings(name: str, value: Any) -> list[str]:
    """Return a list of strings."""
    strings = as_list(name, value)
    if not all(isinstance(element, str) for element in strings):
        raise errors.InvalidParams(f"expected {name} to be a list of strings")
    return strings


def always(forced: Any) -> Rule:
    """Make the rule that a parameter has this value, whatever was asked."""
    return lambda name, value, policy: forced


def members(allowed: str) -> Rule:
    """Make the rule for an object with these plain members."""
    plain = names(allowed)

    def rule(name: str, value: Any, policy: Policy) -> Any:
        return None if value is None else rebuild(as_object(name, value), policy, plain, {})

    return rule


def each(inner: Rule) -> Rule:
    """Make the rule for a list whose elements follow `inner`."""

    def rule(name: str, value: Any, policy: Policy) -> Any:
        elements = as_list(name, value)
        return None if value is None else [inner(f"{name}[{at}]", entry, policy) for at, entry in enumerate(elements)]

    return rule


def one_of(*allowed: str) -> Rule:
    """Make the rule for a choice."""

    def rule(name: str, value: Any, policy: Policy) -> Any:
        if value is not None and value not in allowed:
            raise errors.PolicyRejected(
                f"parameter {name} is refused: expected {' or '.join(allowed)}, found {value!r}", parameter=name
            )
        return value

    return rule


def flag(name: str, value: Any, policy: Policy) -> Any:
    """Let a switch be a switch only: an object in its place might be configuration."""
    if value is not None and not isinstance(value, bool):
        raise errors.InvalidParams(f"expected {name} to be true or false, found {type(value).__name__}")
    return value


def only_empty(name: str, value: Any, policy: Policy) -> Any:
    """Refuse a list of what lies on the host, unless it is empty."""
    if value:
        raise refusal(name, "files on the host")
    return value


def is_abbreviation(session_id: str) -> bool:
    """Say whether the runtime would look for a longer id that begins like this one where it has none of this name.

    `session.resume` and `session.delete` do so (measured): to own such an id would be to reach the sessions of others.
    """
    return _ABBREVIATION.fullmatch(session_id) is not None


def session_id(name: str, value: Any, policy: Policy) -> Any:
    """Refuse an id that the runtime would read as an abbreviation of another."""
    if isinstance(value, str) and is_abbreviation(value):
        raise errors.InvalidParams(
            f"{name} {value} could be taken for the beginning of another session's id: choose one that does not read "
            "like 7 to 35 characters of a UUID"
        )
    return value


def default_tools(has_agents: bool, policy: Policy) -> list[str]:
    """Return the tool filter of a session that names none: the client's tools, MCP tools, and what a conversation needs.

    Where tools may reach the host, all built-in ones: that is what a program without a filter expects.
    """
    is_all = has_agents or policy.gives_host_tools
    built_in = hardening_tools.builtin_tools(policy) if is_all else hardening_tools.CONVERSATION_TOOLS
    return hardening_tools.narrow_filter(["custom:*", "mcp:*", *(f"builtin:{tool}" for tool in built_in)], policy)


def tool_filter(name: str, value: Any, policy: Policy) -> list[str]:
    """Narrow a tool filter to the client's own tools, MCP tools, and built-in ones that are safe, as far as policy allows.

    The runtime passes what any pattern names: `source:name`, `source:*`, a bare name for any source; it knows no other
    wildcards, and an empty list passes nothing (measured).
    """
    if value is None:
        return default_tools(has_agents=False, policy=policy)
    narrowed: list[str] = []
    for pattern in as_strings(name, value):
        source, colon, tool = pattern.partition(":")
        if not colon:
            source, tool = "", pattern
            # A bare name means a tool of any source: say which sources may answer to it.
            narrowed += [f"custom:{tool}", f"mcp:{tool}"]
        elif source in ("custom", "mcp"):
            narrowed.append(pattern)
        if source in ("", "builtin"):
            safe = hardening_tools.builtin_tools(policy)
            narrowed += [f"builtin:{known}" for known in safe if tool in ("*", known)]
    return hardening_tools.narrow_filter(narrowed, policy)


def tools(name: str, value: Any, policy: Policy) -> Any:
    """Keep tool definitions that policy allows: these tools run in the client, also where one takes a built-in tool's name."""
    return hardening_tools.narrow_definitions(each(members(_TOOL_MEMBERS))(name, value, policy), policy)


def system_message(name: str, value: Any, policy: Policy) -> Params:
    """Take the host's description out of the system prompt, however the client customised the rest."""
    message = as_object(name, value)
    mode = message.get("mode") or "append"
    if mode not in _SYSTEM_MODES:
        raise errors.InvalidParams(f"expected {name}.mode to be one of {', '.join(_SYSTEM_MODES)}")
    kept = rebuild(message, policy, names("content contentBlocks"), {})
    if mode == "replace":
        return {"mode": mode, **kept}
    sections = as_object(f"{name}.sections", message.get("sections")) if mode == "customize" else {}
    return {"mode": "customize", **kept, "sections": {**sections, "environment_context": {"action": "remove"}}}


def large_output(name: str, value: Any, policy: Policy) -> Any:
    """Keep the limits for large tool output, but not the directory it goes to."""
    for directory in ("outputDirectory", "outputDir"):
        if as_object(name, value).get(directory):
            raise refusal(f"{name}.{directory}", "host directories")
    return members("enabled maxSizeBytes")(name, value, policy)


def attachments(name: str, value: Any, policy: Policy) -> Any:
    """Keep attachments that carry their own content; the others name files of the host or another service."""
    return each(_attachment)(name, value, policy)


def _attachment(name: str, value: Any, policy: Policy) -> Params:
    attachment = as_object(name, value)
    kind = attachment.get("type")
    if not isinstance(kind, str) or kind not in _ATTACHMENTS:
        raise errors.PolicyRejected(
            f"parameter {name} is refused: an attachment of type {kind!r} reaches the host or another service; "
            "send the content itself, as type 'blob'",
            parameter=name,
        )
    return rebuild(attachment, policy, _ATTACHMENTS[kind], {})
