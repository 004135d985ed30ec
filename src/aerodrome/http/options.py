"""What an HTTP session is opened with: chosen once by its creator, kept in the registry, sent again at every resume.

A runtime keeps none of it (protocol facts 1.4). Secrets are not among it: providers are named, tools and MCP servers hold
references. What policy makes of it is decided where every client's parameters are (protocol.hardening).
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

import msgspec
from pydantic import BaseModel, ConfigDict, Discriminator, Field, JsonValue, SecretStr, Tag, model_validator

from aerodrome.protocol import named_providers

Permissions = Literal["ask", "approve", "reject"]
Mode = Literal["interactive", "plan", "autopilot"]
_TOOL_NAME = r"^[A-Za-z0-9_-]{1,64}$"


class Body(BaseModel):
    """What a caller sends: unknown members are mistakes, and so is text that no answer and no runtime could be told."""

    model_config = ConfigDict(extra="forbid")

    @model_validator(mode="before")
    @classmethod
    def _check_text(cls, said: Any) -> Any:
        try:
            msgspec.json.encode(said)
        except UnicodeEncodeError:
            # JSON may escape half of a surrogate pair, and its reader here takes that for text.
            raise ValueError("expected Unicode text, found half of a surrogate pair") from None
        except TypeError:
            pass  # made here, and not read from JSON
        return said


class ClientTool(Body):
    """A tool that callers of this API answer for: its calls are pending requests (kind `tool`)."""

    type: Literal["client"] = "client"
    name: str = Field(pattern=_TOOL_NAME, examples=["lookup_order"])
    description: str = Field(default="", max_length=4000)
    parameters: dict[str, JsonValue] = Field(default_factory=dict, description="JSON Schema of its arguments")


class WebhookTool(Body):
    """A tool that a service answers: the gateway sends each call there, signed (docs/webhooks.md)."""

    type: Literal["webhook"]
    name: str = Field(pattern=_TOOL_NAME, examples=["lookup_order"])
    description: str = Field(default="", max_length=4000)
    parameters: dict[str, JsonValue] = Field(default_factory=dict, description="JSON Schema of its arguments")
    url: str = Field(max_length=2000, description="where calls go; the tenant's policy (`webhooks`) must allow it")
    timeout_seconds: float = Field(default=10.0, gt=0, le=120, description="of one attempt")
    retries: int = Field(default=2, ge=0, le=5, description="more attempts after a failed one (5xx, no connection)")


def _type_of(tool: Any) -> str:
    said = tool.get("type", "client") if isinstance(tool, dict) else getattr(tool, "type", "client")
    return said if said in ("client", "webhook") else ""


Tool = Annotated[
    Annotated[ClientTool, Tag("client")] | Annotated[WebhookTool, Tag("webhook")],
    Discriminator(
        _type_of,
        custom_error_type="tool_type",
        custom_error_message="expected type to be 'client' or 'webhook'",
    ),
]


class McpServer(Body):
    """A remote MCP server whose tools the session has."""

    url: str = Field(max_length=2000, description="where it is; the tenant's policy (`mcp_servers`) must allow it")
    type: Literal["http", "sse"] = "http"
    tools: list[str] = Field(default_factory=lambda: ["*"], max_length=200, description="by name; `*`: all it has")
    headers: dict[str, SecretStr] = Field(
        default_factory=dict, max_length=20, description="sent with every call; stored sealed, never given back"
    )


class InfiniteSession(Body):
    """Compaction in the background, so that a conversation never runs out of context. Thresholds are parts of the context."""

    enabled: bool = True
    background_compaction_threshold: float | None = Field(default=None, ge=0, le=1)
    buffer_exhaustion_threshold: float | None = Field(default=None, ge=0, le=1)


class SessionOptions(Body):
    """What a session is opened with."""

    title: str | None = Field(default=None, max_length=200)
    model: str | None = Field(default=None, max_length=200, description="default: the provider's")
    provider: str | None = Field(
        default=None, pattern=r"^[A-Za-z0-9_.-]{1,64}$", description="a provider of the gateway; default: the tenant's"
    )
    instructions: str | None = Field(default=None, max_length=100_000, description="added to the system message")
    permissions: Permissions = Field(
        default="ask", description="what becomes of permission requests: pending until answered, or answered at once"
    )
    ask_user: bool = Field(
        default=True, description="whether the agent may ask questions (pending requests of kind `question`)"
    )
    tools: list[Tool] = Field(default_factory=list, max_length=100)
    mcp_servers: dict[Annotated[str, Field(pattern=_TOOL_NAME)], McpServer] = Field(
        default_factory=dict, max_length=20, description="remote MCP servers, by the name their tools are called with"
    )
    infinite: InfiniteSession | None = None
    metadata: dict[str, str] = Field(default_factory=dict, max_length=16, description="yours; given back as it is")


def opening(options: SessionOptions) -> dict[str, Any]:
    """Return the parameters of `session.create` and `session.resume`."""
    params: dict[str, Any] = {
        "streaming": True,
        "includeSubAgentStreamingEvents": False,
        "requestPermission": True,
        # Of resumes only, but whoever brings the session back says what it was made with (gateway.reattach).
        "continuePendingWork": True,
        "requestUserInput": options.ask_user,
        "requestElicitation": options.ask_user,
        "requestExitPlanMode": options.ask_user,
        "tools": [_tool(tool) for tool in options.tools],
    }
    if options.model is not None:
        params["model"] = options.model
    if options.provider is not None:
        params["provider"] = {"baseUrl": f"{named_providers.PREFIX}{options.provider}"}
    if options.instructions:
        params["systemMessage"] = {"mode": "append", "content": options.instructions}
    if options.mcp_servers:
        params["mcpServers"] = {name: _server(server) for name, server in options.mcp_servers.items()}
    if options.infinite is not None:
        params["infiniteSessions"] = _infinite(options.infinite)
    return params


#: What makes a link the one that the runtime asks, or says who it is: of the program that brought it.
_OF_ANOTHER = frozenset(
    {"canvasProvider", "commands", "extensionInfo", "gitHubTokenProviderRegistrationId", "hasSkillProvider", "hooks"}
)


def joining(recipe: dict[str, Any]) -> dict[str, Any]:
    """Return the parameters that join a session which a program has open with these, and change nothing for it."""
    said = {name: value for name, value in recipe.items() if name not in _OF_ANOTHER}
    return {**said, "streaming": True, "requestPermission": True, "continuePendingWork": True}


def _tool(tool: ClientTool | WebhookTool) -> dict[str, Any]:
    # Whoever registers a tool answers its calls: a question before each would only be asked of the same caller.
    return {
        "name": tool.name,
        "description": tool.description,
        "parameters": tool.parameters or {"type": "object", "properties": {}},
        "skipPermission": True,
    }


def _server(server: McpServer) -> dict[str, Any]:
    said: dict[str, Any] = {"type": server.type, "url": server.url, "tools": server.tools}
    headers = {name: value.get_secret_value() for name, value in server.headers.items()}
    return {**said, "headers": headers} if headers else said


def _infinite(wanted: InfiniteSession) -> dict[str, Any]:
    params: dict[str, Any] = {"enabled": wanted.enabled}
    if wanted.background_compaction_threshold is not None:
        params["backgroundCompactionThreshold"] = wanted.background_compaction_threshold
    if wanted.buffer_exhaustion_threshold is not None:
        params["bufferExhaustionThreshold"] = wanted.buffer_exhaustion_threshold
    return params
