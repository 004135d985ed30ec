"""Under the policy `finish` a turn outlives its client, and whoever resumes the session hears what was missed, in order."""

from __future__ import annotations

import asyncio

import pytest

from aerodrome.core.attachment import AttachmentState

PATIENT = ["patient", "patient-shared"]


async def begin(rig, tenant: str, prompt: str = "[hold]"):
    """Begin a turn; return its client and the runtime's session."""
    client = await rig.client(tenant)
    await client.call("session.create", {"sessionId": "s"})
    await client.call("session.send", {"sessionId": "s", "prompt": prompt})
    await client.wait_for_event("s", "assistant.turn_start")
    return client, rig.scripted.runtimes[0].sessions["s"]


async def leave(rig, client) -> None:
    await client.aclose()
    await rig.settled(lambda: len(rig.services.finishing) == 1)


def numbers(client) -> list[int]:
    found = [params["event"] for params in client.notifications("session.event")]
    return [event["data"]["number"] for event in found if event["type"] == "note"]


@pytest.mark.parametrize("tenant", PATIENT)
async def test_a_turn_goes_on_without_its_client_and_the_next_one_hears_all_of_it(rig, tenant):
    client, session = await begin(rig, tenant)
    runtime = rig.scripted.runtimes[0]
    await leave(rig, client)
    for number in range(50):
        runtime.emit(session, "note", {"number": number})
    assert not session.turn.done()

    back = await rig.client(tenant)
    await back.call("session.resume", {"sessionId": "s"})
    for number in range(50, 60):
        runtime.emit(session, "note", {"number": number})
    await back.wait_until(lambda: len(numbers(back)) >= 60)
    await back.call("session.abort", {"sessionId": "s"})
    await back.wait_for_event("s", "session.idle")

    assert numbers(back) == list(range(60))
    heard = [found.method for found in back.heard if found.method == "session.event"]
    assert len(heard) == len({p["event"]["id"] for p in back.notifications("session.event")})
    assert len(rig.services.finishing) == 0
    assert len(runtime.called("session.send")) == 1


@pytest.mark.parametrize("tenant", PATIENT)
async def test_a_turn_that_ended_meanwhile_is_heard_by_the_client_that_resumes(rig, tenant):
    client, session = await begin(rig, tenant)
    runtime = rig.scripted.runtimes[0]
    await leave(rig, client)
    runtime.emit(session, "note", {"number": 1})
    session.turn.cancel()
    await rig.settled(lambda: len(rig.services.finishing) == 0 and runtime.sessions == {})

    back = await rig.client(tenant)
    await back.call("session.resume", {"sessionId": "s"})
    await back.wait_for_event("s", "session.idle")

    kinds = back.events("s")
    assert kinds[:5] == ["note", "abort", "assistant.message", "assistant.turn_end", "session.idle"]


async def test_what_was_missed_is_heard_once(rig):
    client, session = await begin(rig, "patient")
    await leave(rig, client)
    rig.scripted.runtimes[0].emit(session, "note", {"number": 1})
    session.turn.cancel()
    await rig.settled(lambda: len(rig.services.finishing) == 0)
    for expected in ([1], []):
        back = await rig.client("patient")
        await back.call("session.resume", {"sessionId": "s"})
        await back.call("session.send", {"sessionId": "s", "prompt": "x"})
        await back.wait_for_event("s", "session.idle", 1 + len(expected))
        assert numbers(back) == expected
        await back.call("session.detach", {"sessionId": "s"})


async def test_a_question_of_the_turn_waits_for_the_client_that_comes_back(rig):
    client, session = await begin(rig, "patient", "[hold]")
    runtime = rig.scripted.runtimes[0]
    await leave(rig, client)
    [attached] = session.attached
    asked = attached.ask("userInput.request", {"sessionId": "s", "question": "colour?"})
    back = await rig.client("patient")

    async def answer(params):
        return {"answer": f"blue to {params['question']}"}

    back.answers["userInput.request"] = answer
    await back.call("session.resume", {"sessionId": "s"})

    async with asyncio.timeout(30):
        assert await asked == {"answer": "blue to colour?"}
    assert runtime.called("session.send")


@pytest.mark.parametrize("tenant", PATIENT)
async def test_an_idle_session_does_not_outlive_its_client(rig, tenant):
    client = await rig.client(tenant)
    await client.call("session.create", {"sessionId": "s"})
    await client.aclose()
    await rig.settled(lambda: rig.scripted.runtimes[0].sessions == {})
    assert len(rig.services.finishing) == 0


