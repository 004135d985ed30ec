"""Everything a user can do with a session, tried by a colleague and by a stranger on a session that is not theirs.

They get nothing: the answer to a foreign session is the answer to one that does not exist, no event of it reaches them, and its
owner notices nothing. Where a runtime is one user's, and where strangers share it.
"""

from __future__ import annotations

import asyncio
import uuid

import pytest
from copilot._jsonrpc import JsonRpcError
from copilot.session import PermissionNoResult

from .python_sdk import FactTool, Recorder, say

pytestmark = pytest.mark.runtime

#: Calls that name one session, with what else they need. What the SDK does for a program, and what one that means harm would do.
ATTEMPTS = {
    "session.abort": {},
    "session.commands.handlePendingCommand": {"requestId": "r"},
    "session.delete": {},
    "session.destroy": {},
    "session.detach": {},
    "session.eventLog.read": {},
    "session.getMessages": {},
    "session.getMetadata": {},
    "session.log": {"message": "stolen"},
    "session.metadata.isProcessing": {},
    "session.model.switchTo": {"modelId": "other"},
    "session.name.set": {"name": "stolen"},
    "session.options.update": {"clientName": "stolen"},
    "session.permissions.handlePendingPermissionRequest": {"requestId": "r", "result": {"kind": "approve-once"}},
    "session.permissions.setApproveAll": {"enabled": True},
    "session.queue.clear": {},
    "session.resume": {},
    "session.send": {"prompt": "[say stolen]"},
    "session.shell.exec": {"command": "true"},
    "session.tools.getCurrentMetadata": {},
    "session.tools.handlePendingToolCall": {"requestId": "r", "result": "stolen"},
    "session.ui.ephemeralQuery": {"query": "stolen"},
    "session.usage.getMetrics": {},
    "sessions.close": {},
    "sessions.fork": {},
    "sessions.getMetadata": {},
    "sessions.readPersistedEvents": {},
    "sessions.save": {},
}
LISTS_OF_IDS = ("sessions.bulkDelete", "sessions.checkInUse", "sessions.getClientMetadata")


@pytest.fixture(params=["colleague", "stranger"])
def intruder(request, cast):
    """Someone else: of the same tenant, and of another."""
    return getattr(cast, request.param)


async def outcome(program, method, session_id, params):
    """Return how a call on a session ends, without the session's id."""
    try:
        return "result", str(await program.ask(method, params)).replace(session_id, "ID")
    except JsonRpcError as error:
        return error.code, error.message.replace(session_id, "ID")


async def compare(program, method, foreign, params):
    """Return how a call ends on a foreign session and on one that nobody has."""
    missing = str(uuid.uuid4())
    listed = method in LISTS_OF_IDS
    both = []
    for session_id in (foreign, missing):
        named = {"sessionIds": [session_id]} if listed else {"sessionId": session_id}
        both.append(await outcome(program, method, session_id, {**named, **params}))
    return both


async def test_a_foreign_session_answers_as_one_that_does_not_exist_and_its_owner_notices_nothing(
    cast, connect, intruder
):
    owner = await connect(cast.owner)
    session = await owner.create()
    await say(session, "a secret")
    heard = Recorder()
    session.on(heard)
    working = asyncio.create_task(say(session, "[stream 1000 300]", 300))
    await heard.first("assistant.message_delta")
    thief = await connect(intruder)
    own = await thief.create()
    await say(own, "so that it has a runtime")
    told = thief.overhear()

    differing = {}
    for method in (*ATTEMPTS, *LISTS_OF_IDS):
        foreign, missing = await compare(thief, method, session.session_id, ATTEMPTS.get(method, {}))
        if foreign != missing or "secret" in str(foreign):
            differing[method] = (foreign, missing)

    assert differing == {}
    assert not working.done()
    assert session.session_id not in {session_id for _, session_id, _ in told}
    await session.abort()
    with pytest.raises(RuntimeError, match="aborted"):
        await working
    assert await say(session, "[recall]") == "a secret | [stream 1000 300] | [recall]"
    assert session.session_id in await owner.list_ids()


async def test_the_sdk_functions_of_another_user_find_nothing(cast, connect, intruder):
    owner = await connect(cast.owner)
    session = await owner.create()
    await say(session, "a secret")
    thief = await connect(intruder)
    await say(await thief.create(), "mine")

    with pytest.raises(JsonRpcError, match=f"Session not found: {session.session_id}"):
        await thief.resume(session.session_id)
    with pytest.raises((JsonRpcError, RuntimeError), match="not found"):
        await thief.client.delete_session(session.session_id)
    assert await thief.client.get_session_metadata(session.session_id) is None
    assert session.session_id not in await thief.list_ids()
    assert await thief.client.get_last_session_id() != session.session_id

    assert await say(session, "[recall]") == "a secret | [recall]"


