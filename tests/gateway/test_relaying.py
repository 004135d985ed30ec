"""Requests and answers between a client and its runtime: ids, order, cancellation, and who waits for whom."""

from __future__ import annotations

import asyncio

import pytest

from aerodrome.testing import peer as peers
from aerodrome.testing.peer import RpcError

EVERYONE = ["alone", "guarded", "team", "shared"]


@pytest.mark.parametrize("tenant", EVERYONE)
async def test_a_turn_runs_and_its_events_come_in_order(rig, tenant):
    client = await rig.client(tenant)
    created = await client.call("session.create", {"sessionId": "first"})
    assert created["sessionId"] == "first"
    assert "messageId" in await client.call("session.send", {"sessionId": "first", "prompt": "hello"})
    await client.wait_for_event("first", "session.idle")
    kinds = ["user.message", "assistant.turn_start", "assistant.message", "assistant.turn_end", "session.idle"]
    assert client.events("first") == kinds


async def test_two_clients_with_the_same_request_ids_on_one_runtime_get_their_own_answers(rig):
    clients = [await rig.client("shared", user) for user in ("ann", "ben")] + [await rig.client("other", "cat")]
    for number, client in enumerate(clients):
        await client.call("session.create", {"sessionId": f"s-{number}"})
    answers = [
        (number, client.ask("session.getMessages", {"sessionId": f"s-{number}"}))
        for _ in range(50)
        for number, client in enumerate(clients)
    ]
    for number, answer in answers:
        assert (await answer)["events"][0]["data"]["sessionId"] == f"s-{number}"
    assert [client.stray for client in clients] == [[], [], []]
    assert len(rig.scripted.alive) == 1


async def test_hundreds_of_interleaved_requests_answered_out_of_order_get_one_answer_each(rig):
    answered: list[asyncio.Future[None]] = []

    async def reorder(_peer, params):
        """Answer in pairs, the later one first."""
        mine = asyncio.get_running_loop().create_future()
        answered.append(mine)
        if len(answered) % 2 == 0:
            answered[-1].set_result(None)
            answered[-2].set_result(None)
        await mine
        return {"echo": params["n"]}

    client = await rig.client("alone")
    await client.call("session.create", {"sessionId": "s"})
    rig.scripted.runtimes[0].on["session.something.new"] = reorder
    asked = [client.ask("session.something.new", {"sessionId": "s", "n": number}) for number in range(400)]
    assert [(await answer)["echo"] for answer in asked] == list(range(400))
    assert client.stray == []


async def test_requests_of_two_runtimes_under_the_same_id_reach_the_client_apart(open_rig):
    rig = await open_rig(fleet={"links_per_runtime": 3})
    fillers = [await rig.client("shared", "filler") for _ in range(3)]
    for number, filler in enumerate(fillers):
        await filler.call("session.create", {"sessionId": f"filler-{number}"})
    client = await rig.client("shared")
    await client.call("session.create", {"sessionId": "on-second"})
    await fillers[1].aclose()
    await fillers[2].aclose()
    await rig.settled(lambda: rig.links() == 2)
    other = await rig.client("shared")
    await other.call("session.create", {"sessionId": "on-first"})
    await client.call("session.resume", {"sessionId": "on-first"})

    async def say(params):
        return f"for {params['sessionId']}"

    client.answers["userInput.request"] = say
    asked = []
    for runtime, session_id in zip(rig.scripted.runtimes, ("on-first", "on-second"), strict=True):
        # The client came to each runtime last.
        held_by = [found for found in runtime.peers if found in runtime.sessions[session_id].attached][-1]
        asked.append(held_by.ask_with_id("userInput.request", {"sessionId": session_id}))
    assert asked[0][0] == asked[1][0], "two runtimes number their requests alike"
    assert [await answer for _, answer in asked] == ["for on-first", "for on-second"]
    ids = [heard.request_id for heard in client.heard if heard.method == "userInput.request"]
    assert len(set(ids)) == 2

    async def never(_params):
        await asyncio.get_running_loop().create_future()

    client.answers["userInput.request"] = never
    for runtime, session_id in zip(rig.scripted.runtimes, ("on-first", "on-second"), strict=True):
        held_by = [found for found in runtime.peers if found in runtime.sessions[session_id].attached][-1]
        wanted, _ = held_by.ask_with_id("userInput.request", {"sessionId": session_id})
    await client.wait_until(lambda: len([h for h in client.heard if h.method == "userInput.request"]) == 4)
    held_by.notify("$/cancelRequest", {"id": wanted})
    told = await client.wait_until(lambda: client.notifications("$/cancelRequest"))
    [request] = [h for h in client.heard if h.request_id == told[0]["id"]]
    assert request.params == {"sessionId": "on-second"}
    await client.call("session.getMessages", {"sessionId": "on-second"})
    assert len(client.notifications("$/cancelRequest")) == 1


