"""Signing in by a browser, as values and rules: what is kept between its two halves, who came of it, whom that may be here.

Pure. Who speaks to GitHub or an identity provider is adapters.oauth; who keeps a sign-in between its halves is the edge, in the
browser's own cookie (`seal`). Neighbour: core.issuer, for those who bring an issuer's JWT themselves.
"""

from __future__ import annotations

import secrets
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import msgspec

from aerodrome import errors
from aerodrome.core import connection_token
from aerodrome.core.envelope import Envelopes
from aerodrome.core.identity import Owner, Role
from aerodrome.core.secret import Secret

#: So long may a person take at the provider.
SECONDS = 600.0
_CONTEXT = "sign-in"


@dataclass(frozen=True, slots=True)
class Kept:
    """What must be kept, with whoever began, until a sign-in comes back; good once and for `SECONDS`.

    `purpose` and `owner` say what it was begun for: an answer to one sign-in finishes no other.
    """

    purpose: str
    redirect_uri: str
    state: Secret
    verifier: Secret
    nonce: Secret
    expires_at: float
    owner: Owner | None = None
    #: The page of ours that the browser goes on to when it is over.
    following: str = "/"


@dataclass(frozen=True, slots=True)
class Begun:
    """A sign-in that has begun: where the browser goes, and what must be kept until it comes back."""

    url: str
    kept: Kept


@dataclass(frozen=True, slots=True)
class Identity:
    """Who signed in, as their provider says. `subject` is theirs for ever at this issuer; the rest may change hands."""

    issuer: str
    subject: str
    name: str | None = None
    email: str | None = None
    claims: Mapping[str, Any] = field(default_factory=dict, repr=False)


@dataclass(frozen=True, slots=True)
class SignedIn:
    """Who that is here."""

    owner: Owner
    role: Role


@dataclass(frozen=True, slots=True)
class Rules:
    """Whom a provider may say that someone is. `users` empty: whoever the provider vouches for.

    `roles` maps a value of the claim `role_claim` (or one of its values, if it is a list) to a role; the highest one counts.
    """

    tenants: frozenset[str]
    tenant_claim: str | None = None
    user_claim: str = "sub"
    users: frozenset[str] = frozenset()
    role_claim: str | None = None
    roles: Mapping[str, Role] = field(default_factory=dict)

    def read(self, identity: Identity) -> SignedIn:
        """Return who an identity is here.

        Raises:
            errors.SignInFailed: nobody.
        """
        claims = {**identity.claims, "sub": identity.subject}
        tenant = next(iter(self.tenants)) if self.tenant_claim is None else claims.get(self.tenant_claim)
        if not isinstance(tenant, str) or tenant not in self.tenants:
            raise errors.SignInFailed(
                "you are signed in, but belong to no tenant here", "the tenant is none of those allowed"
            )
        user = self._read_user(claims)
        if self.users and user not in self.users:
            raise errors.SignInFailed(
                "you are signed in, but are no user here; ask your operator", "not one of the users allowed"
            )
        return SignedIn(Owner(tenant, user), self._read_role(claims))

    def _read_user(self, claims: dict[str, Any]) -> str:
        if self.user_claim == "email" and claims.get("email_verified") is not True:
            # Whoever may write any address into their profile would be anyone.
            raise errors.SignInFailed("your provider has not verified your address", "the address is not verified")
        try:
            return connection_token.read_user(claims, self.user_claim)
        except errors.AuthenticationFailed as error:
            raise errors.SignInFailed("you are signed in, but your name can be no user's here", error.reason) from None

    def _read_role(self, claims: Mapping[str, Any]) -> Role:
        said = claims.get(self.role_claim) if self.role_claim is not None else None
        values = said if isinstance(said, list) else [said]
        given = {self.roles[value] for value in values if isinstance(value, str) and value in self.roles}
        return max(given, key=list(Role).index, default=Role.USER)


class _Sealed(msgspec.Struct):
    purpose: str
    redirect_uri: str
    state: str
    verifier: str
    nonce: str
    expires_at: float
    owner: tuple[str, str] | None
    following: str = "/"


def begin(purpose: str, redirect_uri: str, now: float, owner: Owner | None = None) -> Kept:
    """Return what a new sign-in is to be known by: each of its secrets has 256 random bits."""
    state, verifier, nonce = (Secret(secrets.token_urlsafe(32)) for _ in range(3))
    return Kept(purpose, redirect_uri, state, verifier, nonce, now + SECONDS, owner)


def read_code(params: Mapping[str, str], kept: Kept, purpose: str, now: float) -> Secret:
    """Return the code that a provider sent the browser back with.

    Raises:
        errors.SignInFailed: it is no answer to this sign-in, is late, or says that the sign-in was refused.
    """
    # The state first: until it is proved, everything else may be a stranger's.
    if kept.purpose != purpose or Secret(params.get("state", "")) != kept.state:
        raise errors.SignInFailed(
            "this is no answer to a sign-in that was begun here; begin again", "the state is another"
        )
    if now >= kept.expires_at:
        raise errors.SignInFailed("the sign-in took too long; begin again", "it has expired")
    if "error" in params:
        raise refusal(params["error"])
    if not params.get("code"):
        raise errors.SignInFailed("the provider sent no code; begin again", "there is no code")
    return Secret(params["code"])


def refusal(code: object) -> errors.SignInFailed:
    """Return the error for an OAuth error code; any other text of the provider's may be anything, and is not repeated."""
    word = code if isinstance(code, str) and len(code) <= 64 and code.isidentifier() else "an error of no usual form"
    if word == "access_denied":
        return errors.SignInFailed("the sign-in was denied", word)
    return errors.SignInFailed(f"the provider refused the sign-in ({word})", word)


def seal(envelopes: Envelopes, kept: Kept) -> str:
    """Return it as a browser may keep it, in a cookie: unreadable, unchangeable, some 500 characters."""
    owner = None if kept.owner is None else (kept.owner.tenant, kept.owner.user)
    words = (kept.state.reveal(), kept.verifier.reveal(), kept.nonce.reveal())
    sealed = _Sealed(kept.purpose, kept.redirect_uri, *words, kept.expires_at, owner, kept.following)
    return envelopes.seal(msgspec.json.encode(sealed), _CONTEXT)


def unseal(envelopes: Envelopes, text: str) -> Kept:
    """Return what was sealed. Raises errors.SignInFailed: it was not sealed here."""
    try:
        found = msgspec.json.decode(envelopes.open(text, _CONTEXT), type=_Sealed)
    except (errors.SecretUnavailable, msgspec.MsgspecError):
        raise errors.SignInFailed(
            "no sign-in was begun by this browser; begin again", "what was kept is not ours"
        ) from None
    owner = None if found.owner is None else Owner(*found.owner)
    words = (Secret(found.state), Secret(found.verifier), Secret(found.nonce))
    return Kept(found.purpose, found.redirect_uri, *words, found.expires_at, owner, found.following)
