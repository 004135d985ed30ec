"""Where users' GitHub tokens are kept, sealed, and who renews them.

The store is implemented by adapters.memory and adapters.sql, one contract suite runs over both; the issuer by adapters.github.
All methods are safe to cancel.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from aerodrome.core.github import GitHubToken, StoredToken
from aerodrome.core.identity import Owner
from aerodrome.core.secret import Secret


class TokenStore(Protocol):
    """One sealed token for each owner. All methods raise errors.StoreUnavailable when the store does not answer."""

    async def put(self, token: StoredToken) -> None:
        """Store an owner's token in place of the one before."""
        ...

    async def replace(self, token: StoredToken, before: StoredToken) -> bool:
        """Store a token if the owner's is still `before`, in one step; say whether it was."""
        ...

    async def find(self, owner: Owner) -> StoredToken | None:
        """Return an owner's token, None if there is none."""
        ...

    async def list_all(self, tenant: str | None = None) -> Sequence[StoredToken]:
        """Return the tokens (of one tenant), by tenant and user."""
        ...

    async def remove(self, owner: Owner) -> bool:
        """Remove an owner's token; say whether there was one. Idempotent."""
        ...

    async def aclose(self) -> None:
        """Release the store."""
        ...


class TokenIssuer(Protocol):
    """Who gave the tokens."""

    async def refresh(self, refresh_token: Secret) -> GitHubToken:
        """Return a new token for a refresh token, which is used up by it. Raises errors.SecretUnavailable."""
        ...

    async def aclose(self) -> None:
        """Release what it holds; idempotent."""
        ...
