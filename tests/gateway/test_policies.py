"""Policies over the gateway: caps of sessions and turns, changes under open links, working directories, users of a tenant."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import pytest

from aerodrome import errors
from aerodrome.adapters.memory.registry import MemoryTenantStore
from aerodrome.core import egress
from aerodrome.core.identity import Owner, Tenant
from aerodrome.core.override import Override
from aerodrome.core.policy import ClientLoss, HostTools, Isolation, Policy, Trust
from aerodrome.core.session import SessionRecord
from aerodrome.gateway import reaper
from aerodrome.gateway.policy_watch import PolicyWatch
from aerodrome.testing.peer import RpcError

REFUSED = errors.WIRE["policy_rejected"].jsonrpc
LATER = errors.WIRE["over_capacity"].jsonrpc
EVERYONE = ["alone", "guarded", "team", "shared"]


async def put(rig, name: str, users: dict[str, Override] | None = None, **changes) -> None:
    """Change the policy of a configured tenant, as a reload does."""
    tenant = rig.configured[name]
    changed = Tenant(name, replace(tenant.policy, **changes), "config", users or {})
    await rig.policies.replace_configured({**rig.configured, name: changed})


async def create(client, session_id: str, **more) -> None:
    await client.call("session.create", {"sessionId": session_id, "model": "demo", **more})


async def begin_turn(client, session_id: str) -> None:
    """Begin a turn that a test ends."""
    await client.call("session.send", {"sessionId": session_id, "prompt": "[hold]"})
    await client.wait_for_event(session_id, "assistant.turn_start")


async def refusal(call, number: int) -> RpcError:
    with pytest.raises(RpcError) as refused:
        await call
    assert refused.value.number == number, refused.value
    return refused.value


@pytest.mark.parametrize("tenant", EVERYONE)
async def test_a_session_over_the_users_cap_is_refused_for_good_and_leaves_nothing(rig, tenant):
    await put(rig, tenant, max_sessions_per_user=2)
    client = await rig.client(tenant)
    await create(client, "a")
    await create(client, "b")

    refused = await refusal(create(client, "c"), REFUSED)

    assert refused.data == {"code": "policy_rejected", "retryable": False, "limit": "max_sessions_per_user", "cap": 2}
    assert await rig.registry.find("c") is None
    assert [call["sessionId"] for call in rig.scripted.runtimes[-1].called("session.create")] == ["a", "b"]
    await client.call("session.delete", {"sessionId": "a"})
    await create(client, "c")
    await create(await rig.client(tenant, "another"), "d")


async def test_the_tenants_cap_counts_all_its_users_and_concurrent_creates_never_pass_it(rig):
    await put(rig, "shared", max_sessions_per_tenant=3)
    clients = [await rig.client("shared", f"user{number}") for number in range(6)]

    outcomes = await asyncio.gather(
        *(create(client, f"s{at}") for at, client in enumerate(clients)), return_exceptions=True
    )

    assert sorted(type(outcome).__name__ for outcome in outcomes) == ["NoneType"] * 3 + ["RpcError"] * 3
    await create(await rig.client("other"), "of-another-tenant")


@pytest.mark.parametrize("tenant", EVERYONE)
async def test_a_turn_over_the_cap_is_refused_until_one_ends_and_a_queued_message_is_no_turn(rig, tenant):
    await put(rig, tenant, max_turns_per_user=1)
    client, second = await rig.client(tenant), await rig.client(tenant)
    await create(client, "a")
    await create(second, "b")
    await begin_turn(client, "a")

    refused = await refusal(second.call("session.send", {"sessionId": "b", "prompt": "x"}), LATER)
    assert refused.data == {"code": "over_capacity", "retryable": True, "limit": "max_turns_per_user", "cap": 1}
    await client.call("session.send", {"sessionId": "a", "prompt": "queued"})

    await client.call("session.abort", {"sessionId": "a"})
    await client.wait_for_event("a", "session.idle")
    await second.call("session.send", {"sessionId": "b", "prompt": "x"})
    await second.wait_for_event("b", "session.idle")


async def test_turns_of_all_users_count_for_the_tenant_and_those_of_others_do_not(rig):
    await put(rig, "shared", max_turns_per_tenant=1)
    ann, ben, stranger = await rig.client("shared", "ann"), await rig.client("shared", "ben"), await rig.client("other")
    for client, session_id in ((ann, "a"), (ben, "b"), (stranger, "c")):
        await create(client, session_id)
    await begin_turn(stranger, "c")
    await begin_turn(ann, "a")

    assert (
        "max_turns_per_tenant"
        in (await refusal(ben.call("session.send", {"sessionId": "b", "prompt": "x"}), LATER)).message
    )


async def test_the_next_call_of_an_open_link_is_judged_by_the_new_policy(rig):
    client = await rig.client("guarded")
    await create(client, "a", mcpServers={})
    server = {"m": {"type": "http", "url": "https://tools.example", "tools": ["*"]}}
    await refusal(create(client, "b", mcpServers=server), REFUSED)

    await put(rig, "guarded", mcp_urls=("https://tools.example",))
    await create(client, "b", mcpServers=server)
    await put(rig, "guarded", mcp_urls=())
    await refusal(create(client, "c", mcpServers=server), REFUSED)


async def test_an_open_session_comes_back_with_what_its_client_asked_for_as_policy_now_has_it(rig):
    client = await rig.client("shared")
    offered = [{"name": "keep"}, {"name": "drop"}]
    await create(client, "a", tools=offered)
    await client.call("session.send", {"sessionId": "a", "prompt": "x"})
    await client.wait_for_event("a", "session.idle")

    await put(rig, "shared", tools=("custom:keep",))
    await client.call("session.send", {"sessionId": "a", "prompt": "x"})
    await client.wait_for_event("a", "session.idle", 2)
    await put(rig, "shared", tools=None)
    await client.call("session.send", {"sessionId": "a", "prompt": "x"})
    await client.wait_for_event("a", "session.idle", 3)

    resumed = rig.scripted.runtimes[0].called("session.resume")
    assert [[tool["name"] for tool in params["tools"]] for params in resumed] == [["keep"], ["keep", "drop"]]
    assert client.stray == []


async def test_a_turn_by_another_link_of_the_owner_does_not_run_under_the_old_policy(rig):
    holder, other = await rig.client("shared"), await rig.client("shared")
    await create(holder, "a", tools=[{"name": "keep"}, {"name": "drop"}])
    await holder.call("session.send", {"sessionId": "a", "prompt": "x"})
    await holder.wait_for_event("a", "session.idle")

    await put(rig, "shared", tools=("custom:keep",))
    await other.call("session.send", {"sessionId": "a", "prompt": "x"})
    await holder.wait_for_event("a", "session.idle", 2)

    [resumed] = rig.scripted.runtimes[0].called("session.resume")
    assert [tool["name"] for tool in resumed["tools"]] == ["keep"]


async def test_a_change_that_concerns_no_tool_or_model_leaves_open_sessions_where_they_are(rig):
    client = await rig.client("shared")
    await create(client, "a")
    await put(rig, "shared", max_turns_per_user=5, client_loss=ClientLoss.FINISH)

    await client.call("session.send", {"sessionId": "a", "prompt": "x"})
    await client.wait_for_event("a", "session.idle")
    assert rig.scripted.runtimes[0].called("session.resume") == []


@pytest.mark.parametrize(
    ("tenant", "change"),
    [
        ("alone", {"trust": Trust.LIMITED}),
        ("guarded", {"trust": Trust.FULL}),
        ("guarded", {"isolation": Isolation.TENANT}),
        ("team", {"isolation": Isolation.SHARED}),
        ("team", {"host_tools": True}),
        ("patient", {"trust": Trust.LIMITED}),
    ],
)
async def test_a_change_of_what_a_runtime_is_closes_the_links_and_the_next_one_gets_another_runtime(
    rig, tenant, change
):
    client = await rig.client(tenant)
    await create(client, "a")
    await begin_turn(client, "a")
    bystander = await rig.client("other")

    await put(rig, tenant, **change)

    await client.wait_closed()
    again = await rig.client(tenant)
    await create(again, "b")
    assert len(rig.scripted.runtimes) == 2
    await rig.settled(lambda: len(rig.pool.handles()) == 1)
    await bystander.call("ping")


async def test_turns_whose_client_has_left_end_when_their_tenants_isolation_changes(rig):
    client = await rig.client("patient")
    await create(client, "a")
    await begin_turn(client, "a")
    await client.aclose()
    await rig.settled(lambda: len(rig.services.finishing) == 1)

    await put(rig, "patient", trust=Trust.LIMITED)

    await rig.settled(lambda: len(rig.services.finishing) == 0)


async def test_a_tenant_that_is_removed_loses_its_links(rig):
    client, other = await rig.client("guarded"), await rig.client("other")
    await rig.policies.replace_configured({n: tenant for n, tenant in rig.configured.items() if n != "guarded"})
    await client.wait_closed()
    await other.call("ping")


async def test_tenants_of_the_database_are_read_again(rig):
    await rig.tenants.add(Tenant("stored", Policy(Isolation.SHARED)))
    client = await rig.client("stored")
    await create(client, "a")

    await rig.tenants.update(Tenant("stored", Policy(Isolation.SHARED, models=("demo",))))
    assert await rig.policies.refresh() == 1

    await refusal(client.call("session.create", {"model": "evil"}), REFUSED)
    assert await rig.policies.refresh() == 0


class Broken:
    """A store in which one tenant's policy cannot be read any more."""

    def __init__(self, store: MemoryTenantStore) -> None:
        self._store = store
        self.broken = ""

    async def list_all(self):
        if self.broken:
            raise errors.ConfigError("not readable")
        return await self._store.list_all()

    async def find(self, name):
        if name == self.broken:
            raise errors.ConfigError("not readable")
        return await self._store.find(name)


