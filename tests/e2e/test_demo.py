"""`aerodrome demo`: what it prints is what it promises, and the programs it prints run as they stand."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from aerodrome.testing import demo_process

from . import quickstart

pytestmark = pytest.mark.runtime

NODE_TESTS = Path(__file__).with_name("node")
PROGRAM_SECONDS = 60.0


def test_the_json_line_has_the_agreed_form(demo):
    described = demo.described

    assert list(described) == ["sdk", "http", "model", "runtime", "principals", "dashboard", "operator", "playground"]
    assert re.fullmatch(re.escape(described["http"]) + r"/demo#[\w-]{20,}", described["playground"])
    assert re.fullmatch(r"127\.0\.0\.1:\d+", described["sdk"])
    assert described["http"] is None or described["http"].startswith("http://127.0.0.1:")
    assert set(described["model"]) == {"base_url", "name", "api_key"}
    assert described["model"]["base_url"].startswith("http://127.0.0.1:")
    assert set(described["runtime"]) == {"path", "version"}
    assert os.access(described["runtime"]["path"], os.X_OK)
    assert re.fullmatch(r"\d+\.\d+\.\d+.*", described["runtime"]["version"])
    assert {frozenset(principal) for principal in described["principals"]} == {
        frozenset({"tenant", "user", "token", "isolation"})
    }


def test_there_are_two_users_in_each_of_two_tenants_of_both_isolations(demo):
    for isolation in ("user", "shared"):
        tenants = demo.tenants(isolation)
        assert [len(users) for users in tenants] == [2, 2]
    assert len(demo.principals) == 8
    assert len({principal.tenant for principal in demo.principals}) == 4
    assert len({(principal.tenant, principal.user) for principal in demo.principals}) == 8
    assert len({principal.token for principal in demo.principals}) == 8


def test_nothing_but_the_line_is_printed_and_no_secret_is_in_any_command_line(demo):
    assert demo.line.count("\n") == 1
    secrets = [principal.token for principal in demo.principals] + [demo.model["api_key"]]
    secrets += [demo.described["operator"], demo.described["playground"].partition("#")[2]]

    commands = [child.command for child in demo.processes()]

    assert len(commands) > 1
    for secret in secrets:
        assert not any(secret in command for command in commands)


async def test_it_listens_on_loopback_only(demo, connect):
    await (await connect(demo.principals[0])).create()  # so that there is a runtime
    assert demo.runtimes()
    addresses = demo.listening()

    host, port = demo.sdk.split(":")
    assert (host, int(port)) in addresses
    assert {address for address, _ in addresses} == {"127.0.0.1"}
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.2", int(port)), timeout=2)


@pytest.fixture(scope="module")
def printed():
    """A demo for people: what it printed, complete with its last line."""
    with demo_process.running(()) as demo:
        text = demo.line + demo.read_until("Ctrl-C")
        assert demo.process.poll() is None
        yield text


def extract(text, language):
    """Return the program that the demo printed for a language."""
    title = re.compile(rf"^{language}, as .*:$", re.MULTILINE)
    _, after = title.split(text)
    lines = re.match(r"(?:(?: {4}.*)?\n)*", after.removeprefix("\n"))
    assert lines is not None
    return textwrap.dedent(lines[0])


def test_the_text_names_every_user_with_a_token(printed):
    rows = re.findall(r"^ +(\w+) +(\w+) +(user|shared) +(aero_\S+)$", printed, re.MULTILINE)
    assert len(rows) == 8


def test_the_printed_command_looks_inside(printed):
    [command] = re.findall(r"^Look inside: aerodrome (show runtimes --state-directory \S+)$", printed, re.MULTILINE)

    done = subprocess.run(
        [sys.executable, "-m", "aerodrome", *command.split()],
        capture_output=True,
        check=False,
        text=True,
        timeout=PROGRAM_SECONDS,
    )

    assert done.returncode == 0, done.stderr
    assert done.stdout.split()[:3] == ["runtime", "realm", "state"]


def test_the_printed_python_program_runs_as_it_stands(printed, tmp_path):
    program = tmp_path / "hello.py"
    program.write_text(extract(printed, "Python"), "utf-8")

    done = subprocess.run(
        [sys.executable, str(program)], capture_output=True, check=False, text=True, timeout=PROGRAM_SECONDS
    )

    assert (done.returncode, done.stdout) == (0, "You said: Hello from Python!\n"), done.stderr


@pytest.mark.node
def test_the_printed_node_program_runs_as_it_stands(printed, tmp_path):
    program = tmp_path / "hello.mjs"
    program.write_text(extract(printed, "Node"), "utf-8")
    (tmp_path / "node_modules").symlink_to(NODE_TESTS / "node_modules", target_is_directory=True)

    done = subprocess.run(["node", str(program)], capture_output=True, check=False, text=True, timeout=PROGRAM_SECONDS)

    assert (done.returncode, done.stdout) == (0, "You said: Hello from Node!\n"), done.stderr


def run(command, demo, **more):
    """Run one of the quickstart's programs as a user of the demo who has done what it says first."""
    environment = {**os.environ, "AERODROME_URL": demo.described["http"], "AERODROME_TOKEN": demo.principals[0].token}
    done = subprocess.run(
        command, capture_output=True, check=False, text=True, timeout=PROGRAM_SECONDS, env=environment, **more
    )
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout


