"""Start a runtime once, ask it who it is, and end it: the proof that a release works on this machine.

One blocking exchange at a time and no more protocol than `doctor` needs; the real protocol is `aerodrome.protocol`,
real supervision is `adapters.process`.
"""

from __future__ import annotations

import os
import re
import secrets
import select
import socket
import subprocess
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Self

import msgspec

from aerodrome import errors
from aerodrome.adapters.distribution import child
from aerodrome.adapters.distribution.release import RuntimeRelease

READY_LINE = re.compile(rb"listening on port (\d+)\s")
START_TIMEOUT_SECONDS = 10.0
#: No sign-in, no update and no log file of its own; a free port.
FLAGS = ("--headless", "--port", "0", "--no-auto-update", "--no-auto-login", "--log-level", "none")
_REPLY_LIMIT_BYTES = 1 << 20
_POLL_SECONDS = 0.1
_TAIL_CHARACTERS = 300


@dataclass(frozen=True, slots=True)
class Answer:
    """What a started runtime said about itself, and how long the start took."""

    version: str
    protocol_version: int
    ready_seconds: float


def start(
    found: RuntimeRelease, timeout_seconds: float = START_TIMEOUT_SECONDS, compile_cache: Path | None = None
) -> Answer:
    """Start a release with a home, a token and an environment of its own; connect, ping, ask, and end it.

    With `compile_cache` a Node entry point leaves there what V8 compiles, and is let end by itself first: it writes as it ends.

    Raises:
        SpawnFailed: it did not start, did not answer in time, or refused its own token.
    """
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="aerodrome-trial-", ignore_cleanup_errors=True) as scratch:
        token = secrets.token_urlsafe(24)
        environment = _environment(found, Path(scratch), token, compile_cache)
        process = _spawn(found, Path(scratch), environment)
        try:
            port = _ready_port(process, began + timeout_seconds)
            ready_seconds = time.monotonic() - began
            version, protocol_version = _ask(port, token, began + timeout_seconds)
            if compile_cache is not None:
                _let_end(process, began + timeout_seconds)
        finally:
            child.end(process)
            if process.stdout:
                process.stdout.close()
    return Answer(version, protocol_version, ready_seconds)


def speaks_protocol(host: str, port: int, timeout_seconds: float = 2.0) -> bool:
    """Say whether a Copilot runtime or a gateway listens at an address: it answers a frame with a frame."""
    try:
        with Link(host, port, time.monotonic() + timeout_seconds) as link:
            return "jsonrpc" in link.call("ping", {})
    except (OSError, errors.SpawnFailed):
        return False


class Link:
    """A blocking connection to a runtime, all of whose calls must be over by one deadline."""

    def __init__(self, host: str, port: int, deadline: float) -> None:
        self._deadline = deadline
        self._socket = socket.create_connection((host, port), self._left())
        self._stream = self._socket.makefile("rb")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._stream.close()
        self._socket.close()

    def call(self, method: str, params: dict[str, Any]) -> dict[str, Any]:
        """Send one request and return the next message that answers it.

        Raises:
            SpawnFailed: the peer closed or sent something that is not a frame.
            OSError: the connection broke, or the deadline passed.
        """
        request_id = secrets.token_hex(8)
        body = msgspec.json.encode({"jsonrpc": "2.0", "id": request_id, "method": method, "params": params})
        self._socket.sendall(b"Content-Length: %d\r\n\r\n%b" % (len(body), body))
        while True:
            self._socket.settimeout(self._left())
            message = _read(self._stream, method)
            # An error about a request that was not understood has no id of ours to carry.
            if message.get("id") in (request_id, None) and "method" not in message:
                return message

    def _left(self) -> float:
        return max(self._deadline - time.monotonic(), 0.001)


def _let_end(process: subprocess.Popen[bytes], deadline: float) -> None:
    process.terminate()
    try:
        process.wait(max(deadline - time.monotonic(), 0))
    except subprocess.TimeoutExpired:
        raise errors.SpawnFailed("the runtime was told to end and did not") from None


