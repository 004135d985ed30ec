"""What clients see when a runtime dies under them, and how their sessions come back."""

from __future__ import annotations

import asyncio

import pytest

from aerodrome.testing.peer import RpcError
from aerodrome.testing.scripted_runtime import Faults

from .test_evictions import turn

EVERYONE = ["alone", "guarded", "team", "shared"]
PARAMS = {"sessionId": "s", "model": "demo", "availableTools": ["custom:x"], "systemMessage": {"content": "be brief"}}


async def kill(rig, number: int = 0) -> None:
    """Kill a runtime and wait until the gateway knows: a call that meets a death under way is its own test."""
    rig.scripted.processes[number].kill()
    await rig.settled(lambda: rig.upstreams() == 0 and rig.links() == 0)


async def lost(answer: asyncio.Future) -> RpcError:
    with pytest.raises(RpcError) as raised:
        async with asyncio.timeout(30):
            await answer
    return raised.value


@pytest.mark.parametrize("tenant", EVERYONE)
async def test_every_request_in_flight_is_answered_once_with_an_error_to_retry(rig, tenant):
    client = await rig.client(tenant)
    await client.call("session.create", {"sessionId": "s"})
    runtime = rig.scripted.runtimes[0]

    async def hold(_peer, _params):
        await asyncio.get_running_loop().create_future()

    runtime.on["session.getMessages"] = hold
    held = [client.ask("session.getMessages", {"sessionId": "s"}) for _ in range(100)]
    await runtime.wait_for_call("session.getMessages", 100)
    rig.scripted.processes[0].kill()
    for answer in held:
        error = await lost(answer)
        assert (error.number, error.data["code"], error.data["retryable"]) == (-32014, "runtime_lost", True)
    assert client.stray == []
    assert await client.call("ping")


@pytest.mark.parametrize("tenant", EVERYONE)
async def test_a_running_turn_ends_with_an_error_event_and_idle_and_is_never_repeated(rig, tenant):
    client = await rig.client(tenant)
    await client.call("session.create", {"sessionId": "s"})
    await client.call("session.send", {"sessionId": "s", "prompt": "[hold]"})
    await client.wait_for_event("s", "assistant.turn_start")
    rig.scripted.processes[0].kill()
    await client.wait_for_event("s", "session.idle")
    assert client.events("s") == ["user.message", "assistant.turn_start", "session.error", "session.idle"]
    [error] = [p["event"] for p in client.notifications("session.event") if p["event"]["type"] == "session.error"]
    assert "interrupted" in error["data"]["message"]
    await client.call("session.send", {"sessionId": "s", "prompt": "again"})
    await client.wait_for_event("s", "session.idle", 2)
    assert [params["prompt"] for params in rig.scripted.runtimes[1].called("session.send")] == ["again"]


async def test_a_session_without_a_turn_hears_nothing_of_the_death(rig):
    client = await rig.client("shared")
    await client.call("session.create", {"sessionId": "s"})
    await kill(rig)
    await client.call("session.send", {"sessionId": "s", "prompt": "x"})
    await client.wait_for_event("s", "session.idle")
    assert "session.error" not in client.events("s")


@pytest.mark.parametrize("tenant", EVERYONE)
@pytest.mark.parametrize("is_alone", [True, False], ids=["who created it has left", "who created it is there"])
async def test_a_session_resumed_before_its_first_turn_is_made_again_for_who_resumed_it(rig, tenant, is_alone):
    """Such a session is in a runtime's memory only, so that there is nothing to lose, and nothing to resume."""
    first, second = await rig.client(tenant), await rig.client(tenant)
    await first.call("session.create", {"sessionId": "s"})
    await second.call("session.resume", {"sessionId": "s", "model": "demo", "continuePendingWork": True})
    if is_alone:
        await first.call("session.detach", {"sessionId": "s"})
    await kill(rig)

    await second.call("session.send", {"sessionId": "s", "prompt": "x"})
    await second.wait_for_event("s", "session.idle")

    created = rig.scripted.runtimes[1].called("session.create")
    assert len(created) == 1
    if is_alone:
        assert created[0]["model"] == "demo"
        assert "continuePendingWork" not in created[0], "only a resume has it"


async def test_a_link_that_resumes_what_it_created_has_it_made_again_before_its_first_turn(rig):
    client = await rig.client("shared")
    await client.call("session.create", {"sessionId": "s"})
    await client.call("session.resume", {"sessionId": "s"})
    await kill(rig)
    await client.call("session.send", {"sessionId": "s", "prompt": "x"})
    await client.wait_for_event("s", "session.idle")


