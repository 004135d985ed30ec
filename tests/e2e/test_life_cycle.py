"""Unchanged SDK programs while the gateway evicts sessions, freezes and hibernates runtimes: they see at most latency."""

from __future__ import annotations

import asyncio
import json
from contextlib import suppress
from pathlib import Path

import pytest
from copilot.session import PermissionHandler

from aerodrome.testing import demo_process

from .python_sdk import FactTool, Recorder, kind_of, say
from .test_runtime_death import realm_name

pytestmark = pytest.mark.runtime

CALL_FACT = '[tool fact {"topic": "the moon"}]'
#: What a runtime says when it unloads a session or opens it again.
UNSEEN = ("session.resume", "session.shutdown", "session.error", "session.indexed_search")


@pytest.fixture(scope="module", params=["evicted", "frozen", "hibernated"])
def departure(request):
    """How sessions leave their runtime."""
    return request.param


@pytest.fixture(scope="module")
def demo(departure):
    """A demo whose runtimes hold one live session each, stand still after a moment, or are stopped after half a second."""
    wishes = {
        "evicted": {"LIVE_SESSIONS": "1", "LIVE_MEMORY_BYTES": "0"},
        "frozen": {"FREEZE_SECONDS": "0.3"},
        "hibernated": {"IDLE_SECONDS": "0.5"},
    }[departure]
    environment = {f"AERODROME_RUNTIME__{name}": value for name, value in wishes.items()}
    with demo_process.running(environment=environment) as running:
        yield running


@pytest.fixture
def mode(isolation):
    """Both modes of the SDK, each where it is likelier: the combinations would take minutes."""
    return {"user": "copilot-cli", "shared": "empty"}[isolation]


@pytest.fixture
def leave(demo, departure, cast):
    """Have a session of a program leave its runtime, or that stand still; `bystander` is another session of the program."""

    async def evicted(program, session, bystander):
        await say(bystander, "so that the other is used less recently")
        await until(lambda: not is_in_use(demo, session.session_id))

    async def frozen(program, session, _):
        serving = demo.runtimes(realm_name(program.principal)).values()
        assert serving
        await until(lambda: all(stands_still(child.pid) for child in serving))

    async def hibernated(program, session, _):
        before = set(demo.runtimes(realm_name(program.principal)))
        assert before
        await until(lambda: not before & set(demo.runtimes(realm_name(program.principal))))

    return {"evicted": evicted, "frozen": frozen, "hibernated": hibernated}[departure]


async def until(condition):
    assert await asyncio.to_thread(demo_process.wait_for, condition, 30)


def is_in_use(demo, session_id):
    """Say whether a runtime has the session: it locks what it has (protocol facts 2.4)."""
    return bool(list(demo.directory.glob(f"*/realms/*/copilot/session-state/{session_id}/inuse.*.lock")))


def stands_still(pid):
    """Say whether a process is frozen by its control group, or stopped by a signal where there is none."""
    with suppress(OSError):
        for line in Path(f"/proc/{pid}/cgroup").read_text().splitlines():
            number, controllers, path = line.split(":", 2)
            for mount in Path("/proc/mounts").read_text().splitlines():
                point, kind, options = mount.split()[1:4]
                if number == "0" and kind == "cgroup2" and is_frozen(Path(point + path, "cgroup.events"), "frozen 1"):
                    return True
                is_freezer = kind == "cgroup" and controllers == "freezer" and "freezer" in options.split(",")
                if is_freezer and is_frozen(Path(point + path, "freezer.state"), "FROZEN"):
                    return True
        return Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()[0] == b"T"
    return False


def is_frozen(file, words):
    with suppress(OSError):
        return words in file.read_text().splitlines()
    return False


