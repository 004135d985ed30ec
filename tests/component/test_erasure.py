"""Erasing: what the search for traces finds, and that a user of whom something is left is never said to be erased."""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
from typer.testing import CliRunner

from aerodrome.adapters.sql import engine, migrate
from aerodrome.adapters.sql.browsers import SqlBrowserStore
from aerodrome.adapters.sql.conversations import SqlConversationStore
from aerodrome.adapters.sql.idempotency import SqlIdempotencyStore
from aerodrome.adapters.sql.keys import SqlKeyStore
from aerodrome.adapters.sql.members import SqlMemberStore
from aerodrome.adapters.sql.people import SqlPersonStore
from aerodrome.adapters.sql.sessions import SqlSessionRegistry
from aerodrome.adapters.sql.usage import SqlUsageStore
from aerodrome.admin import erasure, traces
from aerodrome.admin.erasure import Eraser
from aerodrome.admin.operations import Operations
from aerodrome.admin.server import AdminServer
from aerodrome.admin.traces import Bounds
from aerodrome.admin.views import Facts
from aerodrome.cli.main import app
from aerodrome.core import connection_token, identity
from aerodrome.core.audit import Action, Outcome
from aerodrome.core.browser import Browser
from aerodrome.core.idempotency import KeyedRequest
from aerodrome.core.identity import Owner, Principal, Tenant
from aerodrome.core.membership import SentBy
from aerodrome.core.policy import Policy
from aerodrome.core.session import SessionRecord
from aerodrome.core.usage import DayUsage, Usage
from aerodrome.fleet import spec
from aerodrome.gateway.sharing import SharingStores
from aerodrome.testing import rig as rigs
from aerodrome.testing.peer import RpcError
from aerodrome.testing.scripted_host import ScriptedHost

FACTS = Facts("tenants", "127.0.0.1:1", "state", 50, 120, 60.0, 300.0, 30.0)
ID = "46128bcc-2859-46da-94b4-0d072da1d84b"


@asynccontextmanager
async def opened(directory) -> AsyncIterator[tuple[rigs.Rig, SqlPersonStore, SqlKeyStore]]:
    """A gateway whose admin socket can erase."""
    async with rigs.open_rig(ScriptedHost(), rigs.fleet_settings(directory)) as rig:
        database = await engine.open_database(f"sqlite:///{directory / 'aerodrome.db'}")
        server = AdminServer(directory)
        try:
            await migrate.migrate(database)
            people = SqlPersonStore(database)
            outstanding = erasure.Outstanding(rig.erasures, rig.clock, skew_seconds=0.0, keep_seconds=3600.0)
            site = erasure.Site(directory, rig.pool, rig.services, people, outstanding, rig.find_tenant, rig.gateway)
            eraser = Eraser(site)
            assert await server.start(Operations(rig.pool, FACTS, rig.gateway, None, eraser=eraser))
            yield rig, people, SqlKeyStore(database)
        finally:
            await server.aclose()
            await database.aclose()


async def command(directory, *arguments: str):
    words = ["tenant", "erase", *arguments, "--state-directory", str(directory)]
    return await asyncio.to_thread(CliRunner().invoke, app, words)


@pytest.mark.parametrize("tenant", ["alone", "shared"])
async def test_a_user_with_an_open_link_and_a_turn_is_erased_and_told_so(tmp_path, tenant):
    async with opened(tmp_path) as (rig, _, keys):
        await keys.add(identity.create_key(Owner(tenant, "ann"), 0.0)[0])
        ann, bob = await rig.client(tenant, "ann"), await rig.client(tenant, "bob")
        await ann.call("session.create", {"sessionId": ID, "model": "demo"})
        await bob.call("session.create", {"sessionId": "bobs", "model": "demo"})
        await ann.call("session.send", {"sessionId": ID, "prompt": "[hold]"})
        done = await command(tmp_path, tenant, "ann", "--yes")
        assert (done.exit_code, done.exception) == (0, None)
        assert f"{tenant}/ann: 1 links closed, 1 sessions deleted" in done.output
        assert "rows removed: 1 of keys" in done.output
        await ann.wait_closed()
        assert await rig.registry.find(ID) is None
        assert (await bob.call("ping"))["protocolVersion"] == 3
        assert await rig.registry.find("bobs") is not None
        finished = [entry for entry in rig.audit_log.entries if entry.action is Action.ERASE_FINISH]
        assert [entry.outcome for entry in finished] == [Outcome.DONE]


