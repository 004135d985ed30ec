"""Commands load what they need: a program that only says what it can do waits for no web framework, one that lists keys neither.

Asked of what is loaded, not of the clock: that would be another machine's.
"""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys

import pytest

#: What only a gateway needs.
GATEWAY = {
    *("fastapi", "starlette", "uvicorn", "jinja2", "httpx", "authlib", "joserfc", "alembic"),
    *("aerodrome.app", "aerodrome.http", "aerodrome.fleet", "aerodrome.tailoring"),
}
REGISTRY = {"sqlalchemy", "aerodrome.adapters.sql"}
SETTINGS = {"pydantic", "pydantic_settings", "aerodrome.settings"}
#: Commands, in an order in which each needs what those before it do, and what none of them may have loaded by then.
COMMANDS = [
    (["--help"], GATEWAY | REGISTRY | SETTINGS),
    (["--version"], GATEWAY | REGISTRY | SETTINGS),
    (["show", "--help"], GATEWAY | REGISTRY | SETTINGS),
    (["runtime", "path"], GATEWAY | REGISTRY),
    *(([name, "--help"], GATEWAY | REGISTRY) for name in ("key", "tenant", "policy", "audit", "github-token")),
    (["key", "list"], GATEWAY),
    (["tenant", "list"], GATEWAY),
    (["key", "create-operator", "ops"], GATEWAY),
]
PROGRAM = """
import json, sys
from aerodrome.cli import main
for words in json.loads(sys.argv[1]):
    sys.argv = ["aerodrome", *words]
    try:
        main.main()
    except SystemExit as ended:
        print(json.dumps([ended.code or 0, sorted(sys.modules)]), file=sys.stderr, flush=True)
"""


@pytest.fixture(scope="module")
def ended(tmp_path_factory) -> list:
    """Run all commands in one process; return the exit code of each, and what was loaded when it had ended."""
    environment = {**os.environ, "AERODROME_STATE_DIRECTORY": str(tmp_path_factory.mktemp("state"))}
    words = [sys.executable, "-c", PROGRAM, json.dumps([command for command, _ in COMMANDS])]
    done = subprocess.run(words, env=environment, capture_output=True, text=True, check=True, timeout=60)
    return [json.loads(line) for line in done.stderr.splitlines() if line.startswith("[")]


@pytest.mark.parametrize("number", range(len(COMMANDS)), ids=[" ".join(words) for words, _ in COMMANDS])
def test_a_command_loads_nothing_that_only_others_need(ended, number):
    words, forbidden = COMMANDS[number]
    code, loaded = ended[number]

    assert forbidden & set(loaded) == set()
    if words != ["runtime", "path"]:  # there may be none on this machine
        assert code == 0


@pytest.mark.parametrize("name", sorted(GATEWAY | REGISTRY | SETTINGS))
def test_what_is_forbidden_is_there_to_be_loaded(name):
    assert importlib.util.find_spec(name) is not None
