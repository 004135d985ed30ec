"""Connection tokens on the real runtime: minted as documented, used by the unchanged SDK, useless once revoked."""

from __future__ import annotations

import asyncio
import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest
from joserfc import jwt
from joserfc.jwk import ECKey

from aerodrome.core import connection_token
from aerodrome.core.identity import Owner
from aerodrome.testing.demo_process import Principal

from . import place as places
from .place import Place
from .python_sdk import Program, Programs, Recorder, say

DOCUMENTATION = Path(__file__).parents[2] / "docs" / "principals.md"
MASTER = "a master key for end-to-end tests"


def documented(language: str) -> str:
    """Return the documentation's program in a language."""
    found = re.search(rf"```{language}\n(.*?)```", DOCUMENTATION.read_text("utf-8"), re.DOTALL)
    assert found is not None
    return found[1]


def run(words: list[str], key_id: str, secret: str) -> str:
    environment = {**os.environ, "MINT_KEY": key_id, "MINT_SECRET": secret}
    done = subprocess.run(words, env=environment, capture_output=True, check=False, text=True, timeout=30)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def mint_in_python(key_id: str, secret: str, user: str) -> str:
    return run([sys.executable, "-c", f"{documented('python')}\nprint(mint({user!r}))"], key_id, secret)


def mint_in_node(key_id: str, secret: str, user: str) -> str:
    program = f"{documented('javascript')}\nconsole.log(mint({user!r}));"
    return run(["node", "--input-type=module", "-e", program], key_id, secret)


async def signing_key(place: Place) -> tuple[str, str]:
    """Have a signing key of the tenant `user`."""
    made, secret = connection_token.create_signing_key(MASTER.encode(), Owner("user", "backend"), time.time())
    await place.application.stores.keys.add(made)
    return made.key_id, secret


async def connect(place: Place, token: str, user: str) -> Program:
    programs = Programs(place)
    place.closing.push_async_callback(programs.aclose)
    return await programs.connect(Principal("user", user, token, "user"))


@pytest.mark.runtime
async def test_an_sdk_program_works_with_a_minted_token_until_its_key_is_revoked(tmp_path):
    async with places.open_place(tmp_path / "state", master_key=MASTER) as place:
        key_id, secret = await signing_key(place)
        token = await asyncio.to_thread(mint_in_python, key_id, secret, "ann")
        program, other = await connect(place, token, "ann"), await place.connect("user", "ben")
        session, kept = await program.create(), await other.create()
        await say(session, "remember the moon")
        assert (await place.application.stores.sessions.find(session.session_id)).owner == Owner("user", "ann")
        heard = Recorder()
        session.on(heard)
        await session.send("[stream 4000 200]")
        await heard.first("assistant.message_delta")

        revoked_at = time.monotonic()
        await place.application.stores.keys.revoke(key_id, time.time())
        await place.settled(lambda: len(place.application.services.residents) == 1)
        await place.settled(lambda: place.application.listener.links == 1)
        assert time.monotonic() - revoked_at < 10.0
        # What was sent before that may still be on its way to the program: it is told of the end behind it.
        await place.settled(lambda: program.client._state == "disconnected")

        deltas = len(heard.of("assistant.message_delta"))
        with pytest.raises(Exception, match="AUTHENTICATION_FAILED"):
            await connect(place, token, "ann")
        assert await say(kept, "still here")
        assert len(heard.of("assistant.message_delta")) == deltas < 4000

        fresh_id, fresh_secret = await signing_key(place)
        again = await connect(place, await asyncio.to_thread(mint_in_python, fresh_id, fresh_secret, "ann"), "ann")
        assert await again.list_ids() == {session.session_id}


@pytest.mark.runtime
async def test_a_token_minted_by_the_command_opens_a_link_on_the_running_gateway(tmp_path):
    async with places.open_place(tmp_path / "state", master_key=MASTER) as place:
        words = ["token", "mint", "user", "ann", "--expires", "1m", "--state-directory", str(place.state)]
        token = await asyncio.to_thread(run, [sys.executable, "-m", "aerodrome", *words], "", "")
        program = await connect(place, token, "ann")
        session = await program.create()
        assert (await place.application.stores.sessions.find(session.session_id)).owner == Owner("user", "ann")


@pytest.mark.runtime
async def test_a_jwt_of_a_configured_issuer_works_until_it_expires(tmp_path):
    signer = ECKey.generate_key("P-256", {"kid": "k1"})
    jwks = tmp_path / "jwks.json"
    jwks.write_text(json.dumps({"keys": [signer.as_dict(private=False)]}))
    issuer = {"issuer": "https://issuer.example", "audience": "app", "jwks": str(jwks), "tenant": "user"}
    issuer |= {"user_claim": "email", "skew_seconds": 0}
    async with places.open_place(tmp_path / "state", issuers=[issuer]) as place:
        # With a runtime of theirs already, so that only a moment of what the token is good for is needed.
        before = await place.connect("user", "ann@example.com")
        await before.create()
        await before.client.force_stop()
        expires_at = time.time() + 4
        claims = {"iss": issuer["issuer"], "aud": "app", "sub": "X", "email": "ann@example.com", "exp": expires_at}
        token = jwt.encode({"alg": "ES256", "kid": "k1"}, claims, signer)
        program = await connect(place, token, "ann@example.com")
        session = await program.create()
        owner = (await place.application.stores.sessions.find(session.session_id)).owner
        assert owner == Owner("user", "ann@example.com")
        await place.settled(lambda: place.application.listener.links == 0)
        assert expires_at <= time.time() < expires_at + 20


@pytest.mark.node
def test_the_documented_programs_mint_the_same_token(monkeypatch):
    secret = connection_token.derive_secret(MASTER.encode(), "0123456789ab")
    claims = [
        connection_token.verify(mint("0123456789ab", secret, "ann"), secret) for mint in (mint_in_python, mint_in_node)
    ]
    for found in claims:
        assert (found["aud"], found["sub"], found["exp"] - found["iat"]) == ("aerodrome", "ann", 600)
        assert abs(found["iat"] - time.time()) < 60
