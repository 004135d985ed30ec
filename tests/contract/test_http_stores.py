"""What every store of the HTTP edge must do, over each adapter (conftest.py says which)."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import pytest

from aerodrome import errors
from aerodrome.core.browser import Browser
from aerodrome.core.idempotency import Answer, KeyedRequest
from aerodrome.core.identity import OPERATOR_SCOPES, Owner, Principal, Role, Scope
from aerodrome.core.policy import Isolation, Policy
from aerodrome.core.usage import DayUsage, Usage

from .registry_suite import ALICE, BOB, OTHER_ALICE


def keyed(owner=ALICE, key="k", fingerprint="f", created_at=100.5) -> KeyedRequest:
    return KeyedRequest(owner, key, fingerprint, "life", created_at)


def browser(name="b", owner=ALICE, used_at=100.5, ends_at=1000.0) -> Browser:
    return Browser(name, Principal(owner, Policy(), "k"), 100.5, used_at, ends_at)


class TestConversations:
    async def test_options_are_found_by_their_owner_only(self, twins):
        one, other = twins
        await one.conversations.save("s", ALICE, '{"title":"a"}')

        assert await other.conversations.find("s", ALICE) == '{"title":"a"}'
        assert await other.conversations.find("s", BOB) is None
        assert await other.conversations.find("s", OTHER_ALICE) is None
        assert await other.conversations.find("t", ALICE) is None

    async def test_later_options_take_the_place_of_earlier_ones_and_a_later_owner_of_the_earlier(self, stores):
        await stores.conversations.save("s", ALICE, "{}")
        await stores.conversations.save("s", ALICE, '{"title":"b"}')
        assert await stores.conversations.find("s", ALICE) == '{"title":"b"}'

        await stores.conversations.save("s", BOB, '{"title":"c"}')
        assert await stores.conversations.find("s", ALICE) is None
        assert await stores.conversations.find("s", BOB) == '{"title":"c"}'

    async def test_several_are_found_at_once_and_what_is_not_theirs_is_left_out(self, stores):
        await stores.conversations.save("a", ALICE, '"a"')
        await stores.conversations.save("b", BOB, '"b"')

        assert await stores.conversations.find_all(["a", "b", "c"], ALICE) == {"a": '"a"'}
        assert await stores.conversations.find_all([], ALICE) == {}

    async def test_what_is_forgotten_is_gone_once_and_another_owner_cannot_have_it_forgotten(self, stores):
        await stores.conversations.save("s", ALICE, "{}")

        assert not await stores.conversations.forget("s", BOB)
        assert await stores.conversations.forget("s", ALICE)
        assert not await stores.conversations.forget("s", ALICE)
        assert await stores.conversations.find("s", ALICE) is None

    async def test_ephemeral_sessions_are_listed_until_they_are_forgotten_or_saved_as_lasting(self, twins):
        one, other = twins
        await one.conversations.save("kept", ALICE, "{}")
        await one.conversations.save("b", BOB, "{}", is_ephemeral=True)
        await one.conversations.save("a", ALICE, "{}", is_ephemeral=True)
        assert list(await other.conversations.list_ephemeral()) == [("a", ALICE), ("b", BOB)]

        await one.conversations.save("a", ALICE, "{}")
        await one.conversations.forget("b", BOB)
        assert list(await other.conversations.list_ephemeral()) == []

    async def test_a_closed_store_of_conversations_refuses(self, stores):
        await stores.conversations.aclose()
        await stores.conversations.aclose()
        for call in (
            stores.conversations.find("s", ALICE),
            stores.conversations.save("s", ALICE, "{}"),
            stores.conversations.list_ephemeral(),
        ):
            with pytest.raises(errors.StoreUnavailable):
                await call


class TestIdempotency:
    async def test_the_first_request_of_a_key_holds_it_and_a_second_is_shown_the_first(self, twins):
        one, other = twins

        assert await one.idempotency.begin(keyed(), 0.0, 9) == keyed()
        assert await other.idempotency.begin(keyed(fingerprint="g", created_at=200.0), 0.0, 9) == keyed()

    @pytest.mark.parametrize("owner", [BOB, OTHER_ALICE])
    async def test_keys_of_different_owners_are_different_keys(self, stores, owner):
        await stores.idempotency.begin(keyed(), 0.0, 9)
        theirs = keyed(owner, fingerprint="g")

        assert await stores.idempotency.begin(theirs, 0.0, 9) == theirs

    async def test_of_several_at_once_one_is_recorded(self, twins):
        one, other = twins
        wishes = [keyed(fingerprint=str(number)) for number in range(8)]

        held = await asyncio.gather(
            *(s.idempotency.begin(w, 0.0, 9) for s, w in zip([one, other] * 4, wishes, strict=True))
        )

        assert len({found.fingerprint for found in held}) == 1

    async def test_what_it_made_and_its_answer_are_kept(self, twins):
        one, other = twins
        await one.idempotency.begin(keyed(), 0.0, 9)
        await one.idempotency.note(ALICE, "k", "turn 1")
        assert await other.idempotency.begin(keyed(), 0.0, 9) == replace(keyed(), resource="turn 1")

        answer = Answer(201, '[["location","/x"]]', '{"é":1}')
        await one.idempotency.finish(ALICE, "k", answer)
        assert await other.idempotency.begin(keyed(), 0.0, 9) == replace(keyed(), resource="turn 1", answer=answer)

        await one.idempotency.finish(ALICE, "k", Answer(200, "[]", None))
        assert (await other.idempotency.begin(keyed(), 0.0, 9)).answer == Answer(200, "[]", None)

    async def test_a_released_key_is_free_and_nothing_is_noted_of_it(self, stores):
        await stores.idempotency.begin(keyed(), 0.0, 9)
        await stores.idempotency.release(ALICE, "k")
        await stores.idempotency.release(ALICE, "k")
        await stores.idempotency.note(ALICE, "k", "late")
        await stores.idempotency.finish(ALICE, "k", Answer(200, "[]", "late"))

        again = keyed(fingerprint="g")
        assert await stores.idempotency.begin(again, 0.0, 9) == again

    async def test_an_expired_key_counts_as_not_there_and_is_purged(self, stores):
        await stores.idempotency.begin(keyed(created_at=100.0), 0.0, 1)
        later = keyed(fingerprint="g", created_at=300.0)
        assert await stores.idempotency.begin(later, 200.0, 1) == later

        assert await stores.idempotency.purge(300.0) == 0
        assert await stores.idempotency.purge(300.5) == 1
        assert await stores.idempotency.begin(keyed(), 0.0, 1) == keyed()

    async def test_an_owner_has_a_bounded_number_of_keys(self, stores):
        for number in range(2):
            await stores.idempotency.begin(keyed(key=str(number)), 0.0, 2)

        with pytest.raises(errors.OverCapacity):
            await stores.idempotency.begin(keyed(key="3"), 0.0, 2)
        assert await stores.idempotency.begin(keyed(key="1"), 0.0, 2) == keyed(key="1")
        assert await stores.idempotency.begin(keyed(BOB), 0.0, 2) == keyed(BOB)

    async def test_a_closed_store_of_keys_refuses(self, stores):
        await stores.idempotency.aclose()
        await stores.idempotency.aclose()
        for call in (stores.idempotency.begin(keyed(), 0.0, 9), stores.idempotency.purge(1.0)):
            with pytest.raises(errors.StoreUnavailable):
                await call


class TestBrowsers:
    @pytest.mark.parametrize(
        "principal",
        [
            Principal(ALICE, Policy(), "k"),
            Principal(ALICE, Policy(), "", 2000.25, role=Role.TENANT_ADMIN),
            Principal(ALICE, Policy(), "k", None, frozenset({Scope.CONNECT, Scope.ADMIN}), Role.TENANT_ADMIN),
            Principal(Owner("", "ops"), Policy(), "k", 5000.0, OPERATOR_SCOPES, Role.OPERATOR),
        ],
        ids=["user", "by a provider", "admin", "operator"],
    )
    async def test_a_browser_is_found_as_who_signed_in_until_it_is_removed(self, twins, principal):
        one, other = twins
        kept = replace(browser(), principal=principal)
        await one.browsers.add(kept, 9)

        assert await other.browsers.find("b") == kept
        assert await other.browsers.find("c") is None
        await other.browsers.remove("b")
        await other.browsers.remove("b")
        assert await one.browsers.find("b") is None

    async def test_a_policy_is_not_kept_with_a_browser(self, stores):
        policy = Policy(Isolation.SHARED)
        await stores.browsers.add(replace(browser(), principal=Principal(ALICE, policy, "k")), 9)

        assert (await stores.browsers.find("b")).principal.policy == Policy()

    async def test_the_latest_use_is_kept_and_a_use_brings_nothing_back(self, twins):
        one, other = twins
        await one.browsers.add(browser(), 9)
        await one.browsers.touch("b", 300.25)
        await other.browsers.touch("b", 200.0)
        assert (await one.browsers.find("b")).used_at == 300.25

        await other.browsers.remove("b")
        await one.browsers.touch("b", 400.0)
        assert await one.browsers.find("b") is None

    async def test_those_that_have_ended_or_were_not_used_are_neither_counted_nor_left(self, stores):
        for one in (
            browser("used"),
            browser("unused", used_at=50.0),
            browser("ended", BOB, ends_at=500.0),
            browser("other", BOB),
        ):
            await stores.browsers.add(one, 9)

        assert await stores.browsers.count(499.5, 49.5) == 4
        assert await stores.browsers.count(500.0, 50.0) == 2
        assert await stores.browsers.purge(499.5, 49.5) == 0
        assert await stores.browsers.purge(500.0, 50.0) == 2
        found = [await stores.browsers.find(name) is not None for name in ("used", "unused", "ended", "other")]
        assert found == [True, False, False, True]

    async def test_of_an_owners_browsers_the_ones_used_longest_ago_give_way(self, twins):
        one, other = twins
        for number in range(3):
            await one.browsers.add(browser(str(number), used_at=100.0 + number), 3)
        for owner in (BOB, OTHER_ALICE):
            await one.browsers.add(browser(f"of {owner}", owner, used_at=1.0), 3)
        await other.browsers.touch("0", 150.0)

        await other.browsers.add(browser("new", used_at=200.0), 3)

        found = [await one.browsers.find(name) is not None for name in ("0", "1", "2", "new")]
        assert found == [True, False, True, True]
        assert await one.browsers.count(0.0, 0.0) == 5

    async def test_a_closed_store_of_browsers_refuses(self, stores):
        await stores.browsers.aclose()
        await stores.browsers.aclose()
        for call in (
            stores.browsers.find("b"),
            stores.browsers.add(browser(), 9),
            stores.browsers.touch("b", 1.0),
            stores.browsers.remove("b"),
            stores.browsers.count(1.0, 1.0),
            stores.browsers.purge(1.0, 1.0),
        ):
            with pytest.raises(errors.StoreUnavailable):
                await call


class TestOpenTurns:
    async def test_open_turns_are_found_by_their_owner_only_until_they_are_removed(self, twins):
        one, other = twins
        await one.open_turns.put("s", ALICE, '["é"]')
        assert await other.open_turns.find("s", ALICE) == '["é"]'
        for session_id, owner in (("s", BOB), ("s", OTHER_ALICE), ("t", ALICE)):
            await other.open_turns.remove(session_id, owner)
            assert await other.open_turns.find(session_id, owner) is None

        await one.open_turns.put("s", ALICE, "[2]")
        assert await other.open_turns.find("s", ALICE) == "[2]"
        await other.open_turns.remove("s", ALICE)
        await other.open_turns.remove("s", ALICE)
        assert await one.open_turns.find("s", ALICE) is None

    async def test_several_have_turns_open_in_one_session_and_all_go_with_it(self, twins):
        one, other = twins
        for owner, session_id in ((ALICE, "s"), (BOB, "s"), (ALICE, "t")):
            await one.open_turns.put(session_id, owner, f'["{owner.user}"]')
        assert await other.open_turns.find("s", ALICE) == '["alice"]'
        assert await other.open_turns.find("s", BOB) == '["bob"]'

        await other.open_turns.remove("s")
        assert [await one.open_turns.find("s", owner) for owner in (ALICE, BOB)] == [None, None]
        assert await one.open_turns.find("t", ALICE) == '["alice"]'

    async def test_a_closed_store_of_open_turns_refuses(self, stores):
        await stores.open_turns.aclose()
        await stores.open_turns.aclose()
        for call in (
            stores.open_turns.put("s", ALICE, "[]"),
            stores.open_turns.find("s", ALICE),
            stores.open_turns.remove("s", ALICE),
        ):
            with pytest.raises(errors.StoreUnavailable):
                await call


class TestUsage:
    async def test_figures_of_one_user_day_and_model_add_up(self, twins):
        one, other = twins
        day = DayUsage(ALICE, "2026-01-02", "m", Usage(1, 2, 3, 4, 0.5, 1))

        await one.usage.add([day, replace(day, model="n")])
        await other.usage.add([day])

        assert list(await one.usage.list_days(ALICE, "2026-01-01", "2026-01-31")) == [
            DayUsage(ALICE, "2026-01-02", "m", Usage(2, 4, 6, 8, 1.0, 2)),
            DayUsage(ALICE, "2026-01-02", "n", Usage(1, 2, 3, 4, 0.5, 1)),
        ]

    async def test_days_are_listed_newest_first_within_bounds_and_for_their_user_only(self, stores):
        for day in ("2026-01-01", "2026-01-03", "2026-01-02", "2026-02-01"):
            await stores.usage.add([DayUsage(ALICE, day, "m", Usage(1))])
        await stores.usage.add([DayUsage(BOB, "2026-01-02", "m", Usage(9))])
        await stores.usage.add([DayUsage(OTHER_ALICE, "2026-01-02", "m", Usage(9))])

        found = await stores.usage.list_days(ALICE, "2026-01-02", "2026-01-31")

        assert [(one.day, one.usage.input_tokens) for one in found] == [("2026-01-03", 1), ("2026-01-02", 1)]

    async def test_writers_at_once_lose_nothing(self, twins):
        one, other = twins
        day = DayUsage(ALICE, "2026-01-02", "m", Usage(1, cost=0.25, model_calls=1))

        await asyncio.gather(*(store.usage.add([day]) for store in [one, other] * 10))

        (found,) = await one.usage.list_days(ALICE, "2026-01-02", "2026-01-02")
        assert found.usage == Usage(20, cost=5.0, model_calls=20)

    async def test_nothing_added_is_nothing(self, stores):
        await stores.usage.add([])
        assert list(await stores.usage.list_days(ALICE, "0", "9")) == []

    async def test_a_closed_store_of_usage_refuses(self, stores):
        await stores.usage.aclose()
        await stores.usage.aclose()
        for call in (stores.usage.list_days(ALICE, "0", "9"), stores.usage.add([DayUsage(ALICE, "d", "m", Usage())])):
            with pytest.raises(errors.StoreUnavailable):
                await call
