"""Which runtime serves which client: spread, kept together, limited, stopped when idle, an error when it cannot start."""

from __future__ import annotations

import asyncio

import pytest

from aerodrome.testing.peer import RpcError
from aerodrome.testing.scripted_runtime import Faults


async def refusal(answer) -> RpcError:
    with pytest.raises(RpcError) as raised:
        await answer
    return raised.value


async def test_a_shared_realm_spreads_over_runtimes_and_a_session_stays_on_its_own(open_rig):
    rig = await open_rig(fleet={"links_per_runtime": 4, "shared_runtimes": 3})
    clients = [await rig.client("shared", f"user{number}") for number in range(8)]
    for number, client in enumerate(clients):
        await client.call("session.create", {"sessionId": f"s-{number}"})
    runtimes = rig.scripted.runtimes
    assert [sorted(runtime.sessions) for runtime in runtimes] == [
        [f"s-{number}" for number in range(4)],
        [f"s-{number}" for number in range(4, 8)],
    ]
    await clients[5].aclose()
    await rig.settled(lambda: rig.links() == 7)
    # The second runtime has room; the first, where nothing of it is free, would be needed for s-0.
    second = await rig.client("shared", "user7")
    await second.call("session.resume", {"sessionId": "s-7"})
    assert len(runtimes[1].sessions["s-7"].attached) == 2
    await second.call("session.send", {"sessionId": "s-7", "prompt": "x"})
    await clients[7].wait_for_event("s-7", "session.idle")
    assert runtimes[0].called("session.resume") == []


async def test_a_session_on_a_full_runtime_is_refused_clearly_and_had_once_there_is_room(open_rig):
    rig = await open_rig(fleet={"links_per_runtime": 2, "shared_runtimes": 2})
    first, filler = await rig.client("shared", "ann"), await rig.client("shared", "filler")
    await first.call("session.create", {"sessionId": "s"})
    await filler.call("session.create", {"sessionId": "f"})
    second = await rig.client("shared", "ann")
    error = await refusal(second.call("session.resume", {"sessionId": "s"}))
    assert (error.number, error.data["code"], error.data["retryable"]) == (-32011, "over_capacity", True)
    assert "2 connections" in error.message
    await filler.aclose()
    await rig.settled(lambda: rig.links() == 1)
    assert (await second.call("session.resume", {"sessionId": "s"}))["sessionId"] == "s"


async def test_a_full_realm_is_refused_clearly_and_claims_no_id(open_rig):
    rig = await open_rig(fleet={"links_per_runtime": 1, "shared_runtimes": 2})
    for number in range(2):
        await (await rig.client("shared", f"user{number}")).call("session.create", {"sessionId": f"s-{number}"})
    late = await rig.client("other", "late")
    error = await refusal(late.call("session.create", {"sessionId": "wanted"}))
    assert (error.number, error.data["retryable"]) == (-32011, True)
    assert await rig.registry.find("wanted") is None
    assert await late.call("ping")


async def test_many_first_calls_of_one_realm_spawn_once(rig):
    clients = [await rig.client("team", f"user{number}") for number in range(30)]
    calls = [client.call("session.create", {"sessionId": f"s-{n}"}) for n, client in enumerate(clients)]
    await asyncio.gather(*calls)
    assert len(rig.scripted.processes) == 1
    assert rig.links() == 30


async def test_one_client_has_one_link_to_a_runtime_however_many_sessions_it_opens_at_once(rig):
    client = await rig.client("alone")
    await asyncio.gather(*(client.call("session.create", {"sessionId": f"s-{number}"}) for number in range(30)))
    assert rig.links() == 1
    assert len(rig.scripted.runtimes[0].peers) == 2, "the control link and the client's"


async def test_a_runtime_that_nobody_uses_is_stopped_and_its_sessions_are_there_on_the_next(open_rig):
    rig = await open_rig(fleet={"idle_seconds": 0.1})
    client = await rig.client("alone")
    await client.call("session.create", {"sessionId": "s"})
    await client.call("session.send", {"sessionId": "s", "prompt": "x"})
    await client.wait_for_event("s", "session.idle")
    await client.aclose()
    await rig.settled(lambda: rig.scripted.alive == [])
    again = await rig.client("alone")
    assert (await again.call("session.resume", {"sessionId": "s"}))["sessionId"] == "s"
    assert len(rig.scripted.processes) == 2


async def test_an_open_link_keeps_its_runtime_from_being_idle(open_rig):
    rig = await open_rig(fleet={"idle_seconds": 0.05})
    client = await rig.client("alone")
    await client.call("session.create", {"sessionId": "s"})
    await asyncio.sleep(0.2)
    assert len(rig.scripted.alive) == 1
    assert (await client.call("session.getMessages", {"sessionId": "s"}))["events"]


async def test_a_runtime_that_cannot_start_is_an_error_with_its_reason_and_tried_again_at_the_next_call(open_rig):
    rig = await open_rig(faults=lambda number: Faults(exits_at_once=number < 3))
    client = await rig.client("shared")
    error = await refusal(client.call("session.create", {"sessionId": "s"}))
    assert (error.number, error.data["code"], error.data["retryable"]) == (-32013, "spawn_failed", True)
    assert "3 attempts" in error.message
    assert "as it was told" in error.message
    assert await rig.registry.find("s") is None
    assert (await client.call("session.create", {"sessionId": "s"}))["sessionId"] == "s"


async def test_a_runtime_that_died_unnoticed_is_replaced_without_the_client_hearing_of_it(rig):
    """Its process is gone, but nobody has told the pool yet: the refused connection is the first sign."""
    first = await rig.client("shared", "ann")
    await first.call("session.create", {"sessionId": "s"})
    rig.scripted.processes[0].runtime._server.close()
    second = await rig.client("shared", "ben")
    assert (await second.call("session.create", {"sessionId": "t"}))["sessionId"] == "t"
    assert len(rig.scripted.processes) == 2
