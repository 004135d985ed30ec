"""The audit log's port over both adapters: what a gateway may rely on, whichever it has."""

from __future__ import annotations

import pytest

from aerodrome.adapters.audit.log import AuditSettings, FileAuditLog
from aerodrome.adapters.memory.audit import MemoryAuditLog
from aerodrome.core.audit import Action, Entry
from aerodrome.core.identity import Owner

ANN, BOB = Owner("acme", "ann"), Owner("acme", "bob")


@pytest.fixture(params=["memory", "files"])
async def log(request, tmp_path):
    opened = MemoryAuditLog() if request.param == "memory" else FileAuditLog(AuditSettings(tmp_path))
    yield opened
    await opened.aclose()
    await opened.aclose()


async def test_what_is_taken_is_kept_once_flushed(log):
    log.check()
    log.record(Entry(Action.SESSION_CREATE, owner=ANN, session_id="s"))
    await log.flush()
    await log.flush()
    assert await log.list_users("acme") == ["ann"]
    assert await log.list_users("other") == []


async def test_a_user_is_forgotten_whether_written_or_only_taken_and_another_is_not(log):
    log.record(Entry(Action.SESSION_CREATE, owner=ANN))
    log.record(Entry(Action.SESSION_CREATE, owner=BOB, session_owner=ANN, session_id="s"))
    log.record(Entry(Action.SESSION_CREATE, owner=BOB))
    assert (await log.forget(ANN)).startswith("u_")
    assert await log.list_users("acme") == ["bob"]
    assert (await log.forget(ANN)).startswith("u_")
    assert await log.list_users("acme") == ["bob"]
