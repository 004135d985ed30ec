"""`aerodrome audit ...`, and what `key` and `tenant` have recorded, as an operator and a script see them."""

from __future__ import annotations

import json

import pytest
from typer.testing import CliRunner

from aerodrome import errors, settings
from aerodrome.cli import main

KEY = "k" * 32


@pytest.fixture
def state(tmp_path, monkeypatch):
    monkeypatch.setenv("AERODROME_STATE_DIRECTORY", str(tmp_path / "state"))
    monkeypatch.delenv("AERODROME_AUDIT_KEY", raising=False)
    return tmp_path / "state"


@pytest.fixture
def run(state):
    """Run a command; return what it prints, one value for each line if it is JSON."""

    def invoke(*words: str):
        result = CliRunner().invoke(main.app, words)
        if isinstance(result.exception, errors.AerodromeError):
            raise result.exception
        assert result.exit_code == 0, result.output
        return [json.loads(line) for line in result.stdout.splitlines()] if "--json" in words else result.stdout

    return invoke


@pytest.fixture
def history(run):
    """A tenant with two users, one of whose keys is revoked; return the tokens."""
    run("tenant", "add", "acme")
    tokens = [run("key", "create", "acme", user).strip() for user in ("ann", "bob")]
    run("key", "revoke", tokens[0].split("_")[1])
    run("tenant", "set", "acme", "--isolation", "shared")
    return tokens


def test_changes_of_keys_and_tenants_are_recorded_with_who_made_them(run, history):
    records = run("audit", "export", "--json")
    assert [(record["number"], record["action"]) for record in records] == [
        (1, "tenant.add"),
        (2, "key.create"),
        (3, "key.create"),
        (4, "key.revoke"),
        (5, "tenant.set"),
    ]
    assert {record["by"].split(",")[0].split()[0] for record in records} == {"uid"}
    assert [record.get("user") for record in records] == [None, "ann", "bob", "ann", None]
    assert records[3]["key_id"] == history[0].split("_")[1]
    assert records[4]["reason"] == "shared, trust limited"
    run("tenant", "remove", "acme")
    assert run("audit", "tail", "-n", "1", "--json")[0]["action"] == "tenant.remove"


def test_no_token_is_in_the_log_or_its_export(run, history, state):
    text = json.dumps(run("audit", "export", "--json"))
    text += "".join(path.read_text() for path in (state / "audit").glob("*.jsonl"))
    for token in history:
        assert token.split("_", 2)[2] not in text


def test_records_are_chosen_by_tenant_and_time_and_shown_as_a_table(run, history):
    run("tenant", "add", "other")
    assert [record["tenant"] for record in run("audit", "export", "--tenant", "other", "--json")] == ["other"]
    assert len(run("audit", "export", "--since", "1h", "--json")) == 6
    table = run("audit", "tail", "-n", "2")
    assert "tenant.set" in table
    assert "key.revoke" not in table


def test_a_log_that_holds_is_said_to_hold_up_to_its_head(run, history):
    head = run("audit", "head").strip()
    said = run("audit", "verify")
    assert f"5 records hold; the last is {head}" in said
    assert "the first 5 are not sealed with a key" in said
    assert "only against an --anchor" in said
    assert "anchor" not in run("audit", "verify", "--anchor", head)


def test_a_changed_record_is_named_and_the_command_fails(run, history, state):
    (path,) = (state / "audit").glob("*.jsonl")
    path.write_text(path.read_text().replace('"action":"key.revoke"', '"action":"key.create"'))
    with pytest.raises(errors.AuditBroken, match="the audit log does not hold: record 4: was changed; up to 3:"):
        run("audit", "verify")


def test_records_cut_off_at_the_end_show_against_an_anchor(run, history, state):
    head = run("audit", "head").strip()
    (path,) = (state / "audit").glob("*.jsonl")
    path.write_text("".join(path.read_text().splitlines(keepends=True)[:3]))
    assert "3 records hold" in run("audit", "verify")
    with pytest.raises(errors.AuditBroken, match="record 4: is missing: record 5 was anchored"):
        run("audit", "verify", "--anchor", head)


@pytest.mark.parametrize("by_file", [False, True])
def test_a_key_seals_and_without_it_nothing_is_changed_or_believed(run, state, monkeypatch, tmp_path, by_file):
    if by_file:
        (tmp_path / "key").write_text(f"{KEY}\n")
        monkeypatch.setenv("AERODROME_AUDIT__KEY_FILE", str(tmp_path / "key"))
    else:
        monkeypatch.setenv("AERODROME_AUDIT_KEY", KEY)
    run("tenant", "add", "acme")
    assert "not sealed" not in run("audit", "verify")
    monkeypatch.delenv("AERODROME_AUDIT__KEY_FILE", raising=False)
    monkeypatch.delenv("AERODROME_AUDIT_KEY", raising=False)
    with pytest.raises(errors.ConfigError, match="set AERODROME_AUDIT_KEY"):
        run("audit", "verify")
    with pytest.raises(errors.ConfigError, match="set AERODROME_AUDIT_KEY"):
        run("key", "create", "acme", "ann")
    assert "ann" not in run("key", "list")


def test_a_key_in_the_configuration_file_or_too_short_is_refused(state, monkeypatch, tmp_path):
    (tmp_path / "a.toml").write_text(f'audit_key = "{KEY}"')
    with pytest.raises(errors.ConfigError, match="set AERODROME_AUDIT_KEY instead"):
        settings.load(tmp_path / "a.toml")
    monkeypatch.setenv("AERODROME_AUDIT_KEY", "short")
    with pytest.raises(errors.ConfigError, match="32 characters"):
        settings.load().audit_keys()
    monkeypatch.delenv("AERODROME_AUDIT_KEY")
    monkeypatch.setenv("AERODROME_AUDIT__KEY_FILE", str(tmp_path / "none"))
    with pytest.raises(errors.ConfigError, match=r"audit\.key_file: cannot read"):
        settings.load().audit_keys()


def test_a_log_that_is_switched_off_is_not_begun(run, state, monkeypatch):
    monkeypatch.setenv("AERODROME_AUDIT__ENABLED", "false")
    run("tenant", "add", "acme")
    assert not (state / "audit").exists()


def test_an_empty_log_holds(run, state):
    assert "0 records hold" in run("audit", "verify")
    assert run("audit", "export", "--json") == []
