"""Principals at the gateway: who is let in by what, who is shown out when it ends, and that nobody is told why."""

from __future__ import annotations

import asyncio
import base64
import gc
import hmac
import json
import time
from typing import Any

import pytest
import structlog.testing
from joserfc import jws
from joserfc.jwk import ECKey, Key, OctKey

from aerodrome import errors
from aerodrome.core import connection_token, erasure, identity, jwt
from aerodrome.core.erasure import Erasure
from aerodrome.core.identity import Owner, Scope, Tenant
from aerodrome.core.issuer import Issuer
from aerodrome.core.jwt import Terms
from aerodrome.core.policy import Isolation, Policy
from aerodrome.testing import peer as peers
from aerodrome.testing import rig as rigs
from aerodrome.testing.peer import Peer, RpcError
from aerodrome.testing.rig import Rig
from aerodrome.testing.scripted_runtime import Faults

ISSUER = "https://issuer.example"
SECONDS = 30.0


class GivenKeys:
    """An issuer's keys that a test holds in its hand."""

    def __init__(self, key: Key) -> None:
        self.key: Key | None = key

    async def find(self, key_id: str | None, algorithm: str) -> Key | None:
        return self.key if key_id == "k1" else None

    async def aclose(self) -> None:
        pass


@pytest.fixture
async def rig(open_rig) -> Rig:
    """A gateway that looks at its principals all the time."""
    return await open_rig(principals_seconds=0.02)


def pass_time(rig: Rig, monkeypatch: pytest.MonkeyPatch, seconds: float) -> None:
    """Set the gateway's clock forward."""
    now = rig.clock.now
    monkeypatch.setattr(rig.clock, "now", lambda: now() + seconds)


async def connect(rig: Rig, token: str) -> Peer:
    client = await peers.open_client(*rig.address, token)
    rig._clients.append(client)
    return client


async def refused(rig: Rig, token: str, reason: str) -> None:
    """Check that a token gets the one refusal, and the log the reason."""
    with structlog.testing.capture_logs() as logs, pytest.raises(RpcError) as raised:
        await connect(rig, token)
    assert (raised.value.number, raised.value.message, raised.value.data) == (-32002, "AUTHENTICATION_FAILED", None)
    [entry] = [entry for entry in logs if entry["event"] == "token.refused"]
    assert reason in entry["reason"]
    assert token not in str(logs)


async def signing_key(rig: Rig, tenant: str = "alone", expires_at: float | None = None) -> tuple[identity.Key, str]:
    made = connection_token.create_signing_key(rigs.MASTER_KEY, Owner(tenant, "backend"), time.time(), expires_at)
    await rig.keys.add(made[0])
    return made


def minted(key: identity.Key, secret: str, user: str = "ann", **changes: Any) -> str:
    now = time.time()
    claims = {"aud": "aerodrome", "sub": user, "iat": now, "exp": now + 60, **changes}
    return jwt.sign(claims, OctKey.import_key(secret), key.key_id)


def plain(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).decode().rstrip("=")


async def begin_turn(client: Peer, session_id: str) -> None:
    await client.call("session.create", {"sessionId": session_id})
    await client.call("session.send", {"sessionId": session_id, "prompt": "[hold]"})
    await client.wait_for_event(session_id, "assistant.turn_start")


# -- keys -------------------------------------------------------------------------------------------------------------


async def test_a_key_whose_scopes_do_not_say_connect_opens_no_link(rig):
    key, token = identity.create_key(Owner("alone", "ann"), time.time(), scopes=frozenset({Scope.MINT}))
    await rig.keys.add(key)
    await refused(rig, token, "scope connect")


async def test_a_revoked_keys_links_are_closed_its_turn_ended_and_its_requests_refused(rig):
    client, other = await rig.client("alone", "ann"), await rig.client("alone", "ben")
    await begin_turn(client, "s")
    await begin_turn(other, "t")
    runtime = next(found for found in rig.scripted.runtimes if "s" in found.sessions)
    [key] = [key for key in await rig.keys.list_all() if key.owner.user == "ann"]
    events = len(client.events("s"))
    with structlog.testing.capture_logs() as logs:
        await rig.keys.revoke(key.key_id, time.time())
        await client.wait_closed(SECONDS)
        await rig.settled(lambda: "s" not in runtime.sessions)
    assert client.events("s")[events:] == []
    [said] = [entry for entry in logs if entry["event"] == "link.dismissed"]
    assert (said["reason"], said["user"]) == ("its key is revoked or expired", "ann")
    await refused(rig, await rig.token("alone", "ann"), f"key {key.key_id} is revoked")
    assert await other.call("ping")
    assert other.events("t")[-1] != "session.idle"