async def test_under_close_the_turn_ends_with_its_client(rig):
    client, _ = await begin(rig, "alone")
    await client.aclose()
    await rig.settled(lambda: rig.scripted.runtimes[0].sessions == {})
    assert len(rig.services.finishing) == 0


async def test_nobody_else_is_given_what_was_missed(rig):
    client, session = await begin(rig, "patient-shared")
    await leave(rig, client)
    rig.scripted.runtimes[0].emit(session, "note", {"number": 1})

    stranger = await rig.client("patient-shared", "stranger")
    with pytest.raises(Exception, match="not found"):
        await stranger.call("session.resume", {"sessionId": "s"})

    assert stranger.events("s") == []
    assert len(rig.services.finishing) == 1


async def test_a_turn_without_a_client_is_cut_after_its_time(open_rig):
    rig = await open_rig(finish_seconds=0.2)
    client, _ = await begin(rig, "patient")
    await client.aclose()
    await rig.settled(lambda: rig.scripted.runtimes[0].sessions == {})
    assert len(rig.services.finishing) == 0


async def test_a_runtime_that_dies_meanwhile_is_told_as_a_death(rig):
    client, _ = await begin(rig, "patient")
    await leave(rig, client)
    rig.scripted.processes[0].kill()
    await rig.settled(lambda: len(rig.services.finishing) == 0)

    back = await rig.client("patient")
    await back.call("session.resume", {"sessionId": "s"})
    await back.wait_for_event("s", "session.error")


async def test_what_is_kept_is_bounded_and_pieces_go_first(open_rig):
    rig = await open_rig(missed_bytes=20_000)
    client, session = await begin(rig, "patient")
    await leave(rig, client)
    runtime = rig.scripted.runtimes[0]
    for number in range(40):
        runtime.emit(session, "assistant.message_delta", {"text": "x" * 1000})
        runtime.emit(session, "note", {"number": number})
    back = await rig.client("patient")
    await back.call("session.resume", {"sessionId": "s"})
    await back.wait_until(lambda: 39 in numbers(back))
    assert numbers(back) == list(range(40))
    assert back.events("s").count("assistant.message_delta") < 40


async def test_a_client_with_sessions_of_its_own_takes_one_over_and_loses_neither(rig):
    client, session = await begin(rig, "patient")
    back = await rig.client("patient")
    await back.call("session.create", {"sessionId": "own"})
    await leave(rig, client)
    rig.scripted.runtimes[0].emit(session, "note", {"number": 1})
    await back.call("session.resume", {"sessionId": "s"})
    await back.wait_until(lambda: numbers(back) == [1])
    await back.call("session.abort", {"sessionId": "s"})
    await back.wait_for_event("s", "session.idle")
    for session_id, idles in (("s", 2), ("own", 1)):
        await back.call("session.send", {"sessionId": session_id, "prompt": "x"})
        await back.wait_for_event(session_id, "session.idle", idles)
    await back.aclose()
    await rig.settled(lambda: rig.links() == 0 and not len(rig.services.residents))


async def test_a_client_that_leaves_again_in_the_same_turn_leaves_it_running_again(rig):
    client, session = await begin(rig, "patient")
    for number in range(3):
        await leave(rig, client)
        rig.scripted.runtimes[0].emit(session, "note", {"number": number})
        client = await rig.client("patient")
        await client.call("session.resume", {"sessionId": "s"})
        await client.wait_until(lambda heard=client, n=number: numbers(heard) == [n])
        [peer] = rig.gateway._clients[rig.realm("patient")]
        assert peer.attachments["s"].state is AttachmentState.TURN
    assert not session.turn.done()


async def test_a_gateway_that_stops_ends_them_and_leaves_nothing(open_rig):
    rig = await open_rig()
    client, _ = await begin(rig, "patient")
    await leave(rig, client)


async def never(peer, params):
    """Do not answer."""
    await asyncio.get_running_loop().create_future()


async def hear_out(client, count: int) -> list[int]:
    """Have a turn in `s`, so that all that was on its way is here; return what notes there were."""
    await client.call("session.send", {"sessionId": "s", "prompt": "x"})
    await client.wait_until(lambda: len(numbers(client)) >= count)
    return numbers(client)


async def test_what_was_missed_of_a_session_is_heard_while_another_turn_of_the_same_link_goes_on(rig):
    client, session = await begin(rig, "patient")
    runtime = rig.scripted.runtimes[0]
    await client.call("session.create", {"sessionId": "other"})
    await client.call("session.send", {"sessionId": "other", "prompt": "[hold]"})
    await client.wait_for_event("other", "assistant.turn_start")
    await leave(rig, client)
    runtime.emit(session, "note", {"number": 1})
    session.turn.cancel()

    back = await rig.client("patient")
    await back.call("session.resume", {"sessionId": "s"})
    await back.wait_for_event("s", "session.idle")
    assert back.events("s")[0] == "note"
    runtime.emit(session, "note", {"number": 2})
    runtime.emit(runtime.sessions["other"], "note", {"number": 3})
    await back.call("session.resume", {"sessionId": "other"})
    await back.wait_until(lambda: len(numbers(back)) >= 3)

    assert numbers(back) == [1, 2, 3]
    assert not runtime.sessions["other"].turn.done()
    assert len(rig.services.finishing) == 0


