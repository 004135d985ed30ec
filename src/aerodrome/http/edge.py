"""The HTTP edge of a gateway: its users, its application and its listener, started and ended as one."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Sequence

from aerodrome import errors
from aerodrome.clock import Clock
from aerodrome.gateway.service import TenantGateway
from aerodrome.http import application, figures, sweeping
from aerodrome.http.asks import Asks
from aerodrome.http.browsers import BrowserSessions
from aerodrome.http.idempotency import Replays
from aerodrome.http.pages import demo_routes
from aerodrome.http.pages.demo_routes import DemoUser
from aerodrome.http.rates import RateLimiter, RequestCounts
from aerodrome.http.sealed_cookies import BegunSignIns
from aerodrome.http.sealing import SealedOptions
from aerodrome.http.site import HttpSettings, HttpStores, Office, Site
from aerodrome.http.teams import Teams
from aerodrome.http.users import HttpUsers
from aerodrome.http.webhooks import Webhooks
from aerodrome.transport.asgi import AsgiServer


class HttpEdge:
    """Serves HTTP for a gateway until it is closed."""

    def __init__(
        self,
        gateway: TenantGateway,
        office: Office,
        stores: HttpStores,
        clock: Clock,
        settings: HttpSettings,
        context: ssl.SSLContext | None = None,
    ) -> None:
        master = settings.masters[0] if settings.masters else None
        hooks = Webhooks(master, gateway.find_policy, clock, settings.webhook_context)
        self.users = users = HttpUsers(gateway, stores.conversations, clock, settings.idle_seconds, hooks)
        users.open_turns = stores.open_turns
        users.sealed = SealedOptions(settings.masters)
        gateway.forgetters.append(users.close_user)
        if gateway.services.sharing is not None:
            gateway.services.sharing.find_recipe = users.recipe_of
        self.site = Site(
            gateway,
            users,
            settings,
            clock,
            office,
            BrowserSessions(stores.browsers, clock, settings.browsers),
            BegunSignIns(settings.masters),
            Asks(gateway, users),
            Teams(gateway, users),
            Replays(stores.idempotency, clock, settings.idempotency),
            RateLimiter(settings.requests_per_minute, clock),
            RequestCounts(settings.open_requests_per_user),
        )
        #: Where it listens, once it does.
        self.address: tuple[str, int] | None = None
        self._tasks: list[asyncio.Task[None]] = []
        self._application = application.build(self.site)
        self._server = AsgiServer(
            self._application, settings.max_connections, context, trusted_proxies=settings.trusted_proxies
        )

    async def start(self) -> tuple[str, int]:
        """Listen; return the host and port.

        Raises:
            errors.ConfigError: the address cannot be listened on.
        """
        settings = self.site.settings
        await self.site.asks.find_leftovers()
        try:
            port = await self._server.start(settings.host, settings.port)
        except OSError as error:
            raise errors.ConfigError(
                f"cannot listen on {settings.host}:{settings.port} for HTTP: {error.strerror or error}; "
                "choose another address with http.listen"
            ) from None
        self.users.start()
        sweeps = (self.site.replays.sweep, self.site.browsers.sweep)
        self._tasks = [
            asyncio.create_task(figures.look_on_schedule(self.site.gateway), name="figures"),
            asyncio.create_task(sweeping.sweep_on_schedule(sweeps), name="http sweep"),
        ]
        self.site.services.ownership.keepers.append(self.users.forget)
        self.site.asks.start()
        self.address = settings.host, port
        return self.address

    def open_demo(self, code: str, users: Sequence[DemoUser]) -> None:
        """Let whoever has the code sign in as one of these users: for `aerodrome demo` alone."""
        self._application.include_router(demo_routes.routes(code, users))
        self._application.state.is_demo = True

    async def aclose(self) -> None:
        """End streams and requests, then the links that served them. Idempotent."""
        for guest in list(self.site.gateway.guests):
            guest.dismiss()
        for task in self._tasks:
            task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks)
        await self._server.aclose()
        await self.site.asks.aclose()
        keepers = self.site.services.ownership.keepers
        keepers[:] = [one for one in keepers if one != self.users.forget]
        await self.site.replays.aclose()
        await self.users.aclose()
