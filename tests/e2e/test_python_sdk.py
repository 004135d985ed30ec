"""Unchanged programs of the published Python SDK through the real gateway, on the real runtime.

Each runs where a runtime is one user's and where strangers share it; the features also in both modes of the SDK.
"""

from __future__ import annotations

import asyncio

import pytest
from copilot import CopilotClient, RuntimeConnection
from copilot._jsonrpc import JsonRpcError
from copilot.generated.rpc import PermissionDecisionReject
from copilot.session import PermissionHandler

from .python_sdk import FactTool, Recorder, kind_of, say

pytestmark = pytest.mark.runtime

both_modes = pytest.mark.parametrize("mode", ["copilot-cli", "empty"])
CALL_FACT = '[tool fact {"topic": "the moon"}]'


@both_modes
async def test_a_new_session_answers(cast, connect, mode):
    program = await connect(cast.owner, mode)

    session = await program.create()

    assert await say(session, "Hello!") == "You said: Hello!"


@both_modes
async def test_an_answer_is_streamed_while_the_model_still_speaks(cast, connect, mode):
    program = await connect(cast.owner, mode)
    session = await program.create()
    heard = Recorder()
    session.on(heard)

    answer = await say(session, "[stream 6 0.1]")

    deltas = [event.data.delta_content for event in heard.of("assistant.message_delta")]
    assert answer == "".join(deltas) == "1 2 3 4 5 6"
    assert len(deltas) == 6
    await session.send("[stream 1000 300]")
    await heard.first("assistant.message_delta", at_least=8)
    assert len(heard.of("assistant.message")) == 1, "that of the turn before: this one goes on for minutes"
    await session.abort()


@both_modes
async def test_a_tool_of_the_program_is_called_and_its_result_reaches_the_model(cast, connect, mode):
    program = await connect(cast.owner, mode)
    fact = FactTool(skip_permission=True)
    session = await program.create(tools=[fact.tool])

    assert await say(session, CALL_FACT) == "tool said: a fact about the moon"

    assert fact.calls == [{"topic": "the moon"}]


@both_modes
async def test_a_tool_waits_for_permission_and_runs_when_it_is_given(cast, connect, mode):
    program = await connect(cast.owner, mode)
    fact, asked = FactTool(), []

    def decide(request, invocation):
        asked.append((invocation["session_id"], request.tool_name, len(fact.calls)))
        return PermissionHandler.approve_all(request, invocation)

    session = await program.create(tools=[fact.tool], on_permission_request=decide)

    assert await say(session, CALL_FACT) == "tool said: a fact about the moon"

    assert asked == [(session.session_id, "fact", 0)]


@both_modes
async def test_a_tool_whose_permission_is_refused_does_not_run_and_the_model_hears_why(cast, connect, mode):
    program = await connect(cast.owner, mode)
    fact = FactTool()
    session = await program.create(
        tools=[fact.tool], on_permission_request=lambda *_: PermissionDecisionReject(feedback="not on a Sunday")
    )

    assert "not on a Sunday" in await say(session, CALL_FACT)

    assert fact.calls == []


@both_modes
async def test_hooks_are_heard_in_order_and_what_they_change_is_changed(cast, connect, mode):
    program = await connect(cast.owner, mode)
    fact, heard = FactTool(skip_permission=True), []

    def hook(name, output=None):
        def run(given, _):
            heard.append((name, given["sessionId"]))
            return output

        return run

    session = await program.create(
        tools=[fact.tool],
        hooks={
            "on_session_start": hook("start"),
            "on_user_prompt_submitted": hook("prompt", {"modifiedPrompt": CALL_FACT}),
            "on_pre_tool_use": hook("before", {"modifiedArgs": {"topic": "the sun"}}),
            "on_post_tool_use": hook(
                "after", {"modifiedResult": {"textResultForLlm": "mended", "resultType": "success"}}
            ),
            "on_agent_stop": hook("stop"),
        },
    )

    assert await say(session, "a prompt that nobody will see") == "tool said: mended"

    assert fact.calls == [{"topic": "the sun"}]
    assert heard == [(name, session.session_id) for name in ("start", "prompt", "before", "after", "stop")]


@both_modes
async def test_a_hook_can_deny_a_tool(cast, connect, mode):
    program = await connect(cast.owner, mode)
    fact = FactTool(skip_permission=True)
    denial = {"permissionDecision": "deny", "permissionDecisionReason": "closed today"}
    session = await program.create(tools=[fact.tool], hooks={"on_pre_tool_use": lambda *_: denial})

    assert "closed today" in await say(session, CALL_FACT)

    assert fact.calls == []


@both_modes
async def test_the_model_can_ask_the_user(cast, connect, mode):
    program = await connect(cast.owner, mode)
    asked = []

    def answer(request, context):
        asked.append((request["question"], request["choices"], context["session_id"]))
        return {"answer": "blue", "wasFreeform": True}

    session = await program.create(on_user_input_request=answer)

    said = await say(session, '[tool ask_user {"question": "Which colour?", "choices": ["red", "green"]}]')

    assert "blue" in said
    assert asked == [("Which colour?", ["red", "green"], session.session_id)]


