"""Who may name a session, who hears of it, and when its id is free again."""

from __future__ import annotations

import asyncio

import pytest

from aerodrome import errors
from aerodrome.core.identity import Owner
from aerodrome.testing.peer import RpcError

#: Two principals who share runtimes: users of one tenant, or of two.
STRANGERS = [
    (("team", "ann"), ("team", "ben")),
    (("shared", "ann"), ("shared", "ben")),
    (("shared", "ann"), ("other", "x")),
]


@pytest.mark.parametrize(("owner", "stranger"), STRANGERS)
async def test_events_and_lifecycle_reach_the_owner_and_nobody_else(rig, owner, stranger):
    owning, other = await rig.client(*owner), await rig.client(*stranger)
    await other.call("session.create", {"sessionId": "theirs"})
    await owning.call("session.create", {"sessionId": "mine"})
    await owning.call("session.send", {"sessionId": "mine", "prompt": "secret"})
    await owning.wait_for_event("mine", "session.idle")
    # What the runtime says on a stranger's own connection of a session that is not theirs is dropped all the same.
    runtime = rig.scripted.runtimes[0]
    for found in runtime.peers:
        found.notify("session.event", {"sessionId": "mine", "event": {"type": "leak", "data": {}}})
        found.notify("session.lifecycle", {"type": "session.leaked", "sessionId": "mine"})
        found.notify("session.event", {"sessionId": "nobodys", "event": {"type": "leak", "data": {}}})
    await owning.wait_for_event("mine", "leak")
    await other.call("session.getMessages", {"sessionId": "theirs"})
    named = {heard.params.get("sessionId") for heard in other.heard}
    assert named == {"theirs"}
    assert "nobodys" not in {heard.params.get("sessionId") for heard in owning.heard}
    assert [params["sessionId"] for params in owning.notifications("session.lifecycle")].count("mine") >= 2


@pytest.mark.parametrize(("owner", "stranger"), STRANGERS)
async def test_requests_of_the_runtime_about_a_session_reach_the_owner_only(rig, owner, stranger):
    owning, other = await rig.client(*owner), await rig.client(*stranger)
    await owning.call("session.create", {"sessionId": "mine"})
    await other.call("session.create", {"sessionId": "theirs"})
    runtime = rig.scripted.runtimes[0]
    [wrong] = runtime.sessions["theirs"].attached
    with pytest.raises(RpcError, match="Unhandled method"):
        await wrong.call("userInput.request", {"sessionId": "mine", "question": "?"})
    assert other.heard == [heard for heard in other.heard if heard.params.get("sessionId") == "theirs"]


async def test_an_owner_with_a_link_that_has_no_upstream_yet_hears_of_their_sessions_too(rig):
    busy, idle = await rig.client("shared", "ann"), await rig.client("shared", "ann")
    await busy.call("session.create", {"sessionId": "mine"})
    await idle.wait_until(lambda: idle.notifications("session.lifecycle"))
    assert {params["sessionId"] for params in idle.notifications("session.lifecycle")} == {"mine"}


@pytest.mark.parametrize(("owner", "stranger"), STRANGERS)
async def test_creating_a_foreign_id_is_refused_and_never_reaches_the_runtime(rig, owner, stranger):
    owning, other = await rig.client(*owner), await rig.client(*stranger)
    await owning.call("session.create", {"sessionId": "mine"})
    before = len(rig.scripted.runtimes[0].called("session.create"))
    with pytest.raises(RpcError, match="not available") as raised:
        await other.call("session.create", {"sessionId": "mine"})
    assert raised.value.data["code"] == "already_exists"
    assert len(rig.scripted.runtimes[0].called("session.create")) == before
    assert (await owning.call("session.getMessages", {"sessionId": "mine"}))["events"]


async def test_where_everyone_has_their_own_runtime_a_foreign_id_is_refused_as_well_and_left_to_its_owner(rig):
    owning, other = await rig.client("alone", "ann"), await rig.client("alone", "ben")
    await owning.call("session.create", {"sessionId": "mine"})
    with pytest.raises(RpcError, match="not available"):
        await other.call("session.create", {"sessionId": "mine"})
    assert (await rig.registry.find("mine")).owner == Owner("alone", "ann")
    await rig.settled(lambda: "mine" not in rig.scripted.runtimes[1].sessions)
    await owning.call("session.send", {"sessionId": "mine", "prompt": "hello"})
    await owning.wait_for_event("mine", "session.idle")