async def test_a_runtimes_question_is_answered_once_with_the_clients_result_or_error(rig):
    client = await rig.client("alone")
    await client.call("session.create", {"sessionId": "s"})
    runtime = rig.scripted.runtimes[0]
    [holder] = runtime.sessions["s"].attached

    async def refuse(_params):
        raise RpcError(-32055, "not now")

    client.answers["userInput.request"] = refuse
    with pytest.raises(RpcError, match="not now") as raised:
        await holder.call("userInput.request", {"sessionId": "s"})
    assert raised.value.number == -32055
    with pytest.raises(RpcError, match=r"Unhandled method hooks\.invoke"):
        await holder.call("hooks.invoke", {"sessionId": "s"})


async def test_an_answer_that_nobody_asked_for_reaches_no_runtime(rig):
    client = await rig.client("alone")
    await client.call("session.create", {"sessionId": "s"})
    for odd in (b"1", b"77", b'"1"', b"null", b"-1"):
        body = b'{"jsonrpc":"2.0","id":%b,"result":{"invented":true}}' % odd
        client.send_bytes(b"Content-Length: %d\r\n\r\n%b" % (len(body), body))
    assert (await client.call("session.getMessages", {"sessionId": "s"}))["events"]
    assert all(peer.stray == [] for peer in rig.scripted.runtimes[0].peers)


async def test_a_slow_spawn_holds_back_requests_in_order_but_not_other_clients(rig):
    ready = await rig.client("team")
    await ready.call("session.create", {"sessionId": "other"})
    rig.scripted.may_spawn.clear()
    client = await rig.client("alone")
    create = client.ask("session.create", {"sessionId": "s"})
    behind = [client.ask("session.send", {"sessionId": "s", "prompt": f"p{number}"}) for number in range(20)]
    ping = client.ask("ping", {"message": "last"})
    await rig.settled(lambda: len(rig.scripted.processes) == 2)
    assert (await ready.call("ping", {"message": "x"}))["message"] == "pong: x"
    assert not any(answer.done() for answer in (create, *behind, ping))
    rig.scripted.may_spawn.set()
    assert (await create)["sessionId"] == "s"
    for answer in (*behind, ping):
        await answer
    runtime = rig.scripted.runtimes[1]
    assert [params["prompt"] for params in runtime.called("session.send")] == [f"p{number}" for number in range(20)]
    assert next(call.method for call in runtime.calls if call.method.startswith("session.")) == "session.create"


@pytest.mark.parametrize("tenant", EVERYONE)
@pytest.mark.parametrize("opening", ["session.create", "session.resume"])
async def test_a_runtime_may_ask_the_client_before_it_answers_create_or_resume(rig, tenant, opening):
    """The order within a link must not hold back an answer that the answer before it waits for."""
    client = await rig.client(tenant)

    async def say(params):
        return {"answer": params["question"] + "!"}

    client.answers["userInput.request"] = say
    await client.call("session.create", {"sessionId": "s"})
    runtime = rig.scripted.runtimes[0]

    async def ask_first(peer, params):
        said = await peer.call("userInput.request", {"sessionId": params["sessionId"], "question": "why"})
        return {"sessionId": params["sessionId"], "said": said["answer"]}

    runtime.on[opening] = ask_first
    held = client.ask(opening, {"sessionId": "s"})
    behind = client.ask("session.getMessages", {"sessionId": "s"})
    async with asyncio.timeout(30):
        assert (await held)["said"] == "why!"
        assert (await behind)["events"]


