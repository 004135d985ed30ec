"""All secret sources behind one door: chosen by scheme, values remembered for a while, one read at a time for each reference.

A value is never older than `cache_seconds`, so a rotated secret is in use after that at the latest; a caller who is told that a
value is wrong asks past the memory. While a source fails, the last value serves for `grace_seconds` more: a short outage of
Vault is none of the gateway. Neighbours: local.py, command.py, vault.py.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass

import structlog

from aerodrome import errors
from aerodrome.clock import Clock
from aerodrome.core.secret import Reference, Secret
from aerodrome.ports.secrets import SecretSource

_log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class _Remembered:
    secret: Secret
    read_at: float


class CachedSecrets:
    """Reads secrets by their references."""

    def __init__(
        self, sources: Mapping[str, SecretSource], clock: Clock, cache_seconds: float, grace_seconds: float
    ) -> None:
        self._sources = sources
        self._clock = clock
        self._cache_seconds = cache_seconds
        self._grace_seconds = grace_seconds
        self._remembered: dict[Reference, _Remembered] = {}
        self._locks: dict[Reference, asyncio.Lock] = {}

    async def read(self, reference: Reference) -> Secret:
        """Return a secret no older than `cache_seconds`, or a little older while its source fails.

        Raises:
            errors.SecretUnavailable: it cannot be read, and there is no last value that may still serve.
        """
        found = self._fresh(reference)
        if found is not None:
            return found
        async with self._locks.setdefault(reference, asyncio.Lock()):
            # Who waited finds what the one before it read.
            return self._fresh(reference) or await self._read_or_last(reference)

    async def read_anew(self, reference: Reference) -> Secret:
        """Return a secret as it is now.

        Raises:
            errors.SecretUnavailable: it cannot be read.
        """
        before = self._remembered.get(reference)
        async with self._locks.setdefault(reference, asyncio.Lock()):
            after = self._remembered.get(reference)
            if after is not None and after is not before:
                return after.secret  # read since this caller began to wait: many are told at once
            return await self._read(reference)

    def _fresh(self, reference: Reference) -> Secret | None:
        found = self._remembered.get(reference)
        is_fresh = found is not None and self._clock.monotonic() - found.read_at < self._cache_seconds
        return found.secret if found is not None and is_fresh else None

    async def _read_or_last(self, reference: Reference) -> Secret:
        try:
            return await self._read(reference)
        except errors.SecretUnavailable as error:
            last = self._remembered.get(reference)
            limit = self._cache_seconds + self._grace_seconds
            if last is None or not error.is_outage or self._clock.monotonic() - last.read_at >= limit:
                raise
            _log.warning("secret.read_failed", reference=str(reference), reason=error.message)
            return last.secret

    async def _read(self, reference: Reference) -> Secret:
        source = self._sources.get(reference.scheme)
        if source is None:
            raise errors.SecretUnavailable(f"secret {reference}: [secrets] configures no {reference.scheme} source")
        secret = await source.read(reference)
        self._remembered[reference] = _Remembered(secret, self._clock.monotonic())
        return secret

    async def aclose(self) -> None:
        """Forget all values and close the sources."""
        self._remembered.clear()
        for source in self._sources.values():
            await source.aclose()
