"""Sign-in at an OpenID provider (port: ports.sign_in.SignIn): discovery, authorization code with PKCE, a proved id_token.

The id_token is judged by core.jwt, as every JWT is here, and then by what OpenID Connect Core 3.1.3.7 says besides: nonce and
authorized party. Nothing is asked with the access token, which is dropped. Neighbours: client.py, adapters.jwks.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import structlog
from authlib.oidc.discovery import get_well_known_url

from aerodrome import errors
from aerodrome.adapters.oauth.client import Client, OAuthClient
from aerodrome.clock import Clock
from aerodrome.core import issuer as issuers
from aerodrome.core import jwt, places, sign_in
from aerodrome.core.issuer import Issuer
from aerodrome.core.jwt import Terms
from aerodrome.core.secret import Secret
from aerodrome.core.sign_in import Begun, Identity, Kept
from aerodrome.ports.issuers import IssuerKeys
from aerodrome.ports.secrets import SecretSource

_log = structlog.get_logger()
_PURPOSE = "oidc"
_DISCOVERY_SECONDS = 3600.0
_RETRY_SECONDS = 60.0


@dataclass(frozen=True, slots=True)
class OidcSettings:
    """Which provider, and who we are there."""

    issuer: str
    client: Client
    scopes: tuple[str, ...] = ("openid", "profile", "email")
    skew_seconds: float = 30.0
    algorithms: frozenset[str] = frozenset(issuers.DEFAULT_ALGORITHMS)


@dataclass(frozen=True, slots=True)
class _Provider:
    """What a provider says of itself."""

    authorize_at: str
    token_at: str
    auth_method: str
    names_itself: bool
    keys: IssuerKeys
    issuer: Issuer
    good_until: float


class OidcSignIn:
    """One provider. `open_keys` gives the keys of an issuer, from where the provider says they are."""

    def __init__(
        self,
        settings: OidcSettings,
        secrets: SecretSource,
        open_keys: Callable[[Issuer], IssuerKeys],
        clock: Clock,
    ) -> None:
        self._settings = settings
        self._open_keys = open_keys
        self._http = OAuthClient("the identity provider", settings.client, secrets)
        self._clock = clock
        self._provider: _Provider | None = None
        self._finding = asyncio.Lock()
        #: Why the provider could not be asked about itself the last time.
        self._failure = ""

    async def begin(self, redirect_uri: str) -> Begun:
        """Return where the browser goes."""
        provider = await self._find_provider()
        kept = sign_in.begin(_PURPOSE, redirect_uri, self._clock.now())
        scopes = " ".join(self._settings.scopes)
        return Begun(self._http.authorize_url(provider.authorize_at, kept, scopes, nonce=kept.nonce.reveal()), kept)

    async def finish(self, params: Mapping[str, str], kept: Kept) -> Identity:
        """Return who signed in."""
        code = sign_in.read_code(params, kept, _PURPOSE, self._clock.now())
        provider = await self._find_provider()
        # RFC 9207: an answer of another provider, whose code would be brought to this one.
        if params.get("iss", None if provider.names_itself else self._settings.issuer) != self._settings.issuer:
            raise errors.SignInFailed("the answer is another identity provider's; begin again", "another issuer")
        answer = await self._http.exchange(provider.token_at, kept, code, provider.auth_method)
        token = answer.document.get("id_token")
        if not isinstance(token, str):
            raise sign_in.refusal(answer.document.get("error"))
        try:
            return self._identity(await self._prove(provider, token, kept.nonce))
        except errors.AuthenticationFailed as error:
            _log.warning("identity.unproved", issuer=self._settings.issuer, reason=error.reason)
            raise errors.SignInFailed(
                "the identity provider's word could not be proved; ask your operator", error.reason
            ) from None

    async def aclose(self) -> None:
        """Close the connections; idempotent."""
        provider, self._provider = self._provider, None
        if provider is not None:
            await provider.keys.aclose()
        await self._http.aclose()

    async def _prove(self, provider: _Provider, token: str, nonce: Secret) -> dict[str, Any]:
        """Return the claims of an id_token. Raises errors.AuthenticationFailed."""
        said = jwt.peek(token)
        if said.algorithm not in self._settings.algorithms:
            raise errors.AuthenticationFailed("the algorithm is none that the issuer may use")
        key = await provider.keys.find(said.key_id, said.algorithm)
        if key is None:
            raise errors.AuthenticationFailed("the issuer has no such key")
        claims = jwt.verify(token, key, said.algorithm)
        if claims.get("iss") != self._settings.issuer:
            raise errors.AuthenticationFailed("the token is another issuer's")
        jwt.check_claims(claims, provider.issuer.terms, self._clock.now())
        _check_party(claims, self._settings.client.client_id)
        said_nonce = claims.get("nonce")
        if not isinstance(said_nonce, str) or Secret(said_nonce) != nonce:
            raise errors.AuthenticationFailed("the nonce is another sign-in's")
        return claims

    def _identity(self, claims: dict[str, Any]) -> Identity:
        subject, name, email = (claims.get(word) for word in ("sub", "name", "email"))
        if not isinstance(subject, str) or not subject or len(subject) > 255:
            raise errors.AuthenticationFailed("the token names no subject")
        name, email = (text if isinstance(text, str) else None for text in (name, email))
        return Identity(self._settings.issuer, subject, name, email, claims)

    async def _find_provider(self) -> _Provider:
        """Return what the provider says of itself, read anew once an hour; the last word serves while it is away."""
        has_waited = self._finding.locked()
        async with self._finding:
            found, now = self._provider, self._clock.monotonic()
            if found is not None and now < found.good_until:
                return found
            if has_waited and self._failure:
                # Of the attempt that was waited for: each waiting for one of its own would add up.
                raise errors.SignInUnavailable(self._failure)
            self._failure = ""
            try:
                fresh = self._read(await self._discover(), found, now + _DISCOVERY_SECONDS)
            except errors.SignInUnavailable as error:
                if found is None:
                    self._failure = error.message
                    raise
                fresh = replace(found, good_until=now + _RETRY_SECONDS)
            if found is not None and fresh.keys is not found.keys:
                await found.keys.aclose()
            self._provider = fresh
            return fresh

    async def _discover(self) -> Mapping[str, Any]:
        answer = await self._http.send("GET", str(get_well_known_url(self._settings.issuer, external=True)))
        if answer.status != 200 or not answer.document:
            raise self._http.unavailable(f"HTTP {answer.status} to its discovery")
        return answer.document

    def _read(self, document: Mapping[str, Any], before: _Provider | None, good_until: float) -> _Provider:
        if document.get("issuer") != self._settings.issuer:
            # Exactly (Discovery 4.3): a slash more is another issuer, and its tokens would be refused.
            raise self._http.unavailable("it calls itself another issuer than sign_in.issuer")
        places = [self._place(document, name) for name in ("authorization_endpoint", "token_endpoint", "jwks_uri")]
        issuer = Issuer(
            self._settings.issuer,
            places[2],
            Terms(self._settings.client.client_id, self._settings.skew_seconds),
            frozenset(),
            algorithms=self._settings.algorithms,
        )
        same = before is not None and before.issuer.keys_at == issuer.keys_at
        keys = before.keys if same and before is not None else self._open_keys(issuer)
        names_itself = document.get("authorization_response_iss_parameter_supported") is True
        return _Provider(places[0], places[1], self._auth_method(document), names_itself, keys, issuer, good_until)

    def _place(self, document: Mapping[str, Any], name: str) -> str:
        url = document.get(name)
        try:
            return places.check(name, url if isinstance(url, str) else "")
        except errors.ConfigError:
            raise self._http.unavailable(f"its {name} is no https URL") from None

    def _auth_method(self, document: Mapping[str, Any]) -> str:
        if self._settings.client.client_secret is None:
            return "none"
        known = document.get("token_endpoint_auth_methods_supported", ["client_secret_basic"])
        has_basic = not isinstance(known, list) or "client_secret_basic" in known
        return "client_secret_basic" if has_basic else "client_secret_post"


def _check_party(claims: Mapping[str, Any], client_id: str) -> None:
    """Refuse a token that was made for another party, and only names us beside it (3.1.3.7, 3 to 5)."""
    audience, party = claims.get("aud"), claims.get("azp")
    is_shared = isinstance(audience, list) and len(audience) > 1
    if (party is not None or is_shared) and party != client_id:
        raise errors.AuthenticationFailed("the token is for another party")