async def test_a_foreign_id_is_refused_at_once_though_the_runtime_died_before_that_was_known(rig):
    owning, other = await rig.client("alone", "ann"), await rig.client("alone", "ben")
    await owning.call("session.create", {"sessionId": "mine"})
    await other.call("session.create", {"sessionId": "warm"})
    claim, may_claim = rig.registry.claim, asyncio.Event()

    async def slow_claim(*asked):
        await may_claim.wait()
        return await claim(*asked)

    rig.registry.claim = slow_claim
    create = other.ask("session.create", {"sessionId": "mine"})
    await rig.scripted.runtimes[1].wait_for_call("session.create", 2)
    assert await other.call("session.getMessages", {"sessionId": "warm"}), "the create was answered before this"
    rig.scripted.processes[1].kill()
    await rig.settled(lambda: rig.upstreams() == 1)
    may_claim.set()
    with pytest.raises(RpcError):
        async with asyncio.timeout(30):
            await create


async def test_of_many_who_create_one_id_at_once_exactly_one_gets_it(rig):
    clients = [await rig.client("shared", f"user{number}") for number in range(10)]
    answers = [client.ask("session.create", {"sessionId": "contested"}) for client in clients]
    outcomes = await asyncio.gather(*answers, return_exceptions=True)
    assert sum(not isinstance(outcome, Exception) for outcome in outcomes) == 1
    assert len(rig.scripted.runtimes[0].called("session.create")) == 1


async def test_the_owner_may_create_an_id_again(rig):
    client = await rig.client("shared")
    await client.call("session.create", {"sessionId": "mine"})
    assert (await client.call("session.create", {"sessionId": "mine"}))["sessionId"] == "mine"


@pytest.mark.parametrize("tenant", ["alone", "shared"])
async def test_a_create_that_fails_gives_the_id_back(rig, tenant):
    client = await rig.client(tenant, "ann")
    await client.call("session.create", {"sessionId": "warm"})

    async def fail(_peer, _params):
        raise RpcError(-32603, "Request session.create failed with message: no")

    rig.scripted.runtimes[0].on["session.create"] = fail
    with pytest.raises(RpcError, match="no"):
        await client.call("session.create", {"sessionId": "wanted"})
    assert await rig.registry.find("wanted") is None
    assert rig.router.find(rig.realm(tenant, "ann"), "wanted") is None
    del rig.scripted.runtimes[0].on["session.create"]
    other = await rig.client(tenant, "ben")
    assert (await other.call("session.create", {"sessionId": "wanted"}))["sessionId"] == "wanted"


async def test_a_create_that_fails_on_an_id_that_was_the_callers_before_leaves_it_theirs(rig):
    client = await rig.client("shared")
    await client.call("session.create", {"sessionId": "mine"})

    async def fail(_peer, _params):
        raise RpcError(-32603, "no")

    rig.scripted.runtimes[0].on["session.create"] = fail
    with pytest.raises(RpcError):
        await client.call("session.create", {"sessionId": "mine"})
    assert await rig.registry.find("mine") is not None


async def test_a_create_refused_by_policy_claims_nothing(rig):
    client = await rig.client("shared")
    with pytest.raises(RpcError) as raised:
        await client.call("session.create", {"sessionId": "wanted", "workingDirectory": "/etc"})
    assert raised.value.number == -32010
    assert await rig.registry.find("wanted") is None
    assert rig.scripted.processes == []


@pytest.mark.parametrize("session_id", ["../x", "a/b", "a b", "x" * 251, "ü", "a.b", 5, ["a"], {"a": 1}, True])
@pytest.mark.parametrize("tenant", ["alone", "shared"])
async def test_an_id_that_a_runtime_would_not_take_is_refused_before_any_cost(rig, tenant, session_id):
    client = await rig.client(tenant)
    with pytest.raises(RpcError) as raised:
        await client.call("session.create", {"sessionId": session_id})
    assert raised.value.number == -32602
    assert rig.scripted.processes == []