async def test_what_the_http_edge_and_the_ledger_keep_of_a_user_goes_with_them(tmp_path):
    async with opened(tmp_path) as (_, people, keys):
        database = keys._database
        usage, idempotency = SqlUsageStore(database), SqlIdempotencyStore(database)
        conversations, browsers = SqlConversationStore(database), SqlBrowserStore(database)
        for user in ("ann", "bob"):
            owner = Owner("shared", user)
            await usage.add([DayUsage(owner, "2026-01-02", "m", Usage(1))])
            await idempotency.begin(KeyedRequest(owner, "k", "f", "h", 1.0), 0.0, 9)
            await conversations.save(f"of-{user}", owner, "{}")
            await browsers.add(Browser(f"of {user}", Principal(owner, Policy(), ""), 1.0, 1.0, 9.0), 9)

        done = await command(tmp_path, "shared", "ann", "--yes")

        assert (done.exit_code, done.exception) == (0, None)
        assert "1 of browsers" in done.output
        assert "1 of http_sessions" in done.output
        assert "1 of idempotency_keys" in done.output
        assert "1 of usage_days" in done.output
        assert await people.count(Owner("shared", "ann")) == {}
        kept = {"browsers": 1, "http_sessions": 1, "idempotency_keys": 1, "usage_days": 1}
        assert await people.count(Owner("shared", "bob")) == kept


async def test_what_a_user_was_in_others_sessions_goes_with_them_and_holds_nobody_up(tmp_path):
    async with opened(tmp_path) as (rig, _, keys):
        database = keys._database
        members, records = SqlMemberStore(database), SqlSessionRegistry(database)
        turns = rig.sharing.stores.coordinator
        rig.sharing.stores = SharingStores(members, members, turns, turns)
        for tenant, session_id in (("shared", ID), ("other", "elsewhere")):
            await records.claim(SessionRecord(session_id, Owner(tenant, "bob"), tenant, 1.0, 1.0))
            for user in ("ann", "bob"):
                await members.add_sent(SentBy(session_id, f"of-{user}", "turn", user, 1.0))
        bob, ann = await rig.client("shared", "bob"), await rig.client("shared", "ann")
        await bob.call("session.create", {"sessionId": ID, "model": "demo"})
        await bob.call("aerodrome.members.invite", {"sessionId": ID, "user": "ann", "roles": ["driver"]})
        await ann.call("aerodrome.members.accept", {"sessionId": ID})
        await ann.call("aerodrome.turns.acquire", {"sessionId": ID, "ttlSeconds": 3600})

        done = await command(tmp_path, "shared", "ann", "--yes")

        assert (done.exit_code, done.exception) == (0, None)
        assert "1 of sent_messages" in done.output
        assert [one.user for one in await members.list_sent(ID)] == ["bob"]
        assert [one.user for one in await members.list_sent("elsewhere")] == ["ann", "bob"]
        assert await members.list_of(ID) == []
        await bob.call("session.send", {"sessionId": ID, "prompt": "free"}, 30)


