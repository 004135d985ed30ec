"""Secret sources against the real thing: files, processes, and a server that speaks Vault's HTTP API."""

from __future__ import annotations

import asyncio
import os
import sys
from contextlib import AsyncExitStack
from dataclasses import dataclass, field

import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from aerodrome import errors
from aerodrome.adapters.secrets.cached import CachedSecrets
from aerodrome.adapters.secrets.command import CommandSource
from aerodrome.adapters.secrets.local import EnvironmentSource, FileSource
from aerodrome.adapters.secrets.vault import VaultSettings, VaultSource
from aerodrome.core import secret
from aerodrome.core.secret import Reference
from aerodrome.transport.asgi import AsgiServer

CANARY = "sk-canary-77aa"
KEY = Reference("vault", "kv/models/openai#api_key")


async def refusal(source, reference) -> str:
    with pytest.raises(errors.SecretUnavailable) as raised:
        await source.read(reference)
    assert CANARY not in raised.value.message
    assert raised.value.__cause__ is None
    return raised.value.message


class SetClock:
    """A clock that a test moves."""

    def __init__(self) -> None:
        self.at = 1000.0

    def now(self) -> float:
        return self.at

    def monotonic(self) -> float:
        return self.at


@pytest.fixture
def clock():
    return SetClock()


async def test_a_variable_is_read_and_a_missing_or_empty_one_is_named():
    source = EnvironmentSource({"KEY": CANARY, "EMPTY": ""})
    assert (await source.read(Reference("env", "KEY"))).reveal() == CANARY
    assert "env:OTHER" in await refusal(source, Reference("env", "OTHER"))
    assert "empty" in await refusal(source, Reference("env", "EMPTY"))


@pytest.mark.parametrize("ending", ["", "\n", "\r\n"])
async def test_a_private_file_is_read_without_its_last_line_ending(tmp_path, ending):
    path = tmp_path / "key"
    path.touch(mode=0o600)
    path.write_bytes(f"{CANARY}{ending}".encode())
    assert (await FileSource(checks_mode=True).read(Reference("file", str(path)))).reveal() == CANARY


async def test_a_file_that_others_may_use_is_no_place_for_a_secret(tmp_path):
    path = tmp_path / "key"
    path.write_text(CANARY)
    source, reference = FileSource(checks_mode=True), Reference("file", str(path))
    for mode in (0o640, 0o604, 0o620, 0o666):
        path.chmod(mode)
        assert "chmod 600" in await refusal(source, reference)
    path.chmod(0o400)
    assert (await source.read(reference)).reveal() == CANARY


async def test_what_is_no_usable_file_is_refused_at_once(tmp_path):
    source = FileSource(checks_mode=False)
    pipe, large, binary = tmp_path / "pipe", tmp_path / "large", tmp_path / "binary"
    os.mkfifo(pipe)
    large.write_text(CANARY * 10_000)
    binary.write_bytes(CANARY.encode() + b"\xff\xfe")
    for path, word in (
        (pipe, "regular"),
        (tmp_path, "regular"),
        (large, "at most"),
        (binary, "UTF-8"),
        (tmp_path / "x", "No such"),
    ):
        async with asyncio.timeout(20):
            assert word in await refusal(source, Reference("k8s", str(path)))


async def test_a_mounted_kubernetes_secret_is_read_anew_after_its_directory_is_swapped(tmp_path):
    for version, value in (("..v1", "first"), ("..v2", "second")):
        (tmp_path / version).mkdir()
        (tmp_path / version / "key").write_text(value)
    (tmp_path / "..data").symlink_to("..v1")
    (tmp_path / "key").symlink_to("..data/key")
    source, reference = FileSource(checks_mode=False), Reference("k8s", str(tmp_path / "key"))
    assert (await source.read(reference)).reveal() == "first"
    (tmp_path / "..new").symlink_to("..v2")
    (tmp_path / "..new").rename(tmp_path / "..data")
    assert (await source.read(reference)).reveal() == "second"


def python(code: str) -> Reference:
    return Reference("exec", f'{sys.executable} -c "{code}"')


async def test_a_command_is_run_without_a_shell_and_its_output_is_the_secret():
    source = CommandSource()
    assert (await source.read(python(f"print('{CANARY}')"))).reveal() == CANARY
    assert (await source.read(Reference("exec", "/bin/echo $HOME;id"))).reveal() == "$HOME;id"


