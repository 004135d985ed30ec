"""kill -9, of a runtime and of the gateway: nobody is left waiting, nothing is left running, and work goes on.

A runtime is found by its mark in the process table, as an operator would find it.
"""

from __future__ import annotations

import asyncio
import os
import signal
import time
import uuid

import pytest
from copilot._jsonrpc import JsonRpcError
from copilot.session import PermissionHandler

from aerodrome.testing import demo_process

from .python_sdk import FactTool, Programs, Recorder, kind_of, say

pytestmark = pytest.mark.runtime

#: Errors must come at once: the SDK's own patience is a minute, and what is cut would have gone on for longer.
AT_ONCE_SECONDS = 15.0


def realm_name(principal):
    """Return a part of the name of the directory that the principal's runtimes work in."""
    return f"user-{principal.tenant}-{principal.user}-" if principal.isolation == "user" else "/shared-"


def kill_runtimes(demo, principal):
    """Kill -9 the runtimes that serve a user; return their ids."""
    killed = demo.runtimes(realm_name(principal))
    assert killed
    for child in killed.values():
        os.kill(child.pid, signal.SIGKILL)
    return set(killed)


async def kill_idle_runtimes(demo, *programs):
    """Kill -9 the runtimes of programs that wait for nothing; return their ids once the gateway has heard of it.

    What is sent before that goes to the dead and comes back as an error: nobody knows what became of it.
    """
    serving = demo.runtimes(realm_name(programs[0].principal)).values()
    killed = kill_runtimes(demo, programs[0].principal)
    assert demo_process.wait_for(lambda: all(child.is_reaped for child in serving), 30)
    for program in programs:
        await program.client.ping()  # the gateway's own answer: its loop has turned since
    return killed


async def begin_long_turn(program, session):
    """Start an answer that would take minutes; return the waiting task once it streams."""
    heard = Recorder()
    session.on(heard)
    waiting = asyncio.create_task(say(session, "[stream 1000 300]", 60))
    await heard.first("assistant.message_delta")
    return waiting


async def test_a_turn_fails_at_once_and_the_same_session_works_on_a_fresh_runtime(cast, connect, demo):
    program = await connect(cast.owner)
    fact = FactTool(skip_permission=True)
    session = await program.create(tools=[fact.tool])
    await say(session, "remember the moon")
    waiting = await begin_long_turn(program, session)

    killed = kill_runtimes(demo, cast.owner)

    async with asyncio.timeout(AT_ONCE_SECONDS):
        with pytest.raises(Exception, match=r"turn was interrupted.*try again"):
            await waiting
    assert (await say(session, "[recall]")).startswith("remember the moon | ")
    assert await say(session, '[tool fact {"topic": "the sun"}]') == "tool said: a fact about the sun"
    fresh = set(demo.runtimes(realm_name(cast.owner)))
    assert fresh
    assert not fresh & killed


async def test_a_program_that_only_listens_hears_the_error_and_then_that_the_session_is_idle(cast, connect, demo):
    program = await connect(cast.owner)
    session = await program.create()
    heard = Recorder()
    session.on(heard)
    await session.send("[stream 1000 300]")
    await heard.first("assistant.message_delta")

    kill_runtimes(demo, cast.owner)

    await heard.first("session.idle")
    assert [event.data.error_type for event in heard.of("session.error")] == ["runtime_lost"]
    kinds = [kind_of(event) for _, event in heard.notes]
    assert kinds.index("session.error") < kinds.index("session.idle")


async def test_requests_in_flight_fail_at_once_with_an_error_that_says_to_try_again(cast, connect, demo):
    program = await connect(cast.owner)
    session = await program.create()
    await say(session, "so that it is on disk")
    # For what is not said: a runtime may go on to speak of a turn that has ended.
    waits = {"sessionId": session.session_id, "waitMs": 60_000, "types": ["abort"]}
    cursor = (await program.ask("session.eventLog.tail", {"sessionId": session.session_id}))["cursor"]
    pending = [asyncio.create_task(program.ask("session.eventLog.read", {**waits, "cursor": cursor})) for _ in range(3)]
    await program.ask("session.getMessages", {"sessionId": session.session_id})  # answered after they were sent
    assert not any(task.done() for task in pending)

    kill_runtimes(demo, cast.owner)

    async with asyncio.timeout(AT_ONCE_SECONDS):
        failures = await asyncio.gather(*pending, return_exceptions=True)
    for failure in failures:
        assert isinstance(failure, JsonRpcError)
        assert failure.code == -32014
        assert failure.data["retryable"] is True


async def test_new_sessions_and_new_programs_are_served_by_a_fresh_runtime(cast, connect, demo):
    program = await connect(cast.owner)
    old = await program.create()
    await say(old, "remember the moon")

    await kill_idle_runtimes(demo, program)

    created = await program.create()
    assert await say(created, "hello") == "You said: hello"
    newcomer = await connect(cast.owner)
    resumed = await newcomer.resume(old.session_id)
    assert await say(resumed, "[recall]") == "remember the moon | [recall]"


async def test_a_session_that_never_had_a_turn_survives_its_runtime(cast, connect, demo):
    program = await connect(cast.owner)
    fact = FactTool(skip_permission=True)
    session = await program.create(tools=[fact.tool])

    await kill_idle_runtimes(demo, program)

    assert await say(session, '[tool fact {"topic": "the sun"}]') == "tool said: a fact about the sun"


