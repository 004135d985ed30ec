"""`aerodrome show | drain | cordon | evict | recycle`, as a user and a script see them; the gateway is a script."""

from __future__ import annotations

import asyncio
import json
import re
import subprocess
import sys
import threading
from typing import Any

import pytest
from typer.testing import CliRunner

from aerodrome import errors
from aerodrome.admin.server import AdminServer
from aerodrome.cli import common, main

RUNTIME = {
    "runtime_id": "rt-1",
    "realm": "user:acme/alice",
    "state": "cordoned",
    "pid": 42,
    "age_seconds": 3725.4,
    "links": 2,
    "opened": 9,
    "is_frozen": True,
    "memory_bytes": 85 * 1024 * 1024,
    "cordoned": "why [red]not[/red]",
    "ping_seconds": 0.0021,
}
WARM = {**RUNTIME, "runtime_id": "rt-2", "realm": None, "state": "warm", "memory_bytes": None, "ping_seconds": None}
SESSION = {
    "session_id": "s",
    "tenant": "acme",
    "user": "alice",
    "realm": "user:acme/alice",
    "runtime_id": None,
    "state": "evicted",
    "links": 1,
    "is_at_work": False,
    "idle_seconds": 59.9,
}
LINK = {
    "number": 7,
    "peer": "127.0.0.1:5",
    "tenant": "acme",
    "user": "alice",
    "sessions": 3,
    "upstreams": 1,
    "requests": 0,
    "age_seconds": 90000.0,
}


class FakeGateway:
    """Stands in for Operations: answers verbs by script, on a loop of its own; remembers what it was asked."""

    def __init__(self) -> None:
        self.answers: dict[str, Any] = {}
        self.notes: list[tuple[str, Any]] = []
        self.asked: list[tuple[str, dict[str, Any]]] = []

    async def call(self, method, params, notify, caller):
        self.asked.append((method, params))
        for note in self.notes:
            notify(*note)
        answer = self.answers[method]
        answer = answer(params) if callable(answer) else answer
        if isinstance(answer, Exception):
            raise answer
        return answer

    async def aclose(self) -> None:
        """Leave nothing."""


@pytest.fixture
def gateway(tmp_path, monkeypatch):
    """A scripted gateway over the state directory that the commands use."""
    monkeypatch.setenv("AERODROME_STATE_DIRECTORY", str(tmp_path))
    fake, loop = FakeGateway(), asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    server = AdminServer(tmp_path)
    fake.stop = lambda: asyncio.run_coroutine_threadsafe(server.aclose(), loop)
    assert asyncio.run_coroutine_threadsafe(server.start(fake), loop).result(10)
    yield fake
    fake.stop().result(10)
    loop.call_soon_threadsafe(loop.stop)
    thread.join(10)
    loop.close()


def run(*words: str, code: int = 0):
    result = CliRunner().invoke(main.app, words)
    if isinstance(result.exception, errors.AerodromeError):
        raise result.exception
    assert result.exit_code == code, result.output
    return json.loads(result.stdout) if "--json" in words else result.stdout


def cells(text: str) -> list[list[str]]:
    return [line.split() for line in text.splitlines()]


def test_runtimes_are_a_table_for_people_and_raw_for_scripts(gateway):
    gateway.answers["show.runtimes"] = [
        {"runtime": RUNTIME, "live_sessions": 3},
        {"runtime": WARM, "live_sessions": None},
    ]
    heading, first, second = cells(run("show", "runtimes"))
    assert heading[:4] == ["runtime", "realm", "state", "pid"]
    assert " ".join(first) == "rt-1 user:acme/alice cordoned 42 1h 2m 2 3 85 MiB 2.1ms yes why [red]not[/red]"
    assert second[:3] == ["rt-2", "-", "warm"]
    found = run("show", "runtimes", "--json")
    assert found[0] == {**RUNTIME, "live_sessions": 3}


def test_sessions_are_read_page_by_page_up_to_the_limit(gateway):
    def answer(params):
        first = 0 if params["after"] is None else int(params["after"][1])
        last = min(first + params["limit"], 450)
        page = [{**SESSION, "session_id": f"s{number}"} for number in range(first, last)]
        return {"sessions": page, "next": ["r", str(last)] if last < 450 else None}

    gateway.answers["show.sessions"] = answer
    assert len(run("show", "sessions", "--tenant", "acme", "--json")) == 450
    assert [params["limit"] for _, params in gateway.asked] == [200, 200, 200]
    assert {params["tenant"] for _, params in gateway.asked} == {"acme"}

    result = CliRunner().invoke(main.app, ["show", "sessions", "--limit", "250"])
    assert len(result.stdout.splitlines()) == 251
    assert "there are more than 250 sessions; --limit shows more" in result.stderr
    assert " ".join(result.stdout.splitlines()[1].split()) == "s0 acme alice user:acme/alice - evicted 1 - 59s"