async def test_a_request_under_way_is_answered_with_the_refusal_before_the_link_closes(open_rig):
    rig = await open_rig(lambda _: Faults(unanswered="session.getMessages"), principals_seconds=0.02)
    client = await rig.client("alone", "ann")
    await client.call("session.create", {"sessionId": "s"})
    runtime = rig.scripted.runtimes[0]
    waiting = client.ask("session.getMessages", {"sessionId": "s"})
    await rig.settled(lambda: any(upstream.owed.origins() for upstream in rig.gateway.clients[0].upstreams.values()))
    [key] = await rig.keys.list_all()
    await rig.keys.revoke(key.key_id, time.time())
    await client.wait_closed(SECONDS)
    with pytest.raises(RpcError, match="AUTHENTICATION_FAILED"):
        await waiting
    [last] = client.stray
    assert last.id is None
    await rig.settled(lambda: runtime.sessions == {} and rig.links() == 0 and rig.listener.links == 0)


async def test_a_key_that_expires_closes_its_links_by_itself(rig, monkeypatch):
    key, token = identity.create_key(Owner("alone", "ann"), time.time(), time.time() + 60)
    await rig.keys.add(key)
    client = await connect(rig, token)
    await rig.watch.look()
    assert await client.call("ping")
    pass_time(rig, monkeypatch, 61)
    await client.wait_closed(SECONDS)
    await refused(rig, token, "revoked or expired")


async def test_a_rotated_key_works_beside_its_successor_until_the_overlap_ends(rig, monkeypatch):
    token = await rig.token("alone", "ann")
    [old] = await rig.keys.list_all()
    client = await connect(rig, token)
    successor, new_token = identity.create_key(old.owner, time.time())
    await rig.keys.rotate(old.key_id, successor, time.time() + 60)
    fresh = await connect(rig, new_token)
    assert await client.call("ping")
    assert await (await connect(rig, token)).call("ping")
    pass_time(rig, monkeypatch, 61)
    await client.wait_closed(SECONDS)
    assert await fresh.call("ping")
    await refused(rig, token, "revoked or expired")


@pytest.mark.parametrize("tenant", ["patient", "patient-shared"])
async def test_a_turn_that_goes_on_without_its_client_does_not_outlive_its_principal(rig, tenant):
    client = await rig.client(tenant, "ann")
    await begin_turn(client, "s")
    runtime = rig.scripted.runtimes[0]
    await client.aclose()
    await rig.settled(lambda: len(rig.services.finishing) == 1)
    assert "s" in runtime.sessions
    [key] = await rig.keys.list_all()
    await rig.keys.revoke(key.key_id, time.time())
    await rig.settled(lambda: len(rig.services.finishing) == 0 and runtime.sessions == {})


async def test_a_revoked_client_does_not_leave_its_turn_behind_where_turns_outlive_clients(rig):
    client = await rig.client("patient", "ann")
    await begin_turn(client, "s")
    [key] = await rig.keys.list_all()
    await rig.keys.revoke(key.key_id, time.time())
    await client.wait_closed(SECONDS)
    await rig.settled(lambda: rig.scripted.runtimes[0].sessions == {})
    assert len(rig.services.finishing) == 0


async def test_a_revoked_client_that_does_not_read_is_cut_off_and_its_turn_ends_at_once(rig):
    client = await rig.client("alone", "ann")
    await client.call("session.create", {"sessionId": "s"})
    client.stop_reading()
    client.ask("session.send", {"sessionId": "s", "prompt": "[flood 400 65536]"})
    await rig.settled(lambda: rig.gateway.clients and rig.gateway.clients[0].link.is_stalled)
    [key] = await rig.keys.list_all()
    await rig.keys.revoke(key.key_id, time.time())
    await rig.settled(lambda: rig.scripted.runtimes[0].sessions == {} and rig.links() == 0, SECONDS)
    await rig.settled(lambda: rig.listener.links == 0)


