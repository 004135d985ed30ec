"""`aerodrome session list | reap` and the limits of `aerodrome tenant add | set`, as a user and a script see them."""

from __future__ import annotations

import asyncio
import json
import time

import pytest
from typer.testing import CliRunner

from aerodrome import app as application
from aerodrome import errors, settings
from aerodrome.cli import main
from aerodrome.core.identity import Owner
from aerodrome.core.session import SessionRecord

DAY = 86400.0


@pytest.fixture
def run(tmp_path, monkeypatch):
    """Run a command on a state directory of the test's own; return what it prints, read if it is JSON."""
    monkeypatch.setenv("AERODROME_STATE_DIRECTORY", str(tmp_path / "state"))

    def invoke(*words: str):
        result = CliRunner().invoke(main.app, words)
        if isinstance(result.exception, errors.AerodromeError):
            raise result.exception
        assert result.exit_code == 0, result.output
        return json.loads(result.stdout) if "--json" in words else result.stdout

    return invoke


@pytest.fixture
def claim(run):
    """Have sessions in the registry, created and last used so many days ago."""

    def claimed(*records: tuple[str, str, float, float]) -> None:
        async def write() -> None:
            async with application.open_stores(settings.load()) as stores:
                for session_id, tenant, created, used in records:
                    owner, now = Owner(tenant, "ann"), time.time()
                    at = (now - created * DAY, now - used * DAY)
                    await stores.sessions.claim(SessionRecord(session_id, owner, f"tenant:{tenant}", *at))

        asyncio.run(write())

    return claimed


def test_a_tenants_limits_are_set_shown_and_replaced_as_a_whole(run):
    run("tenant", "add", "acme", "--session-idle-ttl", "30d", "--session-max-age", "36h")
    [tenant] = run("tenant", "list", "--json")
    assert (tenant["isolation"], tenant["session_idle_ttl"], tenant["session_max_age"]) == ("user", "30d", "36h")

    run("tenant", "set", "acme", "--isolation", "shared", "--session-idle-ttl", "90m")
    [tenant] = run("tenant", "list", "--json")
    assert (tenant["isolation"], tenant["session_idle_ttl"], tenant["session_max_age"]) == ("shared", "90m", "never")


@pytest.mark.parametrize("option", ["--session-idle-ttl", "--session-max-age"])
def test_a_limit_that_is_no_length_of_time_is_refused_by_its_option(run, option):
    with pytest.raises(errors.ConfigError, match=f"{option}: expected a number and s, m, h or d, found '30'"):
        run("tenant", "add", "acme", option, "30")


def test_a_replaced_policy_must_say_its_isolation_and_an_added_one_need_not(run):
    run("tenant", "add", "acme")
    result = CliRunner().invoke(main.app, ["tenant", "set", "acme"])
    assert result.exit_code == 2
    assert "--isolation" in result.stderr
    with pytest.raises(errors.TenantMissing):
        run("tenant", "set", "globex", "--isolation", "user")


def test_a_list_has_a_tenants_sessions_with_their_times(run, claim):
    run("tenant", "add", "acme")
    claim(("s1", "acme", 2, 1), ("s2", "acme", 2, 0), ("other", "globex", 2, 1))
    sessions = run("session", "list", "--tenant", "acme", "--json")
    assert [(found["session"], found["tenant"], found["user"]) for found in sessions] == [
        ("s1", "acme", "ann"),
        ("s2", "acme", "ann"),
    ]
    assert sessions[0]["created"] < sessions[0]["used"] < sessions[1]["used"]
    table = run("session", "list", "--tenant", "acme")
    assert "s1" in table
    assert "other" not in table


def test_a_list_longer_than_a_page_is_whole(run, claim):
    run("tenant", "add", "acme")
    claim(*((f"s{number:03}", "acme", 1, 1) for number in range(250)))
    assert len(run("session", "list", "--tenant", "acme", "--json")) == 250


def test_a_dry_run_says_what_has_expired_by_which_limit_and_changes_nothing(run, claim):
    run("tenant", "add", "acme", "--session-idle-ttl", "7d", "--session-max-age", "30d")
    run("tenant", "add", "globex", "--session-idle-ttl", "1d")
    run("tenant", "add", "forever")
    claim(("fresh", "acme", 1, 1), ("idle", "acme", 20, 8), ("aged", "acme", 40, 1))
    claim(("other", "globex", 2, 2), ("kept", "forever", 999, 999), ("orphan", "gone", 999, 999))

    found = {each["session"]: each["limit"] for each in run("session", "reap", "--dry-run", "--json")}
    assert found == {"idle": "idle", "aged": "age", "other": "idle"}
    only = run("session", "reap", "--dry-run", "--tenant", "globex", "--json")
    assert [each["session"] for each in only] == ["other"]
    assert only[0]["used"] < only[0]["expired"]
    assert "idle" in run("session", "reap", "--dry-run")
    assert len(run("session", "list", "--tenant", "acme", "--json")) == 3


def test_tenants_of_the_configuration_go_before_those_of_the_database(run, claim, tmp_path):
    run("tenant", "add", "acme", "--session-idle-ttl", "7d")
    claim(("idle", "acme", 20, 8))
    config = tmp_path / "aerodrome.toml"
    config.write_text('[tenants.acme]\nsession_idle_ttl = "90d"\n')
    assert run("session", "reap", "--dry-run", "--json", "--config", str(config)) == []


def test_without_dry_run_it_says_who_deletes(run):
    with pytest.raises(errors.ConfigError, match=r"running gateway.*--dry-run"):
        run("session", "reap")


@pytest.mark.parametrize("words", [("list",), ("reap", "--dry-run")])
def test_an_unknown_tenant_is_named(run, words):
    with pytest.raises(errors.TenantMissing, match="nobody"):
        run("session", *words, "--tenant", "nobody")