async def test_a_policy_that_cannot_be_read_leaves_the_old_one_in_force_and_the_others_change(rig):
    store = Broken(rig.tenants)
    policies = PolicyWatch(rig.gateway, rig.configured, store, rig.pool.handles)
    for name in ("one", "two"):
        await rig.tenants.add(Tenant(name, Policy(Isolation.SHARED)))
    one, two = await rig.client("one"), await rig.client("two")
    await policies.refresh()

    store.broken = "one"
    await rig.tenants.update(Tenant("two", Policy(Isolation.SHARED, models=("demo",))))
    assert await policies.refresh() == 1

    await one.call("session.create", {"model": "any"})
    await refusal(two.call("session.create", {"model": "any"}), REFUSED)


async def test_what_is_said_for_a_user_holds_for_that_user_alone(rig):
    await put(rig, "shared", users={"ann": Override(max_sessions_per_user=1)}, max_sessions_per_user=2)
    ann, ben = await rig.client("shared", "ann"), await rig.client("shared", "ben")
    await create(ann, "a")
    await refusal(create(ann, "b"), REFUSED)
    await create(ben, "c")
    await create(ben, "d")


async def test_sessions_of_a_user_expire_by_that_users_limit(rig):
    users = {"ann": Override(session_idle_seconds=10.0), "ben": Override(session_idle_seconds=None)}
    tenant = Tenant("shared", Policy(session_idle_seconds=100.0), users=users)
    for user in ("ann", "ben", "eve"):
        await rig.registry.claim(SessionRecord(user, Owner("shared", user), "shared", 1000.0, 1000.0))

    async def expired_at(now: float) -> list[str]:
        pages = [page async for page in reaper.list_expired(rig.registry, tenant, now)]
        return [record.session_id for page in pages for record, _ in page]

    assert await expired_at(1005.0) == []
    assert await expired_at(1050.0) == ["ann"]
    assert await expired_at(9999.0) == ["ann", "eve"]


