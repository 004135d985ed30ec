"""`aerodrome demo`: a gateway, a demo model and a few users on this machine, gone without a trace when it ends.

Everything is the real thing (registry, keys, runtimes); only the model is a stand-in, so that it works offline. The model runs
in a process of its own that ends with this one, whatever ends it.
"""

from __future__ import annotations

import asyncio
import os
import secrets
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from aerodrome import app, errors
from aerodrome import settings as settings_module
from aerodrome.core import identity
from aerodrome.core.identity import Owner, Tenant
from aerodrome.core.policy import Isolation, Policy, Trust
from aerodrome.http.pages.demo_routes import DemoUser

_MODEL_SECONDS = 20.0
_PROVIDER = "demo"

#: tenant -> (isolation, trust, users): the developer's own machine trusts the `user` tenants in so many words.
_TENANTS: dict[str, tuple[Isolation, Trust, tuple[str, ...]]] = {
    "acme": (Isolation.USER, Trust.FULL, ("alice", "bob")),
    "globex": (Isolation.USER, Trust.FULL, ("carol", "dave")),
    "initech": (Isolation.SHARED, Trust.LIMITED, ("erin", "frank")),
    "umbrella": (Isolation.SHARED, Trust.LIMITED, ("grace", "heidi")),
}


@dataclass(frozen=True, slots=True)
class Demo:
    """A demo that runs: what a script needs to drive it, as `--json` prints it."""

    sdk: str
    http: str
    model: dict[str, Any]
    runtime: dict[str, Any]
    principals: list[dict[str, str]]
    #: The token of an operator, for the dashboard and /v1/admin.
    operator: str
    #: Where a browser signs in as one of the principals; the code behind the # is a secret of this demo.
    playground: str
    state_directory: Path

    def as_json(self) -> str:
        """Return the one line for scripts."""
        described = {
            "sdk": self.sdk,
            "http": self.http,
            "model": self.model,
            "runtime": self.runtime,
            "principals": self.principals,
            "dashboard": f"{self.http}/",
            "operator": self.operator,
            "playground": self.playground,
        }
        return msgspec.json.encode(described).decode()


async def run(sdk_port: int, http_port: int, log_level: str, announce: Callable[[Demo], None]) -> None:
    """Run the demo until SIGTERM or SIGINT; `announce` is called once it is ready.

    Raises:
        errors.RuntimeMissing: there is no Copilot runtime and none could be installed.
    """
    with tempfile.TemporaryDirectory(prefix="aerodrome-demo-") as directory:
        async with open_model() as model:
            settings = settings_module.load(
                None,
                listen=f"127.0.0.1:{sdk_port}",
                state_directory=Path(directory),
                policy="tenants",
                log_level=log_level,
                # Who tries it wants it gone at the first Ctrl-C; the environment may say otherwise.
                drain_seconds=None if "AERODROME_DRAIN_SECONDS" in os.environ else 0,
                runtime={"environment": {"COPILOT_OFFLINE": "true", **_node_offline(model)}},
                sandbox=_sandbox(),
                http={"listen": f"127.0.0.1:{http_port}", "team_chat": True},
                providers={_PROVIDER: _provider(model, Path(directory))},
            )

            async def ready(application: app.Application) -> None:
                announce(await _describe(application, model, settings.state_directory))

            await app.run(settings, ready)


def _sandbox() -> dict[str, str] | None:
    """Return that its users do without a sandbox, for they are the one who tries it; the environment may say otherwise."""
    if any(name.startswith("AERODROME_SANDBOX__") for name in os.environ):
        return None
    return {"mode": "off", "unsandboxed": "agents run commands as the gateway's user"}


@asynccontextmanager
async def open_model() -> AsyncIterator[dict[str, Any]]:
    """Start the demo model in its own process; yield its base_url, name and api_key."""
    environment = {**os.environ, "AERODROME_DEMO_MODEL_KEY": secrets.token_urlsafe(24)}
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "aerodrome.testing.demo_model",
        "--exit-with-parent",
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        env=environment,
        start_new_session=True,
    )
    assert process.stdout is not None
    assert process.stdin is not None
    try:
        async with asyncio.timeout(_MODEL_SECONDS):
            line = await process.stdout.readline()
        if not line:
            raise errors.RuntimeUnavailable("the demo model did not start; run: python -m aerodrome.testing.demo_model")
        yield msgspec.json.decode(line)
    finally:
        process.stdin.close()
        try:
            async with asyncio.timeout(5):
                await process.wait()
        except TimeoutError:
            process.kill()
            await process.wait()


def _provider(model: dict[str, Any], directory: Path) -> dict[str, Any]:
    """Return the demo model as a provider of the gateway's, for sessions that bring none; its key is in a file."""
    key = directory / "demo-model.key"
    key.touch(mode=0o600)
    key.write_text(model["api_key"])
    return {"base_url": model["base_url"], "api_key": f"file:{key}", "models": [model["name"]]}


def _node_offline(model: dict[str, Any]) -> dict[str, str]:
    """Return what the Node entry point wants named before it starts offline; sessions still name their own provider."""
    return {"COPILOT_PROVIDER_BASE_URL": model["base_url"], "COPILOT_MODEL": model["name"]}


async def _describe(application: app.Application, model: dict[str, Any], state_directory: Path) -> Demo:
    """Make tenants and keys, and say how to reach all of it."""
    assert application.stores is not None
    principals = []
    for name, (isolation, trust, users) in _TENANTS.items():
        policy = Policy(isolation, trust, (model["base_url"],), provider=_PROVIDER)
        await application.stores.tenants.add(Tenant(name, policy))
        for user in users:
            key, token = identity.create_key(Owner(name, user), time.time())
            await application.stores.keys.add(key)
            principals.append({"tenant": name, "user": user, "token": token, "isolation": isolation.value})
    key, operator = identity.create_key(
        Owner(identity.NO_TENANT, "operator"), time.time(), scopes=identity.OPERATOR_SCOPES
    )
    await application.stores.keys.add(key)
    runtime = {"path": application.runtime_path, "version": application.fleet.version}
    assert application.http is not None
    assert application.edge is not None
    host, port = application.http
    sdk, http, code = f"{application.host}:{application.port}", f"http://{host}:{port}", secrets.token_urlsafe(16)
    operating = DemoUser(identity.NO_TENANT, "operator", "sees the whole gateway", operator, "/")
    application.edge.open_demo(code, [*map(_door, principals), operating])
    return Demo(sdk, http, model, runtime, principals, operator, f"{http}/demo#{code}", state_directory)


def _door(principal: dict[str, str]) -> DemoUser:
    words = "a runtime of one's own" if principal["isolation"] == Isolation.USER.value else "a shared runtime"
    return DemoUser(principal["tenant"], principal["user"], words, principal["token"])
