"""The audit log on disk: written in bounded time, by several processes at once, after kill -9 in mid-write; read and verified."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from aerodrome import errors
from aerodrome.adapters.audit import log as logs
from aerodrome.adapters.audit import segments
from aerodrome.adapters.audit.log import AuditSettings, FileAuditLog
from aerodrome.adapters.audit.trail import AuditTrail
from aerodrome.core.audit import Action, Entry, Head, Outcome
from aerodrome.core.identity import Owner

ANN, BOB = Owner("acme", "ann"), Owner("acme", "bob")
KEYS = (b"k" * 32,)


def settings(directory: Path, **changes) -> AuditSettings:
    return AuditSettings(**{"directory": directory, "sync_seconds": 0.01, **changes})


def trail(directory: Path, keys=()) -> AuditTrail:
    return AuditTrail(directory, keys)


def actions(directory: Path) -> list[str]:
    return [record["action"] for record in trail(directory).records()]


async def write(directory: Path, count: int = 3, **changes) -> None:
    log = FileAuditLog(settings(directory, **changes))
    for at in range(count):
        log.record(Entry(Action.SESSION_CREATE, owner=ANN, session_id=f"s{at}"))
    await log.aclose()


async def test_the_last_records_are_read_from_the_end_over_several_segments(tmp_path):
    for _ in range(3):
        await write(tmp_path, 3, segment_bytes=100)
    log = FileAuditLog(settings(tmp_path, segment_bytes=100))
    log.record(Entry(Action.SESSION_CREATE, owner=Owner("other", "eve"), session_id="s"))
    await log.aclose()
    assert len(segments.list_segments(tmp_path)) > 2

    assert [record["number"] for record in trail(tmp_path).tail(4)] == [10, 9, 8, 7]
    assert [record["number"] for record in trail(tmp_path).tail(100)] == list(range(10, 0, -1))
    assert [(record["number"], record["user"]) for record in trail(tmp_path).tail(2, "acme")] == [
        (9, "ann"),
        (8, "ann"),
    ]
    assert [record["user"] for record in trail(tmp_path).tail(100, "other")] == ["eve"]
    assert trail(tmp_path / "none").tail(3) == []


async def test_what_is_recorded_is_on_disk_within_the_stated_time(tmp_path):
    log = FileAuditLog(settings(tmp_path, sync_seconds=0.05))
    log.record(Entry(Action.SESSION_CREATE, owner=ANN, session_id="s", peer="127.0.0.1:5", key_id="k1"))
    async with asyncio.timeout(20):
        # Not its file: that is there before what is in it.
        while not actions(tmp_path):  # noqa: ASYNC110  files have no events
            await asyncio.sleep(0.005)
    (found,) = trail(tmp_path).records(sessions=[("s", ANN)])
    assert (found["number"], found["tenant"], found["user"], found["session"]) == (1, "acme", "ann", "s")
    assert (found["peer"], found["key_id"], found["outcome"]) == ("127.0.0.1:5", "k1", "done")
    await log.aclose()


async def test_names_and_session_ids_are_not_in_the_files(tmp_path):
    await write(tmp_path)
    text = b"".join(path.read_bytes() for path in segments.list_segments(tmp_path))
    assert b"acme" in text
    assert b"ann" not in text
    assert b'"s0"' not in text


async def test_a_forgotten_user_leads_nowhere_and_the_chain_holds(tmp_path):
    log = FileAuditLog(settings(tmp_path))
    for owner, other in ((ANN, BOB), (BOB, ANN)):
        log.record(Entry(Action.SESSION_CREATE, owner=owner, session_id=f"of {owner.user}", whose=other))
    name = await log.forget(ANN)
    await log.aclose()
    sessions = [("of ann", ANN), ("of bob", BOB)]
    found = [(record["user"], record["session"]) for record in trail(tmp_path).records(sessions=sessions)]
    assert found[0][0] == name
    assert found[0][1].startswith("s_")
    assert found[1] == ("bob", "of bob")
    assert [record["whose"] for record in trail(tmp_path).records()] == ["bob", name]
    assert list(trail(tmp_path).records(session_id="of ann")) == []
    assert trail(tmp_path).verify().fault is None
    assert b"ann" not in (tmp_path / "people.db").read_bytes()
    assert b"bob" in (tmp_path / "people.db").read_bytes()


async def test_records_are_listed_by_time_tenant_and_session(tmp_path):
    log = FileAuditLog(settings(tmp_path))
    log.record(Entry(Action.SESSION_CREATE, owner=ANN, session_id="s"))
    log.record(Entry(Action.SESSION_CREATE, owner=Owner("other", "ann"), session_id="t"))
    await log.aclose()
    assert [found["session"] for found in trail(tmp_path).records(session_id="s")] == ["s"]
    assert [found["tenant"] for found in trail(tmp_path).records(tenant="other")] == ["other"]
    assert list(trail(tmp_path).records(since=time.time() + 60)) == []


async def test_segments_follow_each_other_by_size_and_by_day_and_are_one_chain(tmp_path):
    for _ in range(3):
        await write(tmp_path, segment_bytes=100)
    assert len(segments.list_segments(tmp_path)) == 3
    yesterday = time.time() - 86400
    os.utime(segments.list_segments(tmp_path)[-1], (yesterday, yesterday))
    await write(tmp_path)
    assert [path.name for path in segments.list_segments(tmp_path)] == [f"{n:012d}.jsonl" for n in (1, 4, 7, 10)]
    assert trail(tmp_path).verify().head.number == 12


async def test_a_segment_that_is_gone_is_found_and_one_put_away_needs_an_anchor(tmp_path):
    for _ in range(3):
        await write(tmp_path, segment_bytes=100)
    first, second, _ = segments.list_segments(tmp_path)
    moved = second.rename(tmp_path / "second")
    assert str(trail(tmp_path).verify().fault) == "record 4: is missing; record 7 stands in its place"
    moved.rename(second)
    anchor = Head(3, "")
    for line in first.read_bytes().splitlines(keepends=True):
        anchor = segments.audit.check(segments.audit.head_before(line), line, ())[1]
    first.unlink()
    assert str(trail(tmp_path).verify().fault) == "record 1: is missing; record 4 stands in its place"
    assert trail(tmp_path).verify(anchor).fault is None


async def test_records_cut_off_at_the_end_show_against_an_anchor_only(tmp_path):
    await write(tmp_path)
    anchor = trail(tmp_path).head()
    (path,) = segments.list_segments(tmp_path)
    path.write_bytes(b"".join(path.read_bytes().splitlines(keepends=True)[:2]))
    assert trail(tmp_path).verify().fault is None
    assert trail(tmp_path).verify(anchor).fault.what == "is missing: record 3 was anchored, the log ends before"
    await write(tmp_path)
    assert "is not the one that was anchored" in trail(tmp_path).verify(anchor).fault.what


async def test_a_sealed_log_cannot_be_written_anew_nor_continued_without_its_key(tmp_path):
    await write(tmp_path, keys=KEYS)
    assert trail(tmp_path, KEYS).verify().fault is None
    with pytest.raises(errors.ConfigError, match="AERODROME_AUDIT_KEY"):
        trail(tmp_path).verify()
    with pytest.raises(errors.ConfigError, match="AERODROME_AUDIT_KEY"):
        logs.append_now(settings(tmp_path), Entry(Action.TENANT_ADD, tenant="x"))
    for path in segments.list_segments(tmp_path):
        path.unlink()
    await write(tmp_path)  # the thief's
    assert "is not sealed" in trail(tmp_path, KEYS).verify().fault.what


async def test_a_log_that_gets_a_key_says_which_records_are_not_sealed(tmp_path):
    await write(tmp_path)
    await write(tmp_path, keys=KEYS)
    verdict = trail(tmp_path, KEYS).verify()
    assert (verdict.fault, verdict.unsealed, verdict.head.number) == (None, 3, 6)


# -- crashes and others at the same time ------------------------------------------------------------------------------

WRITER = """
import sys
from pathlib import Path
from aerodrome.adapters.audit import log
from aerodrome.core.audit import Action, Entry
from aerodrome.core.identity import Owner
kept = log.AuditSettings(Path(sys.argv[1]), segment_bytes=4000)
for at in range(int(sys.argv[2])):
    log.append_now(kept, Entry(Action.KEY_CREATE, by=sys.argv[3], owner=Owner("acme", sys.argv[3]), key_id=str(at)))
    print(at, flush=True)
