"""Random input for the protocol core, and what must hold for all of it: accepted, or refused with a documented error.

`Source` makes bytes, texts, JSON and messages that are mostly nearly right, because what is plainly wrong is refused by the first
line that reads it. `TARGETS` are the properties; each takes a `Source` and raises `AssertionError` (or whatever broke) for a
fault. A run is repeated by its seed. Not here: whole gateways (tests/gateway/test_fuzzed_links.py) and the loop (tools/fuzz.py).
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import msgspec
from msgspec import UNSET

from aerodrome import errors
from aerodrome.core import duration, identity, policy
from aerodrome.core.policy import Policy
from aerodrome.protocol import framing, hardening, id_paths, messages, methods, missing, refusals, replays
from aerodrome.protocol.connection import Connection
from aerodrome.protocol.frame_watch import FrameWatch
from aerodrome.protocol.methods import Direction

LIMIT_BYTES = 4096
_NAMES = list(methods.names())
_MEMBERS = [
    "sessionId", "sessionIds", "availableTools", "excludedTools", "provider", "providers", "baseUrl", "apiKey",
    "headers", "type", "mcpServers", "url", "command", "args", "env", "customAgents", "systemMessage", "mode",
    "content", "attachments", "requestHeaders", "messages", "message", "models", "tools", "hooks", "commands",
    "result", "largeOutput", "workingDirectory", "agentMode", "kind", "scope", "id", "name", "params", "prompt",
    "sessions", "event", "data", "token", "options", "limits",
]  # fmt: skip
_TEXTS = [
    "s-1", "s-2", "ffffffff-0000-4000-8000-000000000000", "ffffffff", "../../etc/passwd", "/proc/self/environ", "..",
    "http://127.0.0.1:1/", "https://a.example/v1", "http://[::1]/", "http://169.254.169.254/latest",
    "file:///etc/passwd", "custom:*", "mcp:*", "builtin:shell", "*", "interactive", "shell", "openai", "http",
    "stdio", "append", "replace", "30d", "1e9", "-1", "NaN", "aero_0123456789ab_secret", "2.0", "session.create",
]  # fmt: skip
_NUMBERS = (0, 1, -1, 0.5, 1e308, 2**31, 2**53 + 1, 2**63, 2**64, 10**400, -(2**63) - 1)
_BYTES = (
    b"\r\n\r\n",
    b"\n\n",
    b"Content-Length: ",
    b"content-length:",
    b"\xff",
    b"\0",
    b'"',
    b"{",
    b"[" * 1200,
    b"-1",
    b"\xed\xa0\x80",
)


class Source:
    """Random values of one seed."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)  # noqa: S311  repeatable, no secret

    def text(self) -> str:
        """Return a text that means something somewhere, or a broken one."""
        chosen = self.random.choice(self.random.choice((_TEXTS, _MEMBERS, _NAMES)))
        match self.random.randrange(8):
            case 0:
                return chosen[: self.random.randrange(len(chosen) + 1)]
            case 1:
                return chosen + self.random.choice(("\0", "\r\n", "\u202e", "é", "*", "/", "\ud7ff", "x" * 300))
            case 2:
                return chosen.swapcase()
        return chosen

    def value(self, depth: int = 0) -> Any:
        """Return a JSON value whose objects have known members."""
        match self.random.randrange(9 if depth < 5 else 5):
            case 0:
                return self.random.choice((None, True, False, "", [], {}))
            case 1:
                return self.random.choice(_NUMBERS)
            case 2 | 3 | 4:
                return self.text()
            case 5 | 6:
                return [self.value(depth + 1) for _ in range(self.random.randrange(4))]
        return self.members(depth + 1)

    def members(self, depth: int = 0) -> dict[str, Any]:
        """Return a JSON object."""
        return {self.random.choice(_MEMBERS): self.value(depth) for _ in range(self.random.randrange(5))}

    def method(self) -> str:
        """Return a method's name, now and then one that is none."""
        return self.text() if self.random.random() < 0.1 else self.random.choice(_NAMES)

    def params(self, method: str) -> Any:
        """Return params with ids where the method has them, then random members, or no object at all."""
        if self.random.random() < 0.1:
            return self.value()
        row = methods.lookup(method)
        given: dict[str, Any] = {}
        for path in row.session_ids if row is not None else ():
            if path.steps[0].isidentifier():
                given[path.steps[0]] = self.random.choice(("s-1", "s-2", "ffffffff", self.value()))
        return given | self.members()

    def message(self) -> bytes:
        """Return the body of a message, or of what looks like one."""
        method = self.method()
        body: dict[str, Any] = {"jsonrpc": "2.0", "id": self.random.choice((1, 2, "a", 10**6)), "method": method}
        body["params"] = self.params(method)
        match self.random.randrange(12):
            case 0:
                del body[self.random.choice(list(body))]
            case 1:
                body[self.random.choice(("id", "method", "params", "jsonrpc", "result", "error"))] = self.value()
            case 2:
                del body["method"]
                body[self.random.choice(("result", "error"))] = self.value()
        text = json.dumps(body, ensure_ascii=self.random.random() < 0.5).encode("utf-8", "surrogatepass")
        return self.spoil(text) if self.random.random() < 0.2 else text

    def spoil(self, data: bytes) -> bytes:
        """Return bytes with something cut out, doubled, changed or put in."""
        for _ in range(self.random.randrange(1, 4)):
            at, end = sorted(self.random.randrange(len(data) + 1) for _ in range(2))
            match self.random.randrange(4):
                case 0:
                    data = data[:at] + data[min(end, at + 8) :]
                case 1:
                    data = data[:end] + data[at:end][:64] + data[end:]
                case 2:
                    data = data[:at] + bytes([self.random.randrange(256)]) + data[at + 1 :]
                case _:
                    data = data[:at] + self.random.choice(_BYTES) + data[at:]
        return data

    def stream(self) -> bytes:
        """Return frames, some of them broken."""
        data = b"".join(framing.encode(self.message()) for _ in range(self.random.randrange(1, 5)))
        return self.spoil(data) if self.random.random() < 0.5 else data

    def pieces(self, data: bytes) -> list[bytes]:
        """Cut bytes at random places."""
        cuts = sorted(self.random.randrange(len(data) + 1) for _ in range(self.random.randrange(12)))
        return [data[at:end] for at, end in zip([0, *cuts], [*cuts, len(data)], strict=True)]


