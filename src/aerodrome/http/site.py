"""What all HTTP routes share: the gateway, its HTTP users, and the edge's own limits."""

from __future__ import annotations

import ssl
from dataclasses import dataclass, field

from aerodrome.clock import Clock
from aerodrome.gateway.client import Services
from aerodrome.gateway.minting import Minting
from aerodrome.gateway.service import TenantGateway
from aerodrome.http.asks import Asks
from aerodrome.http.idempotency import IdempotencySettings, Replays
from aerodrome.http.rates import RateLimiter
from aerodrome.http.sse import StreamSettings
from aerodrome.http.teams import Teams
from aerodrome.http.users import HttpUsers
from aerodrome.ports.conversations import ConversationStore
from aerodrome.ports.idempotency import IdempotencyStore


@dataclass(frozen=True, slots=True)
class HttpSettings:
    """Limits of the HTTP edge. Sizes in bytes, times in seconds."""

    host: str = "127.0.0.1"
    port: int = 0
    max_connections: int = 4096
    max_body_bytes: int = 1024 * 1024
    #: Origins whose pages may call; none: pages of other origins may not.
    cors_origins: tuple[str, ...] = ()
    idle_seconds: float = 120.0
    stream: StreamSettings = field(default_factory=StreamSettings)
    #: Of each owner; 0: as many as come.
    requests_per_minute: int = 0
    idempotency: IdempotencySettings = field(default_factory=IdempotencySettings)
    #: Whether the users of a tenant have a session in common (`/team-chat`).
    team_chat: bool = False
    #: How long a one-shot question takes at most, whatever its caller says.
    ask_seconds: float = 3600.0
    #: The gateway's master keys, the current one first: webhooks are signed and secrets of sessions sealed with theirs.
    masters: tuple[bytes, ...] = field(default=(), repr=False)
    #: What webhooks' certificates are verified with; None: the system's authorities.
    webhook_context: ssl.SSLContext | None = field(default=None, repr=False)


@dataclass(frozen=True, slots=True)
class HttpStores:
    """What the edge keeps, and where."""

    conversations: ConversationStore
    idempotency: IdempotencyStore


@dataclass(frozen=True, slots=True)
class Site:
    """What is served."""

    gateway: TenantGateway
    users: HttpUsers
    settings: HttpSettings
    clock: Clock
    asks: Asks
    teams: Teams
    replays: Replays
    rates: RateLimiter
    minting: Minting | None = None

    @property
    def services(self) -> Services:
        """Return what all links of the gateway share."""
        return self.gateway.services