async def test_history_tools_and_permissions_are_there_after_every_return(cast, connect, leave, mode):
    program = await connect(cast.owner, mode)
    fact, asked, heard = FactTool(), [], Recorder()

    def decide(request, invocation):
        asked.append(request.tool_name)
        return PermissionHandler.approve_all(request, invocation)

    session = await program.create(tools=[fact.tool], on_permission_request=decide)
    bystander = await program.create()
    session.on(heard)
    said = []
    for number in range(3):
        assert await say(session, f"turn {number}") == f"You said: turn {number}"
        said.append(f"turn {number}")
        await leave(program, session, bystander)
        assert await say(session, CALL_FACT) == "tool said: a fact about the moon"
        said.append(CALL_FACT)
        await leave(program, session, bystander)

    assert await say(session, "[recall]") == " | ".join([*said, "[recall]"])
    assert len(fact.calls) == len(asked) == 3
    for kind in UNSEEN:
        assert heard.of(kind) == []
    assert len({event.id for _, event in heard.notes}) == len(heard.notes)


async def test_hooks_hear_of_one_start_and_one_end(cast, connect, leave, mode):
    program = await connect(cast.owner, mode)
    heard = []
    hooks = {
        "on_session_start": lambda given, _: heard.append("start"),
        "on_user_prompt_submitted": lambda given, _: heard.append("prompt"),
        "on_session_end": lambda given, _: heard.append("end"),
    }
    session = await program.create(hooks=hooks)
    bystander = await program.create()
    await say(session, "one")
    await leave(program, session, bystander)
    await say(session, "two")
    await leave(program, session, bystander)
    await say(session, "three")
    await session.disconnect()

    await until(lambda: heard[-1] == "end")
    assert heard == ["start", "prompt", "prompt", "prompt", "end"]


async def test_what_was_set_after_creation_stays_set(cast, connect, leave):
    program = await connect(cast.owner)
    session = await program.create(tools=[FactTool(skip_permission=True).tool])
    bystander = await program.create()
    name = {"sessionId": session.session_id}
    await say(session, "first")
    await program.ask("session.permissions.setApproveAll", {**name, "enabled": True})
    await program.ask("session.mode.set", {**name, "mode": "plan"})
    await program.ask("session.name.set", {**name, "name": "a name"})
    asking = ("session.permissions.getMode", "session.mode.get", "session.name.get", "session.model.getCurrent")
    before = [await program.ask(method, name) for method in asking]

    await leave(program, session, bystander)

    assert [await program.ask(method, name) for method in asking] == before


async def test_two_programs_hear_the_same_after_a_return(cast, connect, leave):
    one, other = await connect(cast.owner), await connect(cast.owner)
    session = await one.create()
    same = await other.resume(session.session_id)
    bystander = await one.create()
    await say(session, "from one")
    await leave(one, session, bystander)
    heard, heard_by_other = Recorder(), Recorder()
    session.on(heard)
    same.on(heard_by_other)

    assert await say(session, "[recall]") == "from one | [recall]"

    await heard.first("session.idle")
    await heard_by_other.first("session.idle")
    assert up_to_idle(heard) == up_to_idle(heard_by_other)


def up_to_idle(recorder):
    """Return what was heard of a turn; of what a runtime says after it, one program may have heard more by now."""
    told = [(kind_of(event), event.id) for _, event in recorder.notes]
    return told[: [kind for kind, _ in told].index("session.idle") + 1]


async def test_a_long_answer_is_never_cut(cast, connect, leave, demo):
    program = await connect(cast.owner)
    session = await program.create()
    bystander = await program.create()
    waiting = asyncio.create_task(say(session, "[stream 20 2]"))
    await say(bystander, "one")
    await say(bystander, "two")
    assert await waiting == " ".join(str(number) for number in range(1, 21))


async def test_a_shell_in_the_background_is_never_cut(demo, connect, leave):
    owner = demo.tenants("user")[0][0]
    program = await connect(owner)
    session = await program.create(on_permission_request=PermissionHandler.approve_all)
    bystander = await program.create()
    heard = Recorder()
    session.on(heard)
    command = {"command": "sleep 2; echo over", "description": "wait", "mode": "async"}
    await session.send(f"[tool bash {json.dumps(command)}]")
    await heard.first("assistant.message")
    await say(bystander, "one")
    await say(bystander, "two")
    await heard.first("session.idle")
    assert heard.of("session.shutdown") == []
    completed = [event for _, event in heard.notes if "completed successfully" in str(event.data)]
    assert completed