def read_streams(source: Source) -> None:
    """However a stream is cut, it yields the same messages and the same fault; a watch passes just those bytes."""
    data = source.stream()
    whole, cut = _receive([data]), _receive(source.pieces(data))
    assert whole == cut, (whole, cut)
    watch = FrameWatch(LIMIT_BYTES, b'"connect"', lambda body: None)
    passed = b"".join(watch.feed(piece) for piece in source.pieces(data))
    assert data.startswith(passed)


def _receive(pieces: list[bytes]) -> tuple[list[str], str]:
    connection = Connection(LIMIT_BYTES)
    found: list[str] = []
    for piece in pieces:
        try:
            for item in connection.receive_data(piece):
                if isinstance(item, errors.InvalidRequest):
                    found.append(item.code)
                else:
                    found.append(messages.encode(item).decode("utf-8", "replace"))
        except errors.InvalidRequest as fault:
            return found, fault.code
        if connection.fault is not None:
            return found, connection.fault.code
    return found, ""


def read_messages(source: Source) -> None:
    """A body is a message or refused; what is written for it is read as the same message again, by both readers."""
    body = source.message()
    with suppress(errors.InvalidRequest):
        refusals.check(body)
    peek = messages.peek(body)
    try:
        envelope = messages.decode(body)
    except errors.InvalidRequest:
        return
    if peek is not None:
        assert (peek.method, peek.id) == (envelope.method, envelope.id)
    if envelope.method is not UNSET and envelope.id is not UNSET:
        assert envelope.id is not None
        again = messages.decode(messages.request(envelope.id, envelope.method, envelope.params))
        assert (again.id, again.method) == (envelope.id, envelope.method)
    elif envelope.method is UNSET:
        again = messages.decode(messages.response(7, envelope))
        assert again.id == 7
        assert (again.error is UNSET) == (envelope.error is UNSET)


