"""What a link may cost before and after it is known, and that nothing of it is left when it is gone."""

from __future__ import annotations

import asyncio
import gc

import pytest

from aerodrome.testing import peer as peers
from aerodrome.testing.peer import RpcError


@pytest.mark.parametrize("token", [None, "", "nonsense", "aero_000000000000_" + "x" * 43, 5, {"a": 1}, ["x"], True])
async def test_a_wrong_token_is_refused_as_the_runtime_refuses_it_and_may_be_tried_again(rig, token):
    stranger = await rig.stranger()
    with pytest.raises(RpcError, match="AUTHENTICATION_REQUIRED") as raised:
        await stranger.call("ping")
    assert (raised.value.number, raised.value.data) == (-32001, None)
    with pytest.raises(RpcError, match="AUTHENTICATION_FAILED") as raised:
        await stranger.call("connect", {"token": token})
    assert (raised.value.number, raised.value.data) == (-32002, None)
    assert (await stranger.call("connect", {"token": await rig.token("shared", "ann")}))["ok"] is True
    assert await stranger.call("ping")


async def test_guessing_tokens_ends_with_the_link(open_rig):
    rig = await open_rig(failed_tokens=3, handshake_seconds=60)
    stranger = await rig.stranger()
    for _ in range(3):
        with pytest.raises(RpcError):
            await stranger.call("connect", {"token": "guess"})
    await stranger.wait_closed()


async def test_one_user_cannot_take_all_links(open_rig):
    rig = await open_rig(links_per_user=2)
    first, second = await rig.client("shared", "ann"), await rig.client("shared", "ann")
    third = await rig.stranger()
    with pytest.raises(RpcError, match="at most 2 links of one user") as refused:
        await third.call("connect", {"token": await rig.token("shared", "ann")})
    assert refused.value.number == -32011
    await third.wait_closed()
    assert await (await rig.client("shared", "ben")).call("ping")
    await first.aclose()
    async with asyncio.timeout(30):
        while True:
            again = await rig.stranger()
            try:
                assert (await again.call("connect", {"token": await rig.token("shared", "ann")}))["ok"] is True
                break
            except RpcError:
                await asyncio.sleep(0.01)
    assert await second.call("ping")


async def test_a_second_connect_proves_the_same_principal_or_nothing(rig):
    client = await rig.client("shared", "ann")
    assert (await client.call("connect", {"token": await rig.token("shared", "ann")}))["ok"] is True
    for token in (await rig.token("shared", "ben"), await rig.token("alone", "ann"), "nonsense", None):
        with pytest.raises(RpcError, match="AUTHENTICATION_FAILED"):
            await client.call("connect", {"token": token})
    await client.call("session.create", {"sessionId": "mine"})
    assert (await rig.registry.find("mine")).owner.user == "ann"


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"Content-Length: 100\r\n\r\n{",
        b"Content-Len",
        b"Content-Length: 99\r\n\r\n" + b" " * 98,
    ],
)
async def test_a_handshake_that_is_not_finished_in_time_is_closed(open_rig, data):
    rig = await open_rig(handshake_seconds=0.2)
    stranger = await rig.stranger()
    stranger.send_bytes(data)
    await stranger.wait_closed()


async def test_one_byte_at_a_time_does_not_buy_more_time(open_rig):
    rig = await open_rig(handshake_seconds=0.3)
    stranger = await rig.stranger()

    async def drip():
        for byte in b"Content-Length: 60000\r\n\r\n" + b" " * 60_000:
            stranger.send_bytes(bytes([byte]))
            await asyncio.sleep(0.01)

    dripping = asyncio.create_task(drip())
    await stranger.wait_closed()
    dripping.cancel()
    await asyncio.wait((dripping,))


