"""Before a word of a call is said: tokens that prove nobody any more, bytes that are no frame, frames that are no message.

Each is refused and recorded, its sender learns nothing, and nobody else notices: a bystander's turns go on.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Awaitable, Callable

import pytest

from aerodrome.core import connection_token

from .client import ANSWER_SECONDS, Programs, is_refusal, leaks
from .site import Site, key_id_of
from .test_foreign_sessions import ANSWER_CANARY, PROMPT_CANARY, Victim

pytestmark = pytest.mark.runtime
_REFUSED = b'{"code":-32002,"message":"AUTHENTICATION_FAILED"}'


async def say(site: Site, data: bytes, token: str | None = None) -> bytes:
    """Send bytes on a connection of their own, after a token if one is given; return all that came until the gateway closed it,
    or, where it does not, until it has answered.
    """
    host, _, port = site.demo.sdk.rpartition(":")
    reader, writer = await asyncio.open_connection(host, int(port), limit=2**20)
    heard = b""
    try:
        async with asyncio.timeout(ANSWER_SECONDS):
            if token is not None:
                writer.write(frame(connect(token)))
                header = await reader.readuntil(b"\r\n\r\n")
                await reader.readexactly(int(header.split()[1]))
            writer.write(data)
            while not heard.endswith(b"}") and (more := await reader.read(65536)):
                heard += more
    except ConnectionError:
        pass
    finally:
        writer.transport.abort()
    return heard


def frame(body: bytes) -> bytes:
    return b"Content-Length: %d\r\n\r\n%b" % (len(body), body)


def connect(token: str) -> bytes:
    said = {"jsonrpc": "2.0", "id": 1, "method": "connect", "params": {"token": token}}
    return json.dumps(said).encode()


# -- tokens -----------------------------------------------------------------------------------------------------------


async def revoked_key(site: Site) -> tuple[str, str | None]:
    user = await site.stranger()
    await site.revoke(key_id_of(user.token))
    return user.token, key_id_of(user.token)


async def token_of_a_revoked_signing_key(site: Site) -> tuple[str, str | None]:
    key_id, secret = await site.signing_key(await site.found())
    now = time.time()
    token = connection_token.sign(key_id, secret, "mallory", now, now + 60)
    await site.revoke(key_id)
    return token, key_id


async def expired_connection_token(site: Site) -> tuple[str, str | None]:
    key_id, secret = await site.signing_key(await site.found())
    now = time.time()
    return connection_token.sign(key_id, secret, "mallory", now - 60, now - 1), key_id


async def connection_token_of_another_tenants_secret(site: Site) -> tuple[str, str | None]:
    hers, _ = await site.signing_key(await site.found())
    _, secret = await site.signing_key(await site.found())
    now = time.time()
    return connection_token.sign(hers, secret, "mallory", now, now + 60), hers


async def signing_secret_as_a_key(site: Site) -> tuple[str, str | None]:
    key_id, secret = await site.signing_key(await site.found())
    return f"aero_{key_id}_{secret}", key_id


async def expired_jwt(site: Site) -> tuple[str, str | None]:
    return site.vouched(iat=int(time.time()) - 60, exp=time.time() - 1), None


async def jwt_for_another_audience(site: Site) -> tuple[str, str | None]:
    return site.vouched(aud="another"), None


async def jwt_with_another_signature(site: Site) -> tuple[str, str | None]:
    token = site.vouched()
    return f"{token.rpartition('.')[0]}.{site.vouched(sub='other').rpartition('.')[2]}", None


async def jwt_without_a_signature(site: Site) -> tuple[str, str | None]:
    return f"eyJhbGciOiJub25lIn0.{site.vouched().split('.')[1]}.", None


TOKENS: list[Callable[[Site], Awaitable[tuple[str, str | None]]]] = [
    revoked_key,
    token_of_a_revoked_signing_key,
    expired_connection_token,
    connection_token_of_another_tenants_secret,
    signing_secret_as_a_key,
    expired_jwt,
    jwt_for_another_audience,
    jwt_with_another_signature,
    jwt_without_a_signature,
]


async def test_a_token_that_proves_nobody_any_more_gets_the_one_refusal_and_is_recorded(
    site: Site, programs: Programs
) -> None:
    if not any(record.get("tenant") == "vouched" for record in site.records()):
        await site.found(name="vouched")
    victim = await Victim.at_work(await programs.connect(await site.part("shared 0 0")))
    assert b'"ok":true' in await say(site, frame(connect(site.vouched(sub=f"u{time.time_ns()}"))))
    known = []
    for make in TOKENS:
        token, key_id = await make(site)
        heard = await say(site, frame(connect(token)))
        assert _REFUSED in heard, make.__name__
        assert heard.count(b"jsonrpc") == 1
        known += [key_id] if key_id is not None else []

    def recorded() -> bool:
        found = [r for r in site.refusals(None) if r["reason"] == "authentication_failed"]
        return {r.get("key_id") for r in found} >= {*known, None}

    assert await site.recorded(recorded)
    await victim.check_unharmed()


async def test_a_link_whose_key_is_revoked_is_closed_and_its_session_is_not_to_be_had_with_the_old_token(
    site: Site, programs: Programs
) -> None:
    tenant = await site.found()
    first, second = await site.user(tenant, "ann"), await site.user(tenant, "ann")
    leaving, staying = await programs.connect(first), await programs.connect(second)
    session_id = await leaving.open_session()
    assert await leaving.turn(session_id, f"[say {ANSWER_CANARY}]") == ANSWER_CANARY
    await site.revoke(key_id_of(first.token))
    await leaving.wait_closed()
    resume = json.dumps({"jsonrpc": "2.0", "id": 2, "method": "session.resume", "params": {"sessionId": session_id}})
    heard = await say(site, frame(connect(first.token)) + frame(resume.encode()))
    assert ANSWER_CANARY.encode() not in heard
    await staying.get("session.resume", staying.opening(sessionId=session_id))
    assert await staying.turn(session_id, "[say mine still]") == "mine still"
    hers = ("link.close", key_id_of(first.token))
    assert await site.recorded(lambda: hers in {(r["action"], r.get("key_id")) for r in site.records()})


# -- frames -----------------------------------------------------------------------------------------------------------

_BODY = b'{"jsonrpc":"2.0","id":9,"method":"session.list","params":{}}'
_LENGTH = len(_BODY)

#: Headers under which one reader may see another frame than the next.
HEADERS = {
    "two lengths": b"Content-Length: %d\r\nContent-Length: 5\r\n" % _LENGTH,
    "two lengths, the small one first": b"Content-Length: 5\r\nContent-Length: %d\r\n" % _LENGTH,
    "two lengths in other letters": b"Content-Length: %d\r\ncontent-length: 5\r\n" % _LENGTH,
    "lengths in one line": b"Content-Length: %d, 5\r\n" % _LENGTH,
    "a negative length": b"Content-Length: -%d\r\n" % _LENGTH,
    "a signed length": b"Content-Length: +%d\r\n" % _LENGTH,
    "a hexadecimal length": b"Content-Length: 0x%x\r\n" % _LENGTH,
    "a length with a point": b"Content-Length: %d.0\r\n" % _LENGTH,
    "an empty length": b"Content-Length:\r\n",
    "a huge length": b"Content-Length: 9223372036854775807\r\n",
    "a length past all numbers": b"Content-Length: %d\r\n" % 10**40,
    "a folded length": b"Content-Length:\r\n %d\r\n" % _LENGTH,
    "a length on a folded line": b"X-A: b\r\n Content-Length: %d\r\n" % _LENGTH,
    "a length behind a bare return": b"X-A: b\rContent-Length: %d\r\n" % _LENGTH,
    "a length with a NUL": b"Content-Length: %d\0\r\n" % _LENGTH,
    "another framing": b"Transfer-Encoding: chunked\r\n",
    "a line of HTTP": b"POST / HTTP/1.1\r\nContent-Length: %d\r\n" % _LENGTH,
    "a header without end": b"X: " + b"y" * 65536,
}


@pytest.mark.parametrize("is_known", [True, False], ids=["with a token", "without one"])
async def test_no_header_smuggles_a_frame_past_the_gateway(site: Site, programs: Programs, is_known: bool) -> None:
    victim = await Victim.at_work(await programs.connect(await site.part("shared 0 0")))
    mallory = await site.stranger()
    for name, header in HEADERS.items():
        heard = await say(site, header + b"\r\n" + _BODY, mallory.token if is_known else None)
        assert b'"error"' in heard, name
        assert b'"id":null' in heard, name
        assert b"sessions" not in heard, name
    await victim.check_unharmed()
    who = mallory if is_known else None
    await site.refused(who, ("link.frame", "parse_failed"), ("link.frame", "frame_too_large"))


def nested(depth: int) -> list[bytes]:
    """Return bodies that are nested deep: in the message, in its params, closed or not, as lists and as objects."""
    lists, objects = b"[" * depth + b"]" * depth, b'{"a":' * depth + b"1" + b"}" * depth
    create = b'{"jsonrpc":"2.0","id":"deep","method":"session.create","params":%b}'
    return [
        lists,
        objects,
        b"[" * depth,
        create % lists,
        create % objects,
        create % (b'{"sessionId":%b}' % lists),
        create % (b'{"tools":%b}' % lists),
        b'{"jsonrpc":"2.0","id":%b,"method":"ping"}' % lists,
        b'{"jsonrpc":"2.0","id":"deep","method":%b}' % objects,
        b'{"jsonrpc":"2.0","id":"deep","result":%b}' % lists,
    ]


@pytest.mark.parametrize("attacker_part", ["shared 1 0", "user 2 0"])
async def test_what_is_nested_deep_or_larger_than_a_frame_may_be_harms_nobody(
    site: Site, programs: Programs, attacker_part: str
) -> None:
    mallory = await site.part(attacker_part)
    attacker = await programs.connect(mallory)
    victim = await Victim.at_work(await programs.connect(await site.part("shared 0 0")))
    bodies = nested(200_000)
    for body in bodies:
        attacker.send(body)
    await attacker.wait_for_unasked(len(bodies))
    assert (await attacker.get("ping", {"message": "heard"}))["message"] == "pong: heard"
    large = await attacker.ask("session.create", attacker.opening(sessionId="x" * 5_000_000))
    assert is_refusal(large)
    await victim.check_unharmed()
    assert leaks(attacker.received, PROMPT_CANARY, ANSWER_CANARY, victim.session_id) == []
    recorded = await site.refused(
        mallory, ("link.frame", "parse_failed"), ("session.create", "params_invalid"), ("link.frame", "request_invalid")
    )
    assert all(len(json.dumps(record)) < 2000 for record in recorded)
    heard = await say(site, b"Content-Length: %d\r\n\r\n" % (64 * 1024 * 1024 + 1) + b"x" * 65536, mallory.token)
    assert b"over the limit" in heard
    await site.refused(mallory, ("link.frame", "frame_too_large"))
