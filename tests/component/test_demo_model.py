"""The demo model over real HTTP: every directive in both wire forms, its key, its bounds, and how it stops."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
import os
import select
import signal
import socket
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, Protocol

import httpx
import pytest
import uvicorn

from aerodrome.testing import demo_endpoint, demo_model, demo_script

KEY = "a-key-of-the-tests"
SECONDS = 20.0


@dataclass(frozen=True)
class Message:
    role: str
    text: str = ""
    call: str = ""


@dataclass
class Said:
    """What an answer says, without its wire form."""

    deltas: list[str] = field(default_factory=list)
    calls: list[tuple[str, Any]] = field(default_factory=list)
    call_ids: list[str] = field(default_factory=list)
    finish: str = ""
    usage: dict[str, int] = field(default_factory=dict)

    @property
    def text(self) -> str:
        return "".join(self.deltas)


def user(text: str) -> Message:
    return Message("user", text)


class Wire(Protocol):
    path: str

    def request(self, messages: list[Message], tools: list[str]) -> dict[str, Any]: ...
    def read_events(self, events: list[dict[str, Any]]) -> Said: ...
    def read_document(self, document: dict[str, Any]) -> Said: ...


class Chat:
    path = "/chat/completions"

    def request(self, messages: list[Message], tools: list[str]) -> dict[str, Any]:
        return {
            "model": "demo",
            "stream_options": {"include_usage": True},
            "messages": [self._message(message) for message in messages],
            "tools": [{"type": "function", "function": {"name": name, "parameters": {}}} for name in tools],
        }

    def _message(self, message: Message) -> dict[str, Any]:
        if message.role == "call":
            call = {"id": message.call, "type": "function", "function": {"name": "any", "arguments": "{}"}}
            return {"role": "assistant", "content": None, "tool_calls": [call]}
        if message.role == "tool":
            return {"role": "tool", "tool_call_id": message.call, "content": message.text}
        return {"role": message.role, "content": message.text}

    def read_events(self, events: list[dict[str, Any]]) -> Said:
        said = Said()
        arguments: dict[int, str] = {}
        names: dict[int, str] = {}
        for event in events:
            said.usage = event.get("usage") or said.usage
            for choice in event["choices"]:
                said.deltas += filter(None, [choice["delta"].get("content")])
                said.finish = choice["finish_reason"] or said.finish
                for call in choice["delta"].get("tool_calls", ()):
                    if "id" in call:
                        said.call_ids.append(call["id"])
                        names[call["index"]] = call["function"]["name"]
                    arguments[call["index"]] = arguments.get(call["index"], "") + call["function"]["arguments"]
        said.calls = [(names[index], json.loads(arguments[index])) for index in sorted(names)]
        return said

    def read_document(self, document: dict[str, Any]) -> Said:
        (choice,) = document["choices"]
        message = choice["message"]
        calls = message.get("tool_calls", ())
        return Said(
            [message["content"]] if message["content"] else [],
            [(call["function"]["name"], json.loads(call["function"]["arguments"])) for call in calls],
            [call["id"] for call in calls],
            choice["finish_reason"],
            document["usage"],
        )


class Responses:
    path = "/responses"

    def request(self, messages: list[Message], tools: list[str]) -> dict[str, Any]:
        return {
            "model": "demo",
            "instructions": "\n".join(message.text for message in messages if message.role == "system"),
            "input": [self._item(message) for message in messages if message.role != "system"],
            "tools": [{"type": "function", "name": name, "parameters": {}} for name in tools],
        }

    def _item(self, message: Message) -> dict[str, Any]:
        if message.role == "call":
            return {"type": "function_call", "call_id": message.call, "name": "any", "arguments": "{}"}
        if message.role == "tool":
            return {"type": "function_call_output", "call_id": message.call, "output": message.text}
        kind = "output_text" if message.role == "assistant" else "input_text"
        content = [{"type": kind, "text": message.text}]
        return {"type": "message", "role": message.role, "content": content}

    def read_events(self, events: list[dict[str, Any]]) -> Said:
        assert [event["sequence_number"] for event in events] == list(range(len(events)))
        said = self.read_document(events[-1]["response"])
        deltas = [event["delta"] for event in events if event["type"] == "response.output_text.delta"]
        assert "".join(deltas) == said.text
        arguments = [
            json.loads(event["arguments"])
            for event in events
            if event["type"] == "response.function_call_arguments.done"
        ]
        assert arguments == [call[1] for call in said.calls]
        said.deltas = deltas
        return said

    def read_document(self, document: dict[str, Any]) -> Said:
        calls = [item for item in document["output"] if item["type"] == "function_call"]
        texts = [item["content"][0]["text"] for item in document["output"] if item["type"] == "message"]
        return Said(
            texts,
            [(call["name"], json.loads(call["arguments"])) for call in calls],
            [call["call_id"] for call in calls],
            "tool_calls" if calls else "stop",
            document["usage"],
        )


@dataclass
class Caller:
    """A client of the demo model in one wire form, streaming or not."""

    wire: Wire
    stream: bool
    client: httpx.Client

    def post(self, *messages: Message, tools: list[str] | None = None) -> httpx.Response:
        body = {**self.wire.request(list(messages), tools or []), "stream": self.stream}
        return self.client.post(self.wire.path, json=body)

    def ask(self, *messages: Message, tools: list[str] | None = None) -> Said:
        response = self.post(*messages, tools=tools)
        assert response.status_code == 200, response.text
        if self.stream:
            return self.wire.read_events(events_of(response.text))
        return self.wire.read_document(response.json())


def events_of(text: str) -> list[dict[str, Any]]:
    lines = [line.removeprefix("data: ") for line in text.splitlines() if line.startswith("data: ")]
    return [json.loads(line) for line in lines if line != "[DONE]"]


def read_all(response: httpx.Response) -> tuple[bytes, bool]:
    """Read what comes, and say whether the answer was whole."""
    received = b""
    try:
        for chunk in response.iter_bytes():
            received += chunk
    except httpx.RemoteProtocolError:
        return received, False
    return received, True


@contextlib.contextmanager
def command(
    *arguments: str, key: str | None = KEY, stdin: int = subprocess.PIPE, stderr: int | None = None
) -> Iterator[subprocess.Popen[bytes]]:
    environment = {name: value for name, value in os.environ.items() if name != demo_model.KEY_VARIABLE}
    if key is not None:
        environment[demo_model.KEY_VARIABLE] = key
    process = subprocess.Popen(
        [sys.executable, "-m", "aerodrome.testing.demo_model", *arguments],
        stdin=stdin,
        stdout=subprocess.PIPE,
        stderr=stderr,
        env=environment,
    )
    with process:
        try:
            yield process
        finally:
            process.kill()


def ready(process: subprocess.Popen[bytes]) -> dict[str, str]:
    assert process.stdout is not None
    readable, _, _ = select.select([process.stdout], [], [], SECONDS)
    assert readable, "the demo model printed nothing"
    line: dict[str, str] = json.loads(process.stdout.readline())
    return line


@pytest.fixture(scope="module")
def model() -> Iterator[dict[str, str]]:
    with command("--exit-with-parent") as process:
        yield ready(process)


@pytest.fixture(scope="module")
def client(model: dict[str, str]) -> Iterator[httpx.Client]:
    headers = {"authorization": f"Bearer {model['api_key']}"}
    with httpx.Client(base_url=model["base_url"], headers=headers, timeout=SECONDS) as opened:
        yield opened


@pytest.fixture(params=[Chat(), Responses()], ids=["chat", "responses"])
def wire(request: pytest.FixtureRequest) -> Wire:
    chosen: Wire = request.param
    return chosen


@pytest.fixture
def streaming(wire: Wire, client: httpx.Client) -> Caller:
    return Caller(wire, True, client)


@pytest.fixture(params=[True, False], ids=["streamed", "whole"])
def caller(request: pytest.FixtureRequest, wire: Wire, client: httpx.Client) -> Caller:
    return Caller(wire, request.param, client)


def test_a_plain_prompt_is_echoed(caller: Caller) -> None:
    said = caller.ask(Message("system", "be kind"), user("hello there"))
    assert said.text == "You said: hello there"
    assert (said.calls, said.finish) == ([], "stop")
    assert said.usage["total_tokens"] > 2


def test_a_plain_answer_comes_in_eight_deltas(streaming: Caller) -> None:
    assert len(streaming.ask(user("hi")).deltas) == 8


def test_the_same_request_gets_the_same_bytes(caller: Caller) -> None:
    assert caller.post(user("again [tool look {}]")).content == caller.post(user("again [tool look {}]")).content


def test_an_echo_is_cut_at_its_bound(caller: Caller) -> None:
    assert caller.ask(user("x" * 1000)).text == "You said: " + "x" * 200


def test_what_a_runtime_puts_around_a_prompt_is_not_echoed(caller: Caller) -> None:
    around = "<current_datetime>2030-01-01</current_datetime>\n\n{}\n\n<system_reminder>be brief</system_reminder>"
    assert caller.ask(user(around.format("see <b>this</b>"))).text == "You said: see <b>this</b>"
    assert caller.ask(user(around.format("[say <a_b>kept</a_b>]"))).text == "<a_b>kept</a_b>"


def test_a_message_of_nothing_but_runtime_blocks_is_no_user_message(caller: Caller) -> None:
    notice = user("<system_notification>[say no]</system_notification>")
    assert caller.ask(user("[count][recall]"), notice).text == "user messages: 1\n[count][recall]"


def test_a_request_without_user_words_is_answered(caller: Caller) -> None:
    assert caller.ask(Message("system", "make a title")).text.startswith("You said:")


@pytest.mark.parametrize(
    "text", ["hello", "a [b] c", '"quotes", \\ and \n lines', "héllo 🛫 世界", " spaces kept "], ids=range(5)
)
def test_say_answers_exactly(caller: Caller, text: str) -> None:
    assert caller.ask(user(f"please [say {text}] thanks")).text == text


def test_say_of_one_character_is_one_delta(streaming: Caller) -> None:
    assert streaming.ask(user("[say X]")).deltas == ["X"]


@pytest.mark.parametrize(
    "prompt",
    [
        "[nonsense 1]",
        "[say never closed",
        "[error 200]",
        "[tool look {bad json}]",
        "[tool]",
        "[delay soon]",
        "[stream 5]",
    ],
)
def test_what_is_not_a_directive_is_text(caller: Caller, prompt: str) -> None:
    assert caller.ask(user(prompt)).text == f"You said: {prompt}"


def test_a_tool_is_called_and_its_result_told(caller: Caller) -> None:
    prompt = user('[tool look {"q": ["a]", {"b": 1}]}]')
    said = caller.ask(prompt, tools=["look"])
    assert (said.calls, said.text, said.finish) == ([("look", {"q": ["a]", {"b": 1}]})], "", "tool_calls")
    (call_id,) = said.call_ids
    told = caller.ask(prompt, Message("call", call=call_id), Message("tool", "42", call_id), tools=["look"])
    assert (told.text, told.calls, told.finish) == ("tool said: 42", [], "stop")


def test_a_tool_result_is_told_up_to_its_bound(caller: Caller) -> None:
    history = [user("[tool look]"), Message("call", call="c"), Message("tool", "y" * 9000, "c")]
    assert caller.ask(*history).text == "tool said: " + "y" * 500


def test_a_result_nobody_scripted_is_told_too(caller: Caller) -> None:
    assert caller.ask(user("go"), Message("call", call="c"), Message("tool", "42", "c")).text == "tool said: 42"


def test_several_tools_are_called_in_parallel(caller: Caller) -> None:
    prompt = user('[say wait] [tool one {"n": 1}] [tool two]')
    said = caller.ask(prompt)
    assert (said.text, said.calls) == ("wait", [("one", {"n": 1}), ("two", {})])
    assert len(set(said.call_ids)) == 2
    history = [
        Message("call", call="1"),
        Message("call", call="2"),
        Message("tool", "A", "1"),
        Message("tool", "B", "2"),
    ]
    assert caller.ask(prompt, *history).text == "tool said: A | B"


def test_then_makes_calls_follow_one_another(caller: Caller) -> None:
    turn = [user("[tool one][tool two] [then] [tool three] [then] [say all done]")]
    assert [name for name, _ in caller.ask(*turn).calls] == ["one", "two"]
    turn += [Message("call", call="1"), Message("call", call="2"), Message("tool", "A", "1"), Message("tool", "B", "2")]
    assert [name for name, _ in caller.ask(*turn).calls] == ["three"]
    turn += [Message("call", call="3"), Message("tool", "C", "3")]
    assert caller.ask(*turn).text == "all done"


def test_without_a_last_step_the_last_results_are_told(caller: Caller) -> None:
    turn = [user("[tool one] [then] [tool two]"), Message("call", call="1"), Message("tool", "A", "1")]
    assert caller.ask(*turn, Message("call", call="2"), Message("tool", "B", "2")).text == "tool said: B"


def test_a_new_prompt_starts_its_script_anew(caller: Caller) -> None:
    turn = [
        user("[tool one]"),
        Message("call", call="1"),
        Message("tool", "A", "1"),
        Message("assistant", "tool said: A"),
    ]
    assert [name for name, _ in caller.ask(*turn, user("[tool two]")).calls] == ["two"]


@pytest.mark.parametrize("status", [400, 401, 429, 500, 503])
def test_error_answers_with_that_status(caller: Caller, status: int) -> None:
    response = caller.post(user(f"[error {status}]"))
    assert response.status_code == status
    assert set(response.json()["error"]) == {"message", "type", "param", "code"}


def test_error_times_fails_only_the_first_attempts(caller: Caller) -> None:
    prompt = user(f"[error 500 x2] [say well] {type(caller.wire).__name__} {caller.stream}")
    assert [caller.post(prompt).status_code for _ in range(3)] == [500, 500, 200]
    assert caller.ask(prompt).text == "well"


def test_attempts_are_counted_per_conversation(caller: Caller) -> None:
    prompt = user(f"[error 503 x1] elsewhere {type(caller.wire).__name__} {caller.stream}")
    assert caller.post(prompt).status_code == 503
    assert caller.post(user("another past"), Message("assistant", "yes"), prompt).status_code == 503
    assert caller.post(prompt).status_code == 200


def test_attempts_remembered_are_bounded() -> None:
    attempts = demo_endpoint.Attempts(kept=2)
    one, two, three = (demo_script.Conversation((demo_script.Message("user", text),)) for text in "123")
    assert [attempts.count(conversation) for conversation in (one, two, one, three, one, two)] == [1, 1, 2, 1, 3, 1]


def test_delay_holds_the_answer_back(caller: Caller) -> None:
    started = time.monotonic()
    assert caller.ask(user("[delay 0.2] [say late]")).text == "late"
    assert time.monotonic() - started >= 0.2


def test_stream_sends_so_many_deltas_over_so_long(caller: Caller) -> None:
    started = time.monotonic()
    said = caller.ask(user("[stream 5 0.2]"))
    assert time.monotonic() - started >= 0.2
    assert said.text == "1 2 3 4 5"
    assert len(said.deltas) == (5 if caller.stream else 1)


def test_stream_cuts_a_given_text(streaming: Caller) -> None:
    assert streaming.ask(user("[say abcdef] [stream 3 0]")).deltas == ["ab", "cd", "ef"]


def test_stream_is_bounded(streaming: Caller) -> None:
    assert len(streaming.ask(user("[stream 999999 0]")).deltas) == 10_000


def test_deltas_arrive_while_the_answer_goes_on(streaming: Caller) -> None:
    body = {**streaming.wire.request([user("[stream 6000 600]")], []), "stream": True}
    with streaming.client.stream("POST", streaming.wire.path, json=body) as response:
        assert any("1 2" in line for line in response.iter_lines())


@pytest.mark.parametrize("size_bytes", [0, 1, 1000, 300_000])
def test_size_answers_so_many_bytes(caller: Caller, size_bytes: int) -> None:
    said = caller.ask(user(f"[size {size_bytes}]"))
    assert len(said.text.encode()) == size_bytes
    assert max(map(len, said.deltas), default=0) <= (16 * 1024 if caller.stream else size_bytes)


def test_size_is_bounded(client: httpx.Client) -> None:
    said = Caller(Chat(), True, client).ask(user("[size 99999999999] [size 5]"))
    assert len(said.text) == 16 * 1024 * 1024
    assert len(Caller(Chat(), False, client).ask(user("[say abc] [size 16777216]")).text) == 16 * 1024 * 1024


def test_count_and_recall_prove_the_history(caller: Caller) -> None:
    history = [user("my cat is Zebra"), Message("assistant", "noted"), user("<a_b>x</a_b>my dog is Panda")]
    assert caller.ask(*history, user("[count]")).text == "user messages: 3"
    assert caller.ask(*history, user("[recall]")).text == "my cat is Zebra | my dog is Panda | [recall]"


def test_who_names_the_key_without_revealing_it(caller: Caller) -> None:
    assert caller.ask(user("[who]")).text == hashlib.sha256(KEY.encode()).hexdigest()[:8]


def test_tools_lists_what_was_offered(caller: Caller) -> None:
    assert caller.ask(user("[tools]"), tools=["zip", "add"]).text == "add,zip"
    assert caller.ask(user("[tools] [say none]")).text == "\nnone"


def test_system_tells_the_system_message_up_to_its_bound(caller: Caller) -> None:
    assert caller.ask(Message("system", "s" * 3000), user("[system]")).text == "s" * 2000


def test_drop_closes_the_connection_within_the_answer(caller: Caller) -> None:
    body = {**caller.wire.request([user("[drop] [say ABCDEFGH]")], []), "stream": caller.stream}
    with caller.client.stream("POST", caller.wire.path, json=body) as response:
        assert response.status_code == 200
        received, whole = read_all(response)
    assert not whole
    assert len(received) > 0
    assert b"[DONE]" not in received
    assert b"response.completed" not in received
    if caller.stream:
        assert b'"D"' in received
        assert b'"E"' not in received


def test_usage_comes_only_when_asked_for(client: httpx.Client) -> None:
    body: dict[str, Any] = {"messages": [{"role": "user", "content": "hi"}], "stream": True}
    assert not any("usage" in event for event in events_of(client.post("/chat/completions", json=body).text))
    body["stream_options"] = {"include_usage": True}
    response = client.post("/chat/completions", json=body)
    assert events_of(response.text)[-1]["usage"]["total_tokens"] > 0
    assert response.text.endswith("data: [DONE]\n\n")


def test_content_parts_and_a_plain_input_are_read(client: httpx.Client) -> None:
    image = {"type": "image_url", "image_url": {"url": "data:,"}}
    parts = [{"type": "text", "text": "[say"}, image, {"type": "text", "text": "parts]"}]
    chat = client.post("/chat/completions", json={"messages": [{"role": "user", "content": parts}]}).json()
    assert chat["choices"][0]["message"]["content"] == "parts"
    responses = client.post("/responses", json={"input": "[say plain]"}).json()
    assert responses["output"][0]["content"][0]["text"] == "plain"


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"[]",
        b'{"messages": 1, "input": 1}',
        b'{"messages": [{"role": "\xff"}], "input": "\xff"}',
        b'{"input": "\\ud800"}',
    ],
)
def test_what_is_no_request_is_refused_in_words(client: httpx.Client, wire: Wire, body: bytes) -> None:
    response = client.post(wire.path, content=body)
    assert response.status_code == 400
    assert response.json()["error"]["code"] == "invalid_request"


@pytest.mark.parametrize("authorization", [None, "Bearer wrong", f"Basic {KEY}", "Bearer é".encode("latin-1")])
@pytest.mark.parametrize("path", ["/chat/completions", "/responses", "/models"])
def test_without_the_key_nothing_is_answered(
    model: dict[str, str], path: str, authorization: str | bytes | None
) -> None:
    headers: dict[str, Any] = {} if authorization is None else {"authorization": authorization}
    method = "GET" if path == "/models" else "POST"
    content = None if path == "/models" else b'{"messages": [], "input": []}'
    response = httpx.request(method, model["base_url"] + path, headers=headers, content=content, timeout=SECONDS)
    assert response.status_code == 401
    assert response.json()["error"]["code"] == "invalid_api_key"


def test_models_and_health_are_told(client: httpx.Client, model: dict[str, str]) -> None:
    assert [entry["id"] for entry in client.get("/models").json()["data"]] == ["demo"]
    assert httpx.get(model["base_url"].removesuffix("/v1") + "/healthz", timeout=SECONDS).status_code == 200


async def test_without_a_key_set_anyone_is_answered_and_the_name_is_ours() -> None:
    transport = httpx.ASGITransport(demo_model.create_app(demo_model.DemoModel(name="other")))
    async with httpx.AsyncClient(transport=transport, base_url="http://demo") as client:
        assert (await client.get("/v1/models")).json()["data"][0]["id"] == "other"
        answer = await client.post("/v1/chat/completions", json={"model": "x", "messages": []})
        assert answer.json()["model"] == "other"


async def test_a_request_over_the_limit_is_refused() -> None:
    transport = httpx.ASGITransport(demo_model.create_app(demo_model.DemoModel()))
    async with httpx.AsyncClient(transport=transport, base_url="http://demo") as client:
        body = b" " * (demo_endpoint.MAX_REQUEST_BYTES + 1)
        assert (await client.post("/v1/responses", content=body)).status_code == 413


async def test_a_long_answer_lets_others_run() -> None:
    turns = 0

    async def count_turns() -> None:
        nonlocal turns
        while True:
            turns += 1
            await asyncio.sleep(0)

    transport = httpx.ASGITransport(demo_model.create_app(demo_model.DemoModel()))
    counting = asyncio.create_task(count_turns())
    async with httpx.AsyncClient(transport=transport, base_url="http://demo", timeout=SECONDS) as client:
        answer = await client.post("/v1/responses", json={"stream": True, "input": "[stream 10000 0]"})
    counting.cancel()
    assert answer.status_code == 200
    assert turns > 100


@contextlib.asynccontextmanager
async def in_process() -> AsyncIterator[tuple[uvicorn.Server, str]]:
    listener = socket.create_server(("127.0.0.1", 0))
    server = demo_model.Server(demo_model.DemoModel(), listener)
    serving = asyncio.create_task(server.serve(sockets=[listener]))
    try:
        await until(lambda: server.started)
        yield server, f"http://127.0.0.1:{listener.getsockname()[1]}/v1"
    finally:
        server.stop()
        await asyncio.wait_for(serving, SECONDS)


async def until(fact: Callable[[], bool]) -> None:
    async with asyncio.timeout(SECONDS):
        while not fact():  # noqa: ASYNC110 - the server has no event to wait for
            await asyncio.sleep(0.01)


@pytest.mark.parametrize(
    ("prompt", "seen"), [("[stream 100 600]", b"data: {"), ("[size 16777216]", b"fox"), ("[delay 600]", b"")]
)
async def test_work_ends_when_the_client_leaves(prompt: str, seen: bytes) -> None:
    body = json.dumps({"stream": True, "messages": [{"role": "user", "content": prompt}]}).encode()
    async with in_process() as (server, url):
        reader, writer = await asyncio.open_connection("127.0.0.1", httpx.URL(url).port)
        writer.write(
            b"POST /v1/chat/completions HTTP/1.1\r\nhost: demo\r\ncontent-length: %d\r\n\r\n" % len(body) + body
        )
        await until(lambda: bool(server.server_state.tasks))
        if seen:
            await asyncio.wait_for(reader.readuntil(seen), SECONDS)
        writer.transport.abort()
        await until(lambda: not server.server_state.tasks)


async def test_a_client_that_does_not_read_delays_no_other() -> None:
    body: dict[str, Any] = {"stream": True, "messages": [{"role": "user", "content": "[size 16777216]"}]}
    async with in_process() as (_, url), httpx.AsyncClient(base_url=url, timeout=SECONDS) as client:
        async with client.stream("POST", "/chat/completions", json=body):
            other = await client.post("/responses", json={"input": "[say meanwhile]"})
        assert other.json()["output"][0]["content"][0]["text"] == "meanwhile"


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_stops_it_within_open_streams(number: signal.Signals) -> None:
    with command() as process:
        line = ready(process)
        body = {"stream": True, "messages": [{"role": "user", "content": "[stream 100 600]"}]}
        headers = {"authorization": f"Bearer {line['api_key']}"}
        url = line["base_url"] + "/chat/completions"
        with httpx.stream("POST", url, json=body, headers=headers, timeout=SECONDS) as response:
            assert response.status_code == 200
            process.send_signal(number)
            assert process.wait(SECONDS) == 0
            with pytest.raises(httpx.RemoteProtocolError):
                response.read()


def test_nothing_is_logged_of_what_is_meant_to_be_so() -> None:
    with command(stderr=subprocess.PIPE) as process:
        line = ready(process)
        with httpx.Client(headers={"authorization": f"Bearer {line['api_key']}"}, timeout=SECONDS) as client:
            url = line["base_url"] + "/responses"
            with client.stream("POST", url, json={"stream": True, "input": "[drop]"}) as response:
                assert not read_all(response)[1]
            with client.stream("POST", url, json={"stream": True, "input": "[stream 9 600]"}):
                process.terminate()
                assert process.communicate(timeout=SECONDS)[1] == b""


def test_it_ends_with_its_parent_when_told_so() -> None:
    with command("--exit-with-parent") as process:
        ready(process)
        assert process.stdin is not None
        process.stdin.close()
        assert process.wait(SECONDS) == 0


def test_it_outlives_its_input_otherwise_and_makes_a_fresh_key() -> None:
    with command("--host", "127.0.0.1", "--port", "0", key=None, stdin=subprocess.DEVNULL) as process:
        line = ready(process)
        assert len(line["api_key"]) >= 32
        assert line["name"] == "demo"
        headers = {"authorization": f"Bearer {line['api_key']}"}
        assert httpx.get(line["base_url"] + "/models", headers=headers, timeout=SECONDS).status_code == 200
        assert process.poll() is None