async def test_eighty_links_of_one_revoked_key_leave_nothing_behind(rig):
    keeper = await rig.client("shared", "keeper")
    await keeper.call("session.create", {"sessionId": "kept"})
    before = rig.baseline()
    token = await rig.token("shared", "churn")
    clients = [await peers.open_client(*rig.address, token) for _ in range(80)]
    for number, client in enumerate(clients):
        if number % 2:
            await client.call("session.create", {"sessionId": f"s-{number}"})
        if number % 4 == 3:
            client.ask("session.send", {"sessionId": f"s-{number}", "prompt": "[hold]"})
    [key] = [key for key in await rig.keys.list_all() if key.owner.user == "churn"]
    await rig.keys.revoke(key.key_id, time.time())
    for client in clients:
        await client.wait_closed(SECONDS)
        await client.aclose()
    await rig.settled(lambda: set(rig.scripted.runtimes[0].sessions) == {"kept"})
    gc.collect()
    await rig.settled(lambda: rig.baseline() == before)
    assert await keeper.call("ping")


async def test_all_links_are_looked_up_by_one_query_whatever_their_number(rig):
    for user in ("ann", "ann", "ben", "eve"):
        await rig.client("shared", user)
    asked: list[set[str]] = []
    find_dead = rig.keys.find_dead

    async def counted(key_ids, now):
        asked.append(set(key_ids))
        return await find_dead(key_ids, now)

    rig.watch._keys = type("Counting", (), {"find_dead": staticmethod(counted)})()
    await rig.watch.look()
    assert asked[0] == {key.key_id for key in await rig.keys.list_all()}
    assert len(asked[0]) == 3


async def test_while_the_store_is_down_links_stay_and_those_whose_time_is_up_do_not(rig, monkeypatch):
    lasting = await rig.client("alone", "ann")
    key, token = identity.create_key(Owner("alone", "ben"), time.time(), time.time() + 60)
    await rig.keys.add(key)
    expiring = await connect(rig, token)
    with structlog.testing.capture_logs() as logs:
        await rig.keys.aclose()
        pass_time(rig, monkeypatch, 61)
        await expiring.wait_closed(SECONDS)
        await rig.settled(lambda: any(entry["event"] == "principals.check_failed" for entry in logs))
    assert await lasting.call("ping")


# -- connection tokens ------------------------------------------------------------------------------------------------


async def test_a_backends_token_opens_a_link_for_the_user_it_names_and_ends_with_it(rig, monkeypatch):
    key, secret = await signing_key(rig)
    client = await connect(rig, minted(key, secret))
    await client.call("session.create", {"sessionId": "s"})
    assert (await rig.registry.find("s")).owner == Owner("alone", "ann")
    pass_time(rig, monkeypatch, 61)
    await client.wait_closed(SECONDS)


async def test_revoking_a_signing_key_ends_all_its_tokens_and_their_links_and_nobody_elses(rig):
    key, secret = await signing_key(rig)
    other, other_secret = await signing_key(rig)
    clients = [await connect(rig, minted(key, secret, user)) for user in ("ann", "ben")]
    kept = [await connect(rig, minted(other, other_secret)), await rig.client("alone", "ann")]
    await rig.keys.revoke(key.key_id, time.time())
    for client in clients:
        await client.wait_closed(SECONDS)
    await refused(rig, minted(key, secret), "revoked")
    for client in kept:
        assert await client.call("ping")


async def test_a_token_reaches_no_other_tenant_whatever_it_claims(rig):
    key, secret = await signing_key(rig, "shared")
    client = await connect(rig, minted(key, secret, tenant="alone", iss="alone", tid="alone"))
    await client.call("session.create", {"sessionId": "s"})
    assert (await rig.registry.find("s")).owner.tenant == "shared"


