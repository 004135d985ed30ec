"""Scenarios below the SDK: what comes back byte for byte, also for what no SDK would send."""

from __future__ import annotations

import json
from typing import Any

from aerodrome.protocol import framing, messages
from aerodrome.testing.direct_and_through import Endpoint, Wire, wire

from .transparent_program import Model

END = b'{"jsonrpc":"2.0","id":"end","method":"ping","params":{}}'

#: JSON that is no message, and messages that are odd.
ODD = (
    b"[]",
    b"5",
    b"null",
    b'"text"',
    b"{}",
    b'[{"jsonrpc":"2.0","id":1,"method":"ping"},{"jsonrpc":"2.0","id":2,"method":"ping"}]',
    b'{"jsonrpc":"2.0","id":null,"method":"ping"}',
    b'{"jsonrpc":"2.0","id":1.5,"method":"ping"}',
    b'{"jsonrpc":"2.0","id":true,"method":"ping"}',
    b'{"jsonrpc":"2.0","id":{},"method":"ping"}',
    b'{"jsonrpc":"2.0","id":9223372036854775807,"method":"ping"}',
    b'{"jsonrpc":"2.0","id":9223372036854775808,"method":"ping"}',
    b'{"jsonrpc":"2.0","id":-5,"method":"ping"}',
    b'{"jsonrpc":"2.0","id":"","method":"ping"}',
    b'{"jsonrpc":"2.0","id":1,"method":5}',
    b'{"jsonrpc":"2.0","id":1,"method":""}',
    b'{"jsonrpc":"2.0","id":1}',
    b'{"id":1,"method":"ping"}',
    b'{"jsonrpc":"1.0","id":1,"method":"ping"}',
    b'{"jsonrpc":2,"id":1,"method":"ping"}',
    b'{"jsonrpc":null,"id":1,"method":"ping"}',
    b'{"jsonrpc":"2.0","id":1,"method":"ping","params":[1]}',
    b'{"jsonrpc":"2.0","id":1,"method":"ping","params":5}',
    b'{"jsonrpc":"2.0","id":1,"id":2,"method":"ping"}',
    b' {"jsonrpc":"2.0", "id":1, "method":"ping", "more":1} ',
    b'{"jsonrpc":"2.0","id":1,"method":"no.such.method","params":{}}',
    b'{"jsonrpc":"2.0","id":1,"method":"session.getMessages","params":{"sessionId":"nobody"}}',
)
#: Messages that nobody answers.
SILENT = (
    b'{"jsonrpc":"2.0","method":"ping"}',
    b'{"jsonrpc":"2.0","method":"$/cancelRequest","params":{"id":1}}',
    b'{"jsonrpc":"2.0","id":1,"result":{}}',
    b'{"jsonrpc":"2.0","id":null,"result":{}}',
)
#: What is not JSON. A gateway that refuses it before a link is authenticated has words of its own for it.
NOT_JSON = (
    b"",
    b"{nope",
    b"nope",
    b'{"jsonrpc":"2.0","id":1,"method":"ping"}x',
    b'{"jsonrpc":"2.0","id":1,"method":"\xff"}',
    b'{"jsonrpc":"2.0","id":"\\ud800","method":"ping"}',
    b'{"jsonrpc":"2.0","id":1,"method":"ping","params":{"a":NaN}}',
    b"[" * 200,
)
HEADERS = (
    b"content-LENGTH:2\r\nContent-Type: application/vscode-jsonrpc; charset=utf-8\r\n\r\n{}",
    b"Content-Length: 2\r\nContent-Length: 2\r\n\r\n{}",
    b"Content-Length: 3\r\nContent-Length: 2\r\n\r\n{}",
    b"Content-Length: +2\r\n\r\n{}",
    b"Content-Length: -2\r\n\r\n{}",
    b"Content-Length: two\r\n\r\n{}",
    b"Content-Length: 2\n\n{}",
    b"Other: 1\r\n\r\n{}",
    b"no colon\r\n\r\n{}",
    b"GET / HTTP/1.1\r\nHost: gateway\r\n\r\n",
    b"X: " + b"a" * 5000 + b"\r\nContent-Length: 2\r\n\r\n{}",
    b"\r\n\r\n",
)


def connect_body(params: Any, request_id: int | str = 1) -> bytes:
    """Return a `connect` with these params."""
    return messages.request(request_id, "connect", messages.encode(params))


async def _hear_sorted(link: Wire, count: int) -> list[str]:
    """Return that many answers; a runtime works on the requests of a link at the same time."""
    heard: list[bytes] = []
    while len(heard) < count:
        more = await link.hear()
        assert more, f"the link was closed after {heard}"
        heard += more
    return sorted(body.decode() for body in heard)


async def _try_all(link: Wire) -> list[Any]:
    outcome = []
    for body in (*ODD, *SILENT):
        link.send(body)
        link.send(END)
        outcome.append((body.decode(), await _hear_sorted(link, 1 + (body not in SILENT))))
    return outcome


