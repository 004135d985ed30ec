"""The gateway under attack as its operator has it: makes tenants, users and tokens, and reads the audit log."""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import Callable
from typing import Any

from joserfc import jwt
from joserfc.jwk import ECKey

from aerodrome import app
from aerodrome import settings as settings_module
from aerodrome.adapters.audit.trail import AuditTrail
from aerodrome.core import connection_token, identity
from aerodrome.core.identity import Owner, Tenant
from aerodrome.core.policy import Isolation, Policy, Trust
from aerodrome.testing.demo_process import DemoProcess, Principal

ISSUER = "https://issuer.example"
_RECORDED_SECONDS = 30.0
Record = dict[str, Any]


class Site:
    """See the module; everything is done from this process, beside the gateway."""

    def __init__(self, demo: DemoProcess, master: bytes, signer: ECKey) -> None:
        self.demo = demo
        (self.state,) = (path for path in demo.directory.iterdir() if path.name.startswith("aerodrome-demo-"))
        self.secrets = {principal.token.split("_", 2)[2] for principal in demo.principals}
        self._master = master
        self._signer = signer
        self._settings = settings_module.load(None, state_directory=self.state)
        self._numbers = itertools.count(1)

    # -- who ----------------------------------------------------------------------------------------------------------------

    async def found(self, isolation: str = "shared", name: str = "", **policy: Any) -> str:
        """Make a tenant whose sessions may call the demo model, and nothing else; return its name."""
        name = name or f"t{next(self._numbers)}-{isolation}"
        trust = Trust.FULL if isolation == "user" else Trust.LIMITED
        given = {"trust": trust, "provider_urls": (self.demo.model["base_url"],), **policy}
        async with app.open_stores(self._settings) as stores:
            await stores.tenants.add(Tenant(name, Policy(Isolation(isolation), **given)))
        return name

    async def user(self, tenant: str, user: str, isolation: str = "shared") -> Principal:
        """Return a user with a key of their own."""
        key, token = identity.create_key(Owner(tenant, user), time.time())
        async with app.open_stores(self._settings) as stores:
            await stores.keys.add(key)
        self.secrets.add(token.split("_", 2)[2])
        return Principal(tenant, user, token, isolation)

    async def stranger(self, isolation: str = "shared", **policy: Any) -> Principal:
        """Return the one user of a tenant of their own."""
        return await self.user(await self.found(isolation, **policy), "mallory", isolation)

    async def part(self, part: str) -> Principal:
        """Return who plays a part: isolation, tenant and user by number, such as `shared 0 1`.

        The demo's own users, as far as there are any: each has a runtime by now where it is theirs alone. But attackers whose
        refusals are counted want to be new: those of tenant 2, and in shared isolation all but the first user of the first.
        """
        isolation, tenant, user = part.split()
        own = self.demo.tenants(isolation)[min(int(tenant), 1)][0]
        if tenant == "2" or (tenant == "1" and isolation == "shared"):
            return await self.stranger(isolation)
        return own if user == "0" else await self.user(own.tenant, f"m{next(self._numbers)}", isolation)

    # -- by which token -----------------------------------------------------------------------------------------------------

    async def signing_key(self, tenant: str) -> tuple[str, str]:
        """Return the id and the secret of a new signing key."""
        key, secret = connection_token.create_signing_key(self._master, Owner(tenant, "backend"), time.time())
        async with app.open_stores(self._settings) as stores:
            await stores.keys.add(key)
        self.secrets.add(secret)
        return key.key_id, secret

    async def revoke(self, key_id: str) -> None:
        """Revoke a key."""
        async with app.open_stores(self._settings) as stores:
            await stores.keys.revoke(key_id, time.time())

    def vouched(self, **claims: Any) -> str:
        """Return a JWT of the issuer that is trusted for the tenant `vouched`."""
        now = time.time()
        said = {"iss": ISSUER, "aud": "app", "sub": "mallory", "iat": int(now), "exp": now + 60, **claims}
        return jwt.encode({"alg": "ES256", "kid": "k1"}, said, self._signer)

    # -- what was recorded --------------------------------------------------------------------------------------------------

    def records(self, *sessions: tuple[str, Principal]) -> list[Record]:
        """Return the audit log; sessions stand by the ids that are given, with whom they are recorded for."""
        named = [(session_id, Owner(who.tenant, who.user)) for session_id, who in sessions]
        return list(AuditTrail(self.state / "audit", ()).records(sessions=named))

    def refusals(self, who: Principal | None, *sessions: tuple[str, Principal]) -> list[Record]:
        """Return what was refused to somebody, or to strangers."""
        user = (who.tenant, who.user) if who is not None else (None, None)
        found = self.records(*sessions)
        return [r for r in found if r["outcome"] == "refused" and (r.get("tenant"), r.get("user")) == user]

    async def recorded(self, condition: Callable[[], Any]) -> Any:
        """Wait until the log fulfils a condition; return its value."""
        async with asyncio.timeout(_RECORDED_SECONDS):
            while not (found := condition()):  # noqa: ASYNC110  a file has no events
                await asyncio.sleep(0.02)
        return found

    async def refused(self, who: Principal | None, *wanted: tuple[str, str], since: int = 0) -> list[Record]:
        """Wait until refusals of these methods for these reasons are recorded for somebody; return all of theirs.

        A reason is what the record's begins with; `since` leaves out records up to that number.
        """

        def is_there() -> list[Record] | None:
            found = [r for r in self.refusals(who) if r["record"] > since] if since else self.refusals(who)
            said = [(r.get("method", r["action"]), r["reason"]) for r in found]
            is_all = all(any(m == method and r.startswith(reason) for m, r in said) for method, reason in wanted)
            return found if is_all else None

        try:
            found: list[Record] = await self.recorded(is_there)
        except TimeoutError:
            said = sorted({(r.get("method", r["action"]), r["reason"]) for r in self.refusals(who)})
            missing = [w for w in wanted if not any(m == w[0] and r.startswith(w[1]) for m, r in said)]
            raise AssertionError(f"not recorded: {missing}; recorded: {said}") from None
        return found


def key_id_of(token: str) -> str:
    """Return the id of the key that a token has in it."""
    return token.split("_")[1]
