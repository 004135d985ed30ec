"""Issuers: whose JWTs a tenant's users may bring, and what becomes of the claims.

Pure values and rules. Where the issuer's keys come from is adapters.jwks; how a signature is checked, core.jwt.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from aerodrome import errors
from aerodrome.core import connection_token, identity, jwt, places
from aerodrome.core.identity import Owner
from aerodrome.core.jwt import Terms

DEFAULT_ALGORITHMS = ("RS256", "PS256", "ES256", "EdDSA")


@dataclass(frozen=True, slots=True)
class Issuer:
    """An issuer that is trusted to say who a tenant's users are.

    `tenants` are those it may speak for: the one, or those that `tenant_claim` may name. Its keys are read anew after
    `refresh_seconds`, and used for `stale_seconds` at most while it cannot be reached.
    """

    name: str
    keys_at: str
    terms: Terms
    tenants: frozenset[str]
    tenant_claim: str | None = None
    user_claim: str = "sub"
    algorithms: frozenset[str] = frozenset(DEFAULT_ALGORITHMS)
    refresh_seconds: float = 600.0
    stale_seconds: float = 86400.0

    def read_owner(self, claims: dict[str, Any]) -> Owner:
        """Return whom proved claims are about.

        Raises:
            errors.AuthenticationFailed: the issuer, tenant or user is none that may be named.
        """
        if claims.get("iss") != self.name:
            raise errors.AuthenticationFailed("the token is another issuer's")
        tenant = claims.get(self.tenant_claim) if self.tenant_claim is not None else next(iter(self.tenants))
        if not isinstance(tenant, str) or tenant not in self.tenants:
            raise errors.AuthenticationFailed(f"the issuer may not speak for the tenant in claim {self.tenant_claim}")
        return Owner(tenant, connection_token.read_user(claims, self.user_claim))


def check(where: str, issuer: Issuer) -> Issuer:
    """Return an issuer whose settings go together.

    Raises:
        errors.ConfigError: they do not; says which.
    """
    if not issuer.name or not issuer.terms.audience or not issuer.user_claim:
        raise errors.ConfigError(f"{where}: expected an issuer, an audience and a user_claim that are not empty")
    unknown = sorted(issuer.algorithms - jwt.ASYMMETRIC)
    if unknown or not issuer.algorithms:
        # With a shared secret, an issuer's public key could be taken for one.
        known = ", ".join(sorted(jwt.ASYMMETRIC))
        raise errors.ConfigError(f"{where}.algorithms: expected some of {known}, found {', '.join(unknown) or 'none'}")
    if not issuer.tenants:
        raise errors.ConfigError(f"{where}: expected tenant, or tenant_claim and tenants: for whom may it speak?")
    for tenant in issuer.tenants:
        identity.check_name("tenant", tenant)
    _check_source(f"{where}.jwks", issuer.keys_at)
    return issuer


def is_url(text: str) -> bool:
    """Say whether keys are at a URL, not in a file."""
    return "://" in text


def _check_source(where: str, text: str) -> None:
    if not is_url(text):
        if not text.startswith("/"):
            raise errors.ConfigError(f"{where}: expected an https URL or an absolute path, found {text!r}")
        return
    places.check(where, text)