async def odd_messages_after_connect(endpoint: Endpoint, model: Model) -> Any:
    async with wire(endpoint) as link:
        await link.ask("connect", {"token": endpoint.token})
        outcome = await _try_all(link)
        for body in NOT_JSON:
            link.send(body, END)
            outcome.append((repr(body), await _hear_sorted(link, 2)))
        return outcome


async def odd_messages_before_connect(endpoint: Endpoint, model: Model) -> Any:
    outcome = []
    for body in (*ODD, *SILENT):
        async with wire(endpoint) as link:
            link.send(body, END)
            outcome.append((body.decode(), await _hear_sorted(link, 1 + (body not in SILENT))))
    return outcome


async def what_is_not_json_before_connect_has_the_same_code(endpoint: Endpoint, model: Model) -> Any:
    outcome = []
    for body in NOT_JSON:
        async with wire(endpoint) as link:
            link.send(body, END)
            answers = map(json.loads, await _hear_sorted(link, 2))
            outcome.append([(answer["id"], answer["error"]["code"]) for answer in answers])
    return outcome


async def tokens_and_tries(endpoint: Endpoint, model: Model) -> Any:
    right = {"token": endpoint.token}
    tries = (
        {"token": "wrong"},
        {},
        None,
        [],
        "text",
        {"token": None},
        {"token": 5},
        {"token": ""},
        {"token": f"{endpoint.token}x"},
        {**right, "supportedTaskKinds": "odd"},
        {**right, "unknownMember": 1},
        {**right, "supportedTaskKinds": ["agent", "client", "shell"]},
    )
    outcome = []
    for attempt in tries:
        async with wire(endpoint) as link:
            link.send(connect_body(attempt, "a"))
            heard = [(await link.hear())[0].decode()]
            link.send(END)
            heard += await _hear_sorted(link, 1)
            # A failed try costs nothing: the same link connects with the right token.
            link.send(connect_body(right, 7))
            heard.append((await link.hear())[0].decode())
            link.send(END)
            outcome.append((heard, await _hear_sorted(link, 1)))
    return outcome


async def connecting_twice(endpoint: Endpoint, model: Model) -> Any:
    outcome = []
    async with wire(endpoint) as link:
        for params in ({"token": endpoint.token}, {"token": endpoint.token}, {"token": "wrong"}, {}, [], "x"):
            link.send(connect_body(params))
            outcome.append((await link.hear())[0].decode())
            link.send(END)
            outcome.append(await _hear_sorted(link, 1))
        split = framing.encode(connect_body({"token": endpoint.token}, "split"))
        link.send_bytes(split[:30])
        link.send_bytes(split[30:])
        outcome.append((await link.hear())[0].decode())
        escaped = connect_body({"token": endpoint.token}).replace(b'"id":1', b'"id": 1, "trace": "connect"')
        link.send(escaped)
        outcome.append((await link.hear())[0].decode())
        mentions = messages.request(3, "ping", messages.encode({"message": 'say "connect" twice'}))
        link.send(mentions)
        outcome.append((await link.hear())[0].decode())
    return outcome


async def connect_and_more_in_one_write(endpoint: Endpoint, model: Model) -> Any:
    async with wire(endpoint) as link:
        link.send(connect_body({"token": endpoint.token}, 1), messages.request(2, "ping", b"{}"))
        # Whether `connect` is done before the ping is a matter of the runtime's threads.
        return [json.loads(body)["id"] for body in await _hear_sorted(link, 2)]


async def broken_headers(endpoint: Endpoint, model: Model) -> Any:
    outcome = []
    for header in HEADERS:
        async with wire(endpoint) as link:
            await link.ask("connect", {"token": endpoint.token})
            link.send_bytes(header)
            link.send(END)
            link.send_end()
            outcome.append((header.decode(), [body.decode() for body in await link.hear_end()]))
    return outcome


async def a_half_closed_link_still_hears_the_answers(endpoint: Endpoint, model: Model) -> Any:
    async with wire(endpoint) as link:
        await link.ask("connect", {"token": endpoint.token})
        for number in range(20):
            link.send(messages.request(number, "status.get", b"{}"))
        link.send_end()
        return sorted(json.loads(body)["id"] for body in await link.hear_end())


async def a_frame_in_a_thousand_pieces_and_a_thousand_frames_in_one(endpoint: Endpoint, model: Model) -> Any:
    async with wire(endpoint) as link:
        await link.ask("connect", {"token": endpoint.token})
        large = framing.encode(messages.request(1, "ping", messages.encode({"message": "x" * 100_000})))
        for at in range(0, len(large), 100):
            link.send_bytes(large[at : at + 100])
        echoed = json.loads((await link.hear())[0])["result"]["message"]
        link.send(*(messages.request(number, "status.get", b"{}") for number in range(1000)))
        return len(echoed), await _hear_sorted(link, 1000)


SCENARIOS = (
    odd_messages_before_connect,
    odd_messages_after_connect,
    what_is_not_json_before_connect_has_the_same_code,
    tokens_and_tries,
    connecting_twice,
    connect_and_more_in_one_write,
    broken_headers,
    a_half_closed_link_still_hears_the_answers,
    a_frame_in_a_thousand_pieces_and_a_thousand_frames_in_one,
)