@pytest.mark.parametrize("session_id", [None, ""])
async def test_a_create_without_an_id_gets_one_that_is_recorded_before_the_answer(rig, session_id):
    client = await rig.client("shared")
    created = await client.call("session.create", {} if session_id is None else {"sessionId": session_id})
    record = await rig.registry.find(created["sessionId"])
    assert record is not None
    assert record.owner == Owner("shared", "user")


async def test_deleting_frees_the_id_for_others(rig):
    owning, other = await rig.client("shared", "ann"), await rig.client("other", "ben")
    await owning.call("session.create", {"sessionId": "contested"})
    assert (await owning.call("session.delete", {"sessionId": "contested"}))["success"] is True
    assert (await other.call("session.create", {"sessionId": "contested"}))["sessionId"] == "contested"
    with pytest.raises(RpcError, match="not found"):
        await owning.call("session.send", {"sessionId": "contested", "prompt": "x"})


async def test_a_deletion_that_fails_leaves_the_session_to_its_owner(rig):
    owning, other = await rig.client("shared", "ann"), await rig.client("other", "ben")
    await owning.call("session.create", {"sessionId": "mine"})

    async def busy(_peer, _params):
        return {"success": False, "error": "it is currently in use by another process"}

    rig.scripted.runtimes[0].on["session.delete"] = busy
    assert (await owning.call("session.delete", {"sessionId": "mine"}))["success"] is False
    with pytest.raises(RpcError, match="not available"):
        await other.call("session.create", {"sessionId": "mine"})


@pytest.mark.parametrize(("owner", "stranger"), STRANGERS)
async def test_lists_and_the_last_id_hold_ones_own_only(rig, owner, stranger):
    owning, other = await rig.client(*owner), await rig.client(*stranger)
    for session_id in ("mine-1", "mine-2"):
        await owning.call("session.create", {"sessionId": session_id})
    assert await other.call("session.getLastId") == {}
    assert await other.call("session.list") == {"sessions": []}
    await other.call("session.create", {"sessionId": "theirs"})
    listed = await owning.call("session.list")
    assert sorted(found["sessionId"] for found in listed["sessions"]) == ["mine-1", "mine-2"]
    assert [found["sessionId"] for found in (await other.call("session.list"))["sessions"]] == ["theirs"]
    await owning.call("session.send", {"sessionId": "mine-1", "prompt": "x"})
    assert await owning.call("session.getLastId") == {"sessionId": "mine-1"}
    assert await other.call("session.getLastId") == {"sessionId": "theirs"}


FOREIGN = ["session.send", "session.abort", "session.getMessages", "session.resume", "session.detach", "session.delete"]


@pytest.mark.parametrize("method", FOREIGN)
@pytest.mark.parametrize(("owner", "stranger"), STRANGERS)
async def test_a_foreign_session_answers_exactly_like_a_missing_one_and_hears_nothing(rig, owner, stranger, method):
    owning, other = await rig.client(*owner), await rig.client(*stranger)
    await owning.call("session.create", {"sessionId": "mine"})
    await other.call("session.create", {"sessionId": "theirs"})
    runtime = rig.scripted.runtimes[0]
    before = len(runtime.calls)

    async def outcome(session_id):
        try:
            return str(await other.call(method, {"sessionId": session_id, "prompt": "x"})).replace(session_id, "ID")
        except RpcError as error:
            return error.number, error.message.replace(session_id, "ID"), error.data

    assert await outcome("mine") == await outcome("none")
    assert len(runtime.calls) == before
    assert "mine" in runtime.sessions


async def test_a_guarded_session_is_locked_down_before_anything_that_names_it_reaches_it(rig):
    """A client that does not wait for the answer to create must not get a prompt in before the restrictions."""
    client = await rig.client("shared")
    asked = [
        client.ask("session.create", {"sessionId": "s"}),
        client.ask("session.send", {"sessionId": "s", "prompt": "early"}),
        client.ask("session.resume", {"sessionId": "s"}),
        client.ask("session.send", {"sessionId": "s", "prompt": "late"}),
    ]
    await asyncio.gather(*asked)
    methods = [call.method for call in rig.scripted.runtimes[0].calls if call.method.startswith("session.")]
    opening, update, send = "session.create", "session.options.update", "session.send"
    assert methods == [opening, update, send, "session.resume", update, send]


