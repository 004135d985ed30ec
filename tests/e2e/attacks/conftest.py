"""One gateway for all attacks, tenants of each attack's own on it, and its audit log, which must hold at the end."""

from __future__ import annotations

import json
import os
import secrets
from collections.abc import AsyncIterator, Iterator

import pytest
from joserfc.jwk import ECKey
from typer.testing import CliRunner

from aerodrome.cli.main import app
from aerodrome.testing import demo_process
from aerodrome.testing.demo_process import DemoProcess

from .client import Programs
from .site import ISSUER, Site

MASTER_KEY = secrets.token_urlsafe(32)


@pytest.fixture(scope="package")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """The gateway under attack. At the end it must leave nothing behind, its log must hold and must have no secret in it."""
    signer = ECKey.generate_key("P-256", {"kid": "k1"})
    jwks = tmp_path_factory.mktemp("issuer") / "jwks.json"
    jwks.write_text(json.dumps({"keys": [signer.as_dict(private=False)]}))
    issuer = {"issuer": ISSUER, "audience": "app", "jwks": str(jwks), "tenant": "vouched", "skew_seconds": 0}
    environment = {
        "AERODROME_MASTER_KEY": MASTER_KEY,
        "AERODROME_ISSUERS": json.dumps([issuer]),
        "AERODROME_TOKENS__SKEW_SECONDS": "0",
    }
    with demo_process.running(environment={**os.environ, **environment}) as running:
        place = Site(running, MASTER_KEY.encode(), signer)
        yield place
        words = ["audit", "verify", "--state-directory", str(place.state)]
        verified = CliRunner().invoke(app, words)
        assert verified.exit_code == 0, verified.output
        log = b"".join(path.read_bytes() for path in (place.state / "audit").iterdir() if path.suffix == ".jsonl")
        assert [secret for secret in place.secrets if secret.encode() in log] == []


@pytest.fixture
def demo(site: Site) -> DemoProcess:
    """The process of the gateway."""
    return site.demo


@pytest.fixture
async def programs(demo: DemoProcess) -> AsyncIterator[Programs]:
    """Connect programs, gone when the test is."""
    opened = Programs(demo)
    yield opened
    await opened.aclose()