async def test_of_a_list_of_sessions_only_ones_own_are_found_and_deleted(cast, connect, intruder):
    owner, thief = await connect(cast.owner), await connect(intruder)
    session, own = await owner.create(), await thief.create()
    await say(session, "a secret")
    await say(own, "mine")
    await own.disconnect()
    ids = [session.session_id, own.session_id]

    found = await thief.ask("sessions.getClientMetadata", {"sessionIds": ids})
    freed = await thief.ask("sessions.bulkDelete", {"sessionIds": ids})

    assert {entry["sessionId"]: entry["status"] for entry in found} == {ids[0]: "notFound", ids[1]: "ok"}
    assert freed["freedBytes"][session.session_id] == 0
    assert freed["freedBytes"][own.session_id] > 0
    assert own.session_id not in await thief.list_ids()
    assert await say(session, "[recall]") == "a secret | [recall]"


@pytest.mark.parametrize("is_live", [True, False], ids=["live", "on disk"])
async def test_nobody_else_can_create_a_session_on_an_id_that_is_taken(cast, connect, intruder, is_live):
    owner = await connect(cast.owner)
    session_id = f"chosen-{uuid.uuid4()}"
    session = await owner.create(session_id=session_id)
    await say(session, "a secret")
    if not is_live:
        await session.disconnect()
    thief = await connect(intruder)
    told = thief.overhear()

    with pytest.raises(JsonRpcError, match="not available"):
        await thief.create(session_id=session_id)

    assert session_id not in await thief.list_ids()
    assert await thief.client.get_session_metadata(session_id) is None
    again = session if is_live else await owner.resume(session_id)
    assert await say(again, "[recall]") == "a secret | [recall]"
    assert not any("a secret" in words for _, _, words in told)


async def test_no_event_of_a_session_reaches_anyone_else(cast, connect):
    owner = await connect(cast.owner)
    others = [await connect(cast.colleague), await connect(cast.stranger)]
    for other in others:
        await say(await other.create(), "so that it has a runtime")
    # They hear of a runtime's sessions another way while they have none there themselves.
    idle = [await connect(cast.colleague), await connect(cast.stranger)]
    told = [other.overhear() for other in (*others, *idle)]

    session = await owner.create(tools=[FactTool(skip_permission=True).tool])
    await say(session, '[tool fact {"topic": "the moon"}]')
    await session.disconnect()
    await owner.resume(session.session_id)
    await owner.client.delete_session(session.session_id)
    for other in (*others, *idle):
        # What a runtime said before this answer has been said.
        await say(await other.create(), "a turn of one's own")

    for heard in told:
        assert heard
        assert session.session_id not in {named for _, named, _ in heard}


async def test_a_users_sessions_are_shown_to_that_user_alone(cast, connect):
    programs = [await connect(principal) for principal in (cast.owner, cast.colleague, cast.stranger)]
    sessions = [await program.create() for program in programs]
    for session in sessions:
        await say(session, "hello")

    shown = [await program.list_ids() for program in programs]

    ids = [session.session_id for session in sessions]
    for at, listed in enumerate(shown):
        assert listed & set(ids) == {ids[at]}
    assert [await program.client.get_last_session_id() for program in programs] == ids


async def test_a_question_or_permission_of_a_session_can_be_answered_by_its_owner_only(cast, connect, intruder):
    owner = await connect(cast.owner)
    fact, heard = FactTool(), Recorder()
    session = await owner.create(tools=[fact.tool], on_permission_request=lambda *_: PermissionNoResult())
    session.on(heard)
    await session.send('[tool fact {"topic": "the moon"}]')
    request = await heard.first("permission.requested")
    thief = await connect(intruder)
    answer = {"requestId": request.data.request_id, "result": {"kind": "approve-once"}, "sessionId": session.session_id}

    with pytest.raises(JsonRpcError, match="Session not found"):
        await thief.ask("session.permissions.handlePendingPermissionRequest", answer)
    assert fact.calls == []

    await owner.ask("session.permissions.handlePendingPermissionRequest", answer)
    assert (await heard.first("assistant.message", lambda e: e.data.content)).data.content == (
        "tool said: a fact about the moon"
    )
