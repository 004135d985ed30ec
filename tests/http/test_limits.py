"""What the edge takes: how many requests, how large, of which type; and what it says to what it does not take."""

from __future__ import annotations

import asyncio
from contextlib import suppress

import pytest
import structlog

from aerodrome import errors
from aerodrome.clock import Clock
from aerodrome.core.identity import Owner
from aerodrome.http.rates import RateLimiter
from aerodrome.http.site import HttpSettings
from aerodrome.testing.http_rig import WAIT_SECONDS

from .test_idempotency import make

JSON = {"Content-Type": "application/json"}


class Hand(Clock):
    """A clock that is moved by hand."""

    def __init__(self) -> None:
        self.at = 0.0

    def now(self) -> float:
        return self.at

    def monotonic(self) -> float:
        return self.at


def test_a_bucket_empties_and_fills_again_at_its_rate():
    clock = Hand()
    rates, owner = RateLimiter(60, clock), Owner("t", "u")

    left = [rates.take(owner).remaining for _ in range(60)]
    assert left == list(range(59, -1, -1))
    with pytest.raises(errors.RateLimited) as refused:
        rates.take(owner)
    assert refused.value.details == {"retry_after_seconds": 1}
    assert rates.take(Owner("t", "v")).remaining == 59

    clock.at = 2.5
    assert [rates.take(owner).remaining for _ in range(2)] == [1, 0]
    with pytest.raises(errors.RateLimited):
        rates.take(owner)


@pytest.mark.parametrize(
    "body",
    [
        '{"tools": [{"name": "t", "parameters": {"x": "\\ud800"}}]}',
        '{"tools": [{"name": "t", "parameters": {"\\ud800": 1}}]}',
        '{"metadata": {"\\ud800": "x"}}',
        '{"\\ud800": 1}',
    ],
)
async def test_text_that_is_no_unicode_is_a_wrong_form_wherever_it_stands(http, body):
    caller = await http.caller("shared")

    refused = await caller.post("/v1/sessions", content=body, headers=JSON)

    assert (refused.status_code, refused.json()["code"]) == (400, "params_invalid")
    assert (await caller.get("/v1/sessions")).json()["sessions"] == []


async def test_a_tools_result_that_is_no_unicode_is_refused_and_the_request_waits_on(http):
    caller = await http.caller("shared")
    session = await make(caller, tools=[{"name": "t"}])
    turn = (await caller.post(f"{session}/messages", json={"prompt": "[call t]"})).json()
    path = f"{session}/requests/{turn['pending'][0]['request_id']}"

    refused = await caller.post(path, content='{"kind": "tool", "result": ["\\ud800"]}', headers=JSON)
    of_no_kind = await caller.post(path, content='{"kind": "\\ud800"}', headers=JSON)
    taken = await caller.post(path, json={"kind": "tool", "result": ["fine"]})

    assert of_no_kind.status_code == 400
    assert (refused.status_code, refused.json()["code"]) == (400, "params_invalid")
    assert taken.status_code == 200


async def connect(http) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    return await asyncio.open_connection(*http.edge.address)


@pytest.mark.parametrize(
    "begun",
    [
        b"",
        b"\r\n",
        b"GET / HTTP/1.1\r\nHost: x\r\n",
        b"POST /sign-in HTTP/1.1\r\nHost: x\r\nSec-Fetch-Site: same-origin\r\n"
        b"Content-Type: application/x-www-form-urlencoded\r\nContent-Length: 9\r\n\r\nx",
    ],
    ids=["nothing", "blank", "head", "body"],
)
async def test_a_request_that_does_not_come_loses_its_connection(http, monkeypatch, begun):
    monkeypatch.setattr("aerodrome.transport.asgi._REQUEST_SECONDS", 0.1)
    state = http.edge._server._server.server_state
    with structlog.testing.capture_logs() as logs:
        reader, writer = await connect(http)
        writer.write(begun)

        async with asyncio.timeout(WAIT_SECONDS):
            with suppress(ConnectionError):
                assert await reader.read() == b""
        await http.rig.settled(lambda: not (state.connections or state.tasks))
        writer.close()

    assert logs == []