@pytest.mark.parametrize("who_had_it", ["another", "this one", "nobody"])
async def test_a_resumed_session_that_had_a_turn_is_never_made_again(rig, who_had_it):
    first, second = await rig.client("shared"), await rig.client("shared")
    await first.call("session.create", {"sessionId": "s"})
    if who_had_it == "another":
        await turn(first, "s")
    if who_had_it == "nobody":
        await turn(first, "s")
        await first.call("session.detach", {"sessionId": "s"})
    await second.call("session.resume", {"sessionId": "s"})
    if who_had_it == "this one":
        await turn(second, "s")
    rig.scripted.runtimes[0].disk.discard("s")
    await kill(rig)
    rig.scripted.runtimes[0].disk.discard("s")

    with pytest.raises(RpcError, match="not on disk any more") as raised:
        await second.call("session.send", {"sessionId": "s", "prompt": "x"})

    assert raised.value.data["code"] == "session_missing"


async def test_the_next_call_resumes_with_what_create_and_options_said(rig):
    client = await rig.client("alone")
    await client.call("session.create", {**PARAMS, "name": "only for create"})
    await client.call("session.options.update", {"sessionId": "s", "skipCustomInstructions": True})
    await client.call("session.options.update", {"sessionId": "s", "coauthorEnabled": False})
    await client.call("session.send", {"sessionId": "s", "prompt": "x"})
    await client.wait_for_event("s", "session.idle")
    await kill(rig)
    assert (await client.call("session.getMessages", {"sessionId": "s"}))["events"]
    second = rig.scripted.runtimes[1]
    [resumed] = second.called("session.resume")
    assert resumed == PARAMS
    [options] = second.called("session.options.update")
    assert options == {"sessionId": "s", "skipCustomInstructions": True, "coauthorEnabled": False}
    assert second.called("session.create") == []


async def test_the_parameters_of_the_last_resume_go_before_those_of_create(rig):
    client = await rig.client("alone")
    await client.call("session.create", PARAMS)
    await client.call("session.send", {"sessionId": "s", "prompt": "x"})
    await client.wait_for_event("s", "session.idle")
    await client.call("session.resume", {"sessionId": "s", "model": "another"})
    await kill(rig)
    await client.call("session.getMessages", {"sessionId": "s"})
    assert rig.scripted.runtimes[1].called("session.resume") == [{"sessionId": "s", "model": "another"}]


@pytest.mark.parametrize("tenant", ["guarded", "team", "shared"])
async def test_a_guarded_session_comes_back_as_restricted_as_it_was(rig, tenant):
    client = await rig.client(tenant)
    await client.call("session.create", {"sessionId": "s"})
    await client.call("session.send", {"sessionId": "s", "prompt": "x"})
    await client.wait_for_event("s", "session.idle")
    first = rig.scripted.runtimes[0]
    await kill(rig)
    await client.call("session.getMessages", {"sessionId": "s"})
    second = rig.scripted.runtimes[1]
    [created], [resumed] = first.called("session.create"), second.called("session.resume")
    assert created["enableConfigDiscovery"] is resumed["enableConfigDiscovery"] is False
    assert resumed == {key: value for key, value in created.items() if key in resumed}
    assert second.called("session.options.update") == first.called("session.options.update")
    methods = [call.method for call in second.calls if call.method.startswith("session.")]
    assert methods.index("session.options.update") < methods.index("session.getMessages")


async def test_a_session_that_never_had_a_turn_is_made_again(rig):
    client = await rig.client("alone")
    await client.call("session.create", PARAMS)
    await kill(rig)
    assert (await client.call("session.getMessages", {"sessionId": "s"}))["events"]
    assert rig.scripted.runtimes[1].called("session.create") == [PARAMS]


async def test_many_calls_after_a_death_bring_a_session_back_once_and_keep_their_order(rig):
    client = await rig.client("shared")
    await client.call("session.create", {"sessionId": "s"})
    await client.call("session.send", {"sessionId": "s", "prompt": "first"})
    await client.wait_for_event("s", "session.idle")
    await kill(rig)
    sends = [client.ask("session.send", {"sessionId": "s", "prompt": f"p{number}"}) for number in range(20)]
    await asyncio.gather(*sends)
    second = rig.scripted.runtimes[1]
    assert len(second.called("session.resume")) == 1
    assert [params["prompt"] for params in second.called("session.send")] == [f"p{number}" for number in range(20)]


