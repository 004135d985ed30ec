"""What proves a caller: a key, a connection token that a key signed, or an issuer's JWT. One class for each.

Each says whom a token proves, by which key and until when, or raises errors.AuthenticationFailed with a reason for the log.
Neighbour: admission, which chooses the verifier by the token's form and looks up the tenant.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from joserfc.jwk import Key as PublicKey

from aerodrome import errors
from aerodrome.core import connection_token, identity, jwt
from aerodrome.core.identity import Key, Owner, Scope
from aerodrome.core.issuer import Issuer
from aerodrome.core.jwt import Terms
from aerodrome.ports.issuers import IssuerKeys
from aerodrome.ports.registry import KeyStore


@dataclass(frozen=True, slots=True)
class Proof:
    """Whom a token proves; the key it stands on, empty for an issuer's; the Unix time from which it proves nothing.

    `is_stored`: the registry has the key of this user, so that it goes when they are erased. Other tokens outlive an erasure;
    `issued_at` is when one was made, None where it does not say.
    """

    owner: Owner
    key_id: str = ""
    expires_at: float | None = None
    is_stored: bool = False
    issued_at: float | None = None


class Verifier(Protocol):
    """Judges tokens of one form."""

    async def verify(self, token: str, now: float) -> Proof:
        """Return whom the token proves at `now`. Raises errors.AuthenticationFailed, errors.StoreUnavailable."""
        ...


class KeyVerifier:
    """Takes `aero_...`: a stored key with a scope. Whatever has no form at all comes here too, and costs the same."""

    def __init__(self, keys: KeyStore, scope: Scope = Scope.CONNECT) -> None:
        self._keys = keys
        self._scope = scope

    async def verify(self, token: str, now: float) -> Proof:
        """Return the owner of a key."""
        parts = identity.split_token(token)
        key = await self._keys.find(parts[0]) if parts else None
        secret = parts[1] if parts else ""
        is_proved = (key or identity.NO_KEY).proves(secret, now)
        if key is None:
            raise errors.AuthenticationFailed("no such key" if parts else "the token has not the form of one")
        _check_key(key, is_proved, self._scope, now)
        return Proof(key.owner, key.key_id, key.expires_at, is_stored=True)


class ConnectionTokenVerifier:
    """Takes tokens that a signing key has signed; `master` is the master key, without which there are none."""

    def __init__(self, keys: KeyStore, master: bytes | None, terms: Terms) -> None:
        self._keys = keys
        self._master = master
        self._terms = terms

    async def verify(self, token: str, now: float) -> Proof:
        """Return the user whom the token names, of the signing key's tenant."""
        if self._master is None:
            raise errors.AuthenticationFailed("connection tokens need a master key, and none is set")
        said = jwt.peek(token).key_id or ""
        key_id = said if identity.is_id(said) else identity.NO_KEY.key_id
        key = await self._keys.find(key_id)
        # An unknown id has a secret like any other: what it costs does not tell whether there is such a key.
        secret = connection_token.derive_secret(self._master, key_id)
        claims = connection_token.verify(token, secret)
        is_proved = (key or identity.NO_KEY).proves(secret, now)
        if key is None:
            raise errors.AuthenticationFailed("no such signing key")
        _check_key(key, is_proved, Scope.SIGN, now)
        expires_at = jwt.check_claims(claims, self._terms, now)
        owner = Owner(key.owner.tenant, connection_token.read_user(claims))
        return Proof(owner, key.key_id, expires_at, issued_at=jwt.issued_at(claims))


class IssuerVerifier:
    """Takes JWTs of the issuers that are trusted, each with its keys."""

    def __init__(self, issuers: Sequence[tuple[Issuer, IssuerKeys]]) -> None:
        self._issuers = issuers

    async def verify(self, token: str, now: float) -> Proof:
        """Return the user whom an issuer names; one that is trusted for several audiences is tried for each."""
        said = jwt.peek(token)
        refused = errors.AuthenticationFailed("the token is of no issuer that is trusted")
        for issuer, keys in self._issuers:
            if issuer.name != said.issuer:
                continue
            try:
                if said.algorithm not in issuer.algorithms:
                    raise errors.AuthenticationFailed("the algorithm is none that the issuer may use")
                return _read(token, issuer, await keys.find(said.key_id, said.algorithm), now)
            except errors.AuthenticationFailed as error:
                refused = error
        raise refused


def _read(token: str, issuer: Issuer, key: PublicKey | None, now: float) -> Proof:
    if key is None:
        raise errors.AuthenticationFailed("the issuer has no such key")
    claims = jwt.verify(token, key, jwt.peek(token).algorithm)
    expires_at = jwt.check_claims(claims, issuer.terms, now)
    return Proof(issuer.read_owner(claims), expires_at=expires_at, issued_at=jwt.issued_at(claims))


def _check_key(key: Key, is_proved: bool, scope: Scope, now: float) -> None:
    if not is_proved:
        wrong = "the secret is wrong, or of another master key"
        raise errors.AuthenticationFailed(wrong if key.is_live(now) else f"key {key.key_id} is revoked or expired")
    if scope not in key.scopes:
        raise errors.AuthenticationFailed(f"key {key.key_id} has not the scope {scope.value}")
