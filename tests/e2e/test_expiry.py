"""Sessions that expire, on the real runtime: deleted from its disk once nobody is attached, never before, never by a dry run."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import structlog
from copilot.session import CopilotSession

from . import place as places
from .place import WAIT_SECONDS, Place
from .python_sdk import Program, begin_turn, say

pytestmark = pytest.mark.runtime

IDLE_SECONDS = 1.0


@asynccontextmanager
async def open_place(state: Path, **sessions: Any) -> AsyncIterator[Place]:
    """Run a gateway whose tenants' sessions expire at once, and whose runtimes do not stay without links."""
    reaping = {"reap_interval_seconds": 0.1, **sessions}
    policy = {"session_idle_ttl": IDLE_SECONDS}
    async with places.open_place(state, policy, {"idle_seconds": 0.1}, sessions=reaping) as place:
        yield place


async def spoken(program: Program, what: str, place: Place) -> CopilotSession:
    """Create a session and have a turn in it at once, which puts it on disk: it expires so soon."""
    session = await program.create()
    await say(session, f"remember the {what}")
    assert session.session_id in place.on_disk()
    return session


async def forgotten(place: Place, session_id: str) -> None:
    """Wait until the registry has no record of a session, which goes after its files."""
    async with asyncio.timeout(WAIT_SECONDS):
        while await place.application.stores.sessions.find(session_id):  # noqa: ASYNC110  it has no events
            await asyncio.sleep(0.01)


@pytest.mark.parametrize("tenant", ["user", "shared"])
async def test_an_expired_session_is_deleted_from_disk_and_one_at_work_only_when_it_is_idle(tmp_path, tenant):
    async with open_place(tmp_path / "state") as place:
        owner, same_user = await place.connect(tenant, "ann"), await place.connect(tenant, "ann")
        other = await place.connect(tenant, "ben")
        # At work first, and until it is told otherwise: what is not used meanwhile expires, however slow the machine is.
        busy, tool, turn = await begin_turn(owner, "remember the moon")
        beside, alone = [await spoken(*each, place) for each in ((same_user, "sun"), (other, "sea"))]
        ids = {busy.session_id, beside.session_id, alone.session_id}
        await same_user.client.force_stop()
        await other.client.force_stop()
        await place.settled(lambda: place.on_disk() & ids == {busy.session_id})

        assert await owner.list_ids() == {busy.session_id}
        assert not turn.done()
        await forgotten(place, alone.session_id)
        with pytest.raises(Exception, match=r"[Nn]ot found"):
            await owner.resume(beside.session_id)
        tool.may_answer.set()
        assert await turn == "tool said: a fact about the moon"

        await place.settled(lambda: not place.on_disk() & ids)


async def test_an_expired_id_that_reads_like_the_beginning_of_another_does_not_take_that_one_along(tmp_path):
    async with open_place(tmp_path / "state") as place:
        owner, other = await place.connect("user"), await place.connect("user")
        kept, tool, turn = await begin_turn(owner, "remember the moon")
        abbreviation = kept.session_id[:8]
        await other.create(session_id=abbreviation)  # without a turn it is not on disk
        await other.client.force_stop()

        await forgotten(place, abbreviation)

        assert kept.session_id in place.on_disk()
        assert not turn.done()
        tool.may_answer.set()
        assert await turn == "tool said: a fact about the moon"


async def test_a_dry_run_says_what_it_would_delete_and_deletes_nothing(tmp_path):
    with structlog.testing.capture_logs() as logged:
        async with open_place(tmp_path / "state", reap_dry_run=True) as place:
            program = await place.connect("user", "ann")
            session = await program.create()
            await say(session, "remember the moon")
            await program.client.force_stop()

            await place.settled(lambda: "session.would_be_reaped" in [entry["event"] for entry in logged])

            assert session.session_id in place.on_disk()
            resumed = await (await place.connect("user", "ann")).resume(session.session_id)
            assert await say(resumed, "[recall]") == "remember the moon | [recall]"
    assert "session.reaped" not in [entry["event"] for entry in logged]