async def test_two_links_on_one_session_both_come_back_to_the_same_runtime(rig):
    clients = [await rig.client("shared"), await rig.client("shared")]
    await clients[0].call("session.create", {"sessionId": "s"})
    await clients[0].call("session.send", {"sessionId": "s", "prompt": "x"})
    await clients[0].wait_for_event("s", "session.idle")
    await clients[1].call("session.resume", {"sessionId": "s"})
    await kill(rig)
    await asyncio.gather(*(client.call("session.getMessages", {"sessionId": "s"}) for client in clients))
    assert len(rig.scripted.processes) == 2
    assert len(rig.scripted.runtimes[1].sessions["s"].attached) == 2
    await clients[0].call("session.send", {"sessionId": "s", "prompt": "y"})
    await clients[1].wait_for_event("s", "session.idle")


async def test_a_session_the_fresh_runtime_refuses_is_an_error_and_tried_again_at_the_next_call(rig):
    client = await rig.client("alone")
    await client.call("session.create", {"sessionId": "s"})
    await client.call("session.send", {"sessionId": "s", "prompt": "x"})
    await client.wait_for_event("s", "session.idle")
    await kill(rig)
    await client.call("session.list")

    async def refuse(_peer, _params):
        raise RpcError(-32603, "disk is full")

    second = rig.scripted.runtimes[1]
    second.on["session.resume"] = refuse
    error = await lost(client.ask("session.getMessages", {"sessionId": "s"}))
    assert "disk is full" in error.message
    assert error.data["retryable"] is True
    del second.on["session.resume"]
    assert (await client.call("session.getMessages", {"sessionId": "s"}))["events"]


@pytest.mark.parametrize("method", ["session.detach", "session.delete"])
async def test_a_lost_session_can_be_let_go_without_bringing_it_back(rig, method):
    client = await rig.client("shared")
    await client.call("session.create", {"sessionId": "s"})
    await client.call("session.send", {"sessionId": "s", "prompt": "x"})
    await client.wait_for_event("s", "session.idle")
    await kill(rig)
    assert (await client.call(method, {"sessionId": "s"}))["success"] is True
    assert not any(runtime.called("session.resume") for runtime in rig.scripted.runtimes)


@pytest.mark.parametrize("tenant", EVERYONE)
@pytest.mark.parametrize("method", ["session.create", "session.options.update", "connect"])
async def test_a_runtime_that_dies_at_any_step_of_opening_is_an_answer_at_once(open_rig, tenant, method):
    """Its control link says `connect` first: the fault arms only for what the client's link does."""
    rig = await open_rig()
    client = await rig.client(tenant)
    await client.call("session.create", {"sessionId": "warm"})
    rig.scripted.runtimes[0].faults = Faults(dies_at=method)
    second = await rig.client(tenant)
    asked = [second.ask("session.create", {"sessionId": "s"})]
    if tenant == "alone" and method == "session.options.update":
        asked.append(second.ask("session.options.update", {"sessionId": "s"}))
    async with asyncio.timeout(30):
        outcomes = await asyncio.gather(*asked, return_exceptions=True)
    for outcome in outcomes:
        if isinstance(outcome, RpcError):
            assert outcome.data["retryable"] is True
    assert (await second.call("session.create", {"sessionId": "s"}))["sessionId"] == "s"


@pytest.mark.parametrize("tenant", ["guarded", "shared"])
async def test_a_runtime_that_answers_create_and_closes_is_an_answer_at_once(open_rig, tenant):
    """The restrictions that follow a create must not wait for an answer that cannot come."""
    rig = await open_rig(faults=lambda number: Faults(closes_after="session.create" if number == 0 else ""))
    client = await rig.client(tenant)
    error = await lost(client.ask("session.create", {"sessionId": "s"}))
    assert error.data["retryable"] is True
    rig.scripted.processes[0].kill()
    assert (await client.call("session.create", {"sessionId": "s"}))["sessionId"] == "s"


async def test_a_runtime_that_closes_in_the_middle_of_a_frame_is_lost_and_replaced(open_rig):
    rig = await open_rig(faults=lambda number: Faults(closes_mid_frame_at="session.getMessages" if number == 0 else ""))
    client = await rig.client("alone")
    await client.call("session.create", {"sessionId": "s"})
    assert (await lost(client.ask("session.getMessages", {"sessionId": "s"}))).data["code"] == "runtime_lost"
    rig.scripted.processes[0].kill()
    assert (await client.call("session.getMessages", {"sessionId": "s"}))["events"]


