"""Scenarios of one client and its turns: streaming, tools, and all the questions a runtime asks in between."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from copilot import CommandDefinition, PermissionNoResult
from copilot.generated.rpc import PermissionDecisionApproveOnce, PermissionDecisionReject
from copilot.tools import Tool, ToolInvocation, ToolResult

from aerodrome.testing.direct_and_through import Endpoint

from .transparent_program import WAIT_SECONDS, Model, Notes, program, say


def fact_tool(name: str, calls: list[Any]) -> Tool:
    """Return a tool of a program's own that notes how it is called."""

    async def tell(invocation: ToolInvocation) -> ToolResult:
        calls.append(invocation.arguments)
        return ToolResult(text_result_for_llm=f"{name} knows {invocation.arguments['topic']}")

    schema = {"type": "object", "properties": {"topic": {"type": "string"}}}
    return Tool(name, "Tell a fact.", tell, schema)


async def streamed_turns(endpoint: Endpoint, model: Model) -> Any:
    notes = Notes()
    async with program(endpoint, model) as running:
        session = await running.create(on_event=notes)
        said = [await say(session, "[say one two three four]"), await say(session, "[count]")]
        await notes.first("session.idle", 2)
        await notes.kinds_of_turns(2)
        deltas = [e.data.delta_content for e in notes.events if e.type.value == "assistant.message_delta"]
        kept = [event.to_dict() for event in await session.get_events()]
        return said, deltas, notes.durable(), notes.passing(), kept


async def a_turn_without_streaming_and_an_unhurried_one(endpoint: Endpoint, model: Model) -> Any:
    notes = Notes()
    async with program(endpoint, model) as running:
        session = await running.create(on_event=notes, streaming=False)
        said = [await say(session, "[stream 5 0.2]"), await say(session, "[size 300000]")]
        await notes.first("session.idle", 2)
        await notes.kinds_of_turns(2)
        return said, notes.durable(), notes.passing()


async def own_tools_called_in_parallel(endpoint: Endpoint, model: Model) -> Any:
    notes, calls = Notes(), []
    async with program(endpoint, model) as running:
        tools = [fact_tool("fact", calls), fact_tool("rumour", calls)]
        session = await running.create(on_event=notes, tools=tools)
        said = await say(session, '[tool fact {"topic": "owls"}][tool rumour {"topic": "bats"}]')
        await session.set_tools([fact_tool("legend", calls)])
        later = await say(session, "[tools]")
        await notes.first("session.idle", 2)
        await notes.kinds_of_turns(2)
        kept = sorted(event["type"] for event in notes.durable())
        return said, later, sorted(map(str, calls)), kept, notes.passing()


async def a_tool_that_fails(endpoint: Endpoint, model: Model) -> Any:
    async def fail(_: ToolInvocation) -> ToolResult:
        raise RuntimeError("no such fact")

    notes = Notes()
    async with program(endpoint, model) as running:
        session = await running.create(on_event=notes, tools=[Tool("fact", "Fail.", fail, {"type": "object"})])
        said = await say(session, "[tool fact {}]")
        # Not their order: when a client's tool is said to have answered races with what comes of the answer.
        kept = notes.durable()
        failed = [event["data"] for event in kept if event["type"] == "tool.execution_complete"]
        return said, sorted(event["type"] for event in kept), failed


async def permissions_refused_then_granted(endpoint: Endpoint, model: Model) -> Any:
    notes, asked = Notes(), []

    def decide(request: Any, _: Any) -> Any:
        asked.append(request.to_dict())
        return PermissionDecisionReject("not now") if len(asked) == 1 else PermissionDecisionApproveOnce()

    async with program(endpoint, model) as running:
        session = await running.create(on_event=notes, on_permission_request=decide)
        prompt = '[tool bash {"command": "echo over the gateway", "description": "say"}]'
        return [await say(session, prompt), await say(session, prompt)], asked, await notes.kinds_of_turns(2)