async def test_tokens_that_are_not_as_agreed_are_all_refused_alike(rig):
    key, secret = await signing_key(rig)
    other, other_secret = await signing_key(rig, "shared")
    expired, expired_secret = await signing_key(rig, expires_at=time.time() - 1)
    api_key, api_token = identity.create_key(Owner("alone", "ann"), time.time())
    await rig.keys.add(api_key)
    now = time.time()
    unknown = identity.Key("0" * 11 + "1", Owner("alone", "x"), "", 0.0)
    unknown_secret = connection_token.derive_secret(rigs.MASTER_KEY, unknown.key_id)
    tenantless, tenantless_secret = await signing_key(rig, "nowhere")
    for token, reason in (
        (minted(key, other_secret), "signature"),
        (minted(other, secret), "signature"),
        (minted(key, key.secret_hash), "signature"),
        (minted(unknown, unknown_secret), "no such signing key"),
        (minted(expired, expired_secret), "revoked or expired"),
        (minted(api_key, api_token.split("_", 2)[2]), "signature"),
        (minted(api_key, connection_token.derive_secret(rigs.MASTER_KEY, api_key.key_id)), "master key"),
        (minted(key, secret, aud="other"), "audience"),
        (minted(key, secret, exp=now - 1), "expired"),
        (minted(key, secret, exp=now + 4000), "longer"),
        (minted(key, secret, iat=now + 500, exp=now + 600), "not valid yet"),
        (minted(key, secret, user="../ann"), "sub"),
        (minted(key, secret, user="Ann"), "sub"),
        (minted(tenantless, tenantless_secret), "no tenant nowhere"),
        (f"aero_{key.key_id}_{secret}", "scope connect"),
        (secret, "form"),
    ):
        await refused(rig, token, reason)


async def test_a_signing_key_made_under_another_master_key_signs_nothing(rig):
    key, _ = connection_token.create_signing_key(b"another master key" * 2, Owner("alone", "backend"), time.time())
    await rig.keys.add(key)
    await refused(rig, minted(key, connection_token.derive_secret(rigs.MASTER_KEY, key.key_id)), "master key")


async def test_the_gateway_mints_with_one_key_of_its_own_for_each_tenant(rig):
    made = await asyncio.gather(*(rig.minter.mint(Owner("alone", user), 60.0) for user in ("ann", "ben", "eve")))
    for one in made:
        assert await (await connect(rig, one.token)).call("ping")
    await rig.minter.mint(Owner("shared", "ann"), 60.0)
    keys = await rig.keys.list_all()
    assert [(key.owner.tenant, key.owner.user, key.scopes) for key in keys] == [
        ("alone", "gateway", {Scope.SIGN}),
        ("shared", "gateway", {Scope.SIGN}),
    ]
    await rig.keys.revoke(keys[0].key_id, time.time())
    await refused(rig, made[0].token, "revoked")
    assert await (await connect(rig, (await rig.minter.mint(Owner("alone", "ann"), 60.0)).token)).call("ping")


@pytest.mark.parametrize(
    ("owner", "seconds", "error"),
    [
        (Owner("nowhere", "ann"), 60.0, errors.TenantMissing),
        (Owner("alone", "Ann"), 60.0, errors.ConfigError),
        (Owner("alone", "ann"), 3601.0, errors.InvalidParams),
        (Owner("alone", "ann"), 0.0, errors.InvalidParams),
        (Owner("alone", "ann"), float("nan"), errors.InvalidParams),
    ],
)
async def test_the_gateway_mints_nothing_that_it_would_refuse(rig, owner, seconds, error):
    with pytest.raises(error):
        await rig.minter.mint(owner, seconds)
    assert await rig.keys.list_all() == []


# -- issuers ----------------------------------------------------------------------------------------------------------

SIGNER = ECKey.generate_key("P-256")
REGISTRY = jws.JWSRegistry(algorithms=["ES256", "ES384"], strict_check_header=False)


def trust(rig: Rig, **changes: Any) -> GivenKeys:
    keys = GivenKeys(SIGNER)
    given = {"tenants": frozenset({"alone"}), "algorithms": frozenset({"ES256"}), **changes}
    rig.issuers.append((Issuer(ISSUER, "/unused", Terms("app", 0.0), **given), keys))
    return keys


def issued(key: Key = SIGNER, kid: str = "k1", **changes: Any) -> str:
    claims = {"iss": ISSUER, "aud": "app", "sub": "ann", "exp": time.time() + 60, **changes}
    return jws.serialize_compact({"alg": "ES256", "kid": kid}, json.dumps(claims), key, registry=REGISTRY)