async def test_turns_that_a_link_left_are_ended_with_their_user(tmp_path):
    async with opened(tmp_path) as (rig, _, _keys):
        ann = await rig.client("patient-shared", "ann")
        await ann.call("session.create", {"sessionId": ID, "model": "demo"})
        await ann.call("session.send", {"sessionId": ID, "prompt": "[hold]"})
        await ann.wait_until(lambda: ann.events(ID).count("assistant.turn_start") >= 1)
        await ann.aclose()
        await rig.settled(lambda: len(rig.services.finishing) == 1)
        done = await command(tmp_path, "patient-shared", "ann", "--yes")
        assert done.exit_code == 0
        assert len(rig.services.finishing) == 0
        assert await rig.registry.find(ID) is None


async def test_what_is_left_is_named_the_exit_code_says_so_and_so_does_the_audit_log(tmp_path):
    async with opened(tmp_path) as (rig, _, _keys):
        ann = await rig.client("shared", "ann")
        await ann.call("session.create", {"sessionId": ID, "model": "demo"})
        (tmp_path / "left-over.log").write_text(f"session {ID} was here")
        (tmp_path / "realms" / f"{ID}.bak").parent.mkdir(exist_ok=True)
        (tmp_path / "realms" / f"{ID}.bak").mkdir()
        done = await command(tmp_path, "shared", "ann", "--yes")
        assert done.exit_code == 1
        assert "LEFT: left-over.log (its content)" in done.output
        assert f"LEFT: realms/{ID}.bak (its name)" in done.output
        (finished,) = [entry for entry in rig.audit_log.entries if entry.action is Action.ERASE_FINISH]
        assert finished.outcome is Outcome.FAILED
        (tmp_path / "left-over.log").unlink()
        (tmp_path / "realms" / f"{ID}.bak").rmdir()
        assert (await command(tmp_path, "shared", "ann", "--yes")).exit_code == 0


async def test_a_session_that_its_runtime_does_not_delete_is_left_with_its_record(tmp_path, monkeypatch):
    async with opened(tmp_path) as (rig, _, _keys):
        ann = await rig.client("shared", "ann")
        await ann.call("session.create", {"sessionId": ID, "model": "demo"})

        async def refuse(session_id: str, link) -> str:
            return "the disk is read-only"

        monkeypatch.setattr(erasure.deletion, "_delete", refuse)
        done = await command(tmp_path, "shared", "ann", "--yes")
        assert done.exit_code == 1
        assert f"LEFT: session {ID} in realm shared: failed" in done.output
        assert await rig.registry.find(ID) is not None


async def test_without_yes_it_asks_and_no_is_no(tmp_path):
    async with opened(tmp_path) as (rig, _, _keys):
        await (await rig.client("shared", "ann")).call("session.create", {"sessionId": ID, "model": "demo"})
        done = await command(tmp_path, "shared", "ann")
        assert done.exit_code == 1
        assert "for good?" in done.output
        assert await rig.registry.find(ID) is not None


async def test_a_users_own_realm_is_removed_whole(tmp_path):
    async with opened(tmp_path) as (rig, _, _keys):
        await (await rig.client("alone", "ann")).call("session.create", {"sessionId": ID, "model": "demo"})
        realm = rigs.placement.realm_of(Owner("alone", "ann"), rigs.TENANTS["alone"])
        root = spec.directories_of(realm, tmp_path).root
        (root / "home").mkdir(parents=True, exist_ok=True)
        (root / "home" / "notes").write_text("hers")
        outside = tmp_path / "outside"
        outside.mkdir()
        (root / "home" / "way-out").symlink_to(outside)
        assert (await command(tmp_path, "alone", "ann", "--yes")).exit_code == 0
        assert not root.exists()
        assert outside.exists()


# -- below a work root ------------------------------------------------------------------------------------------------


async def work_below(rig, root, tenant: str = "shared") -> None:
    """Have the sessions of a tenant work elsewhere from now on."""
    policy = dataclasses.replace(rig.configured[tenant].policy, work_root=str(root))
    await rig.policies.replace_configured({**rig.configured, tenant: Tenant(tenant, policy, "config")})