@both_modes
@pytest.mark.parametrize("parting", ["politely", "abruptly"])
async def test_a_session_goes_on_in_a_new_program_with_its_history(cast, connect, mode, parting):
    before = await connect(cast.owner, mode)
    session = await before.create()
    await say(session, "remember the moon")
    if parting == "politely":
        await session.disconnect()
    await before.client.force_stop()
    after = await connect(cast.owner, mode)
    fact = FactTool(skip_permission=True)

    resumed = await after.resume(session.session_id, tools=[fact.tool])

    assert await say(resumed, "[recall]") == "remember the moon | [recall]"
    assert await say(resumed, CALL_FACT) == "tool said: a fact about the moon"
    prompts = [event.data.content for event in await resumed.get_events() if kind_of(event) == "user.message"]
    assert prompts == ["remember the moon", "[recall]", CALL_FACT]


async def test_a_polite_stop_leaves_a_session_that_can_be_resumed(cast, connect):
    before = await connect(cast.owner)
    session = await before.create()
    await say(session, "remember the moon")
    await before.client.stop()
    after = await connect(cast.owner)

    resumed = await after.resume(session.session_id)

    assert await say(resumed, "[recall]") == "remember the moon | [recall]"


async def test_two_programs_of_one_user_share_a_session(cast, connect):
    one, other = await connect(cast.owner), await connect(cast.owner)
    session = await one.create()
    same = await other.resume(session.session_id)
    heard_by_one, heard_by_other = Recorder(), Recorder()
    session.on(heard_by_one)
    same.on(heard_by_other)

    assert await say(session, "from one") == "You said: from one"
    assert await say(same, "[recall]") == "from one | [recall]"

    for recorder in (heard_by_one, heard_by_other):
        await recorder.first("session.idle", at_least=2)  # each has a link of its own, and neither waits for the other
        answers = [event.data.content for event in recorder.of("assistant.message")]
        assert answers == ["You said: from one", "from one | [recall]"]
    assert [e.id for e in heard_by_one.of("assistant.message")] == [
        e.id for e in heard_by_other.of("assistant.message")
    ]


async def test_a_session_outlives_the_first_of_two_programs(cast, connect):
    one, other = await connect(cast.owner), await connect(cast.owner)
    session = await one.create()
    same = await other.resume(session.session_id)
    heard = Recorder()
    same.on(heard)
    await session.send("[stream 10 1.5]")
    await heard.first("assistant.message_delta")

    await one.client.force_stop()

    answer = await heard.first("assistant.message")
    assert answer.data.content == "1 2 3 4 5 6 7 8 9 10"


async def test_an_abort_ends_a_long_answer_at_once_and_the_session_goes_on(cast, connect):
    program = await connect(cast.owner)
    session = await program.create()
    heard = Recorder()
    session.on(heard)
    waiting = asyncio.create_task(say(session, "[stream 1000 300]"))
    await heard.first("assistant.message_delta")

    await session.abort()

    with pytest.raises(RuntimeError, match="aborted"):
        async with asyncio.timeout(20):  # it would have gone on for minutes
            await waiting
    assert heard.of("session.idle")[0].data.aborted
    assert await say(session, "still there?") == "You said: still there?"


async def test_a_user_can_list_look_up_and_delete_sessions(cast, connect):
    program = await connect(cast.owner)
    before = await program.list_ids()
    first, second = await program.create(), await program.create()
    await say(first, "the first")
    await say(second, "the second")

    assert await program.list_ids() - before == {first.session_id, second.session_id}
    assert await program.client.get_last_session_id() == second.session_id
    metadata = await program.client.get_session_metadata(first.session_id)
    assert metadata is not None
    assert metadata.summary == "the first"

    await first.disconnect()
    await program.client.delete_session(first.session_id)

    assert await program.list_ids() - before == {second.session_id}
    assert await program.client.get_session_metadata(first.session_id) is None
    with pytest.raises(JsonRpcError, match="not found"):
        await program.resume(first.session_id)


async def test_lifecycle_events_of_ones_own_sessions_reach_every_program_of_the_user(cast, connect):
    one, other = await connect(cast.owner), await connect(cast.owner)
    heard = Recorder()
    other.client.on_lifecycle(heard)
    await say(await other.create(), "so that it has a runtime")

    session = await one.create()
    await say(session, "hello")
    await one.client.delete_session(session.session_id)

    def is_it(event):
        return event.session_id == session.session_id

    for kind in ("session.created", "session.updated", "session.deleted"):
        await heard.first(kind, is_it)


@pytest.mark.parametrize("token", [None, "wrong", "aero_000000000000_wrong"])
async def test_a_wrong_or_missing_token_fails_as_at_the_runtime(demo, token):
    client = CopilotClient(connection=RuntimeConnection.for_uri(demo.sdk, connection_token=token))
    try:
        with pytest.raises(JsonRpcError) as refused:
            await client.start()
    finally:
        await client.force_stop()

    assert (refused.value.code, refused.value.message) == (-32002, "AUTHENTICATION_FAILED")


async def test_a_token_with_another_users_secret_is_refused(cast, demo):
    _, key_id, _ = cast.owner.token.split("_", 2)
    _, _, secret = cast.stranger.token.split("_", 2)
    client = CopilotClient(connection=RuntimeConnection.for_uri(demo.sdk, connection_token=f"aero_{key_id}_{secret}"))
    try:
        with pytest.raises(JsonRpcError, match="AUTHENTICATION_FAILED"):
            await client.start()
    finally:
        await client.force_stop()


async def test_status_and_ping_are_answered(cast, connect, demo):
    program = await connect(cast.owner)

    pong = await program.client.ping("anyone there?")
    status = await program.client.get_status()

    assert pong.message == "pong: anyone there?"
    assert (status.version, status.protocol_version) == (demo.described["runtime"]["version"], 3)
