"""The gateway's own limits, as one frozen value."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class GatewaySettings:
    """Sizes in bytes, times in seconds. The defaults suit one machine and a few thousand links."""

    listen_host: str = "127.0.0.1"
    listen_port: int = 4321
    max_links: int = 10_000
    #: So many of them may be one user's, who would keep all others out else. 0: any number.
    links_per_user: int = 0
    #: Before a link is authenticated it may cost no more than this, and last no longer than `handshake_seconds`.
    handshake_frame_bytes: int = 16 * 1024
    handshake_seconds: float = 10.0
    failed_tokens: int = 16
    max_frame_bytes: int = 64 * 1024 * 1024
    max_requests_in_flight: int = 10_000
    #: A client that leaves its events unread this long loses its link: the runtime would buffer them without limit.
    stall_seconds: float = 60.0
    connect_seconds: float = 10.0
    #: Whether a client's certificate must name the tenant that its token proves.
    client_names_tenant: bool = False
    #: How often the principals of open links are looked up: revoked ones lose their links within this and a moment.
    principals_seconds: float = 1.0
    #: Sessions live in one runtime at once; past it the least recently used idle one is evicted. 0: no cap.
    live_sessions: int = 50
    #: More may be live while the runtime stays below this (core.live_cap). 0: `live_sessions` and no more.
    live_memory_bytes: int = 0
    #: A runtime with nothing at work so long stops running, memory kept. 0: never.
    freeze_seconds: float = 0.0
    #: A runtime with nothing at work so long is stopped while its clients stay connected. 0: never.
    hibernate_seconds: float = 0.0
    #: A turn in a runtime that nothing was asked of for so long is doubted: the runtime is asked whether it goes on.
    doubt_seconds: float = 30.0
    #: Under client loss `finish`: how long a turn may go on without its client, and how long and how much of it is kept.
    finish_seconds: float = 3600.0
    missed_seconds: float = 3600.0
    missed_bytes: int = 8 * 1024 * 1024
    #: How often policies are read again for open links.
    policy_seconds: float = 2.0
    ownership_cache_seconds: float = 30.0
    touch_seconds: float = 5.0