async def a_permission_nobody_decides_is_answered_by_rpc(endpoint: Endpoint, model: Model) -> Any:
    notes = Notes()
    async with program(endpoint, model) as running:
        session = await running.create(on_event=notes, on_permission_request=lambda *_: PermissionNoResult())
        await session.send('[tool bash {"command": "echo late", "description": "say"}]')
        asked = await notes.first("permission.requested")
        pending = await running.ask("session.permissions.pendingRequests", {"sessionId": session.session_id})
        answer = {"requestId": asked.data.request_id, "result": {"kind": "approve-once"}}
        method = "session.permissions.handlePendingPermissionRequest"
        first = await running.ask(method, {"sessionId": session.session_id, **answer})
        again = await running.ask(method, {"sessionId": session.session_id, **answer})
        await notes.first("session.idle")
        return pending, first, again, notes.durable()


async def user_input_is_asked_for(endpoint: Endpoint, model: Model) -> Any:
    asked = []

    async def answer(request: Any, invocation: Any) -> Any:
        asked.append((request, invocation))
        return {"answer": "green", "wasFreeform": False}

    async with program(endpoint, model) as running:
        session = await running.create(on_user_input_request=answer)
        prompt = '[tool ask_user {"question": "which colour?", "choices": ["red", "green"]}]'
        return await say(session, prompt), asked


async def elicitation_asks_and_is_asked(endpoint: Endpoint, model: Model) -> Any:
    asked = []

    async def fill(context: Any) -> Any:
        asked.append(context)
        fields = (context.get("requestedSchema") or {}).get("properties", {})
        values = {"boolean": True, "string": "blue"}
        return {"action": "accept", "content": {name: values[field["type"]] for name, field in fields.items()}}

    notes = Notes()
    async with program(endpoint, model) as running:
        session = await running.create(on_event=notes, on_elicitation_request=fill)
        outcomes = [
            session.capabilities,
            await session.ui.confirm("go on?"),
            await session.ui.input("colour?", {"title": "Colour"}),
            await session.ui.select("which?", ["blue", "red"]),
        ]
        prompt = '[tool ask_user {"question": "which colour?", "choices": ["red", "blue"]}]'
        return outcomes, await say(session, prompt), asked, await notes.kinds_of_turns(1)


async def leaving_plan_mode_is_asked_for(endpoint: Endpoint, model: Model) -> Any:
    asked = []

    async def approve(request: Any, invocation: Any) -> Any:
        asked.append((request, invocation))
        return {"approved": True, "selectedAction": "interactive", "feedback": "go"}

    notes = Notes()
    async with program(endpoint, model) as running:
        session = await running.create(on_event=notes, on_exit_plan_mode_request=approve)
        modes = [await running.ask("session.mode.set", {"sessionId": session.session_id, "mode": "plan"})]
        said = await say(session, '[tool exit_plan_mode {"summary": "do it", "recommendedAction": "interactive"}]')
        modes.append(await running.ask("session.mode.get", {"sessionId": session.session_id}))
        return modes, said, asked, await notes.kinds_of_turns(1)


async def commands_of_the_program(endpoint: Endpoint, model: Model) -> Any:
    ran = []

    async def deploy(context: Any) -> None:
        ran.append((context.command, context.command_name, context.args))

    notes = Notes()
    async with program(endpoint, model) as running:
        session = await running.create(on_event=notes, commands=[CommandDefinition("deploy", deploy, "Deploy it.")])
        listed = await running.ask("session.commands.list", {"sessionId": session.session_id, "includeBuiltins": False})
        params = {"sessionId": session.session_id, "commandName": "deploy", "args": "production"}
        executed = await running.ask("session.commands.execute", params)
        await notes.first("command.completed")
        return listed, executed, ran, sorted(set(notes.kinds()))


