"""Sessions that end otherwise than over HTTP: nothing of them stays in the edge or its store."""

from __future__ import annotations

import asyncio
from dataclasses import replace

from aerodrome.admin import erasure
from aerodrome.admin.erasure import Eraser
from aerodrome.core.identity import Owner
from aerodrome.testing.http_rig import WAIT_SECONDS, read_events
from aerodrome.testing.rig import TENANTS

from .test_idempotency import make

OWNER = Owner("shared", "user")


class NoPeople:
    """A registry of rows that has none."""

    async def erase(self, owner, keep_sessions=False):
        return {}

    async def count(self, owner):
        return {}

    async def purge(self):
        pass


async def test_an_expired_session_takes_what_it_was_opened_with_along(http):
    caller = await http.caller("shared")
    session = await make(caller, title="old")
    await caller.post(f"{session}/messages", json={"prompt": "x"})
    expired = replace(TENANTS["shared"], session_idle_seconds=0.0)
    await http.rig.settled(lambda: not any(held.is_at_work for held in http.rig.services.residents))

    await http.rig.reaper({"shared": expired}).run_pass()

    assert await http.stores.conversations.find("s1", OWNER) is None
    assert (await caller.get(session)).status_code == 404
    await make(caller)
    assert (await caller.get(session)).json()["options"]["title"] is None


async def test_a_session_that_an_sdk_deletes_is_gone_over_http_too(http):
    caller = await http.caller("shared")
    session = await make(caller, title="old")
    client = await http.rig.client("shared")

    await client.call("session.delete", {"sessionId": "s1"})

    assert await http.stores.conversations.find("s1", OWNER) is None
    assert (await caller.get(session)).status_code == 404
    assert (await caller.post(f"{session}/messages", json={"prompt": "x"})).status_code == 404


async def test_an_erased_user_has_no_link_no_stream_and_no_session_left(http, tmp_path):
    caller = await http.caller("shared")
    session = await make(caller, title="old")
    await caller.post(f"{session}/messages", json={"prompt": "[use m 1 1]"})
    rig = http.rig
    outstanding = erasure.Outstanding(rig.erasures, rig.clock, skew_seconds=0.0, keep_seconds=3600.0)
    site = erasure.Site(tmp_path, rig.pool, rig.services, NoPeople(), outstanding, rig.find_tenant, rig.gateway)
    eraser = Eraser(site)

    async with asyncio.timeout(WAIT_SECONDS), caller.stream("GET", f"{session}/events") as answer:
        (report,) = await eraser.erase("shared", "user", "operator")
        assert [event async for event in read_events(answer)] == []

    assert (report.left, report.links, report.sessions) == ([], 1, 1)
    assert http.edge.users.peek(OWNER) is None
    assert await http.stores.conversations.find("s1", OWNER) is None
    assert rig.services.usage._pending == {}


async def test_a_session_that_the_runtime_does_not_delete_stays_as_it_is(http):
    caller = await http.caller("shared")
    session = await make(caller, title="kept")
    (runtime,) = http.rig.scripted.runtimes

    async def refuse(*_) -> dict:
        return {"success": False, "error": "Cannot delete session s1: it is currently in use by another process."}

    runtime.on["session.delete"] = refuse
    refused = await caller.delete(session)

    assert (refused.status_code, refused.json()["code"]) == (422, "runtime_refused")
    assert (await caller.get(session)).json()["options"]["title"] == "kept"
    del runtime.on["session.delete"]
    assert (await caller.delete(session)).status_code == 204


async def test_a_session_that_no_runtime_has_on_disk_is_gone_when_it_is_deleted(http):
    caller = await http.caller("shared")
    session = await make(caller)
    await http.edge.users.close_user(OWNER)
    await http.rig.settled(lambda: not any(runtime.sessions for runtime in http.rig.scripted.runtimes))

    assert (await caller.delete(session)).status_code == 204

    assert (await caller.get(session)).status_code == 404
    assert (await caller.get("/v1/sessions")).json()["sessions"] == []
    assert (await caller.delete(session)).status_code == 404
