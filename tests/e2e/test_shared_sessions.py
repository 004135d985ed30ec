"""Several people in one session of the real runtime: unchanged SDK programs, many at once, and one that was stopped too long."""

from __future__ import annotations

import asyncio
import json
import os
import secrets
import signal
import sys
import time
from typing import Any

import pytest
from copilot._jsonrpc import JsonRpcError
from copilot.session import PermissionHandler

from aerodrome.adapters.memory.coordination import MemoryTurnCoordinator
from aerodrome.core import identity
from aerodrome.core.identity import Owner
from aerodrome.core.membership import Right
from aerodrome.core.turn_order import Lease
from aerodrome.protocol import member_methods
from aerodrome.testing import crowd as crowds
from aerodrome.testing import demo_process

from .place import Place, open_place
from .python_sdk import FactTool, Program, Recorder, say

pytestmark = pytest.mark.runtime
WAIT_SECONDS = 60.0
#: Short here; two minutes are run by hand (bench/shared_sessions.py).
MEMBERS, CROWD_SECONDS = 20, 3.0


async def token_of(place: Place, tenant: str, user: str) -> str:
    key, token = identity.create_key(Owner(tenant, user), time.time())
    await place.application.stores.keys.add(key)
    return token


async def invite(owner: Program, session_id: str, user: str, *roles: str) -> None:
    await owner.ask("aerodrome.members.invite", {"sessionId": session_id, "user": user, "roles": list(roles)})


async def accept(member: Program, session_id: str) -> None:
    await member.ask("aerodrome.members.accept", {"sessionId": session_id})


async def test_what_the_owners_program_does_to_the_system_message_holds_for_who_joins_too(tmp_path):
    async with open_place(tmp_path) as place:
        ann, ben = await place.connect("shared", "ann"), await place.connect("shared", "ben")
        asked = []

        def transform(content: str) -> str:
            asked.append(content)
            return "Be kind to bees."

        rules = {"mode": "customize", "sections": {"guidelines": {"action": transform}}}
        hers = await ann.create(session_id="both", system_message=rules)
        await say(hers, "[say hers]")
        before = len(asked)
        await invite(ann, "both", "ben", "driver")
        await accept(ben, "both")
        his = await ben.resume("both")

        assert await say(his, "[say his]") == "his"
        assert len(asked) > before


@pytest.mark.parametrize("tenant", ["user", "shared"])
async def test_two_unchanged_programs_in_one_session_are_as_in_the_runtimes_own_multi_client_mode(tmp_path, tenant):
    async with open_place(tmp_path) as place:
        ann, ben = await place.connect(tenant, "ann"), await place.connect(tenant, "ben")
        tool_of_ann, tool_of_ben = FactTool(skip_permission=True), FactTool(skip_permission=True)
        tool_of_ben.tool.name = "other_fact"
        hers = await ann.create(session_id="both", tools=[tool_of_ann.tool])
        heard_by_ann, heard_by_ben = Recorder(), Recorder()
        hers.on(heard_by_ann)
        await invite(ann, "both", "ben", "driver")
        await accept(ben, "both")
        his = await ben.resume("both", tools=[tool_of_ben.tool])
        his.on(heard_by_ben)
        eve, heard_by_eve = await place.connect(tenant, "eve"), Recorder()
        await invite(ann, "both", "eve", "observer")
        await accept(eve, "both")
        (await eve.resume("both")).on(heard_by_eve)
        # Who only reads holds nothing in the runtime, and its program notices nothing of that.
        (resident,) = place.application.services.residents
        assert {holder.client.actor.user for holder in resident.holders.values()} == {"ann", "ben"}

        assert await say(hers, "[say from ann]") == "from ann"
        assert await say(his, "[say from ben]") == "from ben"
        assert await say(his, "[recall]") == "[say from ann] | [say from ben] | [recall]"
        assert "other_fact" in await say(hers, "[tools]")
        assert await say(hers, '[tool other_fact {"topic": "bees"}]') == "tool said: a fact about bees"

        assert await say(his, '[tool fact {"topic": "owls"}]') == "tool said: a fact about owls"

        assert (tool_of_ann.calls, tool_of_ben.calls) == ([{"topic": "owls"}], [{"topic": "bees"}])
        everyone = (heard_by_ann, heard_by_ben, heard_by_eve)
        for heard in everyone:
            await heard.first("session.idle", at_least=6)
        texts = [[event.data.content for event in heard.of("assistant.message")] for heard in everyone]
        assert texts[0] == texts[1] == texts[2]


