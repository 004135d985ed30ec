"""adapters.jwks over a small HTTP server: keys come, change and go; an issuer that is down or lies does no harm for a time."""

from __future__ import annotations

import asyncio
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest
import structlog.testing
from hypothesis import given
from hypothesis import strategies as st
from joserfc.errors import SecurityWarning
from joserfc.jwk import ECKey, OctKey, OKPKey, RSAKey

from aerodrome.adapters.jwks import keys as jwks
from aerodrome.adapters.jwks.keys import JwksKeys
from aerodrome.core.issuer import Issuer
from aerodrome.core.jwt import Terms

FIRST, SECOND, CURVE, EDWARDS = (
    RSAKey.generate_key(2048, {"kid": "first"}),
    RSAKey.generate_key(2048, {"kid": "second"}),
    ECKey.generate_key("P-256", {"kid": "curve"}),
    OKPKey.generate_key("Ed25519", {"kid": "edwards"}),
)


class Server:
    """An issuer's web server. `answer` is (status, headers, body)."""

    def __init__(self) -> None:
        self.answer: tuple[int, dict[str, str], bytes] = (200, {}, b"")
        self.asked = 0
        self.may_answer = threading.Event()
        self.may_answer.set()
        outer = self

        class Site(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                outer.asked += 1
                outer.may_answer.wait(10)
                status, headers, body = outer.answer
                self.send_response(status)
                for name, value in headers.items():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_: Any) -> None:
                pass

        self._http = ThreadingHTTPServer(("127.0.0.1", 0), Site)
        self._thread = threading.Thread(target=self._http.serve_forever, args=(0.01,))
        self._thread.start()
        self.url = f"http://127.0.0.1:{self._http.server_port}/jwks"

    def show(self, *keys: Any, **more: Any) -> None:
        public = [key if isinstance(key, dict) else key.as_dict(private=False) for key in keys]
        self.answer = (200, {}, json.dumps({"keys": [{**one, **more} for one in public]}).encode())

    def fail(self) -> None:
        self.answer = (503, {}, b"down")

    def close(self) -> None:
        self.may_answer.set()
        self._http.shutdown()
        self._http.server_close()
        self._thread.join()


class HandClock:
    def __init__(self) -> None:
        self.seconds = 1000.0

    def now(self) -> float:
        return self.seconds

    def monotonic(self) -> float:
        return self.seconds


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    found = Server()
    yield found
    found.close()


@pytest.fixture
def clock():
    return HandClock()


@pytest.fixture
async def keys(server, clock):
    issuer = Issuer("https://issuer.example", server.url, Terms("a", 0.0), frozenset({"acme"}))
    found = JwksKeys(issuer, clock)
    yield found
    await found.aclose()


async def finds(keys: JwksKeys, key: Any, algorithm: str = "RS256") -> bool:
    found = await keys.find(key.kid, algorithm)
    return found is not None and found.as_dict(private=False)["x" if "x" in found.as_dict() else "n"] in (
        key.as_dict(private=False).values()
    )


async def test_a_key_is_read_once_and_used_until_the_schedule_says_otherwise(server, clock, keys):
    server.show(FIRST, CURVE, EDWARDS)
    assert await finds(keys, FIRST)
    assert await finds(keys, CURVE, "ES256")
    assert await finds(keys, EDWARDS, "EdDSA")
    clock.seconds += 599
    assert await finds(keys, FIRST)
    assert server.asked == 1
    clock.seconds += 2
    assert await finds(keys, FIRST)
    assert server.asked == 2


async def test_a_new_key_is_found_at_once_and_an_old_one_is_gone_after_a_rotation(server, clock, keys):
    server.show(FIRST)
    assert await finds(keys, FIRST)
    server.show(SECOND)
    clock.seconds += 10
    assert await finds(keys, SECOND)
    assert not await finds(keys, FIRST)
    assert server.asked == 2


async def test_invented_key_ids_have_the_issuer_asked_seldom(server, clock, keys):
    server.show(FIRST)
    for number in range(50):
        assert await keys.find(f"invented-{number}", "RS256") is None
    assert server.asked == 1
    clock.seconds += 10
    for number in range(50):
        assert await keys.find(f"invented-{number}", "RS256") is None
    assert server.asked == 2
    assert await finds(keys, FIRST)


