"""The public keys that issuers sign with. Implemented by adapters.jwks."""

from __future__ import annotations

from typing import Protocol

from joserfc.jwk import Key


class IssuerKeys(Protocol):
    """The keys of one issuer, kept up to date."""

    async def find(self, key_id: str | None, algorithm: str) -> Key | None:
        """Return the key of that id, fit for the algorithm; without an id the only one that is. None if there is none.

        May read the keys anew first. Never raises for an issuer that cannot be reached: the keys at hand are used, for a bounded
        time. Safe to cancel.
        """
        ...

    async def aclose(self) -> None:
        """Stop reading keys."""
        ...
