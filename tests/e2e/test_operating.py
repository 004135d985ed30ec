"""An operator at work on a gateway with unchanged SDK programs: they see at most latency."""

from __future__ import annotations

import asyncio
import json
import os
import sys
from asyncio.subprocess import Process
from collections.abc import Callable

import pytest

from aerodrome import app
from aerodrome import settings as settings_module
from aerodrome.admin import client as admin
from aerodrome.testing import demo_process
from aerodrome.testing.demo_process import DemoProcess

from .python_sdk import Programs, Recorder, begin_turn, say

pytestmark = pytest.mark.runtime

COMMAND_SECONDS = 60.0


class Operator:
    """Runs commands on the state directory of a demo."""

    def __init__(self, demo: DemoProcess) -> None:
        [self.directory] = demo.directory.glob("aerodrome-demo-*")

    async def start(self, *words: str) -> Process:
        """Start a command; standard error comes with its output."""
        command = [sys.executable, "-m", "aerodrome", *words, "--state-directory", str(self.directory)]
        return await asyncio.create_subprocess_exec(
            *command, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT
        )

    async def run(self, *words: str, code: int = 0) -> str:
        """Run a command to its end; return what it printed, all of it."""
        return await self.finish(await self.start(*words), code)

    async def finish(self, process: Process, code: int = 0) -> str:
        """Wait for the end of a command; return what it printed since it was last read."""
        try:
            async with asyncio.timeout(COMMAND_SECONDS):
                printed, _ = await process.communicate()
        finally:
            if process.returncode is None:
                process.kill()
                await process.wait()
        assert process.returncode == code, printed.decode()
        return printed.decode()

    async def show(self, what: str, *words: str) -> list[dict]:
        """Return what is shown, as JSON."""
        return json.loads(await self.run("show", what, "--json", *words))

    async def settled(self, what: str, condition: Callable[[list[dict]], bool], *words: str) -> list[dict]:
        """Return what is shown once it fulfils a condition: the programs of earlier tests have gone without a word."""
        async with asyncio.timeout(COMMAND_SECONDS):
            while not condition(found := await self.show(what, *words)):
                pass
        return found


@pytest.fixture
def operator(demo) -> Operator:
    """An operator of the module's demo."""
    return Operator(demo)


async def test_an_evicted_session_goes_on_with_its_history(cast, connect, operator):
    program = await connect(cast.owner)
    session, other = await program.create(), await program.create()
    await say(session, "one")
    await say(other, "other")
    who = ("--tenant", cast.owner.tenant)
    both = {session.session_id: "idle", other.session_id: "idle"}
    await operator.settled(
        "sessions", lambda views: {view["session_id"]: view["state"] for view in views} == both, *who
    )
    [link] = await operator.settled("links", lambda views: len(views) == 1, *who)
    assert (link["user"], link["sessions"], link["upstreams"]) == (cast.owner.user, 2, 1)

    assert "is evicted" in await operator.run("evict", session.session_id)

    views = {view["session_id"]: view for view in await operator.show("sessions", *who)}
    assert views[session.session_id]["state"] == "evicted"
    assert views[session.session_id]["runtime_id"] is None
    assert views[other.session_id]["state"] == "idle"
    assert await say(session, "[recall]") == "one | [recall]"
    views = {view["session_id"]: view["state"] for view in await operator.show("sessions", *who)}
    assert views[session.session_id] == "idle"


async def test_a_session_at_work_stays_and_its_turn_is_whole(cast, connect, operator):
    session, tool, turn = await begin_turn(await connect(cast.owner))
    assert "at work and stays" in await operator.run("evict", session.session_id, code=1)
    tool.may_answer.set()
    assert await turn == "tool said: a fact about the moon"


async def test_all_runtimes_are_recycled_under_a_program_that_keeps_having_turns(cast, connect, operator):
    program = await connect(cast.owner)
    session, heard = await program.create(), Recorder()
    session.on(heard)
    said = ["turn 0"]
    await say(session, said[0])
    before = {row["runtime_id"] for row in await operator.show("runtimes") if row["realm"] is not None}
    assert before

    recycling = asyncio.create_task(operator.run("recycle", "--all", "--wait"))
    while not recycling.done():
        said.append(f"turn {len(said)}")
        assert await say(session, said[-1]) == f"You said: {said[-1]}"
        await asyncio.sleep(0.05)  # as long as anyone thinks before the next: a session is replaced between turns
    printed = await recycling

    assert len(said) > 2
    for runtime_id in before:
        assert f"runtime {runtime_id} is gone" in printed
    assert not before & {row["runtime_id"] for row in await operator.show("runtimes")}
    assert await say(session, "[recall]") == " | ".join([*said, "[recall]"])
    assert heard.of("session.error") == []


async def test_a_drain_by_command_lets_a_turn_finish_and_the_gateway_ends_well():
    with demo_process.running(environment={"AERODROME_DRAIN_SECONDS": "30"}) as demo:
        operator, programs = Operator(demo), Programs(demo)
        _, tool, turn = await begin_turn(await programs.connect(demo.principals[0]))

        draining = await operator.start("drain", "--wait")
        async with asyncio.timeout(COMMAND_SECONDS):
            assert await draining.stdout.readline() == b"draining, 1 session at work\n"
        tool.may_answer.set()

        assert await turn == "tool said: a fact about the moon"
        assert (await operator.finish(draining)).endswith("the gateway has stopped\n")
        assert await asyncio.to_thread(demo.process.wait, 30) == 0
        assert demo.leftovers() == []
        assert "no gateway runs over" in await operator.run("show", "pool", code=1)
        await programs.aclose()


async def test_a_drain_that_nobody_watches_ends_the_gateway_as_well():
    with demo_process.running() as demo:
        await Operator(demo).run("drain")
        assert await asyncio.to_thread(demo.process.wait, 30) == 0
        assert not any(demo.directory.rglob("admin.sock"))


async def test_the_transparent_policy_shows_its_runtimes_and_knows_no_sessions(tmp_path):
    settings = settings_module.load(
        None, listen="127.0.0.1:0", state_directory=tmp_path / "state", policy="transparent"
    )
    async with app.open_application(settings), admin.open_client(tmp_path / "state") as client:
        assert await client.call("show.runtimes") == []
        found = await client.call("show.pool")
        assert (found["settings"]["policy"], found["sessions"]) == ("transparent", None)
        with pytest.raises(Exception, match="transparent policy"):
            await client.call("show.sessions")
        with pytest.raises(Exception, match="part of another program"):
            await client.call("drain")
    assert "admin.sock" not in os.listdir(tmp_path / "state")
