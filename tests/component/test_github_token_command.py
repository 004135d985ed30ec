"""`aerodrome github-token`: tokens come from standard input, are stored sealed, listed without themselves, wrapped anew."""

from __future__ import annotations

import json

import pytest
from typer.testing import CliRunner

from aerodrome import errors
from aerodrome.cli.main import app

CANARY = "ghu_canary51c0"
OLD, NEW = "old-master-key-" + "o" * 32, "new-master-key-" + "n" * 32


@pytest.fixture
def run(tmp_path, monkeypatch):
    config = tmp_path / "aerodrome.toml"
    config.write_text('[tenants.acme]\nisolation = "user"\ngithub = "stored"\n')
    monkeypatch.setenv("AERODROME_MASTER_KEY", OLD)

    def ran(*words: str, text: str = "") -> str:
        options = ["--config", str(config), "--state-directory", str(tmp_path / "state")]
        result = CliRunner().invoke(app, ["github-token", *words, *options], input=text)
        if result.exception is not None and not isinstance(result.exception, SystemExit):
            raise result.exception
        assert result.exit_code == 0, result.output
        assert CANARY not in result.output
        return result.output

    return ran


def test_a_token_is_stored_sealed_listed_and_removed(run, tmp_path):
    run("set", "acme", "ann", "--expires", "8h", text=f"{CANARY}\nghr_{CANARY}\n")
    (listed,) = json.loads(run("list", "--json"))
    assert (listed["tenant"], listed["user"], listed["renewed"]) == ("acme", "ann", "by the gateway")
    files = [path for path in (tmp_path / "state").rglob("*") if path.is_file()]
    assert files
    assert not any(CANARY.encode() in path.read_bytes() for path in files)
    run("remove", "acme", "ann")
    assert json.loads(run("list", "--json")) == []
    with pytest.raises(errors.KeyMissing):
        run("remove", "acme", "ann")


def test_the_master_key_is_rotated_by_wrapping_the_tokens_anew(run, monkeypatch):
    run("set", "acme", "ann", text=CANARY)
    (before,) = json.loads(run("list", "--json"))
    monkeypatch.setenv("AERODROME_MASTER_KEY", NEW)
    with pytest.raises(errors.SecretUnavailable, match="AERODROME_OLD_MASTER_KEYS"):
        run("rewrap")
    monkeypatch.setenv("AERODROME_OLD_MASTER_KEYS", f"{OLD},")
    assert "1 tokens" in run("rewrap")
    monkeypatch.delenv("AERODROME_OLD_MASTER_KEYS")
    assert "0 tokens" in run("rewrap")
    (after,) = json.loads(run("list", "--json"))
    assert after["master_key"] != before["master_key"]


def test_without_a_token_a_tenant_or_a_master_key_nothing_is_stored(run, monkeypatch):
    for words, text, error in (
        (("set", "acme", "ann"), "", errors.ConfigError),
        (("set", "acme", "ann"), "a b c", errors.ConfigError),
        (("set", "other", "ann"), CANARY, errors.TenantMissing),
    ):
        with pytest.raises(error):
            run(*words, text=text)
    monkeypatch.delenv("AERODROME_MASTER_KEY")
    with pytest.raises(errors.ConfigError, match="AERODROME_MASTER_KEY_FILE"):
        run("set", "acme", "ann", text=CANARY)
    assert json.loads(run("list", "--json")) == []
