"""The value rules for what makes a runtime call another address: model providers, remote MCP servers, and the headers sent there.

A URL must be one that the tenant's policy allows, and what goes with it must not turn the request into another one: the
runtime lets headers replace its own framing, and puts a model's name into an Azure path as it is (measured, release
1.0.102). Everything else is in `hardening_rules`.
"""

from __future__ import annotations

import re
from typing import Any

from aerodrome import errors
from aerodrome.core.policy import Policy
from aerodrome.protocol import hardening_rules as rules
from aerodrome.protocol import hardening_tools, named_providers
from aerodrome.protocol.hardening_rules import Params, Rule

_PROVIDER_TYPES = (None, "openai", "azure", "anthropic")
_PROVIDER_MEMBERS = rules.names(
    """
    name type wireApi transport baseUrl apiKey bearerToken modelId modelCapabilities providerName
    modelProvider wireModel maxPromptTokens maxContextWindowTokens maxOutputTokens hasBearerTokenProvider
    """
)
_MODEL_MEMBERS = rules.names(
    "id provider wireModel modelId name maxPromptTokens maxContextWindowTokens maxOutputTokens capabilities"
)
_MCP_MEMBERS = rules.names("type url tools excludeTools timeout displayName deferTools filterMapping")
_AGENT_MEMBERS = rules.names("name prompt displayName description infer model modelPolicy reasoningEffort")
_API_VERSION = re.compile(r"[0-9A-Za-z.-]{1,32}\Z")
_HEADER_NAME = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]{1,128}\Z")
_HEADER_VALUE = re.compile(r"[^\x00-\x08\x0a-\x1f\x7f]*\Z")
#: The runtime lets a header replace its own framing and routing (measured): a false length smuggles a second request.
_ROUTING_HEADERS = rules.names(
    """
    connection content-encoding content-length expect forwarded host http2-settings keep-alive te trailer
    transfer-encoding upgrade via
    """
)
_ROUTING_PREFIXES = ("proxy-", "sec-websocket-", "x-forwarded-", "x-http-method", "x-original-", "x-rewrite-")
_CREDENTIAL_HEADERS = rules.names("api-key authorization cookie x-api-key x-goog-api-key")


def headers(name: str, value: Any, policy: Policy) -> Any:
    """Keep HTTP headers that neither frame nor route the request they go with."""
    for header, content in rules.as_object(name, value).items():
        plain = header.lower().replace("_", "-")
        if plain in _ROUTING_HEADERS or plain.startswith(_ROUTING_PREFIXES):
            raise rules.refusal(f"{name}.{header}", "the framing or routing of requests")
        is_clean = isinstance(content, str) and _HEADER_VALUE.match(content)
        if not _HEADER_NAME.match(header) or not is_clean:
            raise errors.InvalidParams(f"expected {name} to map HTTP header names to strings of printable characters")
    return value


def request_headers(name: str, value: Any, policy: Policy) -> Any:
    """Keep the headers of one turn's model calls, which would also replace the session's own credential."""
    for header in rules.as_object(name, value):
        if header.lower().replace("_", "-") in _CREDENTIAL_HEADERS:
            raise rules.refusal(f"{name}.{header}", "the credentials of the model call")
    return headers(name, value, policy)


def provider(name: str, value: Any, policy: Policy) -> Any:
    """Keep a model provider that policy allows."""
    if value is None:
        return None
    wanted = rules.as_object(name, value)
    if named_providers.name_of(wanted) is not None:
        return named_providers.check({"provider": wanted}, policy)["provider"]
    if wanted.get("apiKeyCommand"):
        raise rules.refusal(f"{name}.apiKeyCommand", "commands on the host")
    if wanted.get("type") not in _PROVIDER_TYPES:
        raise errors.PolicyRejected(f"parameter {name}.type is refused: expected openai, azure or anthropic")
    _check_address(name, wanted, policy)
    values: dict[str, Rule] = {"headers": headers, "azure": _azure}
    return rules.rebuild(wanted, policy, _PROVIDER_MEMBERS, values, name)


def _check_address(name: str, wanted: Params, policy: Policy) -> None:
    url = wanted.get("baseUrl")
    is_allowed = isinstance(url, str) and policy.allows_provider(url)
    if is_allowed and wanted.get("type") == "azure":
        # The model's name becomes part of the path there, "../" and all (measured); other calls can change it later.
        is_allowed = policy.allows_provider("/".join(str(url).split("/")[:3]))
    if not is_allowed:
        raise errors.PolicyRejected(
            f"parameter {name}.baseUrl is refused: that address is not among the providers of this tenant's policy (for "
            "type azure the whole origin must be); use one that is, or ask your operator to add it",
            parameter=f"{name}.baseUrl",
        )


def _azure(name: str, value: Any, policy: Policy) -> Any:
    version = rules.as_object(name, value).get("apiVersion")
    if version is None:
        return {}
    if not isinstance(version, str) or not _API_VERSION.match(version):
        raise errors.InvalidParams(f"expected {name}.apiVersion to be a version such as 2024-10-21")
    return {"apiVersion": version}


def models(name: str, value: Any, policy: Policy) -> Any:
    """Keep model definitions; a system message of theirs would stand in for the session's."""
    return rules.each(_model)(name, value, policy)


def _model(name: str, value: Any, policy: Policy) -> Params:
    values: dict[str, Rule] = {"systemMessage": rules.system_message}
    return rules.rebuild(rules.as_object(name, value), policy, _MODEL_MEMBERS, values, name)


def mcp_servers(name: str, value: Any, policy: Policy) -> Any:
    """Keep remote MCP servers that policy allows; the others are commands on the host."""
    if value is None:
        return None
    return {
        key: hardening_tools.narrow_server(key, _mcp_server(f"{name}.{key}", server, policy), policy)
        for key, server in rules.as_object(name, value).items()
    }


def _mcp_server(name: str, value: Any, policy: Policy) -> Params:
    server = rules.as_object(name, value)
    if server.get("command") or server.get("type") not in ("http", "sse"):
        raise rules.refusal(name, "commands on the host (only MCP servers of type http or sse may be named)")
    url = server.get("url")
    if not isinstance(url, str) or not policy.allows_mcp(url):
        raise errors.PolicyRejected(
            f"parameter {name}.url is refused: that address is not among the MCP servers of this tenant's policy; "
            "use one that is, or ask your operator to add it",
            parameter=f"{name}.url",
        )
    return rules.rebuild(server, policy, _MCP_MEMBERS, {"headers": headers}, name)


def custom_agents(name: str, value: Any, policy: Policy) -> Any:
    """Keep agents without hooks. Their `tools` stay as they are: the runtime takes only what the session's filter passes."""
    return rules.each(_custom_agent)(name, value, policy)


def _custom_agent(name: str, value: Any, policy: Policy) -> Params:
    agent = rules.as_object(name, value)
    if agent.get("hooks"):
        raise rules.refusal(f"{name}.hooks", "commands on the host")
    values: dict[str, Rule] = {
        "mcpServers": mcp_servers,
        "tools": lambda at, names, _: None if names is None else rules.as_strings(at, names),
    }
    return rules.rebuild(agent, policy, _AGENT_MEMBERS, values, name)
