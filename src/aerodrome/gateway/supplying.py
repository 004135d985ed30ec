"""What the gateway adds to a client's calls at the moment they are sent: named providers, stored GitHub tokens. The one place.

What is stored of a session holds names only (`aerodrome:NAME`); a runtime gets the forwarder's address and a placeholder key in
their place, each time its session is created, resumed or brought back. The real key is read by `forwarder` alone. A GitHub
token goes into the runtime as it is; `github_tokens` reads it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

from aerodrome import errors
from aerodrome.core import github
from aerodrome.core.identity import Owner
from aerodrome.core.provider import NamedProvider
from aerodrome.core.secret import Secret
from aerodrome.gateway.grants import Grant, Grants
from aerodrome.protocol import named_providers

Params = dict[str, Any]


class Tokens(Protocol):
    """Where users' stored GitHub tokens come from."""

    async def current(self, owner: Owner) -> Secret:
        """Return a user's token as it is now."""
        ...


class Supplier:
    """Fills in what clients and policies only name."""

    def __init__(self, providers: Mapping[str, NamedProvider] | None = None, forwarder_url: str = "") -> None:
        self.providers = dict(providers or {})
        self.forwarder_url = forwarder_url
        self.grants = Grants()
        self.tokens: Tokens | None = None
        #: By realm and session: the stored token that its runtime has.
        self.supplied: dict[tuple[str, str], Secret] = {}

    def withdraw(self, realm: str, session_id: str) -> None:
        """Take back what a session was given that no link holds any more; idempotent."""
        self.grants.withdraw(realm, session_id)
        self.supplied.pop((realm, session_id), None)

    async def fill_opening(self, owner: Owner, realm: str, session_id: str, params: Params) -> Params:
        """Return the parameters of a create or resume to send for these stored ones.

        Raises:
            errors.PolicyRejected: a policy names a provider that is not configured, or a token that is not stored.
            errors.SecretUnavailable: the user's token is not to be had.
        """
        if params.get("gitHubToken") != github.STORED:
            return self.fill(realm, session_id, params)
        if self.tokens is None:
            raise errors.PolicyRejected("the gateway has no master key, so no stored GitHub tokens; tell your operator")
        token = await self.tokens.current(owner)
        # What follows is one step with the caller's hold on the session: nothing is withdrawn in between.
        self.supplied[(realm, session_id)] = token
        return {**self.fill(realm, session_id, params), "gitHubToken": token.reveal()}

    def fill(self, realm: str, session_id: str, params: Params) -> Params:
        """Return the parameters to send for these stored ones.

        Raises:
            errors.PolicyRejected: a policy names a provider that is not configured.
        """

        def resolve(name: str) -> tuple[Params, str | None]:
            provider = self.providers.get(name)
            if provider is None:
                raise errors.PolicyRejected(f"the gateway has no provider {name}; ask your operator to configure it")
            key = self.grants.give(Grant(realm, session_id, name))
            return provider.described(f"{self.forwarder_url}/{name}", key), provider.default_model

        return named_providers.fill(params, resolve)