async def test_sessions_work_below_the_directory_that_policy_names(rig, tmp_path):
    await put(rig, "shared", work_root=str(tmp_path / "work"))
    await create(await rig.client("shared", "ann"), "a")

    said = rig.scripted.runtimes[0].called("session.create")[0]["workingDirectory"]
    assert said == str(tmp_path / "work" / "shared" / "ann" / "a")
    assert (tmp_path / "work" / "shared" / "ann" / "a").is_dir()


SANDBOXED = {"host_tools": HostTools.SANDBOXED}


@pytest.mark.parametrize("tenant", ["guarded", "team"])
async def test_host_tools_are_refused_by_a_gateway_without_a_sandbox(open_rig, tenant):
    rig = await open_rig(fleet={"host_tools": HostTools.REFUSED})
    bystander = await rig.client("shared")
    await put(rig, tenant, host_tools=True)
    refused = await refusal(create(await rig.client(tenant), "a"), REFUSED)
    assert "host tools need a sandbox" in str(refused)
    await create(bystander, "b")
    assert len(rig.scripted.runtimes) == 1


@pytest.mark.parametrize("tenant", ["guarded", "team"])
@pytest.mark.parametrize("hold", [HostTools.SANDBOXED, HostTools.UNSANDBOXED])
async def test_host_tools_are_given_in_a_sandbox_or_by_the_operators_word(open_rig, tenant, hold):
    rig = await open_rig(fleet={"host_tools": hold})
    await put(rig, tenant, host_tools=True)
    await create(await rig.client(tenant), "a")
    [process] = rig.scripted.processes
    assert "builtin:bash" in process.runtime.called("session.create")[0]["availableTools"]
    assert (process.spec.confinement is not None) is (hold is HostTools.SANDBOXED)