async def test_bytes_of_a_runtime_that_are_no_frame_end_its_link_and_nothing_else(rig):
    client = await rig.client("alone")
    await client.call("session.create", {"sessionId": "s"})
    bystander = await rig.client("alone")
    await bystander.call("session.create", {"sessionId": "t"})
    [wrong] = rig.scripted.runtimes[0].sessions["s"].attached
    wrong.send_bytes(b"HTTP/1.1 200 OK\r\n\r\n")
    await wrong.wait_closed()
    assert (await client.call("session.getMessages", {"sessionId": "s"}))["events"]
    assert (await bystander.call("session.getMessages", {"sessionId": "t"}))["events"]
    assert bystander.events("t") == []


@pytest.mark.parametrize(
    "body",
    [
        b"[]",
        b'{"jsonrpc":"2.0","id":1.5,"result":1}',
        b'{"jsonrpc":"2.0","method":"$/cancelRequest","params":[1]}',
        b'{"jsonrpc":"2.0","method":"$/cancelRequest"}',
        b'{"jsonrpc":"2.0","method":"session.event","params":{"sessionId":5,"event":{"type":7}}}',
        b'{"jsonrpc":"2.0","method":"session.event","params":[]}',
        b'{"jsonrpc":"2.0","method":"session.lifecycle"}',
        b'{"jsonrpc":"2.0","id":{},"method":"userInput.request"}',
        b'{"jsonrpc":"2.0","id":99999,"result":1}',
        b'{"jsonrpc":"2.0","id":null,"error":{}}',
        b'{"jsonrpc":"2.0","method":"session.event","params":{"sessionId":"\xff","event":{"type":"x"}}}',
    ],
)
async def test_odd_messages_of_a_runtime_leave_the_client_served(rig, body):
    client = await rig.client("shared")
    await client.call("session.create", {"sessionId": "s"})
    [holder] = rig.scripted.runtimes[0].sessions["s"].attached
    holder.send_bytes(b"Content-Length: %d\r\n\r\n%b" % (len(body), body))
    after = {"sessionId": "s", "event": {"type": "after", "data": {}}}
    holder.notify("session.event", after)
    # Some are the end of the link, which a request under way would be told of.
    await rig.settled(lambda: after in client.notifications("session.event") or rig.upstreams() == 0)
    assert (await client.call("session.getMessages", {"sessionId": "s"}))["events"]
    assert await client.call("ping")


async def test_a_runtime_that_reads_no_more_stalls_its_own_client_only_and_is_given_up(open_rig):
    rig = await open_rig(
        faults=lambda number: Faults(never_reads_after="session.getMessages" if number == 0 else ""), stall_seconds=0.5
    )
    stalled, other = await rig.client("alone", "ann"), await rig.client("alone", "ben")
    await stalled.call("session.create", {"sessionId": "s"})
    await other.call("session.create", {"sessionId": "t"})
    asked = [stalled.ask("session.getMessages", {"sessionId": "s"})]
    await rig.scripted.runtimes[0].wait_for_call("session.getMessages")
    asked += [stalled.ask("session.send", {"sessionId": "s", "prompt": "x" * 1_000_000}) for _ in range(20)]
    assert (await other.call("session.getMessages", {"sessionId": "t"}))["events"]
    assert (await lost(asked[0])).data["retryable"] is True
    # What the gateway had not read by then goes over a fresh link, to the same session.
    async with asyncio.timeout(30):
        outcomes = await asyncio.gather(*asked, return_exceptions=True)
    assert all(isinstance(found, dict) or found.data["retryable"] for found in outcomes)


async def test_a_runtime_that_floods_a_client_that_does_not_read_is_held_back(open_rig):
    rig = await open_rig(stall_seconds=60.0)
    client = await rig.client("alone")
    await client.call("session.create", {"sessionId": "s"})
    client.stop_reading()
    client.ask("session.send", {"sessionId": "s", "prompt": "[flood 3000 10000]"})
    runtime = rig.scripted.runtimes[0]
    await runtime.wait_for_call("session.send")
    [holder] = runtime.sessions["s"].attached
    await rig.settled(lambda: holder.writer.transport.get_write_buffer_size() > 64 * 1024)
    other = await rig.client("alone")
    assert await other.call("session.list")
    client.read_on()
    await client.wait_for_event("s", "session.idle")
    numbers = [
        p["event"]["data"]["number"] for p in client.notifications("session.event") if p["event"]["type"] == "flood"
    ]
    assert numbers == list(range(3000))


