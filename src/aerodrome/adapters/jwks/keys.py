"""An issuer's public keys from its JWKS, over HTTPS or from a file (port: ports.issuers.IssuerKeys).

Read when they are first wanted, then on schedule and when a token names a key that is not there, but never more often than every
`retry_seconds`: strangers can invent key ids. One read serves all who wait for it, and goes on when they have left. Not the place
where a token is judged: core.jwt.
"""

from __future__ import annotations

import asyncio
import math
import time
import urllib.request
import warnings
from dataclasses import dataclass
from http.client import HTTPException, HTTPMessage
from pathlib import Path
from typing import IO, Any, Protocol

import msgspec
import structlog
from joserfc.errors import JoseError
from joserfc.jwk import JWKRegistry, Key, RSAKey
from joserfc.jws import JWSRegistry

from aerodrome.clock import Clock
from aerodrome.core import issuer as issuers
from aerodrome.core import jwt
from aerodrome.core.issuer import Issuer

_log = structlog.get_logger()
_MAX_BYTES = 1024 * 1024
_FETCH_SECONDS = 5.0
_MIN_RSA_BITS = 2048


class Fetch(Protocol):
    """Reads the bytes of a JWKS; raises OSError if that cannot be had."""

    def __call__(self, place: str) -> bytes:
        """Return them; runs on a thread."""
        ...


@dataclass(frozen=True, slots=True)
class _Found:
    key: Key
    key_id: str | None
    algorithm: str | None


class JwksKeys:
    """The keys of one issuer. Times are in seconds."""

    def __init__(self, issuer: Issuer, clock: Clock, retry_seconds: float = 10.0) -> None:
        self._issuer = issuer
        self._clock = clock
        self._retry_seconds = retry_seconds
        self._found: list[_Found] = []
        self._read_at = -math.inf
        self._tried_at = -math.inf
        self._reading: asyncio.Task[None] | None = None

    async def find(self, key_id: str | None, algorithm: str) -> Key | None:
        """Return the key of that id, fit for the algorithm; without an id the only one that is. None if there is none."""
        if self._age > self._issuer.refresh_seconds:
            await self._read_anew()
        found = self._pick(key_id, algorithm)
        if found is None:
            await self._read_anew()
            found = self._pick(key_id, algorithm)
        return found

    async def aclose(self) -> None:
        """Stop reading; idempotent."""
        if self._reading is not None:
            self._reading.cancel()
            await asyncio.wait((self._reading,))

    @property
    def _age(self) -> float:
        return self._clock.monotonic() - self._read_at

    def _pick(self, key_id: str | None, algorithm: str) -> Key | None:
        if self._age > self._issuer.stale_seconds:
            return None
        fit = [found.key for found in self._found if _fits(found, key_id, algorithm)]
        return fit[0] if len(fit) == 1 else None

    async def _read_anew(self) -> None:
        if self._reading is None:
            if self._clock.monotonic() - self._tried_at < self._retry_seconds:
                return
            self._tried_at = self._clock.monotonic()
            self._reading = asyncio.get_running_loop().create_task(self._read(), name=f"keys of {self._issuer.name}")
            self._reading.add_done_callback(self._forget_reading)
        # Whoever asked may leave before the answer: the next would have to wait for another try.
        await asyncio.shield(self._reading)

    def _forget_reading(self, _: asyncio.Task[None]) -> None:
        self._reading = None

    async def _read(self) -> None:
        place = self._issuer.keys_at
        fetch: Fetch = fetch_url if issuers.is_url(place) else read_file
        try:
            found = parse(await asyncio.to_thread(fetch, place))
        except (OSError, HTTPException, ValueError) as error:
            _log.warning("issuer.unavailable", issuer=self._issuer.name, reason=str(error) or type(error).__name__)
            return
        self._found, self._read_at = found, self._clock.monotonic()
        _log.info("issuer.keys_read", issuer=self._issuer.name, count=len(found))


def fetch_url(place: str) -> bytes:
    """Return what is at a URL, following no redirection. Raises OSError, HTTPException, ValueError."""
    opener = urllib.request.build_opener(_NoRedirection)
    deadline = time.monotonic() + _FETCH_SECONDS
    request = urllib.request.Request(place, headers={"Accept": "application/json"})  # noqa: S310  checked by core.issuer
    with opener.open(request, timeout=_FETCH_SECONDS) as response:
        parts: list[bytes] = []
        size = 0
        while part := response.read1(65536):
            size += len(part)
            parts.append(part)
            if size > _MAX_BYTES or time.monotonic() > deadline:
                raise ValueError("expected a JWKS of 1 MiB at most within 5 s")
        return b"".join(parts)


def read_file(place: str) -> bytes:
    """Return what is in a file. Raises OSError, ValueError."""
    with Path(place).open("rb") as file:
        data = file.read(_MAX_BYTES + 1)
    if len(data) > _MAX_BYTES:
        raise ValueError("expected a JWKS of 1 MiB at most")
    return data


def parse(data: bytes) -> list[_Found]:
    """Return the keys of a JWKS that can check a signature; others are left out.

    Raises:
        ValueError: it is no JWKS, or has no such key.
    """
    try:
        listed = msgspec.json.decode(data, type=dict[str, Any])["keys"]
        if not isinstance(listed, list):
            raise TypeError
    except (msgspec.MsgspecError, KeyError, TypeError, RecursionError):
        raise ValueError("expected a JWKS, found something else") from None
    found = [key for key in map(_import, listed) if key is not None]
    if not found:
        # Rather the keys we have than none: a proxy's empty answer must not lock everyone out at once.
        raise ValueError("expected a JWKS with a key that can check signatures, found none")
    return found


def _import(given: Any) -> _Found | None:
    if not isinstance(given, dict) or given.get("use", "sig") != "sig" or given.get("kty") == "oct":
        return None
    key_id, algorithm = given.get("kid"), given.get("alg")
    try:
        public = {name: value for name, value in given.items() if name in ("kty", "n", "e", "crv", "x", "y")}
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of keys that are too short: they are left out below
            key = JWKRegistry.import_key(public)
    except (JoseError, ValueError, TypeError, AttributeError):
        return None
    if isinstance(key, RSAKey) and key.raw_value.key_size < _MIN_RSA_BITS:
        return None
    return _Found(key, key_id if isinstance(key_id, str) else None, algorithm if isinstance(algorithm, str) else None)


def _fits(found: _Found, key_id: str | None, algorithm: str) -> bool:
    if (key_id is not None and found.key_id != key_id) or found.algorithm not in (None, algorithm):
        return False
    if algorithm not in jwt.ASYMMETRIC:
        return False
    try:
        JWSRegistry.algorithms[algorithm].check_key(found.key)
    except JoseError:
        return False
    return True


class _NoRedirection(urllib.request.HTTPRedirectHandler):
    """A redirection would have keys come from where nobody has allowed them to."""

    def redirect_request(
        self, req: urllib.request.Request, fp: IO[bytes], code: int, msg: str, headers: HTTPMessage, newurl: str
    ) -> None:
        """Follow none."""