async def test_a_shared_runtime_has_no_host_tools_even_if_a_policy_slips_through(open_rig):
    rig = await open_rig(fleet=SANDBOXED)
    await put(rig, "shared", host_tools=True)
    client = await rig.client("shared")
    await create(client, "a", availableTools=["builtin:*", "bash"])
    [process] = rig.scripted.processes
    assert "builtin:bash" not in process.runtime.called("session.create")[0]["availableTools"]
    assert process.spec.confinement is None


async def test_host_tools_given_and_taken_back_close_the_links_and_sessions_go_on_in_a_runtime_that_fits(open_rig):
    rig = await open_rig(fleet=SANDBOXED)
    client = await rig.client("team")
    await create(client, "a")
    await client.call("session.send", {"sessionId": "a", "prompt": "x"})
    await client.wait_for_event("a", "session.idle")
    for number, gives in enumerate((True, False), 1):
        await put(rig, "team", host_tools=gives)
        await client.wait_closed()
        client = await rig.client("team")
        await client.call("session.resume", {"sessionId": "a"})
        process = rig.scripted.processes[number]
        assert ("builtin:bash" in process.runtime.called("session.resume")[0]["availableTools"]) is gives
        assert process.spec.confinement is not None, "what its agents wrote stays in a sandbox"
        await rig.settled(lambda number=number: rig.scripted.processes[number - 1].exited.done())


@pytest.mark.parametrize(
    ("tenant", "before", "change"),
    [
        ("team", {"host_tools": True}, {"egress": ("x.example",)}),
        ("team", {"host_tools": True}, {"provider_urls": ("http://x.example",)}),
        ("guarded", {"host_tools": True}, {"mcp_urls": ("http://x.example",)}),
        ("alone", {}, {"provider_urls": ()}),
    ],
)
async def test_what_a_sandbox_lets_out_changes_while_it_runs_and_the_links_stay(open_rig, tenant, before, change):
    rig = await open_rig(fleet=SANDBOXED)
    await put(rig, tenant, **before)
    idle, client = await rig.client(tenant, "idle"), await rig.client(tenant)
    await create(idle, "i")
    await idle.aclose()
    await create(client, "a")
    await rig.settled(lambda: rig.listener.links == 1)

    await put(rig, tenant, **before, **change)

    wanted = egress.targets_of(rig.configured[tenant].policy)
    assert all(process.reaches[-1] == wanted for process in rig.scripted.alive)
    await client.call("session.send", {"sessionId": "a", "prompt": "x"})
    await client.wait_for_event("a", "session.idle")
    await put(rig, tenant, **before)
    assert rig.scripted.alive[0].reaches[-1] == egress.targets_of(rig.configured[tenant].policy)


async def test_a_runtime_that_is_spawned_after_a_change_reaches_what_policy_names_now(open_rig):
    rig = await open_rig(fleet=SANDBOXED)
    await put(rig, "team", host_tools=True)
    client = await rig.client("team")
    await put(rig, "team", host_tools=True, egress=("x.example",))
    await create(client, "a")
    assert rig.scripted.processes[0].spec.confinement.egress == ("x.example",)


async def test_a_working_root_that_agents_see_is_their_runtimes_and_another_one_has_them_connect_again(
    open_rig, tmp_path
):
    rig = await open_rig(fleet=SANDBOXED)
    await put(rig, "team", host_tools=True, work_root=str(tmp_path / "one"))
    client = await rig.client("team", "ann")
    await create(client, "a")
    assert rig.scripted.processes[0].spec.confinement.directories[-1] == tmp_path / "one" / "team"
    (tmp_path / "one" / "team" / "ben").symlink_to(tmp_path)
    refused = await refusal(create(await rig.client("team", "ben"), "b"), REFUSED)
    assert "a link or a file stands in its place" in str(refused)
    await put(rig, "team", host_tools=True, work_root=str(tmp_path / "two"))
    await client.wait_closed()
