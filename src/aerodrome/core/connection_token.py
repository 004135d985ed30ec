"""Connection tokens: short-lived proofs that a tenant's own backend makes for its users, without asking the gateway.

A token is a standard JWT, signed (HS256) with the secret of a signing key. The secret is derived from the gateway's master key
and the key's id, so that a stolen database signs nothing; stored is its hash, by which a changed master key shows.
Deliberately no other claims than who and until when: what a user may do is the tenant's policy.
"""

from __future__ import annotations

import base64
from typing import TYPE_CHECKING, Any

from aerodrome import errors
from aerodrome.core import identity, jwt, subkeys
from aerodrome.core.identity import Key, Owner, Scope

if TYPE_CHECKING:
    from joserfc.jwk import OctKey

AUDIENCE = "aerodrome"
#: Who signs what the gateway itself mints; no backend's key can have the name.
GATEWAY = "gateway"
SIGN_ONLY = frozenset({Scope.SIGN})


def derive_secret(master: bytes, key_id: str) -> str:
    """Return the secret of a signing key: 43 characters, whose ASCII bytes are the HMAC key."""
    return base64.urlsafe_b64encode(subkeys.derive(master, f"connection-token/1/{key_id}")).rstrip(b"=").decode()


def create_signing_key(master: bytes, owner: Owner, now: float, expires_at: float | None = None) -> tuple[Key, str]:
    """Make a signing key and its secret; the owner's user is the key's name, no user of the tenant."""
    key_id = identity.create_id()
    secret = derive_secret(master, key_id)
    return Key(key_id, owner, identity.hash_secret(secret), now, expires_at, scopes=SIGN_ONLY), secret


def sign(key_id: str, secret: str, user: str, issued_at: float, expires_at: float) -> str:
    """Return a connection token for a user of the key's tenant."""
    claims = {"aud": AUDIENCE, "sub": user, "iat": int(issued_at), "exp": int(expires_at)}
    return jwt.sign(claims, _shared_key(secret), key_id)


def verify(token: str, secret: str) -> dict[str, Any]:
    """Return the claims of a token that this secret signed.

    Raises:
        errors.AuthenticationFailed: it did not.
    """
    return jwt.verify(token, _shared_key(secret), jwt.SYMMETRIC)


def _shared_key(secret: str) -> OctKey:
    from joserfc.jwk import OctKey  # noqa: PLC0415  as in core.jwt

    return OctKey.import_key(secret)


def read_user(claims: dict[str, Any], claim: str = "sub") -> str:
    """Return the user that a token names.

    Raises:
        errors.AuthenticationFailed: it names none, or one that no user can be called.
    """
    user = claims.get(claim)
    if not isinstance(user, str):
        raise errors.AuthenticationFailed(f"the claim {claim} names no user")
    try:
        return identity.check_name("user", user)
    except errors.ConfigError:
        # Cut, because it is a stranger's text until its length is known.
        raise errors.AuthenticationFailed(f"the claim {claim} is no usable user name: {user[:64]!r}") from None
