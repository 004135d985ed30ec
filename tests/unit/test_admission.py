"""gateway.admission with all verifiers: whatever a token is, it proves its user or gets the one refusal."""

from __future__ import annotations

import asyncio
import functools
import json
import time

import pytest
import structlog.testing
from hypothesis import given, settings
from hypothesis import strategies as st
from joserfc import jwt as jose
from joserfc.jwk import ECKey

from aerodrome import errors
from aerodrome.adapters.jwks.keys import JwksKeys
from aerodrome.adapters.memory.erasures import MemoryErasureStore
from aerodrome.adapters.memory.registry import MemoryKeyStore, MemoryTenantStore
from aerodrome.clock import SystemClock
from aerodrome.core import connection_token, identity
from aerodrome.core.identity import Owner, Tenant
from aerodrome.core.issuer import Issuer
from aerodrome.core.jwt import Terms
from aerodrome.core.policy import Policy
from aerodrome.gateway import known_tenants
from aerodrome.gateway.admission import TenantAdmission, Verifiers
from aerodrome.gateway.verifiers import ConnectionTokenVerifier, IssuerVerifier, KeyVerifier

MASTER = b"a master key of thirty-two bytes"
TENANTS = {"acme": Tenant("acme", Policy(), "config")}
SIGNER = ECKey.generate_key("P-256", {"kid": "k1"})


async def open_admission(jwks: str, master: bytes | None = MASTER) -> tuple[TenantAdmission, list[str]]:
    """Return an admission and one token of each kind that it takes, each for another user."""
    keys, clock, now = MemoryKeyStore(), SystemClock(), time.time()
    issuer = Issuer("https://issuer.example", jwks, Terms("app", 0.0), frozenset({"acme"}))
    verifiers = Verifiers(
        KeyVerifier(keys),
        ConnectionTokenVerifier(keys, master, Terms("aerodrome", 0.0, 3600.0)),
        IssuerVerifier([(issuer, JwksKeys(issuer, clock))]),
    )
    find_tenant = functools.partial(known_tenants.find_tenant, TENANTS, MemoryTenantStore(keys, clock))
    key, by_key = identity.create_key(Owner("acme", "ann"), now)
    signing, secret = connection_token.create_signing_key(MASTER, Owner("acme", "backend"), now)
    for each in (key, signing):
        await keys.add(each)
    claims = {"iss": issuer.name, "aud": "app", "sub": "eve", "exp": now + 3600}
    by_issuer = jose.encode({"alg": "ES256", "kid": "k1"}, claims, SIGNER)
    tokens = [by_key, connection_token.sign(signing.key_id, secret, "ben", now, now + 600), by_issuer]
    return TenantAdmission(verifiers, find_tenant, clock, MemoryErasureStore()), tokens


@pytest.fixture(scope="module")
def jwks(tmp_path_factory):
    path = tmp_path_factory.mktemp("issuer") / "jwks.json"
    path.write_text(json.dumps({"keys": [SIGNER.as_dict(private=False)]}))
    return str(path)


def refuse(jwks: str, change) -> None:
    """Check that what `change` makes of the tokens is refused, and the log says why without saying what."""

    async def run() -> None:
        judge, tokens = await open_admission(jwks)
        for token in change(tokens):
            with structlog.testing.capture_logs() as logs, pytest.raises(errors.AuthenticationFailed) as raised:
                await judge.authenticate(token)
            assert (raised.value.message, raised.value.details) == ("AUTHENTICATION_FAILED", {})
            [said] = [entry for entry in logs if entry["event"] == "token.refused"]
            assert said["reason"]
            assert len(said["reason"]) < 400
            assert len(token or "") < 40 or token not in said["reason"]

    asyncio.run(run())


async def test_each_kind_of_token_proves_its_user(jwks):
    judge, tokens = await open_admission(jwks)
    found = [await judge.authenticate(token) for token in tokens]
    assert [principal.owner for principal in found] == [Owner("acme", user) for user in ("ann", "ben", "eve")]
    assert [bool(principal.key_id) for principal in found] == [True, True, False]
    assert [principal.expires_at is None for principal in found] == [True, False, False]


async def test_without_a_master_key_connection_tokens_prove_nobody_and_the_others_what_they_do(jwks):
    judge, (by_key, minted, by_issuer) = await open_admission(jwks, master=None)
    with pytest.raises(errors.AuthenticationFailed):
        await judge.authenticate(minted)
    assert (await judge.authenticate(by_key)).owner.user == "ann"
    assert (await judge.authenticate(by_issuer)).owner.user == "eve"


@settings(max_examples=40, deadline=None)
@given(st.none() | st.text(max_size=60))
def test_any_text_gets_the_one_refusal(jwks, text):
    refuse(jwks, lambda _: [text])


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10_000), st.sampled_from("Aa0_-.é\n"), st.sampled_from("Bb1"))
def test_a_token_with_one_character_changed_or_lost_gets_the_one_refusal(jwks, place, wanted, otherwise):
    def change(tokens):
        for token in tokens:
            # The last character of a part of base64 may hold bits that say nothing.
            places = [at for at in range(len(token) - 1) if token[at + 1] != "."]
            at = places[place % len(places)]
            other = wanted if wanted != token[at] else otherwise
            yield token[:at] + other + token[at + 1 :]
            yield token[:at] + token[at + 1 :]

    refuse(jwks, lambda tokens: list(change(tokens)))


@settings(max_examples=25, deadline=None)
@given(st.permutations(range(9)))
def test_parts_of_tokens_put_together_anew_get_the_one_refusal(jwks, order):
    def change(tokens):
        parts = [part for token in tokens[1:] for part in token.split(".")] + tokens[0].split("_", 2)
        mixed = ".".join(parts[at] for at in order[:3])
        return [mixed] if mixed not in tokens else []

    refuse(jwks, change)