async def test_two_programs_on_one_session_both_come_back_to_it(cast, connect, demo):
    one, other = await connect(cast.owner), await connect(cast.owner)
    session = await one.create()
    await say(session, "remember the moon")
    same = await other.resume(session.session_id)
    heard = Recorder()
    same.on(heard)

    await kill_idle_runtimes(demo, one, other)

    assert await say(session, "from one") == "You said: from one"
    assert await say(same, "[recall]") == "remember the moon | from one | [recall]"
    assert await say(session, "[count]") == "user messages: 4"
    await heard.first("assistant.message", lambda event: event.data.content == "user messages: 4")


async def test_a_runtime_can_die_again_and_again(cast, connect, demo):
    program = await connect(cast.owner)
    session = await program.create()
    for number in range(3):
        assert await say(session, f"turn {number}") == f"You said: turn {number}"
        await kill_idle_runtimes(demo, program)

    assert await say(session, "[recall]") == "turn 0 | turn 1 | turn 2 | [recall]"


async def test_what_is_sent_to_a_dying_runtime_is_answered_at_once_and_the_next_try_works(cast, connect, demo):
    program = await connect(cast.owner)
    session = await program.create()
    await say(session, "remember the moon")
    for _ in range(5):
        kill_runtimes(demo, cast.owner)
        async with asyncio.timeout(AT_ONCE_SECONDS):
            (outcome,) = await asyncio.gather(say(session, "too early?"), return_exceptions=True)
        assert outcome == "You said: too early?" or "try again" in str(outcome)
        assert (await say(session, "[recall]")).startswith("remember the moon | ")


async def test_calls_made_together_after_a_death_are_all_served_by_one_fresh_runtime(cast, connect, demo):
    program = await connect(cast.owner)
    sessions = [await program.create() for _ in range(3)]
    for session in sessions:
        await say(session, "remember the moon")

    await kill_idle_runtimes(demo, program)

    answers = await asyncio.gather(*(say(session, "[recall]") for session in sessions))
    assert answers == ["remember the moon | [recall]"] * 3
    assert len(demo.runtimes(realm_name(cast.owner))) == 1


async def test_the_turns_of_everyone_else_go_on(connect, demo):
    (alice, bob), (carol, _) = demo.tenants("user")
    (erin, _), _ = demo.tenants("shared")
    programs = [await connect(principal) for principal in (alice, bob, carol, erin)]
    sessions = [await program.create() for program in programs]
    waiting = [asyncio.create_task(say(session, "[stream 10 2]")) for session in sessions[1:]]
    doomed = await begin_long_turn(programs[0], sessions[0])

    kill_runtimes(demo, alice)

    with pytest.raises(Exception, match="interrupted"):
        await doomed
    assert await asyncio.gather(*waiting) == ["1 2 3 4 5 6 7 8 9 10"] * 3


async def test_what_an_agent_left_running_dies_with_its_runtime(connect, demo):
    alice = demo.tenants("user")[0][0]
    marker = await start_stray_process(demo, await connect(alice))

    kill_runtimes(demo, alice)

    assert demo_process.wait_for(lambda: not demo.find(marker), 30)


async def start_stray_process(demo, program):
    """Have an agent start a process that sheds its parents, its session and its environment; return its new name."""
    marker = f"stray-{uuid.uuid4().hex}"
    session = await program.create(on_permission_request=PermissionHandler.approve_all)
    # A process may call itself what it likes: no other has this name in its command line.
    script = f"setsid env -i bash -c 'exec -a {marker} sleep 300' >/dev/null 2>&1 & echo started"
    said = await say(session, f'[tool bash {{"command": "{script}", "description": "start"}}]')
    assert "started" in said
    assert demo_process.wait_for(lambda: [child for child in demo.find(marker) if "bash" not in child.command], 30)
    return marker


@pytest.mark.parametrize("sign", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT], ids=lambda sign: sign.name)
async def test_nothing_outlives_the_gateway(sign):
    with demo_process.running() as demo:
        programs = Programs(demo)
        try:
            alice, erin = demo.tenants("user")[0][0], demo.tenants("shared")[0][0]
            marker = await start_stray_process(demo, await programs.connect(alice))
            other = await programs.connect(erin)
            waiting = await begin_long_turn(other, await other.create())
            assert len(demo.runtimes()) == 2

            begun = time.monotonic()
            code = await asyncio.to_thread(demo.stop, sign)

            assert code == (0 if sign is not signal.SIGKILL else -signal.SIGKILL)
            assert demo_process.wait_for(lambda: not demo.leftovers() and not demo.find(marker), 30)
            assert time.monotonic() - begun < 30, "the turn would have gone on for minutes"
            if sign is not signal.SIGKILL:
                assert list(demo.directory.iterdir()) == []
        finally:
            await programs.aclose()
        with pytest.raises(Exception, match=r"Session closed|interrupted"):
            await waiting


async def test_a_program_that_only_listens_hears_what_another_says_after_a_death(cast, connect, demo):
    one, other = await connect(cast.owner), await connect(cast.owner)
    session = await one.create()
    await say(session, "remember the moon")
    same = await other.resume(session.session_id)
    heard = Recorder()
    same.on(heard)

    for number in range(3):
        await kill_idle_runtimes(demo, one, other)
        assert await say(session, f"turn {number}") == f"You said: turn {number}"
        await heard.first("assistant.message", lambda event, n=number: event.data.content == f"You said: turn {n}")
        await heard.first("session.idle", at_least=number + 1)  # until then, the turn is not over for this program

    assert heard.of("session.error") == []
    assert len({event.id for _, event in heard.notes}) == len(heard.notes)