async def test_an_issuers_user_is_a_user_of_its_tenant_until_the_token_expires(rig, monkeypatch):
    trust(rig)
    client = await connect(rig, issued())
    await client.call("session.create", {"sessionId": "s"})
    assert (await rig.registry.find("s")).owner == Owner("alone", "ann")
    pass_time(rig, monkeypatch, 61)
    await client.wait_closed(SECONDS)


async def test_the_tenant_can_be_a_claim_from_those_the_issuer_may_speak_for(rig):
    trust(rig, tenants=frozenset({"alone", "team"}), tenant_claim="org", user_claim="email")
    client = await connect(rig, issued(org="team", email="ann@example.com", sub="XYZ"))
    await client.call("session.create", {"sessionId": "s"})
    assert (await rig.registry.find("s")).owner == Owner("team", "ann@example.com")
    for claims in ({"org": "shared", "email": "ann"}, {"email": "ann"}, {"org": ["team"], "email": "ann"}):
        await refused(rig, issued(**claims), "may not speak")
    await refused(rig, issued(org="team"), "email")


async def test_what_an_issuer_did_not_sign_for_us_is_refused_like_everything_else(rig):
    keys = trust(rig)
    stranger = ECKey.generate_key("P-256")
    _, payload, _ = issued().split(".")
    signed = plain(b'{"alg": "HS256", "kid": "k1"}') + f".{payload}"
    confused = f"{signed}.{plain(hmac.digest(SIGNER.as_pem(private=False), signed.encode(), 'sha256'))}"
    for token, reason in (
        (issued(key=stranger), "signature"),
        (issued(kid="k2"), "no such key"),
        (issued(iss="https://other.example"), "no issuer"),
        (issued(aud="other"), "audience"),
        (issued(exp=time.time() - 1), "expired"),
        (issued(sub="x" * 65), "sub"),
        (confused, "signature"),
        (issued()[:-6] + "AAAAAA", "signature"),
    ):
        await refused(rig, token, reason)
    assert await (await connect(rig, issued())).call("ping")
    keys.key = None
    await refused(rig, issued(), "no such key")


async def test_an_algorithm_that_the_issuer_may_not_use_is_refused(rig):
    trust(rig, algorithms=frozenset({"RS256"}))
    await refused(rig, issued(), "algorithm")


async def test_an_issuer_may_have_an_audience_for_each_tenant(rig):
    trust(rig)
    keys = GivenKeys(SIGNER)
    second = Issuer(ISSUER, "/unused", Terms("second", 0.0), frozenset({"team"}), algorithms=frozenset({"ES256"}))
    rig.issuers.append((second, keys))
    client = await connect(rig, issued(aud="second"))
    await client.call("session.create", {"sessionId": "s"})
    assert (await rig.registry.find("s")).owner.tenant == "team"


async def test_links_of_an_issuers_users_are_closed_when_their_tenant_is_removed(rig):
    trust(rig, tenants=frozenset({"stored"}))
    await refused(rig, issued(), "no tenant stored")
    await rig.tenants.add(Tenant("stored", Policy(Isolation.USER)))
    client = await connect(rig, issued())
    assert await client.call("ping")
    await rig.tenants.remove("stored")
    await client.wait_closed(SECONDS)
    await refused(rig, issued(), "no tenant stored")


async def test_links_by_keys_are_closed_when_their_tenant_is_removed(rig):
    await rig.tenants.add(Tenant("stored", Policy(Isolation.SHARED)))
    by_key = await rig.client("stored", "ann")
    key, secret = await signing_key(rig, "stored")
    by_token = await connect(rig, minted(key, secret))
    await rig.tenants.remove("stored")
    for client in (by_key, by_token):
        await client.wait_closed(SECONDS)


async def test_an_issuers_token_from_before_an_erasure_or_that_does_not_say_when_it_was_made_is_refused(rig):
    trust(rig)
    now = time.time()
    erased = Erasure(erasure.digest(Owner("alone", "ann")), now - 5, now + 600)
    assert await (await connect(rig, issued(iat=int(now) - 60))).call("ping")
    await rig.erasures.note(erased, now)
    for old in (issued(iat=int(now) - 60), issued()):
        await refused(rig, old, "erased")
    assert await (await connect(rig, issued(iat=int(now)))).call("ping")
    assert await (await connect(rig, issued(iat=int(now) - 60, sub="ben"))).call("ping")
    assert await (await rig.client("alone", "ann")).call("ping")