@pytest.mark.parametrize("tenant", ["shared", "guarded"])
async def test_directories_below_a_work_root_go_with_their_user_and_nobody_elses(tmp_path, tenant):
    root, outside = tmp_path / "srv" / "work", tmp_path / "outside"
    outside.mkdir()
    (outside / "kept").touch()
    async with opened(tmp_path / "state") as (rig, _, _keys):
        await work_below(rig, root, tenant)
        ann, bob = await rig.client(tenant, "ann"), await rig.client(tenant, "bob")
        for client, session_id in ((ann, ID), (ann, "second"), (bob, "bobs")):
            await client.call("session.create", {"sessionId": session_id, "model": "demo"})
        (root / tenant / "ann" / ID / "deep").mkdir()
        (root / tenant / "ann" / ID / "deep" / "notes").write_text("hers")
        (root / tenant / "ann" / ID / "way-out").symlink_to(outside)
        done = await command(tmp_path / "state", tenant, "ann", "--yes")
        assert (done.exit_code, done.exception) == (0, None), done.output
        assert not (root / tenant / "ann").exists()
        assert (root / tenant / "bob" / "bobs").is_dir()
        assert (outside / "kept").exists()


async def test_what_the_gateway_did_not_make_below_a_work_root_stays_and_is_named_as_left(tmp_path):
    root = tmp_path / "work"
    async with opened(tmp_path / "state") as (rig, _, _keys):
        await work_below(rig, root)
        await (await rig.client("shared", "ann")).call("session.create", {"sessionId": ID, "model": "demo"})
        (root / "shared" / "ann" / "by-the-operator").mkdir()
        done = await command(tmp_path / "state", "shared", "ann", "--yes")
        assert done.exit_code == 1
        assert f"LEFT: {root}/shared/ann: 1 entries" in done.output
        assert [path.name for path in (root / "shared" / "ann").iterdir()] == ["by-the-operator"]
        (root / "shared" / "ann" / "by-the-operator").rmdir()
        assert (await command(tmp_path / "state", "shared", "ann", "--yes")).exit_code == 0
        assert not (root / "shared" / "ann").exists()


@pytest.mark.parametrize("where", ["shared", "shared/ann", f"shared/ann/{ID}"])
async def test_no_link_below_a_work_root_is_followed_out_of_it(tmp_path, where):
    root, outside = tmp_path / "work", tmp_path / "outside"
    async with opened(tmp_path / "state") as (rig, _, _keys):
        await work_below(rig, root)
        await (await rig.client("shared", "ann")).call("session.create", {"sessionId": ID, "model": "demo"})
        (root / where).rename(outside)  # and what was there is outside now
        (root / where).symlink_to(outside)
        (outside / "kept").touch()
        done = await command(tmp_path / "state", "shared", "ann", "--yes")
        assert done.exit_code == 1
        assert f"LEFT: {root}/shared/ann" in done.output
        assert (outside / "kept").exists()
        assert (root / where).is_symlink()


# -- tokens that are still out ----------------------------------------------------------------------------------------


async def signed(keys, user: str, issued_at: float) -> str:
    key, secret = connection_token.create_signing_key(rigs.MASTER_KEY, Owner("shared", "backend"), 0.0)
    await keys.add(key)
    return connection_token.sign(key.key_id, secret, user, issued_at, issued_at + 600)


