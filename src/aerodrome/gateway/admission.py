"""Who is calling: a token becomes a principal, or the same refusal for every reason.

Deliberately says nothing about why a token fails, and spends the same work on an unknown key as on a wrong secret. What a token
proves is for verifiers; here its form chooses which, and the tenant it names is looked up.
"""

from __future__ import annotations

import hmac
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import structlog

from aerodrome import errors
from aerodrome.clock import Clock
from aerodrome.core import erasure, identity, jwt
from aerodrome.core.identity import Owner, Principal, Scope
from aerodrome.core.policy import Isolation, Policy, Trust
from aerodrome.gateway.known_tenants import FindTenant
from aerodrome.gateway.verifiers import Proof, Verifier
from aerodrome.ports.people import ErasureStore

_log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class Verifiers:
    """What judges tokens, by their form."""

    keys: Verifier
    connection_tokens: Verifier
    issuers: Verifier


class Admission(Protocol):
    """Turns tokens into principals."""

    @property
    def is_open(self) -> bool:
        """Say whether a link without a token is admitted."""
        ...

    async def authenticate(self, token: str | None) -> Principal:
        """Return whom the token proves, who may use sessions. Raises errors.AuthenticationFailed."""
        ...

    async def recognize(self, token: str | None) -> Principal:
        """Return whom the token proves, whatever they may do: its role and scopes say. Raises errors.AuthenticationFailed."""
        ...

    async def find_policy(self, owner: Owner) -> Policy | None:
        """Return the policy of a user whom no token has to prove; None if there is no such tenant."""
        ...


class TenantAdmission:
    """Admission by what tokens prove; tenants of the configuration go before those of the database."""

    is_open = False

    def __init__(self, verifiers: Verifiers, find_tenant: FindTenant, clock: Clock, erasures: ErasureStore) -> None:
        self._verifiers = verifiers
        self._find_tenant = find_tenant
        self._clock = clock
        #: Hears of each token that proves nobody.
        self.note_refused: Callable[[], None] = lambda: None
        self._erasures = erasures

    async def authenticate(self, token: str | None) -> Principal:
        """Return whom a token proves, for a link; a reason why it proves nobody goes to the log alone."""
        return await self._prove(token, is_link=True)

    async def recognize(self, token: str | None) -> Principal:
        """Return whom a token proves, for an edge that looks at roles."""
        return await self._prove(token, is_link=False)

    async def _prove(self, token: str | None, is_link: bool) -> Principal:
        try:
            proof = await self._choose(token or "").verify(token or "", self._clock.now())
            if is_link and Scope.CONNECT not in proof.scopes:
                raise errors.AuthenticationFailed(f"key {proof.key_id} has not the scope connect")
            policy = await self._policy_of(proof)
            await self._check_not_erased(proof)
        except errors.AuthenticationFailed as error:
            _log.info("token.refused", reason=error.reason)
            self.note_refused()
            raise
        role = identity.role_of(proof.scopes)
        return Principal(proof.owner, policy, proof.key_id, proof.expires_at, proof.scopes, role)

    async def _policy_of(self, proof: Proof) -> Policy:
        if Scope.OPERATE in proof.scopes:
            return Policy()  # no tenant's: nothing of it is ever used, for such a key has no other scope
        tenant = await self._find_tenant(proof.owner.tenant)
        if tenant is None:
            raise errors.AuthenticationFailed(f"there is no tenant {proof.owner.tenant}")
        return tenant.policy_for(proof.owner.user)

    async def find_policy(self, owner: Owner) -> Policy | None:
        """Return the policy of a user of a tenant that is there."""
        tenant = await self._find_tenant(owner.tenant)
        return None if tenant is None else tenant.policy_for(owner.user)

    async def _check_not_erased(self, proof: Proof) -> None:
        """Refuse a token that was made for its user before they were erased; last, so that nothing waits behind it."""
        if proof.is_stored:
            return
        until = await self._erasures.find(erasure.digests(proof.owner), self._clock.now())
        if until is not None and (proof.issued_at is None or proof.issued_at <= until):
            raise errors.AuthenticationFailed("the token was made before its user was erased")

    def _choose(self, token: str) -> Verifier:
        if not jwt.has_form(token):
            return self._verifiers.keys
        is_ours = jwt.peek(token).algorithm == jwt.SYMMETRIC
        return self._verifiers.connection_tokens if is_ours else self._verifiers.issuers


class FixedAdmission:
    """Admission by one given token, or by none: the `transparent` policy's single tenant."""

    def __init__(self, token: str | None) -> None:
        self._token = token
        policy = Policy(Isolation.USER, Trust.FULL, ("*",))
        self._principal = Principal(Owner("default", "default"), policy, "given")

    @property
    def is_open(self) -> bool:
        """Say whether no token was given."""
        return self._token is None

    async def authenticate(self, token: str | None) -> Principal:
        """Return the one principal if the token is the given one."""
        self.check(token)
        return self._principal

    async def recognize(self, token: str | None) -> Principal:
        """Return the one principal: it has no role but the user's."""
        return await self.authenticate(token)

    async def find_policy(self, owner: Owner) -> Policy | None:
        """Return the one principal's policy for its owner."""
        return self._principal.policy if owner == self._principal.owner else None

    def check(self, token: str | None) -> None:
        """Compare a token with the given one.

        Raises:
            errors.AuthenticationFailed: it is another, or none.
        """
        if self._token is not None and not hmac.compare_digest(self._token.encode(), (token or "").encode()):
            raise errors.AuthenticationFailed