async def test_a_cancel_of_the_client_names_the_runtimes_id(rig):
    client = await rig.client("alone")
    await client.call("session.create", {"sessionId": "s"})
    runtime = rig.scripted.runtimes[0]
    cancelled: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    async def until_cancelled(_peer, _params):
        await cancelled
        raise RpcError(-32800, "cancelled")

    runtime.on["session.something.slow"] = until_cancelled
    first, _ = client.ask_with_id("session.something.slow", {"sessionId": "s"})
    second, answer = client.ask_with_id("session.something.slow", {"sessionId": "s"})
    await runtime.wait_for_call("session.something.slow", 2)
    client.notify("$/cancelRequest", {"id": second})
    [holder] = runtime.sessions["s"].attached
    [told] = await holder.wait_until(lambda: holder.notifications("$/cancelRequest"))
    asked = [heard.request_id for heard in holder.heard if heard.method == "session.something.slow"]
    assert told["id"] == asked[1]
    assert first != second
    cancelled.set_result(None)
    with pytest.raises(RpcError, match="cancelled"):
        await answer


@pytest.mark.parametrize(
    "wanted", ['{"id":"ID"}', '{"id":ID.0}', '{"id":999}', '{"id":null}', '{"id":[ID]}', "{}", "[ID]", "null"]
)
async def test_a_cancel_of_nothing_reaches_no_runtime_and_harms_nothing(rig, wanted):
    client = await rig.client("alone")
    await client.call("session.create", {"sessionId": "s"})
    rig.scripted.runtimes[0].on["session.something.slow"] = lambda *_: asyncio.Event().wait()
    held, _ = client.ask_with_id("session.something.slow", {"sessionId": "s"})
    body = peers.messages.notification("$/cancelRequest", wanted.replace("ID", str(held)).encode())
    client.send_bytes(b"Content-Length: %d\r\n\r\n%b" % (len(body), body))
    assert await client.call("ping")
    assert (await client.call("session.getMessages", {"sessionId": "s"}))["events"]
    assert all(not found.notifications("$/cancelRequest") for found in rig.scripted.runtimes[0].peers)


async def test_a_cancel_of_the_runtime_names_the_clients_id(rig):
    client = await rig.client("alone")
    await client.call("session.create", {"sessionId": "s"})
    await client.call("session.create", {"sessionId": "t"})
    [holder] = rig.scripted.runtimes[0].sessions["s"].attached
    never: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    async def hold(_params):
        await never

    client.answers["userInput.request"] = hold
    holder.ask("userInput.request", {"sessionId": "s"})
    wanted, _ = holder.ask_with_id("userInput.request", {"sessionId": "t"})
    requests = await client.wait_until(
        lambda: len(found := [h for h in client.heard if h.method == "userInput.request"]) == 2 and found
    )
    holder.notify("$/cancelRequest", {"id": wanted})
    holder.notify("$/cancelRequest", {"id": 4711})
    holder.notify("$/cancelRequest", [1])
    holder.notify("$/cancelRequest")
    [told] = await client.wait_until(lambda: client.notifications("$/cancelRequest"))
    assert told["id"] == next(h.request_id for h in requests if h.params["sessionId"] == "t")
    assert await client.call("ping")


async def test_a_body_that_is_no_message_is_answered_and_the_link_goes_on(rig):
    client = await rig.client("shared")
    for body in (b"[]", b"nonsense", b'{"id":1.5,"method":"ping"}', b'{"id":true,"method":"ping"}', b""):
        client.send_bytes(b"Content-Length: %d\r\n\r\n%b" % (len(body), body))
    await client.wait_until(lambda: len(client.stray) == 5)
    assert all(found.id is None and b'"error"' not in bytes(found.error) for found in client.stray)
    assert await client.call("ping")


