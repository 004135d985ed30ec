"""`aerodrome key ...` and `token mint`, as a user and a script see them."""

from __future__ import annotations

import asyncio
import json
import time

import pytest
from typer.testing import CliRunner

from aerodrome import app as application
from aerodrome import errors, settings
from aerodrome.cli import main
from aerodrome.core import connection_token, identity
from aerodrome.core.identity import Key, Owner, Scope

MASTER = "a master key of the commands' own"


@pytest.fixture
def run(tmp_path, monkeypatch):
    """Run a command on a state directory of the test's own; return what it prints, read if it is JSON."""
    monkeypatch.setenv("AERODROME_STATE_DIRECTORY", str(tmp_path / "state"))
    monkeypatch.setenv("AERODROME_MASTER_KEY", MASTER)

    def invoke(*words: str):
        result = CliRunner().invoke(main.app, words)
        if isinstance(result.exception, errors.AerodromeError):
            raise result.exception
        assert result.exit_code == 0, result.output
        return json.loads(result.stdout) if "--json" in words else result.stdout

    invoke("tenant", "add", "acme")
    return invoke


def find(key_id: str) -> Key:
    async def read() -> Key:
        async with application.open_stores(settings.load()) as stores:
            return await stores.keys.find(key_id)

    return asyncio.run(read())


def of_token(text: str) -> tuple[str, str]:
    parts = identity.split_token(text.strip())
    assert parts is not None
    return parts


def of_signing_key(text: str) -> tuple[str, str]:
    found = dict(line.split(" ") for line in text.splitlines())
    return found["key"], found["secret"]


def test_a_key_has_the_scopes_it_is_made_with(run):
    for words, scopes in (
        ([], "connect"),
        (["--scope", "mint"], "mint"),
        (["--scope", "mint", "--scope", "connect"], "connect mint"),
    ):
        key_id, _ = of_token(run("key", "create", "acme", "alice", *words))
        [listed] = [row for row in run("key", "list", "--json") if row["key"] == key_id]
        assert listed["scopes"] == scopes
    with pytest.raises(errors.ConfigError, match="expected some of connect, mint, admin, found fly, mint"):
        run("key", "create", "acme", "alice", "--scope", "mint", "--scope", "fly")
    with pytest.raises(errors.ConfigError, match="found sign"):
        run("key", "create", "acme", "alice", "--scope", "sign")


def test_an_operators_key_belongs_to_no_tenant_and_does_nothing_else(run):
    key_id, _ = of_token(run("key", "create-operator", "ops", "--expires", "90d"))
    assert (find(key_id).owner, find(key_id).scopes) == (Owner("", "ops"), {Scope.OPERATE})
    [listed] = [row for row in run("key", "list", "--json") if row["key"] == key_id]
    assert (listed["tenant"], listed["user"], listed["scopes"]) == ("", "ops", "operate")
    new, _ = of_token(run("key", "rotate", key_id))
    assert find(new).scopes == {Scope.OPERATE}
    for words in (["acme", "alice", "--scope", "operate"], ["", "alice"]):
        with pytest.raises(errors.ConfigError):
            run("key", "create", *words)


def test_a_rotated_key_has_a_successor_and_expires_after_the_overlap(run):
    old, _ = of_token(run("key", "create", "acme", "alice", "--scope", "mint", "--scope", "connect"))
    before = time.time()
    new, secret = of_token(run("key", "rotate", old, "--overlap", "2h"))
    assert (find(new).owner, find(new).scopes) == (find(old).owner, {Scope.CONNECT, Scope.MINT})
    assert find(new).proves(secret, before)
    assert find(new).expires_at is None
    assert before + 7200 <= find(old).expires_at <= time.time() + 7200


def test_what_is_of_no_use_any_more_cannot_be_rotated(run):
    old, _ = of_token(run("key", "create", "acme", "alice"))
    run("key", "revoke", old)
    for key_id in (old, "0" * 12):
        with pytest.raises(errors.KeyMissing, match=key_id):
            run("key", "rotate", key_id)
    assert len(run("key", "list", "--json")) == 1


def test_a_signing_key_is_shown_once_and_its_secret_is_not_in_the_database(run, tmp_path):
    key_id, secret = of_signing_key(run("key", "mint-key", "acme", "--name", "shop", "--expires", "90d"))
    key = find(key_id)
    assert (key.owner.tenant, key.owner.user, key.scopes) == ("acme", "shop", {Scope.SIGN})
    assert secret == connection_token.derive_secret(MASTER.encode(), key_id)
    stored = b"".join(path.read_bytes() for path in (tmp_path / "state").glob("aerodrome.db*"))
    assert key_id.encode() in stored
    assert secret.encode() not in stored
    assert MASTER.encode() not in stored
    new, new_secret = of_signing_key(run("key", "rotate", key_id))
    assert find(new).proves(new_secret, time.time())
    assert find(new).owner == key.owner


def test_signing_keys_need_a_master_key_a_tenant_and_a_name_of_their_own(run, monkeypatch):
    with pytest.raises(errors.TenantMissing):
        run("key", "mint-key", "nobody")
    with pytest.raises(errors.ConfigError, match="--name"):
        run("key", "mint-key", "acme", "--name", "gateway")
    monkeypatch.delenv("AERODROME_MASTER_KEY")
    with pytest.raises(errors.ConfigError, match="AERODROME_MASTER_KEY"):
        run("key", "mint-key", "acme")
    assert run("key", "list", "--json") == []


def test_a_token_is_minted_by_the_running_gateway_only(run):
    with pytest.raises(errors.ConfigError, match="no gateway runs"):
        run("token", "mint", "acme", "alice")
    with pytest.raises(errors.ConfigError, match="--expires"):
        run("token", "mint", "acme", "alice", "--expires", "soon")