async def test_the_first_answer_to_a_permission_wins_and_a_driver_is_not_asked(tmp_path):
    async with open_place(tmp_path) as place:
        ann, cat = await place.connect("user", "ann"), await place.connect("user", "cat")
        dan = await place.connect("user", "dan")
        asked: list[str] = []

        def hold(who: str) -> Any:
            async def answer(request: Any, invocation: Any) -> Any:
                asked.append(who)
                if who == "ann":
                    await asyncio.get_running_loop().create_future()
                return PermissionHandler.approve_all(request, invocation)

            return answer

        hers = await ann.create(session_id="asked", on_permission_request=hold("ann"))
        for user, role in (("cat", "approver"), ("dan", "driver")):
            await invite(ann, "asked", user, role)
        await accept(cat, "asked")
        await accept(dan, "asked")
        await cat.resume("asked", on_permission_request=hold("cat"))
        await dan.resume("asked", on_permission_request=hold("dan"))

        said = await say(hers, '[tool bash {"command": "echo shared", "description": "d"}]')

        assert "shared" in said
        assert "cat" in asked


async def test_a_crowd_is_served_one_by_one_in_order_and_nobody_starves():
    environment = {"AERODROME_MASTER_KEY": secrets.token_hex(32)}
    with demo_process.running(environment=environment) as demo:
        crowd = await crowds.gather(demo, MEMBERS)
        try:
            await crowds.hammer(crowd, CROWD_SECONDS)
            assert min(crowd.sent.values()) >= 1
            assert len(crowds.check(crowd)) == sum(crowd.sent.values())
        finally:
            for one in (crowd.owner, *crowd.members.values()):
                await one.aclose()


class _Unfenced(MemoryTurnCoordinator):
    """A coordinator whose fence lets everything pass: what a gateway would be without the check."""

    def check(self, session_id: str, token: int) -> Lease:
        return Lease("turn", "ben", token, 0.0, 1e12)


@pytest.mark.parametrize("is_fenced", [True, False])
async def test_a_holder_stopped_past_its_lease_is_refused_when_it_wakes_and_only_the_fence_does_it(tmp_path, is_fenced):
    async with open_place(tmp_path, turns={"lease_seconds": 3}) as place:
        ann = await place.connect("shared", "ann")
        session = await ann.create(session_id="fenced")
        heard = Recorder()
        session.on(heard)
        await invite(ann, "fenced", "ben", "driver")
        ben = await place.connect("shared", "ben")
        await accept(ben, "fenced")
        if not is_fenced:
            stores = place.application.services.sharing.stores
            object.__setattr__(stores, "fence", _Unfenced(place.application.services.sharing.clock))
        host, port = place.sdk.split(":")
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            "tests.e2e.member_program",
            host,
            port,
            "fenced",
            "0.5",
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            env={**os.environ, "MEMBER_TOKEN": await token_of(place, "shared", "ben")},
        )
        try:
            async with asyncio.timeout(WAIT_SECONDS):
                assert json.loads(await process.stdout.readline())["token"] == 1
                os.kill(process.pid, signal.SIGSTOP)
                assert await say(session, "[say took over]") == "took over"
                os.kill(process.pid, signal.SIGCONT)
                process.stdin.write(b"go\n")
                late = json.loads(await process.stdout.readline())
                await process.wait()
        finally:
            if process.returncode is None:
                process.kill()
                await process.wait()

        if is_fenced:
            assert late == {"refused": "lease_lost"}
            assert [event.data.content for event in heard.of("user.message")] == ["[say took over]"]
        else:
            assert "messageId" in late


async def test_no_call_and_no_event_tells_a_member_the_owners_provider_key(tmp_path):
    async with open_place(tmp_path) as place:
        for tenant in ("user", "shared"):
            ann, ben = await place.connect(tenant, "ann"), await place.connect(tenant, "ben")
            session_id = f"keys-{tenant}"
            hers = await ann.create(session_id=session_id)
            await say(hers, "hello")
            await invite(ann, session_id, "ben", "driver", "approver")
            await accept(ben, session_id)
            heard = ben.overhear()
            await ben.resume(session_id)
            await say(hers, "again")

            answers = []
            for method, right in member_methods.RIGHTS.items():
                if right is Right.READ and method not in ("session.detach", "session.destroy"):
                    try:
                        answers.append(str(await ben.ask(method, {"sessionId": session_id})))
                    except JsonRpcError as error:
                        answers.append(str(error))

            assert len(answers) > 20
            assert sum("hello" in answer for answer in answers) >= 3, "they were answered"
            said = [*answers, *(text for _, _, text in heard)]
            assert [text for text in said if place.model["api_key"] in text] == []