@pytest.mark.parametrize(
    ("data", "code"),
    [
        (b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n", b"-32700"),
        (b"\x16\x03\x01\x02\x00" * 2000, b"-32700"),
        (b"Content-Length: 1073741824\r\n\r\n", b"-32600"),
        (b"Content-Length: 65537\r\n\r\n", b"-32600"),
        (b"Content-Length: -1\r\n\r\n", b"-32700"),
    ],
)
async def test_garbage_before_the_handshake_gets_one_error_and_a_closed_link(rig, data, code):
    stranger = await rig.stranger()
    stranger.send_bytes(data)
    await stranger.wait_closed()
    # The peer may see a reset before the answer, where more was sent than was read.
    for answer in stranger.stray:
        assert code in bytes(answer.error)
    assert len(stranger.stray) <= 1


async def test_links_over_the_limit_are_closed_and_one_that_leaves_makes_room(open_rig):
    rig = await open_rig(max_links=3)
    clients = [await rig.client("shared", f"user{number}") for number in range(3)]
    refused = await rig.stranger()
    await refused.wait_closed()
    await clients[0].aclose()
    await rig.settled(lambda: rig.listener.links == 2)
    assert await (await rig.client("shared", "late")).call("ping")


async def test_two_hundred_clients_come_and_go_and_leave_nothing_behind(rig):
    keeper = await rig.client("shared", "keeper")
    await keeper.call("session.create", {"sessionId": "kept"})
    before = rig.baseline()
    token = await rig.token("shared", "churn")

    async def come_and_go(number: int) -> None:
        client = await peers.open_client(*rig.address, token)
        try:
            if number % 4:
                await client.call("session.create", {"sessionId": f"c-{number}"})
            if number % 4 == 2:
                await client.call("session.send", {"sessionId": f"c-{number}", "prompt": "[hold]"})
            if number % 4 == 3:
                client.ask("session.create", {"sessionId": f"d-{number}"})
        finally:
            await client.aclose()

    for start in range(0, 200, 20):
        await asyncio.gather(*(come_and_go(number) for number in range(start, start + 20)))
    await rig.settled(lambda: rig.listener.links == 1 and rig.links() == 1)
    runtime = rig.scripted.runtimes[0]
    await rig.settled(lambda: set(runtime.sessions) == {"kept"})
    gc.collect()
    await rig.settled(lambda: rig.baseline() == before)


async def test_clients_that_leave_while_their_runtime_is_still_spawning_leave_nothing_behind(rig):
    rig.scripted.may_spawn.clear()
    token = await rig.token("alone", "ann")
    clients = [await peers.open_client(*rig.address, token) for _ in range(10)]
    for number, client in enumerate(clients):
        client.ask("session.create", {"sessionId": f"s-{number}"})
    await rig.settled(lambda: rig.scripted.processes)
    for client in clients:
        await client.aclose()
    await rig.settled(lambda: rig.listener.links == 0)
    rig.scripted.may_spawn.set()
    survivor = await rig.client("alone", "ann")
    assert (await survivor.call("session.create", {"sessionId": "s-0"}))["sessionId"] == "s-0"
    assert len(rig.scripted.processes) == 1
    await rig.settled(lambda: rig.links() == 1)


async def test_clients_that_leave_at_any_moment_of_their_first_call_leave_nothing_behind(rig):
    """Each client leaves one step of the event loop later than the one before."""
    keeper = await rig.client("shared", "keeper")
    await keeper.call("session.create", {"sessionId": "kept"})
    before = rig.baseline()
    token = await rig.token("shared", "churn")
    for steps in range(60):
        client = await peers.open_client(*rig.address, token)
        client.ask("session.create", {"sessionId": f"s-{steps}"})
        for _ in range(steps):
            await asyncio.sleep(0)
        await client.aclose()
    await rig.settled(lambda: rig.listener.links == 1)
    await rig.settled(lambda: rig.links() == 1)
    runtime = rig.scripted.runtimes[0]
    await rig.settled(lambda: set(runtime.sessions) == {"kept"})
    gc.collect()
    await rig.settled(lambda: rig.baseline() == before)


async def test_closing_the_gateway_ends_links_in_every_state(open_rig):
    rig = await open_rig()
    stranger, idle = await rig.stranger(), await rig.client("shared", "idle")
    busy, spawning = await rig.client("shared", "busy"), await rig.client("alone")
    await busy.call("session.create", {"sessionId": "s"})
    await busy.call("session.send", {"sessionId": "s", "prompt": "[hold]"})
    rig.scripted.may_spawn.clear()
    spawning.ask("session.create", {"sessionId": "t"})
    await rig.settled(lambda: len(rig.scripted.processes) == 2)
    async with asyncio.timeout(30):
        await rig.listener.aclose()
        await rig.pool.aclose()
    for client in (stranger, idle, busy, spawning):
        await client.wait_closed()
    assert rig.scripted.alive == []


async def test_a_closed_client_link_closes_its_upstream_links_at_once(rig):
    client = await rig.client("alone")
    await client.call("session.create", {"sessionId": "s"})
    await client.call("session.send", {"sessionId": "s", "prompt": "[hold]"})
    runtime = rig.scripted.runtimes[0]
    [holder] = runtime.sessions["s"].attached
    await client.aclose()
    await holder.wait_closed()
    await rig.settled(lambda: runtime.sessions == {})
