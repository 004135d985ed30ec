"""Who calls over HTTP: a bearer token becomes a principal by the same admission as on any link, and is asked for at every call.

A browser that has signed in (http.browsers) calls with its cookie instead: its principal is looked up again each time, and what
changes something must come from our own pages (http.origins). Default deny: a route names whom it serves, by one of the
dependencies at the end.

What a caller may use is theirs alone: sessions are looked up as their owner's, and one of another owner is as good as missing.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, replace
from typing import Annotated

from fastapi import Depends, Request
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer

from aerodrome import errors
from aerodrome.core import erasure, identity
from aerodrome.core import session as sessions
from aerodrome.core.audit import Action, Entry
from aerodrome.core.identity import Owner, Principal, Role, Scope
from aerodrome.core.membership import Right
from aerodrome.gateway.audit import Auditor
from aerodrome.gateway.minting import Minter
from aerodrome.http import entry, origins
from aerodrome.http.browsers import BrowserSession
from aerodrome.http.conversation import Conversation
from aerodrome.http.site import Site
from aerodrome.http.users import HttpUser
from aerodrome.transport import asgi, tls

BEARER = HTTPBearer(auto_error=False, description="a key, a connection token, or a JWT of a trusted issuer")


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

    async def check_own(self, session_id: str, method: str) -> None:
        """Check that a session is the caller's own: of others they may be members, and change nothing there.

        Raises:
            errors.SessionMissing: there is none, or it is not shared with them. errors.PolicyRejected: it is another's.
        """
        await self.check_session(session_id, method)
        if await self.site.services.ownership.find_owner(session_id) != self.owner:
            raise errors.PolicyRejected("expected the session's owner, found a member: only its owner may change it")

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


def peer_of(request: Request) -> str:
    """Return where a request comes from."""
    return f"{request.client.host}:{request.client.port}" if request.client is not None else "?"


async def recognize(request: Request, token: str) -> Principal:
    """Return whom a token proves. Raises errors.AuthenticationFailed."""
    site, peer = site_of(request), peer_of(request)
    try:
        principal = await site.gateway.admission.recognize(token)
        _check_certificate(request, principal)
        return principal
    except errors.AuthenticationFailed as error:
        site.services.audit.not_authenticated(peer, token, error)
        raise


def _check_certificate(request: Request, principal: Principal) -> None:
    """Check that a caller's certificate names the tenant, where it must; an operator has none to be named."""
    if not site_of(request).services.settings.client_names_tenant or principal.owner.tenant == identity.NO_TENANT:
        return
    if principal.owner.tenant not in tls.names_in(asgi.certificate_of(request.scope)):
        raise errors.AuthenticationFailed("the client's certificate does not name the tenant")


async def browser_of(request: Request) -> BrowserSession | None:
    """Return the signed-in browser that calls, None if it is none. Raises errors.StoreUnavailable."""
    site = site_of(request)
    cookie = request.cookies.get(origins.cookie_name(request, site.settings.public_url))
    return await site.browsers.find(cookie) if cookie else None


async def renew(site: Site, principal: Principal, proved_at: float) -> Principal:
    """Return a principal that was proved earlier as it is now.

    Raises:
        errors.AuthenticationFailed: its key is revoked, its time is up, its user is erased, or its tenant is gone.
    """
    now = site.clock.now()
    if principal.expires_at is not None and now >= principal.expires_at:
        raise errors.AuthenticationFailed("its time is up")
    if principal.key_id and await site.office.keys.find_dead({principal.key_id}, now):
        raise errors.AuthenticationFailed(f"key {principal.key_id} is revoked or expired")
    owner = principal.owner
    if owner.tenant == identity.NO_TENANT:
        return principal
    erased_until = await site.office.erasures.find(erasure.digests(owner), now)
    if erased_until is not None and proved_at <= erased_until:
        raise errors.AuthenticationFailed("its user was erased since")
    tenant = await site.office.find_tenant(owner.tenant)
    if tenant is None:
        raise errors.AuthenticationFailed(f"there is no tenant {owner.tenant}")
    return replace(principal, policy=tenant.policy_for(owner.user))


async def caller_of_browser(request: Request, browser: BrowserSession) -> Caller:
    """Return who sits at a signed-in browser. Raises errors.AuthenticationFailed: nobody any more, and it is signed out."""
    site = site_of(request)
    _check_certificate(request, browser.principal)
    try:
        principal = await renew(site, browser.principal, browser.began_at)
    except errors.AuthenticationFailed:
        await site.browsers.end(browser.token)
        raise
    return Caller(site, principal, peer_of(request))


async def recognize_caller(
    request: Request, given: Annotated[HTTPAuthorizationCredentials | None, Depends(BEARER)]
) -> Caller:
    """Return who calls, by a bearer token or a browser's cookie. Raises errors.AuthenticationRequired and its like."""
    site = site_of(request)
    if given is not None:
        return Caller(site, await recognize(request, given.credentials), peer_of(request))
    browser = await browser_of(request)
    if browser is None:
        missing = errors.AuthenticationRequired()
        site.services.audit.not_authenticated(peer_of(request), None, missing)
        raise missing
    origins.check_same_origin(request, site.settings.public_url)
    return await caller_of_browser(request, browser)


#: Anyone who proves who they are, whatever they may do.
Recognized = Annotated[Caller, Depends(recognize_caller)]


async def _authenticate(request: Request, caller: Recognized) -> Caller:
    if not caller.principal.may_connect:
        raise errors.PolicyRejected("expected a key with the scope connect: this one uses no sessions")
    await entry.enter(request, caller.site, caller.owner)
    return caller


async def authenticate_minter(request: Request, caller: Recognized) -> MintingCaller:
    """Return who may mint: a key with that scope, which needs no other."""
    if Scope.MINT not in caller.principal.scopes:
        raise errors.PolicyRejected(
            f"expected a key with the scope mint, found one of {caller.owner.user} that may not mint"
        )
    if caller.site.office.minter is None:
        raise errors.PolicyRejected("this gateway makes no tokens")
    entry.take_rate(request, caller.site, caller.owner)
    return MintingCaller(caller.site.office.minter, caller.principal, caller.site.services.audit, caller.peer)


async def _admit_admin(request: Request, caller: Recognized) -> Caller:
    # Their answers are not kept under idempotency keys: some have a token in them.
    entry.take_rate(request, caller.site, caller.owner)
    if caller.principal.role is Role.USER:
        raise errors.PolicyRejected("expected a tenant's admin or an operator")
    return caller


async def admit_operator(request: Request, caller: Recognized) -> Caller:
    """Let an operator pass. Raises errors.PolicyRejected."""
    entry.take_rate(request, caller.site, caller.owner)
    if caller.principal.role is not Role.OPERATOR:
        raise errors.PolicyRejected("expected an operator")
    return caller


#: A user of sessions.
Authenticated = Annotated[Caller, Depends(_authenticate)]
#: A tenant's admin, for that tenant; or an operator, for all.
Administrating = Annotated[Caller, Depends(_admit_admin)]
#: An operator.
Operating = Annotated[Caller, Depends(admit_operator)]
