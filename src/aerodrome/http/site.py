"""What all HTTP routes share: the gateway, its HTTP users, and the edge's own limits."""

from __future__ import annotations

import ssl
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from aerodrome.admin.operations import Operations
from aerodrome.clock import Clock
from aerodrome.core.identity import Tenant
from aerodrome.core.sign_in import Rules
from aerodrome.gateway.client import Services
from aerodrome.gateway.minting import Minter
from aerodrome.gateway.service import TenantGateway
from aerodrome.http.asks import Asks
from aerodrome.http.browsers import BrowserSessions, BrowserSettings
from aerodrome.http.idempotency import IdempotencySettings, Replays
from aerodrome.http.rates import RateLimiter, RequestCounts
from aerodrome.http.sealed_cookies import BegunSignIns
from aerodrome.http.sse import StreamSettings
from aerodrome.http.teams import Teams
from aerodrome.http.users import HttpUsers
from aerodrome.ports.browsers import BrowserStore
from aerodrome.ports.conversations import ConversationStore
from aerodrome.ports.idempotency import IdempotencyStore
from aerodrome.ports.open_turns import OpenTurnStore
from aerodrome.ports.people import ErasureStore, PersonStore
from aerodrome.ports.registry import KeyStore
from aerodrome.ports.sign_in import SignIn


@dataclass(frozen=True, slots=True)
class HttpSettings:
    """Limits of the HTTP edge. Sizes in bytes, times in seconds."""

    host: str = "127.0.0.1"
    port: int = 0
    max_connections: int = 4096
    #: Networks of proxies whose word counts for where a request comes from, and by which scheme.
    trusted_proxies: tuple[str, ...] = ()
    max_body_bytes: int = 1024 * 1024
    #: Origins whose pages may call; none: pages of other origins may not.
    cors_origins: tuple[str, ...] = ()
    idle_seconds: float = 120.0
    stream: StreamSettings = field(default_factory=StreamSettings)
    #: Where browsers reach us, where that is not where we listen (a proxy before us).
    public_url: str | None = None
    #: Whether /metrics is for anyone, and not for operators alone.
    has_open_metrics: bool = False
    browsers: BrowserSettings = field(default_factory=BrowserSettings)
    #: Of each owner; 0: as many as come.
    requests_per_minute: int = 0
    #: So many of one user may be under way at once, streams among them. 0: any number.
    open_requests_per_user: int = 0
    idempotency: IdempotencySettings = field(default_factory=IdempotencySettings)
    #: Whether the users of a tenant have a session in common (`/team-chat`).
    team_chat: bool = False
    #: How long a one-shot question takes at most, whatever its caller says.
    ask_seconds: float = 3600.0
    #: The gateway's master keys, the current one first: webhooks are signed and secrets of sessions sealed with theirs.
    masters: tuple[bytes, ...] = field(default=(), repr=False)
    #: What webhooks' certificates are verified with; None: the system's authorities.
    webhook_context: ssl.SSLContext | None = field(default=None, repr=False)


#: Returns the last records of the audit log, the newest first: at most so many, of one tenant or of all.
ReadAudit = Callable[[int, str | None], Awaitable[Sequence[dict[str, Any]]]]


@dataclass(frozen=True, slots=True)
class SignInDoor:
    """An identity provider by which browsers sign in: what it is called, who speaks to it, and who its users are here."""

    label: str
    provider: SignIn
    rules: Rules


@dataclass(frozen=True, slots=True)
class Office:
    """What roles are for: who is known here, and the operator's verbs.

    `operations` is None where runtimes are not this gateway's own, `read_audit` where no log is kept.
    """

    keys: KeyStore
    people: PersonStore
    erasures: ErasureStore
    find_tenant: Callable[[str], Awaitable[Tenant | None]]
    list_tenants: Callable[[], Awaitable[list[Tenant]]]
    operations: Operations | None = None
    read_audit: ReadAudit | None = None
    sign_in: SignInDoor | None = None
    minter: Minter | None = None


@dataclass(frozen=True, slots=True)
class HttpStores:
    """What the edge keeps, and where."""

    conversations: ConversationStore
    idempotency: IdempotencyStore
    browsers: BrowserStore
    open_turns: OpenTurnStore


@dataclass(frozen=True, slots=True)
class Site:
    """What is served."""

    gateway: TenantGateway
    users: HttpUsers
    settings: HttpSettings
    clock: Clock
    office: Office
    browsers: BrowserSessions
    begun: BegunSignIns
    asks: Asks
    teams: Teams
    replays: Replays
    rates: RateLimiter
    under_way: RequestCounts

    @property
    def services(self) -> Services:
        """Return what all links of the gateway share."""
        return self.gateway.services
