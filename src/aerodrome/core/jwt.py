"""JSON Web Tokens as this gateway takes them: compact, signed, with an expiry.

Says what is wrong with a token by errors.AuthenticationFailed, whose `reason` is for the log alone. The signature itself is
joserfc's (imported with the first one: settings, which every command reads, need none); what is read before it is proved
(`peek`) only says which key to try. Which keys there are, and whom the claims name, is for core.connection_token and core.issuer.
"""

from __future__ import annotations

import base64
import re
import warnings
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import msgspec

from aerodrome import errors

if TYPE_CHECKING:
    from joserfc import jws
    from joserfc.jwk import Key


#: A handshake frame has room for more, but no issuer needs it.
MAX_TOKEN_CHARACTERS = 12_000
_FORM = re.compile(r"[A-Za-z0-9_-]{2,}\.[A-Za-z0-9_-]{2,}\.[A-Za-z0-9_-]*\Z")

#: Every algorithm a token may be signed with, by what it takes to forge one: the issuer's private key, or a shared secret.
ASYMMETRIC = frozenset(
    {"RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "ES256", "ES384", "ES512", "EdDSA", "Ed25519"}
)
SYMMETRIC = "HS256"


class _Header(msgspec.Struct):
    alg: str
    kid: str | None = None
    crit: Any = None


class _Issued(msgspec.Struct):
    iss: Any = None


class _Times(msgspec.Struct):
    """Strict: a JSON number is a time, nothing else is."""

    exp: float
    iat: float | None = None
    nbf: float | None = None


@dataclass(frozen=True, slots=True)
class Unproved:
    """What a token says of itself before anything of it is proved."""

    algorithm: str
    key_id: str | None
    issuer: str | None


@dataclass(frozen=True, slots=True)
class Terms:
    """What the claims of a token must fulfil. Without a longest lifetime it is the issuer's affair."""

    audience: str
    skew_seconds: float
    max_seconds: float | None = None


def has_form(token: str) -> bool:
    """Say whether a token looks like one of these."""
    return len(token) <= MAX_TOKEN_CHARACTERS and _FORM.match(token) is not None


def peek(token: str) -> Unproved:
    """Return what a token says of itself; nothing of it is proved yet.

    Raises:
        errors.AuthenticationFailed: it cannot be read, or its header wants something of us that we do not know.
    """
    if not has_form(token):
        raise errors.AuthenticationFailed("the token has not the form of one")
    header_part, claims_part, _ = token.split(".")
    try:
        header = msgspec.json.decode(_decode(header_part), type=_Header)
        claims = msgspec.json.decode(_decode(claims_part), type=_Issued)
    except (msgspec.MsgspecError, ValueError, RecursionError):
        raise errors.AuthenticationFailed("the header or claims of the token cannot be read") from None
    if header.crit is not None:
        raise errors.AuthenticationFailed("the token's header has critical members")
    return Unproved(header.alg, header.kid, claims.iss if isinstance(claims.iss, str) else None)


def verify(token: str, key: Key, algorithm: str) -> dict[str, Any]:
    """Return the claims of a token that `key` signed with `algorithm`.

    Raises:
        errors.AuthenticationFailed: it did not, or they are no object.
    """
    from joserfc import jws  # noqa: PLC0415
    from joserfc.errors import JoseError  # noqa: PLC0415

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of names of algorithms that are out of fashion
            signed = jws.deserialize_compact(token, key, registry=_registry(algorithm))
        return msgspec.json.decode(signed.payload, type=dict[str, Any])
    except (JoseError, msgspec.MsgspecError, ValueError, TypeError, RecursionError):
        raise errors.AuthenticationFailed("the signature is wrong, or not of this key") from None


def sign(claims: dict[str, Any], key: Key, key_id: str) -> str:
    """Return a token with these claims, signed with a shared secret."""
    from joserfc import jws  # noqa: PLC0415

    header = {"alg": SYMMETRIC, "kid": key_id, "typ": "JWT"}
    return jws.serialize_compact(header, msgspec.json.encode(claims), key, registry=_registry(SYMMETRIC))


def check_claims(claims: dict[str, Any], terms: Terms, now: float) -> float:
    """Return until when a token with these claims proves something: its expiry and the skew, in Unix time.

    Raises:
        errors.AuthenticationFailed: it is for another audience, has expired, is not valid yet, or lives too long.
    """
    audience = claims.get("aud")
    if terms.audience not in (audience if isinstance(audience, list) else [audience]):
        raise errors.AuthenticationFailed("the token is for another audience")
    try:
        times = msgspec.convert(claims, _Times)
    except msgspec.ValidationError:
        raise errors.AuthenticationFailed("the token has no expiry, or times that are no numbers") from None
    if now >= times.exp + terms.skew_seconds:
        raise errors.AuthenticationFailed("the token has expired")
    if max(times.iat or 0.0, times.nbf or 0.0) > now + terms.skew_seconds:
        raise errors.AuthenticationFailed("the token is not valid yet")
    if terms.max_seconds is not None:
        # Without a beginning, a token for next year would come to life an hour before it ends.
        if times.iat is None:
            raise errors.AuthenticationFailed("the token does not say when it was issued (iat)")
        if times.exp - times.iat > terms.max_seconds:
            raise errors.AuthenticationFailed("the token lives longer than is allowed")
    return times.exp + terms.skew_seconds


def issued_at(claims: dict[str, Any]) -> float | None:
    """Return when a token says that it was made, in Unix time; None if it does not say."""
    made = claims.get("iat")
    return float(made) if isinstance(made, (int, float)) and not isinstance(made, bool) else None


def _decode(part: str) -> bytes:
    return base64.urlsafe_b64decode(part + "=" * (-len(part) % 4))


def _registry(algorithm: str) -> jws.JWSRegistry:
    from joserfc import jws  # noqa: PLC0415

    # Not strict: issuers put members of their own in a header; `peek` has refused critical ones.
    return jws.JWSRegistry(algorithms=[algorithm], strict_check_header=False)
