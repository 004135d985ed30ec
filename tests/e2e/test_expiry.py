"""Sessions that expire, on the real runtime: deleted from its disk once nobody is attached, never before, never by a dry run."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import structlog

from aerodrome import app, demo
from aerodrome import settings as settings_module
from aerodrome.core import identity
from aerodrome.core.identity import Owner
from aerodrome.testing.demo_process import Principal

from .python_sdk import Program, Programs, say

pytestmark = pytest.mark.runtime

IDLE_SECONDS = 1.0
WAIT_SECONDS = 30.0


@dataclass(frozen=True)
class Place:
    """A gateway in this process, as an SDK program needs it described."""

    sdk: str
    model: dict[str, Any]
    state: Path
    application: app.Application
    closing: AsyncExitStack

    async def connect(self, tenant: str, user: str) -> Program:
        """Connect a program of a user; it is cut at the end at the latest."""
        key, token = identity.create_key(Owner(tenant, user), time.time())
        await self.application.stores.keys.add(key)
        programs = Programs(self)
        self.closing.push_async_callback(programs.aclose)
        return await programs.connect(Principal(tenant, user, token, tenant))

    def on_disk(self) -> set[str]:
        """Return the names of all session and working directories of all realms."""
        realms = self.state / "realms"
        return {path.name for path in [*realms.glob("*/copilot/session-state/*"), *realms.glob("*/work/*")]}

    async def settled(self, condition: Any) -> None:
        """Wait until a condition about the disk holds."""
        async with asyncio.timeout(WAIT_SECONDS):
            while not condition():  # noqa: ASYNC110  the disk has no events
                await asyncio.sleep(0.01)


@asynccontextmanager
async def open_place(state: Path, **sessions: Any) -> AsyncIterator[Place]:
    """Run a gateway whose tenants' sessions expire at once, and whose runtimes do not stay without links."""
    async with demo.open_model() as model:
        limits = {"providers": [model["base_url"]], "session_idle_ttl": IDLE_SECONDS}
        settings = settings_module.load(
            None,
            listen="127.0.0.1:0",
            state_directory=state,
            sessions={"reap_interval_seconds": 0.1, **sessions},
            runtime={"idle_seconds": 0.1, "environment": {"COPILOT_OFFLINE": "true", **demo._node_offline(model)}},
            tenants={
                "user": {"isolation": "user", "trust": "full", **limits},
                "shared": {"isolation": "shared", **limits},
            },
        )
        async with app.open_application(settings) as application, AsyncExitStack() as closing:
            yield Place(f"{application.host}:{application.port}", model, state, application, closing)


@pytest.mark.parametrize("tenant", ["user", "shared"])
async def test_an_expired_session_is_deleted_from_disk_and_one_at_work_only_when_it_is_idle(tmp_path, tenant):
    async with open_place(tmp_path / "state") as place:
        owner, same_user = await place.connect(tenant, "ann"), await place.connect(tenant, "ann")
        other = await place.connect(tenant, "ben")
        busy, beside, alone = [await program.create() for program in (owner, same_user, other)]
        for session, what in ((busy, "moon"), (beside, "sun"), (alone, "sea")):
            await say(session, f"remember the {what}")
        ids = {busy.session_id, beside.session_id, alone.session_id}
        assert ids <= place.on_disk()

        answer = asyncio.create_task(say(busy, "[stream 40 4]"))
        await same_user.client.force_stop()
        await other.client.force_stop()
        await place.settled(lambda: place.on_disk() & ids == {busy.session_id})

        assert await owner.list_ids() == {busy.session_id}
        assert not answer.done()
        assert (await answer).endswith("39 40")
        assert await place.application.stores.sessions.find(alone.session_id) is None
        with pytest.raises(Exception, match=r"[Nn]ot found"):
            await owner.resume(beside.session_id)

        await place.settled(lambda: not place.on_disk() & ids)


async def test_an_expired_id_that_reads_like_the_beginning_of_another_does_not_take_that_one_along(tmp_path):
    async with open_place(tmp_path / "state") as place:
        owner, other = await place.connect("user", "ann"), await place.connect("user", "ann")
        kept = await owner.create()
        await say(kept, "remember the moon")
        answer = asyncio.create_task(say(kept, "[stream 40 4]"))
        abbreviation = kept.session_id[:8]
        await other.create(session_id=abbreviation)  # without a turn it is not on disk
        await other.client.force_stop()

        async with asyncio.timeout(WAIT_SECONDS):
            while await place.application.stores.sessions.find(abbreviation):  # noqa: ASYNC110  nor has the database
                await asyncio.sleep(0.01)

        assert kept.session_id in place.on_disk()
        assert not answer.done()
        assert (await answer).endswith("39 40")


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