async def test_a_head_without_end_is_not_kept_in_memory(http):
    _, writer = await connect(http)
    writer.write(b"GET /healthz HTTP/1.1\r\nHost: x\r\n")
    sent = 0
    with suppress(ConnectionError):
        while sent < 16 * 1024 * 1024:
            writer.write(b"X-More: " + b"x" * 8000 + b"\r\n")
            await writer.drain()
            sent += 8010

    await http.rig.settled(lambda: not http.edge._server._server.server_state.connections)
    assert sent < 16 * 1024 * 1024
    writer.close()


async def test_a_connection_serves_one_request_after_another_however_long_an_answer_takes(http, monkeypatch):
    monkeypatch.setattr("aerodrome.transport.asgi._REQUEST_SECONDS", 0.1)
    caller = await http.caller("shared")
    session = await make(caller)

    turn = (await caller.post(f"{session}/messages", json={"prompt": "[hold]", "wait_seconds": 0.4})).json()

    assert turn["status"] == "running"
    assert (await caller.get("/v1/me")).status_code == 200
    assert (await caller.post(f"{session}/abort")).json() == {"aborted": True}


async def test_every_answer_says_what_is_left_and_too_many_requests_are_refused(open_http):
    http = await open_http(HttpSettings(requests_per_minute=3))
    caller, other = await http.caller("shared"), await http.caller("shared", "bob")

    answers = [await caller.get(path) for path in ("/v1/me", "/v1/sessions/none", "/v1/me", "/v1/me")]

    assert [answer.status_code for answer in answers] == [200, 404, 200, 429]
    assert [answer.headers["ratelimit-policy"] for answer in answers] == ['"requests";q=3;w=60'] * 4
    assert answers[0].headers["ratelimit"] == '"requests";r=2;t=20'
    assert answers[3].json()["code"] == "rate_limited"
    assert 1 <= int(answers[3].headers["retry-after"]) <= 20
    assert (await other.get("/v1/me")).status_code == 200


async def test_streams_carry_the_rate_too(open_http):
    http = await open_http(HttpSettings(requests_per_minute=2))
    caller = await http.caller("shared")
    session = await make(caller)
    async with caller.stream("GET", f"{session}/events") as answer:
        assert answer.headers["ratelimit"].startswith('"requests";r=0')


async def test_one_user_cannot_take_all_that_the_edge_serves_at_once(open_http):
    http = await open_http(HttpSettings(open_requests_per_user=2))
    caller, other = await http.caller("shared"), await http.caller("shared", "bob")
    session = await make(caller)
    async with caller.stream("GET", f"{session}/events") as first, caller.stream("GET", f"{session}/events") as second:
        assert (first.status_code, second.status_code) == (200, 200)
        refused = [await caller.get(path) for path in ("/v1/me", f"{session}/events")]
        assert [(answer.status_code, answer.json()["code"]) for answer in refused] == [(429, "over_capacity")] * 2
        assert "at most 2 requests of one user at once" in refused[0].json()["detail"]
        assert (await other.get("/v1/me")).status_code == 200
    async with asyncio.timeout(WAIT_SECONDS):
        while (await caller.get("/v1/me")).status_code == 429:  # noqa: ASYNC110  the end of a stream tells nobody
            await asyncio.sleep(0.01)
    assert [(await caller.get("/v1/sessions/none")).status_code for _ in range(3)] == [404] * 3


@pytest.mark.parametrize("is_chunked", [True, False])
async def test_a_body_that_is_too_large_is_refused_however_it_comes(open_http, is_chunked):
    http = await open_http(HttpSettings(max_body_bytes=2000))
    caller = await http.caller("shared")

    async def chunks():
        for _ in range(5):
            yield b"x" * 1000

    content = chunks() if is_chunked else b"x" * 5000
    refused = await caller.post("/v1/sessions", content=content, headers=JSON)

    assert (refused.status_code, refused.json()["code"]) == (413, "frame_too_large")
    assert refused.headers["content-type"] == "application/problem+json"