async def every_hook(endpoint: Endpoint, model: Model) -> Any:
    called: list[Any] = []

    def note(name: str, output: Any = None) -> Any:
        def hook(value: dict[str, Any], _: Any) -> Any:
            called.append((name, dict(value)))
            return output

        return hook

    hooks = {
        "on_session_start": note("start", {"additionalContext": "be kind"}),
        "on_user_prompt_submitted": note("prompt"),
        "on_pre_tool_use": note("before", {"modifiedArgs": {"topic": "newts"}}),
        "on_post_tool_use": note("after"),
        "on_post_tool_use_failure": note("failed"),
        "on_agent_stop": note("stop"),
        "on_session_end": note("end"),
        "on_error_occurred": note("error"),
    }
    calls: list[Any] = []
    async with program(endpoint, model) as running:
        session = await running.create(hooks=hooks, tools=[fact_tool("fact", calls)])
        said = await say(session, '[tool fact {"topic": "owls"}]')
        with pytest.raises(Exception, match="asked for this error"):
            await say(session, "[error 400]")
        await session.disconnect()
        return said, calls, called


async def the_system_message_is_transformed(endpoint: Endpoint, model: Model) -> Any:
    seen: list[str] = []

    async def shout(section: str) -> str:
        seen.append(section)
        return section.upper()

    message = {
        "mode": "customize",
        "sections": {"tone": {"action": shout}, "safety": {"action": "replace", "content": "Take care."}},
        "content": "Speak of owls.",
    }
    async with program(endpoint, model) as running:
        session = await running.create(system_message=message)
        return await say(session, "[system]"), seen


async def errors_of_the_model(endpoint: Endpoint, model: Model) -> Any:
    notes = Notes()
    async with program(endpoint, model) as running:
        session = await running.create(on_event=notes)
        await session.send("[error 400]")
        await notes.first("session.idle")
        return await say(session, "[error 500 x1][say mended]"), notes.durable()


async def a_turn_is_aborted(endpoint: Endpoint, model: Model) -> Any:
    notes = Notes()
    async with program(endpoint, model) as running:
        session = await running.create(on_event=notes)
        await session.send("[stream 100 30]")
        await notes.first("assistant.message_delta")
        await session.abort()
        idle = await notes.first("session.idle")
        kinds = sorted(event["type"] for event in notes.durable())
        return idle.to_dict()["data"], kinds, await say(session, "[say after]")


async def two_turns_are_queued_and_one_goes_first(endpoint: Endpoint, model: Model) -> Any:
    notes, held, released = Notes(), asyncio.Event(), asyncio.Event()

    async def hold(_: ToolInvocation) -> ToolResult:
        held.set()
        await released.wait()
        return ToolResult(text_result_for_llm="let go")

    async with program(endpoint, model) as running:
        session = await running.create(on_event=notes, tools=[Tool("hold", "Hold.", hold, {"type": "object"})])
        await session.send("[tool hold {}]")
        async with asyncio.timeout(WAIT_SECONDS):
            await held.wait()
        await session.send("[say second]", mode="enqueue")
        await session.send("[say third]", mode="enqueue")
        await session.send("[say at once]", mode="immediate")
        pending = await running.ask("session.queue.pendingItems", {"sessionId": session.session_id})
        released.set()
        await notes.first("session.idle")
        texts = [e.data.content for e in notes.events if e.type.value in {"user.message", "assistant.message"}]
        return texts, pending, notes.kinds().count("session.idle")


SCENARIOS = (
    streamed_turns,
    a_turn_without_streaming_and_an_unhurried_one,
    own_tools_called_in_parallel,
    a_tool_that_fails,
    permissions_refused_then_granted,
    a_permission_nobody_decides_is_answered_by_rpc,
    user_input_is_asked_for,
    elicitation_asks_and_is_asked,
    leaving_plan_mode_is_asked_for,
    commands_of_the_program,
    every_hook,
    the_system_message_is_transformed,
    errors_of_the_model,
    a_turn_is_aborted,
    two_turns_are_queued_and_one_goes_first,
)