async def test_a_guarded_session_that_cannot_be_locked_down_cannot_be_used(rig):
    client = await rig.client("shared")
    await client.call("session.create", {"sessionId": "warm"})
    runtime = rig.scripted.runtimes[0]

    async def fail(_peer, _params):
        raise RpcError(-32603, "no such option")

    runtime.on["session.options.update"] = fail
    with pytest.raises(RpcError, match="could not be restricted"):
        await client.call("session.create", {"sessionId": "open"})
    assert "open" not in runtime.sessions
    with pytest.raises(RpcError, match="not found"):
        await client.call("session.send", {"sessionId": "open", "prompt": "x"})


async def test_a_client_that_owes_the_runtime_all_it_may_cannot_keep_a_session_from_being_locked_down(open_rig):
    rig = await open_rig(max_requests_in_flight=8)
    client = await rig.client("shared")
    await client.call("session.create", {"sessionId": "warm"})
    runtime = rig.scripted.runtimes[0]
    answer_create: asyncio.Future[None] = asyncio.get_running_loop().create_future()
    answer_rest: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    async def slow_create(peer, params):
        await answer_create
        return runtime._open(peer, params["sessionId"], params)

    async def hold(_peer, _params):
        await answer_rest
        return {"events": []}

    runtime.on["session.create"] = slow_create
    runtime.on["session.getMessages"] = hold
    create = client.ask("session.create", {"sessionId": "wanted"})
    await runtime.wait_for_call("session.create", 2)
    held = [client.ask("session.getMessages", {"sessionId": "warm"}) for _ in range(20)]
    await rig.settled(lambda: sum(answer.done() for answer in held) == 13)
    answer_create.set_result(None)
    locked = await runtime.wait_for_call("session.options.update", 2)
    assert locked.params["sessionId"] == "wanted"
    assert (await create)["sessionId"] == "wanted"
    answer_rest.set_result(None)


async def test_a_connect_that_the_runtime_refuses_costs_nobody_else_their_runtime(rig):
    bystander = await rig.client("shared", "ann")
    await bystander.call("session.create", {"sessionId": "mine"})
    client = await rig.client("other", "ben", supportedTaskKinds="nonsense")
    for answer in [client.ask("session.create", {"sessionId": "theirs"}) for _ in range(4)]:
        with pytest.raises(RpcError, match="Invalid connect request") as raised:
            await answer
        assert raised.value.number == -32602
    assert (await bystander.call("session.getMessages", {"sessionId": "mine"}))["events"]
    assert len(rig.scripted.alive) == len(rig.scripted.processes) == 1
    await rig.settled(lambda: rig.links() == 1)
    assert await rig.registry.find("theirs") is None


async def test_a_deadline_of_the_ownership_cache_is_kept_and_storage_is_asked_again(open_rig):
    rig = await open_rig(ownership_cache_seconds=0.0)
    client = await rig.client("shared", "ann")
    await client.call("session.create", {"sessionId": "mine"})
    await rig.registry.forget("mine", Owner("shared", "ann"))
    with pytest.raises(RpcError, match="not found"):
        await client.call("session.getMessages", {"sessionId": "mine"})


async def test_a_store_that_does_not_answer_is_a_retryable_error_and_never_a_pass(open_rig):
    rig = await open_rig(ownership_cache_seconds=0.0)
    client = await rig.client("shared")
    await client.call("session.create", {"sessionId": "mine"})
    await rig.registry.aclose()
    for method, params in (("session.getMessages", {"sessionId": "mine"}), ("session.create", {"sessionId": "new"})):
        with pytest.raises(RpcError) as raised:
            await client.call(method, params)
        assert (raised.value.number, raised.value.data["retryable"]) == (-32015, True)
    assert errors.WIRE["store_unavailable"].jsonrpc == -32015
    assert await client.call("ping")