async def test_a_command_that_fails_says_nothing_or_talks_without_end_is_refused():
    source = CommandSource()
    loud = f"import sys; sys.stderr.write('{CANARY}'); print('{CANARY}'); sys.exit(3)"
    assert "code 3" in await refusal(source, python(loud))
    assert "empty" in await refusal(source, python("pass"))
    assert "cannot be run" in await refusal(source, Reference("exec", "/no/such/command"))
    assert "quotes" in await refusal(source, Reference("exec", "/bin/echo 'a"))
    assert "at most" in await refusal(source, Reference("exec", f"/usr/bin/yes {CANARY}"))


async def test_a_command_that_takes_too_long_is_killed_with_all_it_started(tmp_path):
    mark = tmp_path / "pid"
    reference = Reference("exec", f"/bin/sh -c 'sleep 60 & echo $! > {mark}; wait'")
    for seconds in (0.5, 5.0, 30.0):
        assert "longer than" in await refusal(CommandSource(timeout_seconds=seconds), reference)
        if mark.exists() and mark.read_text():
            break  # else a busy machine had it start nothing in that time
    async with asyncio.timeout(20):
        while is_running(int(mark.read_text())):  # noqa: ASYNC110  another process's end has no event here
            await asyncio.sleep(0.01)


def is_running(pid: int) -> bool:
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rpartition(")")[2].split()[0] not in ("Z", "X")
    except FileNotFoundError:
        return False


@dataclass
class FakeVault:
    """What is spoken of Vault's HTTP API: KV v2 reads, a Kubernetes login, renewal; with leases and refusals on demand."""

    address: str = ""
    secrets: dict[str, dict[str, object]] = field(default_factory=dict)
    tokens: set[str] = field(default_factory=set)
    jwt: str = "service account"
    lease_seconds: int = 60
    renewable: bool = True
    failing: int = 0
    calls: list[str] = field(default_factory=list)

    def application(self) -> Starlette:
        return Starlette(
            routes=[
                Route("/v1/auth/kubernetes/login", self.login, methods=["POST"]),
                Route("/v1/auth/token/renew-self", self.renew, methods=["POST"]),
                Route("/v1/{mount}/data/{path:path}", self.read),
            ]
        )

    def note(self, request: Request, what: str) -> Response | None:
        self.calls.append(what)
        if self.failing:
            return JSONResponse({"errors": [CANARY]}, self.failing)
        if what != "login" and request.headers.get("X-Vault-Token") not in self.tokens:
            return JSONResponse({"errors": ["permission denied"]}, 403)
        return None

    def auth(self) -> Response:
        token = f"s.{len(self.calls)}"
        self.tokens = {token}
        lease = {"client_token": token, "lease_duration": self.lease_seconds, "renewable": self.renewable}
        return JSONResponse({"auth": lease})

    async def login(self, request: Request) -> Response:
        refused = self.note(request, "login")
        given = await request.json()
        if refused is None and given != {"role": "aerodrome", "jwt": self.jwt}:
            return JSONResponse({"errors": ["permission denied"]}, 403)
        return refused or self.auth()

    async def renew(self, request: Request) -> Response:
        return self.note(request, "renew") or (self.auth() if self.renewable else JSONResponse({"errors": []}, 400))

    async def read(self, request: Request) -> Response:
        refused = self.note(request, "read")
        found = self.secrets.get(f"{request.path_params['mount']}/{request.path_params['path']}")
        if refused is None and found is None:
            return JSONResponse({"errors": []}, 404)
        return refused or JSONResponse({"data": {"data": found, "metadata": {"version": 1}}})


@pytest.fixture
async def vault():
    fake = FakeVault(secrets={"kv/models/openai": {"api_key": CANARY, "number": 7}}, tokens={"root"})
    server = AsgiServer(fake.application(), 100)
    fake.address = f"http://127.0.0.1:{await server.start()}"
    yield fake
    await server.aclose()


@pytest.fixture
async def open_vault(vault, clock, tmp_path):
    async with AsyncExitStack() as stack:

        def opened(**settings: object) -> VaultSource:
            (tmp_path / "jwt").write_text(vault.jwt)
            sources = {"env": EnvironmentSource({"TOKEN": "root"}), "k8s": FileSource(checks_mode=False)}
            wanted = {"kubernetes_role": "aerodrome", "kubernetes_jwt": Reference("k8s", str(tmp_path / "jwt"))}
            source = VaultSource(VaultSettings(vault.address, **(settings or wanted)), sources, clock)
            stack.push_async_callback(source.aclose)
            return source

        yield opened


