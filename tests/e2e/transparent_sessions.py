"""Scenarios of sessions over time and between clients: sharing, resuming, rewinding, listing, deleting."""

from __future__ import annotations

import asyncio
from typing import Any

from copilot import CopilotClient, PermissionNoResult, RuntimeConnection
from copilot.generated.rpc import PermissionDecisionApproveOnce

from aerodrome.testing.direct_and_through import Endpoint

from .transparent_program import WAIT_SECONDS, Model, Notes, Program, program, say
from .transparent_turns import fact_tool


async def greetings(endpoint: Endpoint, model: Model) -> Any:
    async with program(endpoint, model, client_info={"editor_name": "tower", "editor_version": "1"}) as running:
        client = running.client
        pong = await client.ping("hi")
        with_nothing = await client.ping()
        return [
            pong.message,
            with_nothing.message,
            pong.protocol_version,
            vars(await client.get_status()),
            vars(await client.get_auth_status()),
            await running.ask("models.list"),
            await client.get_foreground_session_id(),
            await running.ask("session.setForeground", {"sessionId": "nobody"}),
            await running.ask("no.such.method", {"a": 1}),
            await running.ask("session.getMessages", {"sessionId": "nobody"}),
            await running.ask("session.send", {"sessionId": "nobody", "prompt": "hello"}),
            await running.ask("session.send", {"prompt": 1}),
            await running.ask("tools.list"),
        ]


async def a_wrong_token_is_refused(endpoint: Endpoint, model: Model) -> Any:
    refusals = []
    for token in ("wrong", None):
        client = CopilotClient(connection=RuntimeConnection.for_uri(endpoint.address, connection_token=token))
        try:
            await client.start()
        except Exception as error:
            refusals.append((type(error).__name__, str(error)))
        finally:
            await client.force_stop()
    return refusals


async def sessions_are_listed_found_and_deleted(endpoint: Endpoint, model: Model) -> Any:
    async with program(endpoint, model) as running:
        client = running.client
        outcome: list[Any] = [await client.get_last_session_id()]
        for name in ("first", "second"):
            session = await running.create(session_id=name)
            await say(session, f"[say {name}]")
            await session.disconnect()
        found = await client.list_sessions()
        outcome += [sorted((s.session_id, s.summary) for s in found), await client.get_last_session_id()]
        metadata = await client.get_session_metadata("first")
        outcome += [metadata.summary if metadata else None, await client.get_session_metadata("third")]
        await client.delete_session("first")
        outcome.append([s.session_id for s in await client.list_sessions()])
        outcome.append(await running.ask("session.delete", {"sessionId": "first"}))
        outcome.append(await running.ask("session.resume", {"sessionId": "first"}))
        return outcome


async def lifecycle_is_told_to_everyone(endpoint: Endpoint, model: Model) -> Any:
    told: list[tuple[str, str]] = []
    deleted = asyncio.Event()

    def note(event: Any) -> None:
        told.append((event.type, event.session_id))
        if event.type == "session.deleted":
            deleted.set()

    async with program(endpoint, model) as working, program(endpoint, model) as listening:
        listening.client.on_lifecycle(note)
        session = await working.create(session_id="told")
        await say(session, "[say something]")
        await session.disconnect()
        await working.client.delete_session("told")
        async with asyncio.timeout(WAIT_SECONDS):
            await deleted.wait()
        return sorted(set(told))


async def two_clients_bring_their_own_tools_to_one_session(endpoint: Endpoint, model: Model) -> Any:
    here, there, calls_here, calls_there = Notes(), Notes(), [], []
    async with program(endpoint, model) as one, program(endpoint, model) as other:
        first = await one.create(session_id="shared", tools=[fact_tool("fact", calls_here)], on_event=here)
        second = await other.resume("shared", tools=[fact_tool("rumour", calls_there)], on_event=there)
        said = await say(first, '[tool fact {"topic": "owls"}][tool rumour {"topic": "bats"}]')
        said_there = await say(second, '[tool rumour {"topic": "eels"}]')
        await here.first("session.idle", 2)
        await there.first("session.idle", 2)
        kept_here, kept_there = here.durable_ids(), there.durable_ids()
        return said, said_there, calls_here, calls_there, kept_here[-len(kept_there) :] == kept_there


async def one_client_asks_and_the_other_decides(endpoint: Endpoint, model: Model) -> Any:
    def wait(*_: Any) -> Any:
        return PermissionNoResult()

    notes = Notes()
    async with program(endpoint, model) as asking, program(endpoint, model) as deciding:
        first = await asking.create(session_id="judged", on_permission_request=wait, on_event=notes)
        await deciding.resume("judged", on_permission_request=lambda *_: PermissionDecisionApproveOnce())
        said = await say(first, '[tool bash {"command": "echo judged", "description": "say"}]')
        done = await notes.first("permission.completed")
        return said, done.to_dict()["data"]