async def test_an_issuer_that_is_down_leaves_its_keys_valid_for_a_bounded_time(server, clock, keys):
    server.show(FIRST)
    assert await finds(keys, FIRST)
    server.fail()
    clock.seconds += 86_400
    with structlog.testing.capture_logs() as logs:
        assert await finds(keys, FIRST)
    assert [entry["event"] for entry in logs] == ["issuer.unavailable"]
    clock.seconds += 11
    assert not await finds(keys, FIRST)
    server.show(FIRST)
    clock.seconds += 11
    assert await finds(keys, FIRST)


async def test_one_read_serves_all_who_wait_and_goes_on_when_they_have_left(server, keys):
    server.show(FIRST)
    server.may_answer.clear()
    impatient = [asyncio.create_task(keys.find("first", "RS256")) for _ in range(5)]
    async with asyncio.timeout(20):
        while not server.asked:  # noqa: ASYNC110  a server on a thread has no events for us
            await asyncio.sleep(0.005)
    for task in impatient:
        task.cancel()
    await asyncio.wait(impatient)
    waiting = asyncio.create_task(keys.find("first", "RS256"))
    server.may_answer.set()
    assert await waiting is not None
    assert server.asked == 1


@pytest.mark.parametrize(
    "answer",
    [
        (302, {"Location": "/elsewhere"}, b""),
        (404, {}, b'{"keys": []}'),
        (200, {}, b""),
        (200, {}, b"<html>"),
        (200, {}, b'{"keys": {}}'),
        (200, {}, b"[]"),
        (200, {}, b'{"keys": []}'),
        (200, {}, b" " * (1024 * 1024 + 1)),
        (200, {"Content-Length": "999999"}, b'{"keys": []}'),
    ],
)
async def test_what_is_no_jwks_is_refused_and_keys_at_hand_stay(server, clock, keys, answer):
    server.show(FIRST)
    assert await finds(keys, FIRST)
    server.answer = answer
    clock.seconds += 700
    with structlog.testing.capture_logs() as logs:
        assert await finds(keys, FIRST)
    assert [entry["event"] for entry in logs] == ["issuer.unavailable"]
    assert server.asked == 2


async def test_a_key_serves_its_own_algorithm_and_use_only(server, keys):
    with pytest.warns(SecurityWarning):
        weak = RSAKey.generate_key(1024, {"kid": "weak"}).as_dict(private=False)
    shared = OctKey.generate_key(256, {"kid": "shared"}).as_dict(private=True)
    other_use = {**SECOND.as_dict(private=False), "kid": "encrypts", "use": "enc"}
    bound = {**SECOND.as_dict(private=False), "kid": "bound", "alg": "PS256"}
    odd = [{"kty": "moon", "kid": "odd"}, {"kty": "RSA", "kid": "empty"}, 5, None, {"kty": ["RSA"]}]
    body = [CURVE.as_dict(private=False), weak, shared, other_use, bound, *odd]
    server.answer = (200, {}, json.dumps({"keys": body}).encode())
    assert await keys.find("curve", "ES256") is not None
    for key_id, algorithm in (
        ("curve", "RS256"),
        ("curve", "EdDSA"),
        ("curve", "HS256"),
        ("curve", "none"),
        ("curve", "moon"),
        ("weak", "RS256"),
        ("shared", "HS256"),
        ("encrypts", "RS256"),
        ("bound", "RS256"),
        ("odd", "RS256"),
        ("empty", "RS256"),
    ):
        assert await keys.find(key_id, algorithm) is None, key_id
    assert await keys.find("bound", "PS256") is not None


async def test_without_a_key_id_the_only_fitting_key_is_taken_and_none_of_several(server, clock, keys):
    server.show(FIRST, CURVE)
    assert await keys.find(None, "RS256") is not None
    server.show(FIRST, SECOND)
    clock.seconds += 700
    assert await keys.find(None, "RS256") is None


async def test_keys_can_come_from_a_file(tmp_path, clock):
    path = tmp_path / "jwks.json"
    issuer = Issuer("https://issuer.example", str(path), Terms("a", 0.0), frozenset({"acme"}))
    keys = JwksKeys(issuer, clock)
    assert await keys.find("first", "RS256") is None
    path.write_text(json.dumps({"keys": [FIRST.as_dict(private=False)]}))
    clock.seconds += 10
    assert await finds(keys, FIRST)
    await keys.aclose()


@given(
    st.binary(max_size=60)
    | st.dictionaries(st.sampled_from(["keys", "kty"]), st.text(max_size=5)).map(json.dumps).map(str.encode)
)
def test_any_answer_is_a_jwks_or_refused_as_none(data):
    with pytest.raises(ValueError, match="expected a JWKS"):
        jwks.parse(data)