@pytest.mark.parametrize("tenant", EVERYONE)
async def test_params_that_are_not_utf8_or_nested_without_end_are_refused_and_the_link_goes_on(rig, tenant):
    client = await rig.client(tenant)
    await client.call("session.create", {"sessionId": "s"})
    bad = [
        b'{"sessionId":"\xff"}',
        b'{"x":"\xff"}',
        b'{"sessionId":"s","x":"\xff"}',
        b"[" * 50_000,
        b"[1]",
        b'"s"',
        b"5",
    ]
    sent = 0
    for method in (b"session.create", b"session.resume", b"session.send", b"session.list", b"ping", b"connect", b"x.y"):
        for params in bad:
            sent += 1
            body = b'{"jsonrpc":"2.0","id":"bad-%d","method":"%b","params":%b}' % (sent, method, params)
            client.send_bytes(b"Content-Length: %d\r\n\r\n%b" % (len(body), body))
    await client.wait_until(lambda: len(client.stray) == sent)
    assert await client.call("ping")
    assert (await client.call("session.getMessages", {"sessionId": "s"}))["events"]


async def test_a_good_request_before_a_broken_header_is_answered_then_the_link_is_closed(rig):
    client = await rig.client("shared")
    frame = peers.messages.request("good", "ping")
    client.send_bytes(b"Content-Length: %d\r\n\r\n%b" % (len(frame), frame) + b"garbage\r\n\r\n")
    await client.wait_closed()
    assert [found.id for found in client.stray] == ["good", None]
    assert b"-32700" in bytes(client.stray[1].error)


async def test_a_frame_over_the_limit_is_answered_with_the_limit_and_the_link_closed(open_rig):
    rig = await open_rig(max_frame_bytes=100_000)
    client = await rig.client("shared")
    client.send_bytes(b"Content-Length: 100001\r\n\r\n")
    await client.wait_closed()
    [answer] = client.stray
    assert b"100000" in bytes(answer.error)
    assert b"-32600" in bytes(answer.error)


async def test_too_many_requests_in_flight_are_refused_with_an_error_to_retry_and_cost_no_other(open_rig):
    rig = await open_rig(max_requests_in_flight=10)
    client = await rig.client("alone")
    await client.call("session.create", {"sessionId": "s"})
    runtime = rig.scripted.runtimes[0]
    released: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    async def hold(_peer, params):
        await released
        return params["n"]

    runtime.on["session.something.slow"] = hold
    asked = [client.ask("session.something.slow", {"sessionId": "s", "n": number}) for number in range(15)]
    await rig.settled(lambda: sum(answer.done() for answer in asked) == 5)
    for answer in asked[10:]:
        with pytest.raises(RpcError) as raised:
            await answer
        assert (raised.value.number, raised.value.data["retryable"]) == (-32011, True)
    with pytest.raises(RpcError, match="wait for their answers"):
        await client.call("session.create", {"sessionId": "t"})
    released.set_result(None)
    assert [await answer for answer in asked[:10]] == list(range(10))
    assert await rig.registry.find("t") is None, "a create that was refused keeps no id"
    await client.call("session.create", {"sessionId": "t"})


async def test_what_waits_behind_a_slow_step_is_bounded_in_bytes(open_rig):
    rig = await open_rig(max_frame_bytes=200_000)
    rig.scripted.may_spawn.clear()
    client = await rig.client("alone")
    create = client.ask("session.create", {"sessionId": "s"})
    asked = [client.ask("session.send", {"sessionId": "s", "prompt": "x" * 100_000}) for _ in range(50)]
    await rig.settled(asked[-1].done)
    refused = [answer for answer in asked if answer.done()]
    assert len(refused) >= 45
    for answer in refused:
        with pytest.raises(RpcError) as raised:
            await answer
        assert raised.value.data["code"] == "over_capacity"
    rig.scripted.may_spawn.set()
    await create
    for answer in asked[: -len(refused)]:
        await answer