async def a_session_is_resumed_after_its_client_vanished(endpoint: Endpoint, model: Model) -> Any:
    notes = Notes()
    async with program(endpoint, model) as running:
        session = await running.create(session_id="kept", on_event=notes)
        said = [await say(session, "[say remember ZEBRA]")]
        await session.send("[stream 100 30]")
        await notes.first("assistant.turn_start", 2)
        await notes.first("assistant.message_start", 2)
    notes = Notes()
    async with program(endpoint, model) as running:
        await unloaded(running, "kept")
        resumed = await running.resume("kept", on_event=notes)
        said.append(await say(resumed, "[recall]"))
        await notes.kinds_of_turns(1)
        kept = [event.type.value for event in await resumed.get_events()]
        return said, sorted(kept), notes.passing()


async def unloaded(running: Program, session_id: str) -> None:
    """Wait until the runtime has noticed that the client of a session is gone, and has let go of it."""
    async with asyncio.timeout(WAIT_SECONDS):
        # Every question costs the runtime a round trip: this does not spin.
        while "error" not in await running.ask("session.getMessages", {"sessionId": session_id}):
            pass


async def a_client_stops_politely(endpoint: Endpoint, model: Model) -> Any:
    client = CopilotClient(connection=RuntimeConnection.for_uri(endpoint.address, connection_token=endpoint.token))
    await client.start()
    provider = {"type": "openai", "base_url": model["base_url"], "api_key": model["api_key"]}
    session = await client.create_session(session_id="kept", model=model["name"], provider=provider)  # type: ignore[arg-type]
    said = await say(session, "[say bye]")
    await client.stop()
    await client.start()
    listed = [found.session_id for found in await client.list_sessions()]
    await client.force_stop()
    return said, listed


async def a_session_is_suspended_and_woken(endpoint: Endpoint, model: Model) -> Any:
    notes = Notes()
    async with program(endpoint, model) as running:
        session = await running.create(session_id="asleep", on_event=notes)
        said = [await say(session, "[say remember OWL]")]
        await notes.kinds_of_turns(1)
        suspended = await running.ask("session.suspend", {"sessionId": "asleep"})
        resumed = await running.resume("asleep")
        said.append(await say(resumed, "[recall]"))
        return said, suspended, sorted(set(notes.kinds()))


async def history_is_rewound_truncated_and_compacted(endpoint: Endpoint, model: Model) -> Any:
    notes = Notes()
    async with program(endpoint, model) as running:
        session = await running.create(on_event=notes, enable_file_change_tracking=True)
        name = {"sessionId": session.session_id}
        for word in ("one", "two", "three", "four"):
            await say(session, f"[say {word}]")
        users = [event for event in notes.events if event.type.value == "user.message"]
        points = await running.ask("session.history.listRewindPoints", name)
        rewind = {**name, "eventId": str(users[3].id), "mode": "conversation"}
        heard = [points, await running.ask("session.history.rewind", rewind), await say(session, "[recall]")]
        heard.append(await running.ask("session.history.truncate", {**name, "eventId": str(users[2].id)}))
        heard.append(await say(session, "[recall]"))
        heard.append(await running.ask("session.history.compact", {**name, "trigger": "manual"}))
        heard.append(await say(session, "[count]"))
        heard.append(await running.ask("session.history.rewind", {**rewind, "eventId": "nothing"}))
        return heard, sorted(set(notes.kinds()))


async def options_change_under_way(endpoint: Endpoint, model: Model) -> Any:
    async with program(endpoint, model) as running:
        session = await running.create(name="A name")
        name = {"sessionId": session.session_id}
        await session.log("noted", level="info")
        await session.set_model(model["name"])
        return [
            await running.ask("session.options.update", {**name, "skipCustomInstructions": True}),
            await running.ask("session.name.get", name),
            await running.ask("session.name.set", {**name, "name": "Another"}),
            await running.ask("session.name.get", name),
            await running.ask("session.model.getCurrent", name),
            await running.ask("session.tools.getCurrentMetadata", name),
            await running.ask("session.usage.getMetrics", name),
            await running.ask("session.eventLog.tail", name),
        ]


async def a_large_prompt_and_a_large_answer(endpoint: Endpoint, model: Model) -> Any:
    async with program(endpoint, model) as running:
        session = await running.create()
        said = await say(session, "[size 2000000]" + "x" * 200_000)
        return len(said), said[:64]


SCENARIOS = (
    greetings,
    a_wrong_token_is_refused,
    sessions_are_listed_found_and_deleted,
    lifecycle_is_told_to_everyone,
    two_clients_bring_their_own_tools_to_one_session,
    one_client_asks_and_the_other_decides,
    a_session_is_resumed_after_its_client_vanished,
    a_client_stops_politely,
    a_session_is_suspended_and_woken,
    history_is_rewound_truncated_and_compacted,
    options_change_under_way,
    a_large_prompt_and_a_large_answer,
)
