"""What all HTTP routes share: the gateway, its HTTP users, and the edge's own limits."""

from __future__ import annotations

import ssl
from dataclasses import dataclass, field

from aerodrome.clock import Clock
from aerodrome.gateway.client import Services
from aerodrome.gateway.service import TenantGateway
from aerodrome.http.sse import StreamSettings
from aerodrome.http.users import HttpUsers


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
    #: The gateway's master keys, the current one first: webhooks are signed and secrets of sessions sealed with theirs.
    masters: tuple[bytes, ...] = field(default=(), repr=False)
    #: What webhooks' certificates are verified with; None: the system's authorities.
    webhook_context: ssl.SSLContext | None = field(default=None, repr=False)


@dataclass(frozen=True, slots=True)
class Site:
    """What is served."""

    gateway: TenantGateway
    users: HttpUsers
    settings: HttpSettings
    clock: Clock

    @property
    def services(self) -> Services:
        """Return what all links of the gateway share."""
        return self.gateway.services
