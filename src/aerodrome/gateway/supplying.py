"""What the gateway adds to a client's calls at the moment they are sent: named providers. The one place where it does.

What is stored of a session holds names only (`aerodrome:NAME`); a runtime gets the forwarder's address and a placeholder key in
their place, each time its session is created, resumed or brought back. The real key is read by `forwarder` alone.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from aerodrome import errors
from aerodrome.core.provider import NamedProvider
from aerodrome.gateway.grants import Grant, Grants
from aerodrome.protocol import named_providers

Params = dict[str, Any]


class Supplier:
    """Fills in what clients and policies only name."""

    def __init__(self, providers: Mapping[str, NamedProvider] | None = None, forwarder_url: str = "") -> None:
        self.providers = dict(providers or {})
        self.forwarder_url = forwarder_url
        self.grants = Grants()

    def withdraw(self, realm: str, session_id: str) -> None:
        """Take back what a session was given that no link holds any more; idempotent."""
        self.grants.withdraw(realm, session_id)

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