async def test_a_client_that_never_reads_loses_its_link_after_the_stall_time(open_rig):
    rig = await open_rig(stall_seconds=0.3)
    client = await rig.client("alone")
    await client.call("session.create", {"sessionId": "s"})
    client.stop_reading()
    client.ask("session.send", {"sessionId": "s", "prompt": "[flood 3000 10000]"})
    await rig.settled(lambda: rig.listener.links == 0 and rig.links() == 0)


# -- clients that only listen -------------------------------------------------------------------------------------------------


async def listening(rig, tenant: str, session_id: str = "s"):
    """Return two clients of one session, the second of which only listens from now on."""
    client, listener = await rig.client(tenant), await rig.client(tenant)
    await client.call("session.create", {"sessionId": session_id})
    await turn(client, session_id)
    await listener.call("session.resume", {"sessionId": session_id})
    return client, listener


def heard_texts(client, session_id: str = "s") -> list[str]:
    events = [p["event"] for p in client.notifications("session.event") if p["sessionId"] == session_id]
    return [event["data"]["content"] for event in events if event["type"] == "assistant.message"]


@pytest.mark.parametrize("tenant", EVERYONE)
async def test_a_client_that_only_listens_hears_the_next_turn_after_a_death(rig, tenant):
    client, listener = await listening(rig, tenant)
    for number in range(3):
        await kill(rig, number)
        await turn(client, "s", f"turn {number}")
        await listener.wait_until(lambda number=number: f"turn {number}" in heard_texts(listener))
        await listener.wait_for_event("s", "session.idle", number + 1)
    assert heard_texts(listener) == ["turn 0", "turn 1", "turn 2"]
    assert not {"session.error", "session.shutdown"} & set(listener.events("s"))
    assert listener.events("s").count("session.resume") == 1, "only that of its own resume"
    told = [[p["event"]["id"] for p in c.notifications("session.event")] for c in (client, listener)]
    assert told[1] == [event_id for event_id in told[0] if event_id in told[1]]
    assert len(set(told[0])) == len(told[0])


@pytest.mark.parametrize("tenant", EVERYONE)
async def test_a_listener_whose_link_to_the_dead_ends_last_hears_the_next_turn_too(rig, tenant):
    client, listener = await listening(rig, tenant)
    runtime, process = rig.scripted.runtimes[0], rig.scripted.processes[0]
    attached = runtime.sessions["s"].attached
    [first] = [call.peer for call in runtime.calls if call.method == "session.create"]
    [second] = attached - {first}
    runtime._server.close()
    for peer in [peer for peer in runtime.peers if peer is not second]:
        peer.writer.transport.abort()
    process.exited.set_result(-9)
    await rig.settled(lambda: rig.upstreams() == 1)

    await turn(client, "s", "who hears this?")

    await listener.wait_until(lambda: "who hears this?" in heard_texts(listener))
    await listener.wait_for_event("s", "session.idle")
    assert "session.error" not in listener.events("s")
    assert await listener.call("session.getMessages", {"sessionId": "s"})
    assert len(rig.scripted.runtimes[1].sessions["s"].attached) == 2


@pytest.mark.parametrize("tenant", EVERYONE)
async def test_a_listener_is_not_forgotten_when_the_session_is_opened_again_by_someone_else(rig, tenant):
    client, listener = await listening(rig, tenant)
    runtime, process = rig.scripted.runtimes[0], rig.scripted.processes[0]
    [first] = [call.peer for call in runtime.calls if call.method == "session.create"]
    [second] = runtime.sessions["s"].attached - {first}
    runtime._server.close()
    for peer in [peer for peer in runtime.peers if peer is not second]:
        peer.writer.transport.abort()
    process.exited.set_result(-9)
    await rig.settled(lambda: rig.upstreams() == 1)

    await client.call("session.resume", {"sessionId": "s"})
    await turn(client, "s", "who hears this?")

    await listener.wait_until(lambda: "who hears this?" in heard_texts(listener))


async def test_a_listener_hears_that_the_turn_it_listens_to_was_interrupted_and_then_the_next(rig):
    client, listener = await listening(rig, "shared")
    await client.call("session.send", {"sessionId": "s", "prompt": "[hold]"})
    await listener.wait_for_event("s", "assistant.turn_start")
    rig.scripted.processes[0].kill()
    await listener.wait_for_event("s", "session.error")
    await client.wait_for_event("s", "session.error")
    await turn(client, "s", "again")
    await listener.wait_until(lambda: heard_texts(listener) == ["again"])