def test_the_printed_http_commands_run_as_they_stand(printed):
    done = subprocess.run(
        ["sh", "-ec", extract(printed, "HTTP")], capture_output=True, check=False, text=True, timeout=PROGRAM_SECONDS
    )

    assert (done.returncode, done.stderr) == (0, "")
    assert '"session_id":"hello"' in done.stdout
    assert '"content":"You said: Hello from curl!"' in done.stdout
    assert done.stdout.rstrip().rpartition("event: ")[2].startswith("turn.ended")


def test_the_quickstart_in_curl_runs_as_it_stands(demo):
    said = run(["sh", "-ec", quickstart.program("curl")], demo)

    assert '"content":"You said: Hello from curl!"' in said
    assert said.count("event: assistant.message_delta") == 5


def test_the_quickstart_in_python_runs_as_it_stands(demo):
    said = run([sys.executable, "-c", quickstart.program("Python")], demo)

    assert said == "You said: Hello from Python!\ntool said: order 4711 is on its way\nTrue\n"


@pytest.mark.node
def test_the_quickstart_in_javascript_runs_as_it_stands(demo):
    program = quickstart.program("JavaScript: Node, Deno, Bun")

    said = run(["node", "--input-type=module", "-"], demo, input=program)

    assert said == "You said: Hello from JavaScript!\n"


@pytest.mark.parametrize("sign", [signal.SIGTERM, signal.SIGINT], ids=lambda sign: sign.name)
def test_a_demo_that_nobody_used_ends_without_a_trace(sign):
    with demo_process.running() as demo:
        assert demo.stop(sign) == 0
        assert demo_process.wait_for(lambda: not demo.leftovers(), 30)
        assert list(demo.directory.iterdir()) == []


@pytest.mark.parametrize("sign", [signal.SIGTERM, signal.SIGINT], ids=lambda sign: sign.name)
def test_a_demo_that_is_stopped_before_it_is_ready_ends_without_a_trace(sign):
    with demo_process.spawn() as demo:
        assert demo_process.wait_for(lambda: list(demo.directory.iterdir()), 60)  # it has begun to set up

        code = demo.stop(sign)

        # On a busy machine it may have come further by then: it ends well only if it has said that it was ready.
        assert code == (0 if demo.process.stdout.read() else 128 + signal.SIGTERM)
        assert demo_process.wait_for(lambda: not demo.leftovers(), 30)
        assert list(demo.directory.iterdir()) == []


def test_a_port_that_is_taken_is_said_so_in_one_line():
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        done = subprocess.run(
            [sys.executable, "-m", "aerodrome", "demo", "--json", "--sdk-port", str(port), "--http-port", "0"],
            capture_output=True,
            check=False,
            text=True,
            timeout=PROGRAM_SECONDS,
        )

    assert done.returncode == 1
    assert done.stdout == ""
    assert f"127.0.0.1:{port}" in done.stderr
    assert "Traceback" not in done.stderr
