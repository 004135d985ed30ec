"""The ledger of what model calls take: counted once, written whole, bounded whatever clients name."""

from __future__ import annotations

import json

import pytest

from aerodrome import errors
from aerodrome.adapters.memory.usage import MemoryUsageStore
from aerodrome.core.identity import Owner
from aerodrome.gateway import usage
from aerodrome.gateway.usage import UsageLedger

from .test_shared_sessions import shared_session

ANN, BOB = Owner("t", "ann"), Owner("t", "bob")


class Fixed:
    """A clock that stands."""

    def now(self) -> float:
        return 1_700_000_000.0

    def monotonic(self) -> float:
        return 0.0


class Flaky(MemoryUsageStore):
    """A store that does not answer until it is told to."""

    is_away = True

    async def add(self, counted) -> None:
        if self.is_away:
            raise errors.StoreUnavailable("away")
        await super().add(counted)


def event(event_id: str = "e1", model: object = "m", **data) -> bytes:
    said = {"model": model, "inputTokens": 1, "outputTokens": 2, **data}
    return json.dumps({"params": {"event": {"type": "assistant.usage", "id": event_id, "data": said}}}).encode()


async def counted(ledger: UsageLedger, owner: Owner = ANN) -> dict[str, tuple[int, int]]:
    found = await ledger.list_days(owner, "2023-11-14", "2023-11-14")
    return {one.model: (one.usage.model_calls, one.usage.input_tokens) for one in found}


async def test_an_event_is_counted_once_for_its_owner_however_often_it_is_heard():
    ledger = UsageLedger(MemoryUsageStore(), Fixed())
    for one in (event(), event(), event("e2")):
        ledger.note(ANN, one)

    assert await counted(ledger) == {"m": (2, 2)}
    ledger.note(ANN, event("e1"))
    assert await counted(ledger) == {"m": (2, 2)}
    assert await counted(ledger, BOB) == {}


async def test_what_cannot_be_written_is_written_later_and_nothing_is_lost():
    store = Flaky()
    ledger = UsageLedger(store, Fixed())
    ledger.note(ANN, event("e1"))
    with pytest.raises(errors.StoreUnavailable):
        await ledger.flush()
    ledger.note(ANN, event("e2"))
    store.is_away = False

    assert await counted(ledger) == {"m": (2, 2)}


async def test_models_of_any_name_do_not_make_rows_without_end():
    ledger = UsageLedger(MemoryUsageStore(), Fixed())
    for number in range(200):
        ledger.note(ANN, event(f"e{number}", f"m{number}"))
    ledger.note(BOB, event("b", "x" * 1000))

    found = await counted(ledger)
    assert len(found) == 51
    assert found[usage.OTHER_MODELS] == (150, 150)
    assert await counted(ledger, BOB) == {"x" * 120: (1, 1)}


@pytest.mark.parametrize("figure", [-1, "5", None, True, 1e300, [], float("1e15")])
async def test_figures_that_are_none_count_as_nothing(figure):
    ledger = UsageLedger(MemoryUsageStore(), Fixed())
    ledger.note(ANN, event(model=None, inputTokens=figure, cost=figure))
    assert await counted(ledger) == {"unknown": (1, 0)}


@pytest.mark.parametrize("body", [b"", b"{", b"[]", b'{"params":{"event":{"data":5}}}', b"\xff"])
async def test_what_is_no_such_event_counts_as_nothing(body):
    ledger = UsageLedger(MemoryUsageStore(), Fixed())
    ledger.note(ANN, body)
    assert await counted(ledger) == {}


async def test_an_erased_user_is_forgotten_before_anything_is_written():
    ledger = UsageLedger(MemoryUsageStore(), Fixed())
    ledger.note(ANN, event())
    ledger.note(BOB, event("e2"))

    await ledger.forget(ANN)

    assert (await counted(ledger), await counted(ledger, BOB)) == ({}, {"m": (1, 1)})


async def test_a_turn_without_its_client_is_counted_too(rig):
    client = await rig.client("patient-shared")
    await client.call("session.create", {"sessionId": "s"})
    await client.call("session.send", {"sessionId": "s", "prompt": "[permit] [use m 7 1]"})
    await client.wait_until(lambda: "permission.requested" in client.events("s"))
    runtime = rig.scripted.runtimes[0]
    await client.aclose()
    await rig.settled(lambda: len(rig.services.finishing) == 1)
    (decided,) = runtime.sessions["s"].permissions.values()
    decided.set_result({"kind": "approve-once"})

    await rig.settled(lambda: rig.services.usage._pending)
    (day,) = await rig.services.usage.list_days(Owner("patient-shared", "user"), "2000-01-01", "2999-01-01")
    assert (day.model, day.usage.input_tokens) == ("m", 7)


@pytest.mark.parametrize(("billing", "payer"), [(None, "ben"), ("sender", "ben"), ("owner", "ann")])
async def test_what_is_used_in_a_shared_session_is_the_senders_or_the_owners_as_it_says(rig, billing, payer):
    owner, members = await shared_session(rig, "shared", ben=["driver"], eve=["observer"])
    if billing is not None:
        await owner.call("aerodrome.sharing.set", {"sessionId": "s1", "billing": billing})

    await members["ben"].call("session.send", {"sessionId": "s1", "prompt": "[use m 7 1]"})
    for peer in (owner, *members.values()):
        await peer.wait_for_event("s1", "session.idle")

    for user in ("ann", "ben", "eve"):
        found = await rig.services.usage.list_days(Owner("shared", user), "2000-01-01", "2999-01-01")
        assert [one.usage.input_tokens for one in found] == ([7] if user == payer else []), user