@pytest.mark.parametrize("user", ["ann", None])
async def test_a_token_made_before_its_user_was_erased_proves_nobody_and_one_made_after_does(tmp_path, user):
    async with opened(tmp_path) as (rig, _, _keys):
        now = rig.clock.now()
        old, bobs = await signed(rig.keys, "ann", now - 10), await signed(rig.keys, "bob", now - 10)
        await (await rig.stranger()).call("connect", {"token": old})
        named = [user] if user is not None else []
        assert (await command(tmp_path, "shared", *named, "--yes")).exit_code == 0
        with pytest.raises(RpcError, match="AUTHENTICATION_FAILED"):
            await (await rig.stranger()).call("connect", {"token": old})
        if user is not None:
            await (await rig.stranger()).call("connect", {"token": bobs})
        else:
            with pytest.raises(RpcError, match="AUTHENTICATION_FAILED"):
                await (await rig.stranger()).call("connect", {"token": bobs})
        # A token says in whole seconds when it was made: one of the second of the erasure counts as made before it.
        following = int(rig.clock.now()) + 1
        await rig.settled(lambda: rig.clock.now() > following)
        again = await signed(rig.keys, "ann", following)
        await (await rig.stranger()).call("connect", {"token": again})
        await rig.client("shared", "ann")  # a new key is new


# -- rows -------------------------------------------------------------------------------------------------------------


async def test_rows_leave_nothing_in_the_files_after_a_purge(tmp_path):
    async with opened(tmp_path) as (_, people, keys):
        for user in ("ann-canary", "bob"):
            for _ in range(50):
                await keys.add(identity.create_key(Owner("acme", user), 0.0)[0])
        assert await people.count(Owner("acme", "ann-canary")) == {"keys": 50}
        assert await people.erase(Owner("acme", "ann-canary")) == {"keys": 50}
        assert await people.erase(Owner("acme", "ann-canary")) == {}
        await people.purge()
        for path in tmp_path.glob("aerodrome.db*"):
            assert b"ann-canary" not in path.read_bytes()
        assert len(await keys.list_all("acme")) == 50
        assert await people.list_users("acme") == ["bob"]


# -- the search -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("before", [0, 1024 * 1024 - 10, 3 * 1024 * 1024])
def test_an_id_is_found_wherever_it_stands_in_a_file(tmp_path, before):
    (tmp_path / "big").write_bytes(b"x" * before + ID.encode() + b"x" * 100)
    assert traces.search(tmp_path, [ID]).found == ["big (its content)"]


def test_an_id_is_found_in_names_of_files_directories_and_links(tmp_path):
    (tmp_path / f"{ID}.lock").touch()
    (tmp_path / ID).mkdir()
    (tmp_path / f"to-{ID}").symlink_to("/nowhere")
    assert len(traces.search(tmp_path, [ID]).found) == 3


def test_a_short_id_or_name_is_no_part_of_a_longer_one(tmp_path):
    (tmp_path / "text").write_text("acme/anna, chatter, acme/ann.b")
    (tmp_path / "chatter").touch()
    assert traces.search(tmp_path, ["acme/ann", "chat"]).found == []
    (tmp_path / "text").write_text("user:acme/ann ")
    (tmp_path / "chat").touch()
    assert sorted(traces.search(tmp_path, ["acme/ann", "chat"]).found) == ["chat (its name)", "text (its content)"]


def test_many_ids_are_found_each(tmp_path):
    ids = [f"{number:08d}-2859-46da-94b4-0d072da1d84b" for number in range(1000)]
    (tmp_path / "one").write_text(ids[0])
    (tmp_path / "last").write_text(ids[-1])
    assert len(traces.search(tmp_path, ids).found) == 2


@pytest.mark.parametrize("bounds", [Bounds(files=1), Bounds(content_bytes=5)])
def test_a_search_that_reaches_its_bounds_says_so(tmp_path, bounds):
    for name in "abc":
        (tmp_path / name).write_bytes(b"0123456789")
    assert traces.search(tmp_path, [ID], bounds).is_complete is False
    assert traces.search(tmp_path, [ID]).is_complete is True


def test_links_are_not_followed(tmp_path):
    (tmp_path / "state").mkdir()
    (tmp_path / "elsewhere").write_text(ID)
    (tmp_path / "state" / "link").symlink_to(tmp_path / "elsewhere")
    assert traces.search(tmp_path / "state", [ID]).found == []