def _environment(found: RuntimeRelease, home: Path, token: str, compile_cache: Path | None) -> dict[str, str]:
    env = {
        "PATH": os.environ.get("PATH", os.defpath),
        "HOME": str(home),
        "TMPDIR": str(home),
        "XDG_CACHE_HOME": str(home),
        "COPILOT_HOME": str(home / "copilot"),
        "COPILOT_CONNECTION_TOKEN": token,
        "COPILOT_OFFLINE": "true",
        "COPILOT_AUTO_UPDATE": "false",
        "COPILOT_DISABLE_KEYTAR": "1",
    }
    if found.kind == "node":
        # Offline, this entry point insists on a model provider; it is never called here. It would also unpack itself again.
        provider = {"COPILOT_PROVIDER_BASE_URL": "http://127.0.0.1:9", "COPILOT_MODEL": "none"}
        env |= provider | {"COPILOT_CLI_DIST_DIR": str(found.package_dir)}
    if compile_cache is not None:
        env["NODE_COMPILE_CACHE"] = str(compile_cache)
    return env


def _spawn(found: RuntimeRelease, home: Path, environment: dict[str, str]) -> subprocess.Popen[bytes]:
    (home / "copilot").mkdir()
    try:
        return subprocess.Popen(
            [str(found.entry), *FLAGS],
            env=environment,
            cwd=home,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    except OSError as error:
        raise errors.SpawnFailed(f"{found.entry} cannot be executed: {error.strerror}") from error


def _ready_port(process: subprocess.Popen[bytes], deadline: float) -> int:
    """Read the output until it names the port."""
    if process.stdout is None:
        raise errors.SpawnFailed("the runtime has no output to read")
    output = b""
    while (left := deadline - time.monotonic()) > 0:
        # A descendant may hold the pipe open, so the end of the process is looked for too, not only the end of output.
        ended = process.poll() is not None
        readable, _, _ = select.select([process.stdout], [], [], 0 if ended else min(left, _POLL_SECONDS))
        chunk = os.read(process.stdout.fileno(), 65536) if readable else b""
        output = (output + chunk)[-65536:]
        if match := READY_LINE.search(output):
            return int(match[1])
        if not chunk and (ended or readable):
            raise errors.SpawnFailed(f"the runtime ended before it was ready: {_tail(output)}")
    raise errors.SpawnFailed(f"the runtime was not ready in time: {_tail(output)}")


def _ask(port: int, token: str, deadline: float) -> tuple[str, int]:
    """Connect, ping, and return the version and protocol version that the runtime reports."""
    try:
        with Link("127.0.0.1", port, deadline) as link:
            _result(link.call("connect", {"token": token}), "connect")
            _result(link.call("ping", {"message": "aerodrome"}), "ping")
            status = _result(link.call("status.get", {}), "status.get")
    except OSError as error:
        raise errors.SpawnFailed(f"the runtime did not answer on loopback: {error}") from error
    protocol_version = status.get("protocolVersion")
    return str(status.get("version", "")), protocol_version if isinstance(protocol_version, int) else 0


def _result(message: dict[str, Any], method: str) -> dict[str, Any]:
    result = message.get("result")
    if not isinstance(result, dict):
        raise errors.SpawnFailed(f"expected a result from {method}, found {str(message.get('error'))[:200]}")
    return result


def _read(stream: IO[bytes], method: str) -> dict[str, Any]:
    """Read one frame."""
    length = -1
    while line := stream.readline(1024).strip():
        name, _, value = line.partition(b":")
        if name.strip().lower() == b"content-length" and value.strip().isdigit():
            length = int(value)
    if not 0 <= length <= _REPLY_LIMIT_BYTES:
        raise errors.SpawnFailed(f"expected an answer to {method}, found the connection closed or no frame")
    try:
        return msgspec.json.decode(stream.read(length), type=dict[str, Any])
    except msgspec.DecodeError as error:
        raise errors.SpawnFailed(f"expected a JSON answer to {method}, found something else") from error


def _tail(output: bytes) -> str:
    return " ".join(output.decode(errors="replace").split())[-_TAIL_CHARACTERS:] or "nothing printed"
