"""A tenant's policy on the real runtime: models and tools at create, at a switch, in sub-agents, and while a session is open."""

from __future__ import annotations

import asyncio
import dataclasses
import itertools
import json
import socket
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from typing import Any

import pytest
import pytest_asyncio
import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from aerodrome.core import identity
from aerodrome.core.identity import Owner, Tenant
from aerodrome.core.override import Override
from aerodrome.core.policy import Isolation, Policy
from aerodrome.testing.demo_process import Principal

from .attacks.client import TOOL, Program
from .place import Place, open_place

pytestmark = [pytest.mark.runtime, pytest.mark.asyncio(loop_scope="module")]

_numbers = itertools.count(1)
REFUSED = -32010
LATER = -32011
OTHER = {**TOOL, "name": "other"}
TASK = '[tool task {"agent_type":"general-purpose","description":"d","prompt":"hello","name":"x","mode":"sync","model":"%s"}]'


class House:
    """A gateway with a tenant of the test's own, whose policy it changes."""

    def __init__(self, place: Place, name: str, closing: AsyncExitStack) -> None:
        self.place = place
        self.name = name
        self._closing = closing
        self.policy = Policy(Isolation.SHARED, provider_urls=(place.model["base_url"],))

    async def put(self, users: dict[str, Override] | None = None, **changes: Any) -> None:
        """Change the policy, as an operator does, and have the gateway notice now."""
        self.policy = dataclasses.replace(self.policy, **changes)
        tenant = Tenant(self.name, self.policy, users=users or {})
        tenants = self.place.application.stores.tenants
        await (tenants.update(tenant) if await tenants.find(self.name) else tenants.add(tenant))
        await self.place.application.policies.refresh()

    async def program(self, user: str = "ann") -> Program:
        """Connect a program of a user."""
        key, token = identity.create_key(Owner(self.name, user), time.time())
        await self.place.application.stores.keys.add(key)
        program = await Program.connect(self.place, Principal(self.name, user, token, "shared"))  # type: ignore[arg-type]
        self._closing.push_async_callback(program.aclose)
        return program


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def place(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Place]:
    async with open_place(tmp_path_factory.mktemp("policy"), runtime={"warm_runtimes": 0}) as place:
        yield place


@pytest_asyncio.fixture(loop_scope="module")
async def house(place: Place) -> AsyncIterator[House]:
    async with AsyncExitStack() as closing:
        house = House(place, f"tenant-{next(_numbers)}", closing)
        await house.put()
        yield house


async def refusal(program: Program, method: str, params: dict[str, Any], code: int = REFUSED) -> str:
    """Make a call that must be refused by policy; return why."""
    answer = await program.ask(method, params)
    assert answer.get("error", {}).get("code") == code, (method, answer)
    return str(answer["error"]["message"])


async def model_of(program: Program, session_id: str) -> str:
    return str((await program.get("session.model.getCurrent", {"sessionId": session_id}))["modelId"])


async def test_a_model_that_is_not_allowed_is_refused_at_create_at_a_switch_and_to_a_sub_agent(house):
    await house.put(models=("demo", "good-*"))
    program = await house.program()

    assert "model" in await refusal(program, "session.create", program.opening(model="evil"))
    session = await program.open_session(availableTools=["builtin:task", "custom:*"])
    assert "demo" in await refusal(program, "session.model.switchTo", {"sessionId": session, "modelId": "evil"})
    for method, params in [
        ("session.options.update", {"model": "evil"}),
        ("session.mode.set", {"mode": "plan", "planModel": "evil"}),
        ("session.tasks.startAgent", {"agentType": "general-purpose", "prompt": "p", "name": "n", "model": "evil"}),
        ("session.tools.updateSubagentSettings", {"subagents": {"agents": {"task": {"model": "evil"}}}}),
    ]:
        await refusal(program, method, {"sessionId": session, **params})
    assert await model_of(program, session) == "demo"

    # What a model asks for by itself is held by the runtime, which was told which are allowed.
    assert "not allowed" in await program.turn(session, TASK % "evil")
    await program.get("session.model.setAllowedModels", {"sessionId": session, "allowedModels": None})
    assert "not allowed" in await program.turn(session, TASK % "evil")


async def test_a_model_that_a_wildcard_allows_can_be_switched_to_and_survives_an_eviction(house):
    await house.put(models=("demo", "good-*"))
    program = await house.program()
    session = await program.open_session()

    await program.turn(session, "hello")
    await program.get("session.model.switchTo", {"sessionId": session, "modelId": "good-1"})
    assert await program.turn(session, "hello") == "You said: hello"
    await house.put(tools=("custom:*",))  # the session comes back restricted
    assert await program.turn(session, "hello again") == "You said: hello again"
    assert await model_of(program, session) == "good-1"


async def test_a_denied_tool_of_the_client_is_neither_offered_nor_called(house):
    await house.put(tools=("!custom:fact", "custom:*"))
    program = await house.program()

    session = await program.open_session(tools=[TOOL, OTHER])
    assert await program.turn(session, "[tools]") == "other"
    await program.turn(session, "[tool fact {}]")
    assert b"external_tool.requested" not in b"".join(program.unasked)
    await program.get("session.tools.set", {"sessionId": session, "tools": [TOOL, OTHER]})
    assert await program.turn(session, "[tools]") == "other"
    await program.get("session.detach", {"sessionId": session})
    await program.get("session.resume", program.opening(sessionId=session, tools=[TOOL, OTHER]))
    assert await program.turn(session, "[tools]") == "other"


async def test_tightening_holds_at_the_next_turn_of_an_open_session(house):
    program = await house.program()
    session = await program.open_session(tools=[TOOL, OTHER])
    assert await program.turn(session, "[tools]") == "fact,other"

    await house.put(tools=("custom:other",), models=("demo",))

    assert await program.turn(session, "[tools][recall]") == "other\n[tools] | [tools][recall]"
    await house.put(tools=None, models=None)
    assert await program.turn(session, "[tools]") == "fact,other"


