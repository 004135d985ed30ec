"""Sealed GitHub tokens in this process's memory: for tests, and as the reference of the contract suite.

No method awaits anything, so each is one step of the event loop. Neighbour: adapters.sql.tokens, which lasts.
"""

from __future__ import annotations

from collections.abc import Sequence

from aerodrome import errors
from aerodrome.core.github import StoredToken
from aerodrome.core.identity import Owner


class MemoryTokenStore:
    """Tokens, in a dict."""

    def __init__(self) -> None:
        self._tokens: dict[Owner, StoredToken] = {}
        self._is_open = True

    async def put(self, token: StoredToken) -> None:
        """Store an owner's token in place of the one before."""
        self._check()
        self._tokens[token.owner] = token

    async def replace(self, token: StoredToken, before: StoredToken) -> bool:
        """Store a token if the owner's is still `before`."""
        self._check()
        found = self._tokens.get(before.owner)
        if found is None or found.sealed != before.sealed:
            return False
        self._tokens[token.owner] = token
        return True

    async def find(self, owner: Owner) -> StoredToken | None:
        """Return an owner's token, None if there is none."""
        self._check()
        return self._tokens.get(owner)

    async def list_all(self, tenant: str | None = None) -> Sequence[StoredToken]:
        """Return the tokens (of one tenant), by tenant and user."""
        self._check()
        found = [token for token in self._tokens.values() if tenant is None or token.owner.tenant == tenant]
        return sorted(found, key=lambda token: (token.owner.tenant, token.owner.user))

    async def remove(self, owner: Owner) -> bool:
        """Remove an owner's token; say whether there was one."""
        self._check()
        return self._tokens.pop(owner, None) is not None

    async def aclose(self) -> None:
        """Refuse further calls; idempotent."""
        self._is_open = False

    def _check(self) -> None:
        if not self._is_open:
            raise errors.StoreUnavailable("expected an open store, found a closed one: open it again")