def test_links_are_a_table(gateway):
    gateway.answers["show.links"] = {"links": [LINK], "next": None}
    assert cells(run("show", "links"))[1] == ["7", "127.0.0.1:5", "acme", "alice", "3", "1", "0", "1d", "1h"]
    assert run("show", "links", "--json") == [LINK]


def test_the_pool_is_counts_and_settings(gateway):
    pool = {"runtimes": 1, "max_runtimes": 0}
    found = {"pid": 1, "is_draining": False, "links": None, "pool": pool, "settings": {"idle_seconds": 300.0}}
    gateway.answers["show.pool"] = found
    rows = cells(run("show", "pool"))
    for row in (["idle", "seconds", "5m"], ["runtimes", "1"], ["is", "draining", "no"], ["links", "-"]):
        assert row in rows
    assert run("show", "pool", "--json") == found


def test_a_drain_says_how_long_it_may_take(gateway):
    gateway.answers["drain"] = {"at_work": 2, "drain_seconds": 30.0}
    assert run("drain") == "draining for at most 30s, 2 sessions at work\n"
    assert gateway.asked == [("drain", {"wait": False})]


def test_a_watched_drain_says_how_far_it_is_until_the_gateway_has_stopped(gateway):
    gateway.notes = [("drain.progress", {"at_work": count}) for count in (1, 0)]

    answered = gateway.call

    async def call(method, params, notify, caller):
        gateway.answers[method] = None
        await answered(method, params, notify, caller)
        gateway.stop()
        await asyncio.get_running_loop().create_future()

    gateway.call = call
    said = run("drain", "--wait")
    assert said.splitlines() == [
        "draining, 1 session at work",
        "draining, nothing is at work",
        "the gateway has stopped",
    ]


def test_a_cordon_says_why(gateway):
    gateway.answers["cordon"] = {"runtime_id": "rt-1", "reason": "update", "was_cordoned": False}
    assert run("cordon", "rt-1", "--reason", "update") == "runtime rt-1 is cordoned: update\n"
    gateway.answers["cordon"] = {"runtime_id": "rt-1", "reason": "older", "was_cordoned": True}
    assert run("cordon", "rt-1") == "runtime rt-1 was cordoned already: older\n"
    assert gateway.asked[1] == ("cordon", {"runtime_id": "rt-1", "reason": "cordoned by the operator"})


@pytest.mark.parametrize(("outcome", "words"), [("evicted", "is evicted"), ("absent", "is in no runtime already")])
def test_an_eviction_says_what_became_of_the_session(gateway, outcome, words):
    gateway.answers["evict"] = {"session_id": "s", "outcome": outcome}
    assert words in run("evict", "s", "--tenant", "acme")
    assert gateway.asked == [("evict", {"session_id": "s", "tenant": "acme"})]


def test_an_eviction_of_a_session_at_work_is_an_error(gateway):
    gateway.answers["evict"] = {"session_id": "s", "outcome": "at_work"}
    with pytest.raises(errors.AerodromeError, match="session s is at work and stays"):
        run("evict", "s")


def test_recycling_names_its_runtimes(gateway):
    gateway.answers["recycle"] = {"runtimes": ["rt-1", "rt-2"], "left": ["rt-1", "rt-2"]}
    assert run("recycle", "--all") == "recycling rt-1, rt-2; see aerodrome show runtimes\n"
    assert gateway.asked == [("recycle", {"runtime_id": None, "each_seconds": 300.0, "wait": False})]
    gateway.answers["recycle"] = {"runtimes": [], "left": []}
    assert "no runtime serves now" in run("recycle", "--all")


def test_watched_recycling_fails_if_a_runtime_is_left(gateway):
    gateway.notes = [
        ("recycle.progress", {"runtime_id": "rt-1", "is_gone": True}),
        ("recycle.progress", {"runtime_id": "rt-2", "is_gone": False}),
    ]
    gateway.answers["recycle"] = {"runtimes": ["rt-1", "rt-2"], "left": ["rt-2"]}
    said = run("recycle", "--all", "--wait", "--each-seconds", "60", code=1)
    assert said.splitlines() == [
        "runtime rt-1 is gone",
        "runtime rt-2 still serves after 1m; it goes when it can",
    ]
    gateway.answers["recycle"] = {"runtimes": ["rt-1"], "left": []}
    run("recycle", "rt-1", "--wait")