async def test_tightening_in_the_middle_of_a_turn_keeps_the_client_from_being_called(house):
    program = await house.program()
    session = await program.open_session(tools=[TOOL, OTHER])
    await program.get("session.send", {"sessionId": session, "prompt": "[tool other {}][then][tool fact {}]"})
    asked = await program.wait_for_event(session, "external_tool.requested")

    await house.put(tools=("custom:other",))
    message = {"sessionId": session, "prompt": "and?"}
    assert "try again" in await refusal(program, "session.send", message, LATER)
    answer = {"sessionId": session, "requestId": asked["requestId"], "result": "an answer"}
    await program.get("session.tools.handlePendingToolCall", answer)

    assert "refused by the policy" in await program.finish_turn(session)
    assert [
        body for body in program.unasked if b"external_tool.requested" in body and b'"toolName":"fact"' in body
    ] == []
    assert await program.turn(session, "[tools]") == "other"


async def test_an_open_session_whose_model_is_not_allowed_any_more_is_refused_until_it_names_another(house):
    await house.put(models=("demo", "old"))
    program = await house.program()
    session = await program.open_session(model="old")
    assert await program.turn(session, "hello") == "You said: hello"

    await house.put(models=("demo",))

    assert "'old'" in await refusal(program, "session.send", {"sessionId": session, "prompt": "hello"})
    await program.get("session.resume", program.opening(sessionId=session, model="demo"))
    assert await program.turn(session, "hello") == "You said: hello"


async def test_a_turn_whose_model_is_not_allowed_any_more_is_aborted(house):
    program = await house.program()
    session = await program.open_session(model="old")
    await program.get("session.send", {"sessionId": session, "prompt": "[stream 2000 200] x"})
    await program.wait_for_event(session, "assistant.message_delta")

    await house.put(models=("demo",))

    await program.wait_for_event(session, "session.idle")


async def test_a_fork_counts_as_a_session(house):
    await house.put(max_sessions_per_user=1)
    program = await house.program()
    session = await program.open_session()
    await program.turn(session, "hello")
    assert "max_sessions_per_user" in await refusal(program, "sessions.fork", {"sessionId": session})
    await house.put(max_sessions_per_user=2)
    await program.get("sessions.fork", {"sessionId": session})


async def test_a_user_has_what_is_said_for_them_and_the_rest_of_the_tenants(house):
    await house.put(users={"ann": Override(models=("demo", "large"))}, models=("demo",), tools=("custom:other",))
    ann, ben = await house.program("ann"), await house.program("ben")

    session = await ann.open_session(model="large", tools=[TOOL, OTHER])
    assert await ann.turn(session, "[tools]") == "other"
    await refusal(ben, "session.create", ben.opening(model="large"))


async def test_a_tenant_with_another_isolation_connects_again_into_its_new_realm(house):
    program = await house.program()
    session = await program.open_session()

    await house.put(isolation=Isolation.TENANT)

    await program.wait_closed()
    again = await house.program()
    assert await again.turn(await again.open_session(), "hello") == "You said: hello"
    assert list((house.place.state / "realms").glob(f"tenant-{house.name}-*"))
    assert "not found" in str(await again.ask("session.resume", again.opening(sessionId=session))).lower()


async def answer_as_mcp_server(request: Request) -> Response:
    """Answer as an MCP server with the tools one, two and three."""
    said = json.loads(await request.body())
    tools = [{"name": name, "description": "d", "inputSchema": {"type": "object"}} for name in ("one", "two", "three")]
    info = {"serverInfo": {"name": "s", "version": "1"}, "capabilities": {"tools": {}}}
    results = {
        "initialize": lambda: {"protocolVersion": said["params"]["protocolVersion"], **info},
        "tools/list": lambda: {"tools": tools},
    }
    if said.get("method") not in results:
        return Response(status_code=202)
    return JSONResponse({"jsonrpc": "2.0", "id": said["id"], "result": results[said["method"]]()})


@pytest_asyncio.fixture(loop_scope="module")
async def mcp_url() -> AsyncIterator[str]:
    listening = socket.create_server(("127.0.0.1", 0))
    starlette = Starlette(routes=[Route("/mcp", answer_as_mcp_server, methods=["POST", "GET", "DELETE"])])
    server = uvicorn.Server(uvicorn.Config(starlette, log_level="error", lifespan="off"))
    serving = asyncio.create_task(server._serve(sockets=[listening]))
    yield f"http://127.0.0.1:{listening.getsockname()[1]}/mcp"
    server.should_exit = server.force_exit = True
    await serving
    listening.close()


@pytest.mark.parametrize(
    ("tools", "offered"),
    [
        (None, {"s-one", "s-two", "s-three", "t-one", "t-two", "t-three"}),
        (("mcp:s/*",), {"s-one", "s-two", "s-three"}),
        (("mcp:s/one", "mcp:t/two"), {"s-one", "t-two"}),
        (("mcp:*", "!mcp:s/*", "!mcp:t/one"), {"t-two", "t-three"}),
    ],
)
async def test_of_an_mcp_servers_tools_those_that_policy_allows_are_offered(house, mcp_url, tools, offered):
    await house.put(mcp_urls=(mcp_url,), tools=tools)
    program = await house.program()
    server = {"type": "http", "url": mcp_url, "tools": ["*"]}
    session = await program.open_session(mcpServers={"s": server, "t": server}, tools=[])
    assert (
        offered <= set((await program.turn(session, "[tools]")).split(",")) <= {*offered, "ask_user", "task_complete"}
    )
