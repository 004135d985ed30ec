"""Random messages on a live link: each request is answered once, nothing breaks the gateway, nobody else notices."""

from __future__ import annotations

import random
from contextlib import suppress

import pytest
from structlog.testing import capture_logs

from aerodrome.protocol import framing, messages
from aerodrome.testing import fuzz
from aerodrome.testing.peer import RpcError

#: What the gateway logs when code of its own broke.
FAILURES = ("request.failed", "answer.failed", "link.failed", "care.failed")
MESSAGES = 300
#: Sessions of random names stay open, and a cancelled request has no answer.
NOT_SENT = ("session.create", "session.resume", "connect", "$/cancelRequest")


@pytest.mark.parametrize("tenant", ["alone", "guarded", "shared"])
async def test_random_messages_are_answered_or_refused_and_harm_nobody(rig, tenant):
    seed = random.SystemRandom().randrange(10**9)
    print(f"seed {seed}")
    source = fuzz.Source(seed)
    neighbour = await rig.client("other", "neighbour")
    await neighbour.call("session.create", {"sessionId": "s-2"})
    client = await rig.client(tenant)
    await client.call("session.create", {"sessionId": "s-1"})
    with capture_logs() as logs:
        answered = 0
        for _ in range(MESSAGES):
            method = next(name for name in iter(source.method, None) if name not in NOT_SENT)
            params = fuzz.encodable(source.params(method))
            with suppress(RpcError):
                await client.call(method, params, seconds=10)
            answered += 1
    assert [entry for entry in logs if entry["event"] in FAILURES] == []
    assert answered == MESSAGES
    assert client.stray == []
    found = await neighbour.call("session.getMessages", {"sessionId": "s-2"})
    assert found is not None
    await neighbour.call("session.send", {"sessionId": "s-2", "prompt": "hello"})
    await neighbour.wait_for_event("s-2", "session.idle")


async def test_random_bytes_end_only_the_link_that_sent_them(rig):
    seed = random.SystemRandom().randrange(10**9)
    print(f"seed {seed}")
    source = fuzz.Source(seed)
    neighbour = await rig.client("shared", "neighbour")
    with capture_logs() as logs:
        for number in range(40):
            client = await (rig.client("guarded") if number % 2 else rig.stranger())
            client.send_bytes(source.stream() + framing.encode(source.message()) + source.stream())
            client.send_bytes(framing.encode(messages.request(999_999, "ping")))
            await client.aclose()
        await rig.settled(lambda: len(rig.gateway.clients) == 1)
    assert [entry for entry in logs if entry["event"] in FAILURES] == []
    assert await neighbour.call("ping") is not None
