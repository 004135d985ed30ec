"""The HTTP edge of a gateway: its users, its application and its listener, started and ended as one."""

from __future__ import annotations

import ssl

from aerodrome import errors
from aerodrome.clock import Clock
from aerodrome.gateway.minting import Minting
from aerodrome.gateway.service import TenantGateway
from aerodrome.http import application
from aerodrome.http.asks import Asks
from aerodrome.http.idempotency import Replays
from aerodrome.http.rates import RateLimiter
from aerodrome.http.sealing import SealedOptions
from aerodrome.http.site import HttpSettings, HttpStores, Site
from aerodrome.http.teams import Teams
from aerodrome.http.users import HttpUsers
from aerodrome.http.webhooks import Webhooks
from aerodrome.transport.asgi import AsgiServer


class HttpEdge:
    """Serves HTTP for a gateway until it is closed."""

    def __init__(
        self,
        gateway: TenantGateway,
        stores: HttpStores,
        clock: Clock,
        settings: HttpSettings,
        context: ssl.SSLContext | None = None,
        minting: Minting | None = None,
    ) -> None:
        master = settings.masters[0] if settings.masters else None
        hooks = Webhooks(master, gateway.find_policy, clock, settings.webhook_context)
        self.users = users = HttpUsers(gateway, stores.conversations, clock, settings.idle_seconds, hooks)
        users.sealed = SealedOptions(settings.masters)
        gateway.forgetters.append(users.close_user)
        if gateway.services.sharing is not None:
            gateway.services.sharing.find_recipe = users.recipe_of
        self.site = Site(
            gateway,
            users,
            settings,
            clock,
            Asks(gateway, users),
            Teams(gateway, users),
            Replays(stores.idempotency, clock, settings.idempotency),
            RateLimiter(settings.requests_per_minute, clock),
            minting,
        )
        self._server = AsgiServer(application.build(self.site), settings.max_connections, context)

    async def start(self) -> tuple[str, int]:
        """Listen; return the host and port.

        Raises:
            errors.ConfigError: the address cannot be listened on.
        """
        settings = self.site.settings
        try:
            port = await self._server.start(settings.host, settings.port)
        except OSError as error:
            raise errors.ConfigError(
                f"cannot listen on {settings.host}:{settings.port} for HTTP: {error.strerror or error}; "
                "choose another address with http.listen"
            ) from None
        self.users.start()
        self.site.services.ownership.keepers.append(self.users.forget)
        self.site.asks.start()
        self.site.replays.start()
        return settings.host, port

    async def aclose(self) -> None:
        """End streams and requests, then the links that served them. Idempotent."""
        for guest in list(self.site.gateway.guests):
            guest.dismiss()
        await self._server.aclose()
        await self.site.asks.aclose()
        keepers = self.site.services.ownership.keepers
        keepers[:] = [one for one in keepers if one != self.users.forget]
        await self.site.replays.aclose()
        await self.users.aclose()