async def test_what_is_no_json_or_nested_too_deep_is_a_bad_request(http):
    caller = await http.caller("shared")
    deep = (b"[" * 100_000 + b"]" * 100_000, b'{"a":' * 50_000 + b"1" + b"}" * 50_000)
    for content in (b"{", b"\xff\xfe", b'{"prompt": NaN}', b"null", b"", *deep):
        refused = await caller.post("/v1/ask", content=content, headers=JSON)
        assert (refused.status_code, refused.headers["content-type"]) == (400, "application/problem+json"), content[:20]


async def test_a_body_of_another_type_is_refused(http):
    caller = await http.caller("shared")
    for kind in ("text/plain", "application/x-www-form-urlencoded", None):
        headers = {"Content-Type": kind} if kind else {}
        refused = await caller.post("/v1/sessions", content=b"{}", headers=headers)
        assert (refused.status_code, refused.json()["code"]) == (415, "media_type_unknown"), kind


async def test_a_method_that_a_path_has_not_is_told_which_it_has(http):
    caller = await http.caller("shared")
    refused = await caller.put("/v1/sessions/s1", json={})
    assert (refused.status_code, refused.headers["allow"]) == (405, "DELETE, GET, PATCH")
    assert refused.headers["content-type"] == "application/problem+json"
    missing = await caller.get("/v1/nothing")
    assert (missing.status_code, missing.json()["code"]) == (404, "method_unknown")


async def test_pages_of_origins_that_are_named_may_call_and_others_may_not(open_http):
    http = await open_http(HttpSettings(cors_origins=("https://app.example.com",)))
    caller = await http.caller("shared")
    asked = {"Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "authorization,idempotency-key"}

    allowed = await caller.options("/v1/sessions", headers={"Origin": "https://app.example.com", **asked})
    denied = await caller.options("/v1/sessions", headers={"Origin": "https://evil.example.com", **asked})
    answer = await caller.get("/v1/me", headers={"Origin": "https://app.example.com"})
    other = await caller.get("/v1/me", headers={"Origin": "https://evil.example.com"})

    assert allowed.status_code == 200
    assert allowed.headers["access-control-allow-origin"] == "https://app.example.com"
    assert "idempotency-key" in allowed.headers["access-control-allow-headers"].lower()
    assert (denied.status_code, "access-control-allow-origin" in denied.headers) == (400, False)
    assert answer.headers["access-control-allow-origin"] == "https://app.example.com"
    assert "RateLimit" in answer.headers["access-control-expose-headers"]
    assert "access-control-allow-origin" not in other.headers


async def test_without_origins_no_page_may_call(http):
    caller = await http.caller("shared")
    asked = await caller.options(
        "/v1/sessions", headers={"Origin": "https://a.example.com", "Access-Control-Request-Method": "POST"}
    )
    assert (asked.status_code, "access-control-allow-origin" in asked.headers) == (405, False)


async def test_a_page_that_begins_at_nothing_is_refused(http):
    caller = await http.caller("shared")
    await make(caller)
    for listed in ("/v1/sessions", "/v1/sessions/s1/turns", "/v1/sessions/s1/requests", "/v1/models", "/v1/usage"):
        refused = await caller.get(listed, params={"after": "gone"})
        assert (refused.status_code, refused.json()["code"]) == (400, "params_invalid"), listed


async def test_lists_are_read_page_by_page(http):
    caller = await http.caller("shared")
    for number in range(5):
        await make(caller, f"s{number}")
    found, after = [], {}
    async with asyncio.timeout(30):
        while True:
            page = (await caller.get("/v1/sessions", params={"limit": 2, **after})).json()
            found += [one["session_id"] for one in page["sessions"]]
            if page["next"] is None:
                break
            after = {"after": page["next"]}
    assert found == [one["session_id"] for one in (await caller.get("/v1/sessions")).json()["sessions"]]
    assert len(found) == 5
