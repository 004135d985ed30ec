"""The rule of tools: which ones policy leaves of those that a guarded session may have at all, in the forms a runtime holds.

Measured on release 1.0.102: a runtime's filter takes `source:name` with whole names or `*`; the tools of an MCP server are called
SERVER-TOOL there, so that a server cannot be named by itself, but each server's own `tools` and `excludeTools` hold; a filter
that changes in the middle of a turn counts from the next turn on. So client tools are taken out of what the client offers,
MCP tools out of their servers, and built-in ones out of the filter.
"""

from __future__ import annotations

from typing import Any

from aerodrome import errors
from aerodrome.core import patterns
from aerodrome.core.policy import Policy

Params = dict[str, Any]

#: Built-in tools that stay within the session (hardening_rules says more of them).
CONVERSATION_TOOLS = ("ask_user", "exit_plan_mode", "task_complete")
AGENT_TOOLS = ("list_agents", "read_agent", "task", "write_agent")
#: Those that read, write or call beyond it: shell, files, the network. Only where policy says so, and a sandbox holds them.
HOST_TOOLS = (
    "apply_patch",
    "bash",
    "create",
    "edit",
    "glob",
    "grep",
    "list_bash",
    "read_bash",
    "stop_bash",
    "view",
    "web_fetch",
    "write_bash",
)
#: MCP servers that a runtime may add by itself (measured: `mcp.listBuiltinServerNames`).
BUILTIN_SERVERS = ("github-mcp-server", "githubiq", "WorkIQ", "browser-use", "github-copilot-browser")
#: Calls that act on a tool or a server by name, and where they name it.
_NAMED_TOOLS = {"session.mcp.apps.callTool": ("serverName", "toolName")}
_NAMED_SERVERS = {
    "session.mcp.apps.readResource": "serverName",
    "session.mcp.enable": "serverName",
    "session.mcp.executeSampling": "serverName",
    "session.mcp.prompts.get": "serverName",
    "session.mcp.resources.read": "serverName",
}


def builtin_tools(policy: Policy) -> tuple[str, ...]:
    """Return the built-in tools that a guarded session may have, whatever patterns say."""
    host = HOST_TOOLS if policy.gives_host_tools else ()
    return (*CONVERSATION_TOOLS, *AGENT_TOOLS, *host)


def narrow_filter(names: list[str], policy: Policy) -> list[str]:
    """Return what policy leaves of a tool filter, whose elements have a source each."""
    return [name for name in names if _stays(name, policy)]


def _stays(name: str, policy: Policy) -> bool:
    source, _, tool = name.partition(":")
    if source == "mcp" or tool == "*":
        # Which tools of a server stay is its own `tools` to say, which of the client's what the client may define.
        return patterns.judge_source(policy.tools, source).is_allowed
    return policy.judge_tool(name).is_allowed


def narrow_definitions(definitions: Any, policy: Policy) -> Any:
    """Return the client's tool definitions that policy allows."""
    if policy.tools is None or not isinstance(definitions, list):
        return definitions
    return [tool for tool in definitions if policy.judge_tool(f"custom:{tool.get('name')}").is_allowed]


def narrow_server(name: str, server: Params, policy: Policy) -> Params:
    """Return an MCP server's description with the tools that policy allows."""
    if policy.tools is None:
        return server
    allowed = patterns.server_tools(policy.tools, name)
    asked = server.get("tools")
    if allowed.names is None:
        narrowed = asked
    elif not isinstance(asked, list) or "*" in asked:
        narrowed = list(allowed.names)
    else:
        narrowed = [tool for tool in asked if tool in allowed.names]
    kept = server if narrowed is None else {**server, "tools": narrowed}
    given = server.get("excludeTools")
    excluded = [tool for tool in given if isinstance(tool, str)] if isinstance(given, list) else []
    return {**kept, "excludeTools": [*excluded, *allowed.denied]} if allowed.denied else kept


def disabled_servers(asked: Any, policy: Policy) -> list[str] | None:
    """Return which MCP servers must be off: those asked for, and a runtime's own that policy does not allow as a whole.

    None: policy says nothing of tools.
    """
    if policy.tools is None:
        return None
    own = [name for name in BUILTIN_SERVERS if patterns.server_tools(policy.tools, name) != patterns.ServerTools(None)]
    given = [name for name in asked if isinstance(name, str)] if isinstance(asked, list) else []
    return list(dict.fromkeys([*given, *own]))


def check(method: str, params: Params, policy: Policy) -> None:
    """Check the tool or server that a call acts on by name.

    Raises:
        errors.PolicyRejected: policy does not allow it.
    """
    if policy.tools is None:
        return
    if method in _NAMED_TOOLS:
        server, tool = (params.get(member) for member in _NAMED_TOOLS[method])
        if not policy.judge_tool(f"mcp:{server}/{tool}").is_allowed:
            raise _refusal(f"tool mcp:{server}/{tool}")
    elif method in _NAMED_SERVERS:
        name = params.get(_NAMED_SERVERS[method])
        if not isinstance(name, str) or patterns.server_tools(policy.tools, name).names == ():
            raise _refusal(f"MCP server {name}")


def _refusal(what: str) -> errors.PolicyRejected:
    return errors.PolicyRejected(
        f"{what[:300]} is refused by the tool patterns of this tenant's policy; ask your operator to allow it",
        parameter="tools",
    )