async def test_a_field_of_a_vault_secret_is_read_with_a_token(open_vault):
    source = open_vault(token=Reference("env", "TOKEN"))
    assert (await source.read(KEY)).reveal() == CANARY
    for rest, word in (("kv/models/openai#other", "field"), ("kv/models/openai#number", "string"), ("kv/x#f", "404")):
        assert word in await refusal(source, Reference("vault", rest))


async def test_a_token_that_vault_refuses_is_said_without_the_token(open_vault, vault):
    vault.tokens = set()
    message = await refusal(open_vault(token=Reference("env", "TOKEN")), KEY)
    assert "403" in message
    assert "root" not in message


async def test_a_login_is_kept_renewed_before_its_lease_ends_and_made_anew_after(open_vault, vault, clock):
    source = open_vault()
    for at, expected in ((0, ["login", "read"]), (30, ["read"]), (45, ["renew", "read"]), (200, ["login", "read"])):
        vault.calls.clear()
        clock.at = 1000.0 + at
        assert (await source.read(KEY)).reveal() == CANARY
        assert vault.calls == expected


async def test_a_lease_that_cannot_be_renewed_or_was_revoked_ends_in_a_new_login(open_vault, vault, clock):
    source = open_vault()
    await source.read(KEY)
    vault.renewable, clock.at = False, 1045.0
    assert (await source.read(KEY)).reveal() == CANARY
    assert vault.calls[-3:] == ["renew", "login", "read"]
    vault.tokens = set()
    assert (await source.read(KEY)).reveal() == CANARY
    assert vault.calls[-3:] == ["read", "login", "read"]


async def test_a_refused_login_and_a_vault_that_is_away_are_told_apart(open_vault, vault):
    source = open_vault()
    vault.failing = 503
    with pytest.raises(errors.SecretUnavailable) as raised:
        await source.read(KEY)
    assert raised.value.is_outage
    assert CANARY not in raised.value.message
    vault.failing, vault.jwt = 0, "another account"
    assert "refused the login of role aerodrome" in await refusal(source, KEY)


class CountingSource:
    """Gives what it is told to, and counts."""

    def __init__(self) -> None:
        self.value, self.reads, self.error = "first", 0, None

    async def read(self, reference):
        self.reads += 1
        await asyncio.sleep(0)
        if self.error is not None:
            raise self.error
        return secret.Secret(self.value)

    async def aclose(self) -> None:
        pass


async def test_a_value_is_remembered_for_a_while_then_the_changed_one_is_used(clock):
    source = CountingSource()
    secrets = CachedSecrets({"env": source}, clock, cache_seconds=60, grace_seconds=0)
    reference = Reference("env", "KEY")
    found = await asyncio.gather(*(secrets.read(reference) for _ in range(20)))
    assert {value.reveal() for value in found} == {"first"}
    assert source.reads == 1
    source.value, clock.at = "second", clock.at + 59
    assert (await secrets.read(reference)).reveal() == "first"
    clock.at += 2
    assert (await secrets.read(reference)).reveal() == "second"


async def test_whoever_is_told_that_a_value_is_wrong_reads_past_the_memory_once_for_all(clock):
    source = CountingSource()
    secrets = CachedSecrets({"env": source}, clock, cache_seconds=60, grace_seconds=0)
    reference = Reference("env", "KEY")
    await secrets.read(reference)
    source.value = "second"
    found = await asyncio.gather(*(secrets.read_anew(reference) for _ in range(20)))
    assert {value.reveal() for value in found} == {"second"}
    assert source.reads == 2
    assert (await secrets.read(reference)).reveal() == "second"


async def test_an_outage_is_bridged_with_the_last_value_a_refusal_is_not(clock):
    source = CountingSource()
    secrets = CachedSecrets({"env": source}, clock, cache_seconds=60, grace_seconds=600)
    reference = Reference("env", "KEY")
    await secrets.read(reference)
    clock.at += 100
    source.error = errors.SecretUnavailable("secret env:KEY: away", is_outage=True)
    assert (await secrets.read(reference)).reveal() == "first"
    clock.at += 600
    assert "away" in await refusal(secrets, reference)
    source.error = errors.SecretUnavailable("secret env:KEY: refused")
    clock.at -= 600
    assert "refused" in await refusal(secrets, reference)


async def test_a_scheme_without_a_source_is_named(clock):
    secrets = CachedSecrets({}, clock, cache_seconds=60, grace_seconds=0)
    assert "no vault source" in await refusal(secrets, KEY)
