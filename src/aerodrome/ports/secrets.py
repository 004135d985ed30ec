"""What the gateway needs secrets from: a reference goes in, the value as it is now comes out.

Implemented by adapters.secrets, one source for each scheme behind `CachedSecrets`. Errors name the reference, never the value.
"""

from __future__ import annotations

from typing import Protocol

from aerodrome.core.secret import Reference, Secret


class SecretSource(Protocol):
    """A place that secrets are read from."""

    async def read(self, reference: Reference) -> Secret:
        """Return the secret as it is now. Safe to cancel. Raises errors.SecretUnavailable."""
        ...

    async def aclose(self) -> None:
        """Release what it holds; idempotent."""
        ...


class Secrets(SecretSource, Protocol):
    """All sources behind one door, that remembers values for a while."""

    async def read_anew(self, reference: Reference) -> Secret:
        """Return the secret past what is remembered: for a caller who was told that the value is wrong."""
        ...