@pytest.mark.parametrize("words", [(), ("rt-1", "--all")])
def test_recycling_wants_one_runtime_or_all(words):
    result = CliRunner().invoke(main.app, ["recycle", *words])
    assert result.exit_code == 2
    assert "--all" in result.stderr


def test_what_the_gateway_refuses_is_said_in_its_words(gateway):
    gateway.answers["cordon"] = errors.InvalidParams("no runtime rt-9 serves here; there is rt-1")
    with pytest.raises(errors.AerodromeError, match="no runtime rt-9 serves here; there is rt-1"):
        run("cordon", "rt-9")


@pytest.mark.parametrize(
    "words",
    [("show", "runtimes"), ("show", "links"), ("drain",), ("evict", "s"), ("recycle", "--all"), ("cordon", "r")],
)
@pytest.mark.parametrize("name", ["", "missing", "x" * 120])
def test_without_a_gateway_it_is_said_how_to_start_one(tmp_path, words, name):
    directory = tmp_path / name
    if name != "missing":
        directory.mkdir(exist_ok=True)
    with pytest.raises(errors.ConfigError, match=r"no gateway runs over .*; start it with aerodrome serve"):
        run(*words, "--state-directory", str(directory))


@pytest.mark.parametrize(
    ("seconds", "words"),
    [
        (None, "-"),
        (0.0, "0ms"),
        (0.0021, "2.1ms"),
        (1, "1s"),
        (59.9, "59s"),
        (60, "1m"),
        (3599, "59m 59s"),
        (3600, "1h"),
        (90061, "1d 1h"),
        (86405, "1d"),
    ],
)
def test_times_are_said_in_two_units_at_most(seconds, words):
    assert common.age(seconds) == words


@pytest.mark.parametrize(
    ("count", "words"), [(None, "-"), (0, "0 B"), (1023, "1023 B"), (1536, "1.5 KiB"), (3 * 1024**4, "3072 GiB")]
)
def test_sizes_are_said_in_the_largest_unit(count, words):
    assert common.size(count) == words


#: What only a gateway needs, or the registry: a second or so of a command's start.
HEAVY = ("sqlalchemy", "alembic", "pydantic", "cryptography", "joserfc", "starlette", "uvicorn", "httpx", "structlog")
HEAVY += ("aerodrome.app", "aerodrome.settings", "aerodrome.gateway", "aerodrome.fleet", "aerodrome.adapters")
PROGRAM = """
import sys
from aerodrome.cli.main import main
try:
    main()
finally:
    print(*sys.modules, file=sys.stderr)
"""


def modules_loaded_by(*words: str) -> set[str]:
    """Run a command in a process of its own; return what it imported."""
    ran = subprocess.run(
        [sys.executable, "-c", PROGRAM, *words], capture_output=True, text=True, timeout=60, check=False
    )
    assert ran.returncode == 0, ran.stderr
    return set(ran.stderr.splitlines()[-1].split())


def test_help_loads_nothing_but_the_names_of_commands():
    loaded = modules_loaded_by("--help")
    assert "aerodrome.cli.main" in loaded
    assert loaded & {*HEAVY, "rich", "asyncio", "msgspec", "aerodrome.cli.show", "aerodrome.cli.common"} == set()


@pytest.mark.parametrize(
    ("verb", "answer", "words"),
    [
        ("show.pool", {"pool": {"runtimes": 2}, "settings": {}}, ["show", "pool"]),
        ("cordon", {"was_cordoned": False, "reason": "r"}, ["cordon", "rt-1"]),
        ("token.mint", {"token": "t"}, ["token", "mint", "acme", "alice"]),
    ],
)
def test_a_command_that_asks_the_running_gateway_loads_nothing_that_only_a_gateway_needs(gateway, verb, answer, words):
    gateway.answers[verb] = answer
    loaded = modules_loaded_by(*words)
    assert [method for method, _ in gateway.asked] == [verb]
    assert loaded & set(HEAVY) == set()


@pytest.mark.parametrize("name", main.COMMANDS)
def test_the_list_of_commands_says_what_each_ones_own_help_begins_with(name):
    about = main.COMMANDS[name][1]
    help_text = " ".join(CliRunner().invoke(main.app, [name, "--help"]).stdout.split())
    assert about.removesuffix(".") in help_text
    assert re.search(rf"^ +{name} ", CliRunner().invoke(main.app, ["--help"]).stdout, re.MULTILINE)


def test_a_command_that_does_not_exist_is_compared_with_those_that_do():
    result = CliRunner().invoke(main.app, ["shwo"])
    assert result.exit_code == 2
    assert "Did you mean 'show'?" in result.stderr