"""


def writer(directory: Path, count: int, name: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", WRITER, str(directory), str(count), name]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


def test_two_processes_write_one_chain(tmp_path):
    running = [writer(tmp_path, 40, name) for name in ("one", "two")]
    asyncio.run(write(tmp_path, 40))
    for process in running:
        process.communicate(timeout=60)
        assert process.returncode == 0
    assert trail(tmp_path).verify().head.number == 120
    assert trail(tmp_path).verify().fault is None
    for name in ("one", "two"):
        assert [r["key_id"] for r in trail(tmp_path).records() if r["by"] == name] == [str(at) for at in range(40)]


def test_what_was_said_to_be_written_survives_kill_9_and_the_chain_goes_on(tmp_path):
    with writer(tmp_path, 100_000, "victim") as process:
        assert process.stdout is not None
        for _ in range(20):
            last = int(process.stdout.readline())
        process.send_signal(signal.SIGKILL)
        process.wait(timeout=30)
        said = [last, *map(int, process.stdout.read().split())]
    logs.append_now(settings(tmp_path), Entry(Action.TENANT_ADD, tenant="later"))
    assert trail(tmp_path).verify().fault is None
    kept = [record for record in trail(tmp_path).records() if record["by"] == "victim"]
    assert len(kept) >= said[-1] + 1


@pytest.mark.parametrize("left", [1, 40, 200])
def test_a_torn_line_is_cut_off_and_noted_and_the_chain_goes_on(tmp_path, left):
    asyncio.run(write(tmp_path))
    (path,) = segments.list_segments(tmp_path)
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join(lines[:2]) + lines[2][:left])
    verdict = trail(tmp_path).verify()
    assert (verdict.fault, verdict.is_torn, verdict.head.number) == (None, True, 2)
    logs.append_now(settings(tmp_path), Entry(Action.TENANT_ADD, tenant="later"))
    assert actions(tmp_path) == ["session.create", "session.create", "log.repair", "tenant.add"]
    assert f"{left} bytes" in list(trail(tmp_path).records())[2]["reason"]
    assert trail(tmp_path).verify().fault is None
    assert not trail(tmp_path).verify().is_torn


def test_a_segment_of_a_torn_line_only_is_continued(tmp_path):
    asyncio.run(write(tmp_path, segment_bytes=100))
    (tmp_path / "000000000004.jsonl").write_bytes(b'{"hash"')
    logs.append_now(settings(tmp_path), Entry(Action.TENANT_ADD, tenant="later"))
    assert [path.name for path in segments.list_segments(tmp_path)] == ["000000000001.jsonl", "000000000004.jsonl"]
    assert trail(tmp_path).verify().head.number == 5


def test_a_log_that_was_tampered_with_at_its_end_is_not_continued(tmp_path):
    asyncio.run(write(tmp_path))
    (path,) = segments.list_segments(tmp_path)
    path.write_bytes(path.read_bytes().replace(b'"number":3', b'"number":4'))
    with pytest.raises(errors.StoreUnavailable, match="run aerodrome audit verify"):
        logs.append_now(settings(tmp_path), Entry(Action.TENANT_ADD, tenant="later"))
    assert trail(tmp_path).verify().fault is not None


# -- a log that cannot be written -------------------------------------------------------------------------------------


@pytest.fixture
def full_disk(monkeypatch):
    """A disk that takes nothing more, for as long as the test says."""
    is_full = [False]
    usual = os.write

    def refuse(descriptor: int, data) -> int:
        if is_full[0]:
            usual(descriptor, bytes(data[:10]))
            raise OSError(28, "No space left on device")
        return usual(descriptor, data)

    monkeypatch.setattr(segments.os, "write", refuse)
    return is_full


async def test_on_a_full_disk_nothing_begins_and_nothing_that_was_taken_is_lost(tmp_path, full_disk, monkeypatch):
    monkeypatch.setattr(logs, "_RETRY_SECONDS", 0.01)
    log = FileAuditLog(settings(tmp_path))
    await log.open()
    full_disk[0] = True
    log.record(Entry(Action.SESSION_CREATE, owner=ANN, session_id="s"))
    with pytest.raises(errors.StoreUnavailable, match="No space left"):
        await log.flush()
    with pytest.raises(errors.StoreUnavailable, match="audit log cannot be written"):
        log.check()
    async with asyncio.timeout(20):
        # It is tried again all the time: while one attempt is under way, what it writes in vain is there.
        while trail(tmp_path).verify().is_torn:  # noqa: ASYNC110
            await asyncio.sleep(0.001)
    full_disk[0] = False
    async with asyncio.timeout(20):
        while len(actions(tmp_path)) < 2:  # noqa: ASYNC110
            await asyncio.sleep(0.005)
    await log.flush()
    log.check()
    await log.aclose()
    assert actions(tmp_path) == ["gateway.start", "session.create"]
    assert trail(tmp_path).verify().fault is None


async def test_where_it_is_not_required_the_gateway_goes_on_without(tmp_path, full_disk):
    full_disk[0] = True
    log = FileAuditLog(settings(tmp_path, is_required=False))
    await log.open()
    log.check()
    await log.aclose()


async def test_where_it_is_required_a_gateway_does_not_start_without(tmp_path, full_disk):
    full_disk[0] = True
    log = FileAuditLog(settings(tmp_path))
    with pytest.raises(errors.ConfigError, match=r"audit\.required = false"):
        await log.open()
    await log.aclose()


async def test_what_does_not_fit_into_the_queue_is_counted_and_the_count_recorded(tmp_path):
    log = FileAuditLog(settings(tmp_path, queue=5))
    for _ in range(12):
        log.record(Entry(Action.CALL, Outcome.REFUSED, owner=ANN))
    with pytest.raises(errors.StoreUnavailable):
        log.check()
    await log.flush()
    log.check()
    await log.aclose()
    found = list(trail(tmp_path).records())
    assert [record["action"] for record in found] == ["call"] * 5 + ["log.lose"]
    assert found[-1]["count"] == 7


async def test_an_entry_that_cannot_be_encoded_holds_up_no_other(tmp_path):
    log = FileAuditLog(settings(tmp_path))
    log.record(Entry(Action.SESSION_CREATE, owner=Owner("acme", "\ud800"), session_id="s"))
    log.record(Entry(Action.CALL, owner=ANN, session_id="\ud800", method="\ud800", reason="\n"))
    await log.aclose()
    assert actions(tmp_path) == ["log.lose", "call"]
    assert trail(tmp_path).verify().fault is None


async def test_users_are_listed_until_they_are_forgotten(tmp_path):
    log = FileAuditLog(settings(tmp_path))
    for owner in (ANN, BOB, Owner("other", "eve")):
        log.record(Entry(Action.SESSION_CREATE, owner=owner))
    assert await log.list_users("acme") == ["ann", "bob"]
    await log.forget(ANN)
    assert await log.list_users("acme") == ["bob"]
    await log.aclose()


async def test_files_are_for_their_user_alone(tmp_path):
    await write(tmp_path / "audit")
    assert (tmp_path / "audit").stat().st_mode & 0o077 == 0
    assert [path.name for path in (tmp_path / "audit").iterdir() if path.stat().st_mode & 0o077] == []