async def test_a_client_that_left_before_its_resume_was_answered_has_missed_it_all_still(rig):
    client, session = await begin(rig, "patient")
    runtime = rig.scripted.runtimes[0]
    await leave(rig, client)
    runtime.emit(session, "note", {"number": 0})
    for number in (1, 2):
        runtime.on["session.resume"] = never
        hasty = await rig.client("patient")
        resuming = asyncio.ensure_future(hasty.call("session.resume", {"sessionId": "s"}))
        await rig.settled(lambda n=number: len(runtime.called("session.resume")) == n)
        await leave(rig, hasty)
        runtime.emit(session, "note", {"number": number})
        with pytest.raises(ConnectionError):
            await resuming
        assert not session.turn.done(), "the turn was cut"
    runtime.on.clear()

    back = await rig.client("patient")
    await back.call("session.resume", {"sessionId": "s"})
    await back.wait_until(lambda: len(numbers(back)) >= 3)
    assert numbers(back) == [0, 1, 2]


async def test_what_a_hasty_client_did_not_hear_of_a_turn_that_had_ended_is_kept_for_the_next(rig):
    client, session = await begin(rig, "patient")
    runtime = rig.scripted.runtimes[0]
    await leave(rig, client)
    runtime.emit(session, "note", {"number": 1})
    session.turn.cancel()
    await rig.settled(lambda: len(rig.services.finishing) == 0)
    hasty = await rig.client("patient")
    await hasty.call("session.create", {"sessionId": "own"})
    rig.scripted.runtimes[-1].on["session.resume"] = never
    resuming = asyncio.ensure_future(hasty.call("session.resume", {"sessionId": "s"}))
    await rig.settled(lambda: rig.scripted.runtimes[-1].called("session.resume"))
    await hasty.aclose()
    with pytest.raises(ConnectionError):
        await resuming
    await rig.settled(lambda: not rig.gateway.clients)
    rig.scripted.runtimes[-1].on.clear()

    back = await rig.client("patient")
    await back.call("session.resume", {"sessionId": "s"})
    assert await hear_out(back, 1) == [1]


async def test_what_another_link_of_the_user_heard_is_not_missed(rig):
    """A client that is back before its old link is known to have gone hears the turn as it goes; nobody is told it again."""
    client, session = await begin(rig, "patient")
    runtime = rig.scripted.runtimes[0]
    back = await rig.client("patient")
    await back.call("session.resume", {"sessionId": "s"})
    await leave(rig, client)
    runtime.emit(session, "note", {"number": 1})
    session.turn.cancel()
    await back.wait_for_event("s", "session.idle")
    await rig.settled(lambda: len(rig.services.finishing) == 0)
    await back.call("session.resume", {"sessionId": "s"})
    assert await hear_out(back, 1) == [1]
    await back.aclose()

    third = await rig.client("patient")
    await third.call("session.resume", {"sessionId": "s"})
    await third.call("session.send", {"sessionId": "s", "prompt": "x"})
    await third.wait_for_event("s", "session.idle")
    assert numbers(third) == []


async def test_two_links_lost_at_once_are_one_turn_that_is_heard_once(rig):
    client, session = await begin(rig, "patient")
    runtime = rig.scripted.runtimes[0]
    second = await rig.client("patient")
    await second.call("session.resume", {"sessionId": "s"})
    runtime.emit(session, "assistant.message_delta", {"text": "both hear that a turn runs"})
    await second.wait_for_event("s", "assistant.message_delta")
    await client.aclose()
    await second.aclose()
    await rig.settled(lambda: not rig.gateway.clients)
    for number in range(5):
        runtime.emit(session, "note", {"number": number})

    back = await rig.client("patient")
    await back.call("session.resume", {"sessionId": "s"})
    await back.wait_until(lambda: len(numbers(back)) >= 5)
    for number in range(5, 8):
        runtime.emit(session, "note", {"number": number})
    session.turn.cancel()
    await back.wait_for_event("s", "session.idle")
    assert numbers(back) == list(range(8))
    assert back.events("s").count("session.idle") == 1
    assert len(rig.services.finishing) == 0
