"""Who calls over HTTP: a bearer token becomes a principal by the same admission as on any link, and is asked for at every call.

What a caller may use is theirs alone: sessions are looked up as their owner's, and one of another owner is as good as missing.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import Annotated

from fastapi import Depends, Request
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer

from aerodrome import errors
from aerodrome.core import session as sessions
from aerodrome.core.audit import Action, Entry
from aerodrome.core.identity import Owner, Principal
from aerodrome.core.membership import Right
from aerodrome.gateway.audit import Auditor
from aerodrome.gateway.minting import Minter
from aerodrome.http import entry
from aerodrome.http.conversation import Conversation
from aerodrome.http.site import Site
from aerodrome.http.users import HttpUser
from aerodrome.transport import asgi, tls

_BEARER = HTTPBearer(auto_error=False, description="a key, a connection token, or a JWT of a trusted issuer")


@dataclass(frozen=True, slots=True)
class Caller:
    """An authenticated caller."""

    site: Site
    principal: Principal
    peer: str

    @property
    def owner(self) -> Owner:
        """Return who calls."""
        return self.principal.owner

    async def user(self) -> HttpUser:
        """Return the caller's program."""
        return await self.site.users.of(self.principal)

    async def check_session(self, session_id: str, method: str) -> None:
        """Check that a session is the caller's, or shared with them: whatever else they may do in it the gateway says.

        Raises:
            errors.SessionMissing: it is neither, or there is none.
        """
        services = self.site.services
        if not sessions.is_valid_id(session_id):
            raise errors.SessionMissing("no such session")
        owner = await services.ownership.find_owner(session_id)
        if owner == self.owner:
            return
        shared = services.sharing
        if shared is not None and Right.READ in await shared.rights(session_id, self.owner, owner):
            return
        services.audit.foreign_to(self.principal, self.peer, method, session_id, owner)
        raise errors.SessionMissing("no such session")

    async def conversation(self, session_id: str, method: str) -> Conversation:
        """Return a session of the caller's. Raises errors.SessionMissing."""
        await self.check_session(session_id, method)
        return await (await self.user()).find(session_id)


class StreamGuest:
    """A stream that is served on a principal's word, until that ends."""

    def __init__(self, principal: Principal) -> None:
        self.principal = principal
        self.over: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def dismiss(self) -> None:
        """End the stream."""
        if not self.over.done():
            self.over.set_result(None)


def site_of(request: Request) -> Site:
    """Return what the application serves."""
    site = request.app.state.site
    assert isinstance(site, Site)
    return site


@dataclass(frozen=True, slots=True)
class MintingCaller:
    """Whoever may have connection tokens made for the users of a tenant, and nothing else."""

    minter: Minter
    principal: Principal
    auditor: Auditor
    peer: str

    @property
    def tenant(self) -> str:
        """Return the tenant for whose users tokens are made."""
        return self.principal.owner.tenant

    def note(self, user: str) -> None:
        """Record for whom one was made."""
        owner = Owner(self.tenant, user)
        self.auditor.note(Entry(Action.TOKEN_MINT, by="mint key", owner=owner, key_id=self.principal.key_id))


async def _authenticate(
    request: Request, given: Annotated[HTTPAuthorizationCredentials | None, Depends(_BEARER)]
) -> Caller:
    site = site_of(request)
    peer = _peer(request)
    token = given.credentials if given is not None else None
    try:
        if token is None:
            raise errors.AuthenticationRequired
        principal = await site.gateway.admission.authenticate(token)
    except (errors.AuthenticationFailed, errors.AuthenticationRequired) as error:
        site.services.audit.not_authenticated(peer, token, error)
        raise
    settings = site.services.settings
    names = tls.names_in(asgi.certificate_of(request.scope))
    if settings.client_names_tenant and principal.owner.tenant not in names:
        raise errors.AuthenticationFailed("the client's certificate does not name the tenant")
    await entry.enter(request, site, principal.owner)
    return Caller(site, principal, peer)


async def authenticate_minter(
    request: Request, given: Annotated[HTTPAuthorizationCredentials | None, Depends(_BEARER)]
) -> MintingCaller:
    """Return who may mint: a key with that scope, which needs no other."""
    site = site_of(request)
    if given is None:
        raise errors.AuthenticationRequired
    if site.minting is None:
        raise errors.PolicyRejected("this gateway makes no tokens")
    try:
        principal = await site.minting.admission.authenticate(given.credentials)
    except errors.AuthenticationFailed as error:
        await _refuse_minting(site, given.credentials, _peer(request), error)
        raise
    entry.take_rate(request, site, principal.owner)
    return MintingCaller(site.minting.minter, principal, site.services.audit, _peer(request))


async def _refuse_minting(site: Site, token: str, peer: str, error: errors.AuthenticationFailed) -> None:
    """Tell a caller who is known that the key may not mint; a stranger is told nothing."""
    try:
        principal = await site.gateway.admission.authenticate(token)
    except errors.AuthenticationFailed:
        site.services.audit.not_authenticated(peer, token, error)
        return
    raise errors.PolicyRejected(
        f"expected a key with the scope mint, found one of {principal.owner.user} that may connect only"
    ) from None


def _peer(request: Request) -> str:
    return f"{request.client.host}:{request.client.port}" if request.client is not None else "?"


Authenticated = Annotated[Caller, Depends(_authenticate)]
