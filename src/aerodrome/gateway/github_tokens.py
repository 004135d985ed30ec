"""Users' GitHub tokens: opened for their own sessions, renewed before they expire, and brought to the sessions that are live.

A token is read from the store each time a session is opened, so one that was set or removed meanwhile counts at once. One
renewal at a time for each owner, because a refresh token is good once; whoever set a token while it ran goes before it.
"""

from __future__ import annotations

import asyncio
import weakref

import structlog
from msgspec import UNSET

from aerodrome import errors
from aerodrome.clock import Clock
from aerodrome.core import github
from aerodrome.core.envelope import Envelopes
from aerodrome.core.github import GitHubToken, StoredToken
from aerodrome.core.identity import Owner
from aerodrome.core.secret import Secret
from aerodrome.gateway.client import Client
from aerodrome.gateway.residents import Residents
from aerodrome.gateway.supplying import Supplier
from aerodrome.ports.tokens import TokenIssuer, TokenStore

_log = structlog.get_logger()


class GitHubTokens:
    """The stored tokens, as sessions need them. `issuer` None: tokens cannot be renewed here."""

    def __init__(
        self, store: TokenStore, envelopes: Envelopes, issuer: TokenIssuer | None, clock: Clock, before_seconds: float
    ) -> None:
        self._store = store
        self._envelopes = envelopes
        self._issuer = issuer
        self._clock = clock
        self._before_seconds = before_seconds
        #: By owner, as long as anybody asks.
        self._renewing: weakref.WeakValueDictionary[Owner, asyncio.Lock] = weakref.WeakValueDictionary()

    async def current(self, owner: Owner) -> Secret:
        """Return a user's token, renewed if it is about to expire.

        Raises:
            errors.PolicyRejected: there is none. errors.SecretUnavailable: it has expired or cannot be opened.
            errors.StoreUnavailable: the store does not answer.
        """
        # A caller who gives up must not let the next one in while a refresh token is being used up.
        token = await asyncio.shield(self._read(owner))
        if token.is_expired(self._clock.now()):
            raise errors.SecretUnavailable("your stored GitHub token has expired; sign in again")
        return token.access

    async def _read(self, owner: Owner) -> GitHubToken:
        async with self._renewing.setdefault(owner, asyncio.Lock()):
            stored = await self._store.find(owner)
            if stored is None:
                raise errors.PolicyRejected(
                    "no GitHub token of yours is stored, and this tenant's sessions use stored ones; sign in, or ask your "
                    "operator to set one"
                )
            token = github.unseal(self._envelopes, stored)
            if token.needs_refresh(self._clock.now(), self._before_seconds) and self._issuer is not None:
                token = await self._renew(self._issuer, stored, token)
            return token

    async def _renew(self, issuer: TokenIssuer, stored: StoredToken, token: GitHubToken) -> GitHubToken:
        """Return a new token, or the old one while it cannot be renewed and still serves."""
        assert token.refresh is not None
        try:
            return await self._exchange(issuer, stored, token.refresh)
        except errors.SecretUnavailable as error:
            tenant = stored.owner.tenant
            _log.warning("token.refresh_failed", tenant=tenant, reason=error.message)
            return token

    async def _exchange(self, issuer: TokenIssuer, stored: StoredToken, refresh: Secret) -> GitHubToken:
        token = await issuer.refresh(refresh)
        if token.refresh is None and token.expires_at is not None:
            token = GitHubToken(token.access, refresh, token.expires_at)
        fresh = github.seal(self._envelopes, stored.owner, token, self._clock.now())
        if await self._store.replace(fresh, stored):
            _log.info("token.refreshed", tenant=stored.owner.tenant)
            return token
        newer = await self._store.find(stored.owner)
        return token if newer is None else github.unseal(self._envelopes, newer)


class TokenCourier:
    """Looks after the tokens of live sessions: renews them in time and tells the runtimes."""

    def __init__(self, supplier: Supplier, residents: Residents, host: str, interval_seconds: float) -> None:
        self._supplier = supplier
        self._residents = residents
        self._host = host
        self._interval_seconds = interval_seconds

    async def run(self) -> None:
        """Look again and again, until cancelled."""
        while True:
            await asyncio.sleep(self._interval_seconds)
            try:
                await self.visit()
            except errors.AerodromeError as error:
                _log.warning("token.visit_failed", reason=error.message)

    async def visit(self) -> None:
        """Bring each live session of a stored token its owner's present one, if it is another than before."""
        for resident in self._residents:
            key = (resident.realm, resident.session_id)
            given = self._supplier.supplied.get(key)
            holder = next(iter(resident.live), None)
            if given is None or holder is None or self._supplier.tokens is None:
                continue  # one that is in no runtime comes back with the present token
            try:
                token = await self._supplier.tokens.current(holder.client.owner)
                if token != given and key in self._supplier.supplied:
                    await self._tell(holder.client, resident.session_id, token)
                    if key in self._supplier.supplied:
                        self._supplier.supplied[key] = token
            except errors.AerodromeError as error:
                holder.client.log.warning("token.push_failed", session=resident.session_id, reason=error.message)

    async def _tell(self, client: Client, session_id: str, token: Secret) -> None:
        upstream = client.live_upstream(session_id)
        if upstream is None:
            return  # it comes back with the present token
        credentials = {"type": "token", "host": self._host, "token": token.reveal()}
        params = {"sessionId": session_id, "credentials": credentials}
        answer = await upstream.call("session.gitHubAuth.setCredentials", params)
        if answer.error is not UNSET:
            raise errors.RuntimeUnavailable("the runtime did not take the session's new GitHub token")
