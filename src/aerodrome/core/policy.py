"""A tenant's policy: where its sessions may run, how far it is trusted, whom it may call.

Pure values and rules. What a method or parameter may do under a policy is decided in `protocol`; nothing else branches on it.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import Enum

from aerodrome import errors
from aerodrome.core import addresses, patterns
from aerodrome.core.patterns import Decision

#: The URLs that every parser reads alike: a name, IPv4 or bracketed IPv6 host; no user part, query, fragment, escape or
#: backslash. A general parser is too kind here: it takes the host of "http://evil[::1]/" to be "::1".
_PROVIDER_URL = re.compile(
    r"(?P<scheme>https?)://(?P<host>[a-z0-9._-]+|\[[0-9a-f:.]+\])(?::(?P<port>[0-9]{1,5}))?"
    r"(?P<path>(?:/[a-z0-9._~!$&'()*+,;=:/-]*)?)\Z",
    re.ASCII | re.IGNORECASE,
)
_DEFAULT_PORTS = {"http": "80", "https": "443"}


class Isolation(Enum):
    """Who shares a runtime with whom (design section 2)."""

    USER = "user"
    TENANT = "tenant"
    SHARED = "shared"


class Trust(Enum):
    """How far the operator trusts a tenant: `FULL` opens the host to it, in so many words."""

    LIMITED = "limited"
    FULL = "full"


class ClientLoss(Enum):
    """What becomes of a running turn whose client leaves: `CLOSE` aborts it, as the runtime does; `FINISH` lets it go on."""

    CLOSE = "close"
    FINISH = "finish"


class GitHubAccess(Enum):
    """Whose GitHub token a session has: `CLIENT` what the client sends; `STORED` the user's, which the gateway keeps."""

    CLIENT = "client"
    STORED = "stored"


class Access(Enum):
    """Which column of the method table applies: `OPEN` = the runtime is the caller's alone and trusted."""

    GUARDED = "guarded"
    OPEN = "open"


class HostTools(Enum):
    """What holds the runtimes whose tools reach the host: a sandbox; nothing, by the operator's word; or there are none."""

    SANDBOXED = "sandboxed"
    UNSANDBOXED = "unsandboxed"
    REFUSED = "refused"


@dataclass(frozen=True, slots=True)
class Policy:
    """What a tenant, or one user of it, may do.

    Allowed URLs (model endpoints, remote MCP servers, webhooks) match by origin and path prefix; `*` is every public one.
    A session is deleted `session_idle_seconds` after its last use or `session_age_seconds` after its creation; None: never.
    `models` and `tools` are patterns (core.patterns); None: whatever the rest allows. A cap of 0 is none. `work_root` is the
    directory below which guarded sessions work; None: their realm's. `egress` and `host_tools` are for sandboxes to hold.
    """

    isolation: Isolation = Isolation.USER
    trust: Trust = Trust.LIMITED
    provider_urls: tuple[str, ...] = ()
    mcp_urls: tuple[str, ...] = ()
    webhook_urls: tuple[str, ...] = ()
    session_idle_seconds: float | None = None
    session_age_seconds: float | None = None
    client_loss: ClientLoss = ClientLoss.CLOSE
    #: The gateway's provider (core.provider) of sessions that name none, and those that clients may name besides.
    provider: str | None = None
    provider_names: tuple[str, ...] = ()
    github: GitHubAccess = GitHubAccess.CLIENT
    models: tuple[str, ...] | None = None
    tools: tuple[str, ...] | None = None
    max_sessions_per_user: int = 0
    max_sessions_per_tenant: int = 0
    max_turns_per_user: int = 0
    max_turns_per_tenant: int = 0
    work_root: str | None = None
    egress: tuple[str, ...] = ()
    host_tools: bool = False

    @property
    def access(self) -> Access:
        """Return OPEN only where a runtime serves one user and the tenant is fully trusted."""
        alone = self.isolation is Isolation.USER
        return Access.OPEN if alone and self.trust is Trust.FULL else Access.GUARDED

    @property
    def gives_host_tools(self) -> bool:
        """Say whether tools of its runtimes may reach the host, so that a sandbox must hold them; never where it is shared."""
        return self.access is Access.OPEN or (self.host_tools and self.isolation is not Isolation.SHARED)

    @property
    def exact_models(self) -> tuple[str, ...]:
        """Return the allowed models that are named in full."""
        return tuple(model for model in self.models or () if "*" not in model)

    def judge_model(self, model: str) -> Decision:
        """Say whether sessions may use a model, and which pattern decides."""
        return patterns.judge_model(self.models, model)

    def judge_tool(self, tool: str) -> Decision:
        """Say whether sessions may have a tool `SOURCE:NAME`, and which pattern decides."""
        return patterns.judge_tool(self.tools, tool)

    def allows_provider(self, url: str) -> bool:
        """Say whether sessions may send model calls to `url`."""
        return any(_covers(allowed, url) for allowed in self.provider_urls)

    def allows_named(self, name: str) -> bool:
        """Say whether sessions may use the gateway's provider of that name."""
        return name == self.provider or name in self.provider_names

    def allows_mcp(self, url: str) -> bool:
        """Say whether sessions may have the runtime call the remote MCP server at `url`."""
        return any(_covers(allowed, url) for allowed in self.mcp_urls)

    def allows_webhook(self, url: str) -> bool:
        """Say whether calls of a session's tools may be sent to `url`; `*` allows encrypted ones only."""
        said = [allowed for allowed in self.webhook_urls if allowed != "*"]
        parts = _parts(url)
        is_any = "*" in self.webhook_urls and _covers("*", url) and parts is not None and parts[0] == "https"
        return is_any or any(_covers(allowed, url) for allowed in said)


def names_address(urls: tuple[str, ...], address: str, port: int) -> bool:
    """Say whether an allow-list has an address itself, at that port: only so may one be meant that is not public."""
    parts = [found for found in (_parts(url) for url in urls) if found is not None]
    return any((host.strip("[]"), at) == (address.lower(), port) for _, host, at, _ in parts)


def check_url(name: str, url: str) -> str:
    """Return a URL that an allow-list can hold: one that would match nothing is a mistake, and is said to be one.

    Raises:
        errors.ConfigError: it is neither `*` nor a plain http or https URL.
    """
    if url != "*" and _parts(url) is None:
        raise errors.ConfigError(
            f"{name}: expected http(s)://HOST[:PORT][/PATH] without query, escapes or credentials, or '*', found {url!r}"
        )
    return url


def _covers(allowed: str, url: str) -> bool:
    want, have = _parts(allowed), _parts(url)
    if allowed == "*":
        # Not this machine, nor its network: who means those names them.
        return have is not None and addresses.is_public_host(have[1])
    if want is None or have is None or want[:3] != have[:3]:
        return False
    return f"{have[3]}/".startswith(f"{want[3]}/")


def _parts(url: str) -> tuple[str, str, int, str] | None:
    """Split into scheme, host, port, path; None for anything that parsers could read in two ways."""
    match = _PROVIDER_URL.match(url)
    # Any "..": some servers drop what follows a ';' in a segment first, so that "..;x" climbs too.
    if match is None or ".." in match["path"]:
        return None
    scheme = match["scheme"].lower()
    port = int(match["port"] or _DEFAULT_PORTS[scheme])
    return (scheme, match["host"].lower(), port, match["path"].rstrip("/")) if 0 < port < 65536 else None
