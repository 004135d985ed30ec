"""Secrets of a Vault (or what speaks its HTTP API): `vault:MOUNT/PATH#FIELD`, from a KV engine of version 2.

The gateway proves itself with a token (itself a reference) or, in Kubernetes, with its service account. A login gives a token
with a lease: it is renewed when two thirds of it are over, and a login made anew when it cannot be renewed or is refused.
Not a Vault client: it reads one kind of secret. Neighbours: cached.py, which asks only when its memory is too old.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import Any

import httpx

from aerodrome import errors
from aerodrome.adapters.secrets import local
from aerodrome.adapters.secrets.vault_settings import VaultSettings
from aerodrome.clock import Clock
from aerodrome.core.secret import Reference, Secret
from aerodrome.ports.secrets import SecretSource

_MAX_ANSWER_BYTES = 1024 * 1024
_RENEW_AFTER = 2 / 3


@dataclass(slots=True)
class _Login:
    """A token of ours; `lease_seconds` 0: it does not expire, or is not ours to renew."""

    token: str
    lease_seconds: float = 0.0
    is_renewable: bool = False
    since: float = 0.0


class VaultSource:
    """Reads fields of KV v2 secrets. `local_sources` read its own credential, by scheme."""

    def __init__(self, settings: VaultSettings, local_sources: dict[str, SecretSource], clock: Clock) -> None:
        self._settings = settings
        self._sources = local_sources
        self._clock = clock
        self._login: _Login | None = None
        self._entering = asyncio.Lock()
        # The environment's proxies are for the internet; and a redirect would carry the token elsewhere.
        self._http = httpx.AsyncClient(
            base_url=settings.address, timeout=settings.timeout_seconds, trust_env=False, follow_redirects=False
        )

    async def read(self, reference: Reference) -> Secret:
        """Return a field of a secret's newest version."""
        path, _, name = reference.rest.partition("#")
        mount, _, rest = path.partition("/")
        login = await self._entered(reference)
        status, document = await self._call(reference, "GET", f"/v1/{mount}/data/{rest}", login.token)
        if status == 403 and (login := await self._enter_again(reference, login)):
            status, document = await self._call(reference, "GET", f"/v1/{mount}/data/{rest}", login.token)
        if status != 200:
            raise _refused(reference, status)
        data = document.get("data")
        fields = data.get("data") if isinstance(data, dict) else None
        value = fields.get(name) if isinstance(fields, dict) else None
        if not isinstance(value, str):
            raise errors.SecretUnavailable(f"secret {reference}: the secret has no field {name} that is a string")
        return local.as_secret(reference, value.encode())

    async def aclose(self) -> None:
        """Close the connections; the token's lease runs out by itself."""
        self._login = None
        await self._http.aclose()

    async def _entered(self, reference: Reference) -> _Login:
        """Return a login that is good for now, renewed or made anew where it is old."""
        async with self._entering:
            login = self._login
            age = self._clock.monotonic() - login.since if login is not None else 0.0
            if login is None or (login.lease_seconds and age >= login.lease_seconds):
                self._login = await self._enter(reference)
            elif login.lease_seconds and age >= login.lease_seconds * _RENEW_AFTER:
                self._login = await self._renew(reference, login) or await self._enter(reference)
            assert self._login is not None
            return self._login

    async def _enter_again(self, reference: Reference, refused: _Login) -> _Login:
        """Return another login than the refused one: its token may have been revoked, or replaced where it comes from."""
        async with self._entering:
            if self._login is refused:
                self._login = None
        return await self._entered(reference)

    async def _enter(self, reference: Reference) -> _Login:
        settings = self._settings
        if settings.kubernetes_role is None:
            if settings.token is None:
                raise errors.SecretUnavailable(f"secret {reference}: [secrets.vault] names neither a token nor a role")
            return _Login((await self._read_own(settings.token)).reveal(), since=self._clock.monotonic())
        jwt = (await self._read_own(settings.kubernetes_jwt)).reveal()
        path, body = f"/v1/auth/{settings.kubernetes_mount}/login", {"role": settings.kubernetes_role, "jwt": jwt}
        status, document = await self._call(reference, "POST", path, None, body)
        login = _login_of(document, self._clock.monotonic()) if status == 200 else None
        if login is None:
            raise errors.SecretUnavailable(
                f"secret {reference}: Vault refused the login of role {settings.kubernetes_role} (HTTP {status})",
                is_outage=status >= 500,
            )
        return login

    async def _renew(self, reference: Reference, login: _Login) -> _Login | None:
        if not login.is_renewable:
            return None
        status, document = await self._call(reference, "POST", "/v1/auth/token/renew-self", login.token, {})
        return _login_of(document, self._clock.monotonic()) if status == 200 else None

    async def _read_own(self, reference: Reference) -> Secret:
        source = self._sources.get(reference.scheme)
        if source is None:
            raise errors.SecretUnavailable(f"secret {reference}: Vault's own credential cannot be in Vault")
        return await source.read(reference)

    async def _call(
        self, reference: Reference, method: str, path: str, token: str | None, body: dict[str, Any] | None = None
    ) -> tuple[int, dict[str, Any]]:
        headers = {"X-Vault-Request": "true"} | ({"X-Vault-Token": token} if token else {})
        if self._settings.namespace:
            headers["X-Vault-Namespace"] = self._settings.namespace
        try:
            answer = await self._http.request(method, path, headers=headers, json=body)
            document = answer.json() if answer.status_code == 200 and len(answer.content) <= _MAX_ANSWER_BYTES else {}
        except httpx.HTTPError as error:
            raise errors.SecretUnavailable(
                f"secret {reference}: Vault did not answer ({type(error).__name__})", is_outage=True
            ) from None
        except ValueError:
            raise errors.SecretUnavailable(f"secret {reference}: Vault answered with no JSON", is_outage=True) from None
        return answer.status_code, document if isinstance(document, dict) else {}


def _login_of(document: dict[str, Any], now: float) -> _Login | None:
    auth = document.get("auth")
    token = auth.get("client_token") if isinstance(auth, dict) else None
    if not isinstance(auth, dict) or not isinstance(token, str):
        return None
    return _Login(token, float(auth.get("lease_duration") or 0), bool(auth.get("renewable")), now)


def _refused(reference: Reference, status: int) -> errors.SecretUnavailable:
    reasons = {403: "Vault refuses the gateway this path", 404: "Vault has no such secret", 429: "Vault is too busy"}
    reason = reasons.get(status, "Vault failed")
    return errors.SecretUnavailable(
        f"secret {reference}: {reason} (HTTP {status})", is_outage=status >= 500 or status == 429
    )