def judge_calls(source: Source) -> None:
    """Every call is hardened, has its ids found and its answer completed, or is refused."""
    method = source.method()
    given = msgspec.json.encode(encodable(source.params(method)))
    try:
        params = messages.params_object(msgspec.Raw(given))
        row = methods.lookup(method)
        if row is not None:
            id_paths.find_ids(params, row.session_ids)
        for access in policy.Access:
            methods.judge(method, access, has_session=True, direction=Direction.C2S)
        hardened = hardening.harden_call(method, params, Policy(provider_urls=("https://a.example/v1",)))
        assert isinstance(hardened, dict)
        assert method != "session.options.update" or not _reaches(hardened), hardened
        replays.note({}, method, params)
        missing.answer(1, method, "s-1")
    except errors.AerodromeError as error:
        _assert_documented(error)


def open_sessions(source: Source) -> None:
    """Create and resume are hardened or refused, and hardening what is hardened changes nothing that matters."""
    params = encodable(source.params("session.create"))
    if not isinstance(params, dict):
        return
    rules = Policy(provider_urls=("https://a.example/v1",))
    try:
        hardened = hardening.harden_create(params, rules)
        assert hardened["enableHostGitOperations"] is False
        assert not _reaches(hardened), hardened
    except errors.AerodromeError as error:
        _assert_documented(error)


def filter_results(source: Source) -> None:
    """A list is shown without what is another's, or refused; a foreign id never stays at a place of ids."""
    row = methods.lookup(source.random.choice(_NAMES))
    if row is None or not row.result_ids:
        return
    result = source.value() if source.random.random() < 0.3 else _listing(source, row.result_ids)
    try:
        kept = id_paths.filter_result(result, row.result_ids, lambda found: found == "s-1")
        assert set(id_paths.find_ids(kept, row.result_ids)) <= {"s-1"}, (result, kept)
    except errors.AerodromeError as error:
        _assert_documented(error)


def read_texts(source: Source) -> None:
    """Names, tokens, durations and URLs are taken or refused."""
    text = source.text()
    for read in (
        lambda: policy.check_url("url", text),
        lambda: identity.check_name("tenant", text),
        lambda: identity.split_token(text),
        lambda: duration.parse("age", text),
        lambda: Policy(provider_urls=("https://a.example/v1",)).allows_provider(text),
    ):
        try:
            read()
        except errors.AerodromeError as error:
            _assert_documented(error)


#: The properties, by name.
TARGETS: dict[str, Callable[[Source], None]] = {
    "streams": read_streams,
    "messages": read_messages,
    "calls": judge_calls,
    "openings": open_sessions,
    "results": filter_results,
    "texts": read_texts,
}


def _listing(source: Source, paths: tuple[id_paths.IdPath, ...]) -> Any:
    """Return a result that holds ids at a path."""
    value: Any = source.random.choice(("s-1", "s-2", "s-3", source.text()))
    for step in reversed(source.random.choice(paths).steps):
        value = [value, source.value(4)][: source.random.randrange(1, 3)] if step == "[]" else value
        if step == "{}":
            value = {source.text(): source.value(4), "s-2": 1}
        elif step != "[]":
            value = {step: value} | (source.members(4) if source.random.random() < 0.2 else {})
    return value


def encodable(value: Any) -> Any:
    """Return the value without integers that JSON numbers of ours cannot be."""
    if isinstance(value, dict):
        return {key: encodable(member) for key, member in value.items()}
    if isinstance(value, list):
        return [encodable(member) for member in value]
    return float("1e300") if isinstance(value, int) and not isinstance(value, bool) and abs(value) >= 2**63 else value


def _reaches(hardened: dict[str, Any]) -> bool:
    """Say whether a provider address that policy does not allow is left."""
    provider = hardened.get("provider")
    return isinstance(provider, dict) and not str(provider.get("baseUrl", "https://a.example/v1")).startswith(
        "https://a.example/v1"
    )


def _assert_documented(error: errors.AerodromeError) -> None:
    assert error.code in errors.WIRE.keys() - {"internal"}, f"undocumented error {error.code}"
