"""What every registry must do, whatever it is made of: run by test_registry.py over each adapter."""

from __future__ import annotations

import asyncio
import math
import random
from dataclasses import dataclass, replace

import pytest

from aerodrome import errors
from aerodrome.core.expiry import Horizon
from aerodrome.core.identity import Key, Owner, Scope, Tenant
from aerodrome.core.override import Override
from aerodrome.core.policy import ClientLoss, Isolation, Policy, Trust
from aerodrome.core.quota import Quota
from aerodrome.core.session import Claim, SessionRecord
from aerodrome.ports.browsers import BrowserStore
from aerodrome.ports.conversations import ConversationStore
from aerodrome.ports.idempotency import IdempotencyStore
from aerodrome.ports.open_turns import OpenTurnStore
from aerodrome.ports.people import ErasureStore
from aerodrome.ports.registry import KeyStore, SessionRegistry, TenantStore
from aerodrome.ports.tokens import TokenStore
from aerodrome.ports.usage import UsageStore

ALICE, BOB = Owner("red", "alice"), Owner("red", "bob")
#: Same user name in another tenant: somebody else.
OTHER_ALICE = Owner("blue", "alice")
NOW = 1_700_000_000.0


@dataclass(frozen=True)
class Stores:
    sessions: SessionRegistry
    tenants: TenantStore
    keys: KeyStore
    tokens: TokenStore
    erasures: ErasureStore
    conversations: ConversationStore
    usage: UsageStore
    idempotency: IdempotencyStore
    browsers: BrowserStore
    open_turns: OpenTurnStore


class FixedClock:
    def now(self) -> float:
        return NOW

    def monotonic(self) -> float:
        return 0.0


def session(session_id: str, owner: Owner = ALICE, used_at: float = 10.5) -> SessionRecord:
    return SessionRecord(session_id, owner, f"user:{owner.tenant}/{owner.user}", 1.25, used_at)


def key(key_id: str, owner: Owner = ALICE, created_at: float = 1.25, expires_at: float | None = None) -> Key:
    return Key(key_id, owner, f"hash of {key_id}", created_at, expires_at)


class SessionRegistryContract:
    async def test_a_claimed_session_is_found_as_it_was_claimed(self, twins):
        one, other = twins

        assert await one.sessions.claim(session("s")) == Claim(session("s"), created=True)
        assert await one.sessions.find("s") == session("s")
        assert await other.sessions.find("s") == session("s")

    async def test_an_id_nobody_claimed_is_not_found(self, stores):
        await stores.sessions.claim(session("s"))

        for session_id in ("t", "S", "s ", "", "s' OR '1'='1", "s%", "x" * 100_000, "\x00", "é"):
            assert await stores.sessions.find(session_id) is None

    async def test_a_second_claim_of_the_owner_returns_the_first_record(self, stores):
        await stores.sessions.claim(session("s", used_at=10.0))

        again = await stores.sessions.claim(session("s", used_at=99.0))

        assert again == Claim(session("s", used_at=10.0), created=False)

    @pytest.mark.parametrize("other", [BOB, OTHER_ALICE])
    async def test_a_claim_of_an_owned_id_tells_the_owner_and_changes_nothing(self, stores, other):
        await stores.sessions.claim(session("s"))

        assert await stores.sessions.claim(session("s", other)) == Claim(session("s"), created=False)
        assert await stores.sessions.find("s") == session("s")
        assert await stores.sessions.list_owned(other) == []

    async def test_of_fifty_claims_at_once_by_two_owners_exactly_one_creates(self, twins):
        owners = [ALICE, BOB] * 25
        claims = await asyncio.gather(
            *(twins[turn % 4 // 2].sessions.claim(session("s", owner)) for turn, owner in enumerate(owners))
        )

        assert [claim.created for claim in claims].count(True) == 1
        winner = next(claim.record for claim in claims if claim.created)
        assert {claim.record for claim in claims} == {winner}
        assert await twins[0].sessions.find("s") == await twins[1].sessions.find("s") == winner

    async def test_claims_of_different_ids_at_once_all_create(self, twins):
        records = [session(f"s{number}") for number in range(50)]

        claims = await asyncio.gather(*(twins[n % 2].sessions.claim(record) for n, record in enumerate(records)))

        assert all(claim.created for claim in claims)
        assert set(await twins[0].sessions.list_owned(ALICE)) == set(records)

    async def test_a_quota_refuses_new_records_alone_and_counts_what_is_forgotten_no_more(self, twins):
        one, other = twins
        quota = Quota(per_user=2)
        for session_id in ("a", "b"):
            assert (await one.sessions.claim(session(session_id), quota)).created

        with pytest.raises(errors.PolicyRejected, match="max_sessions_per_user is 2"):
            await other.sessions.claim(session("c"), quota)
        assert await one.sessions.find("c") is None
        assert not (await other.sessions.claim(session("a"), quota)).created
        assert (await other.sessions.claim(session("d", BOB), quota)).created
        await one.sessions.forget("a", ALICE)
        assert (await other.sessions.claim(session("c"), quota)).created

    async def test_a_tenants_quota_counts_all_its_users_and_no_other_tenants(self, stores):
        quota = Quota(per_user=5, per_tenant=2)
        await stores.sessions.claim(session("a"))
        await stores.sessions.claim(session("b", OTHER_ALICE))
        await stores.sessions.claim(session("c", BOB), quota)

        with pytest.raises(errors.PolicyRejected, match="max_sessions_per_tenant is 2"):
            await stores.sessions.claim(session("d"), quota)
        await stores.sessions.claim(session("e", OTHER_ALICE), quota)

    async def test_of_many_claims_at_once_no_more_create_than_the_quota_leaves_room_for(self, twins):
        quota = Quota(per_user=3)
        claims = await asyncio.gather(
            *(twins[number % 2].sessions.claim(session(f"s{number}"), quota) for number in range(20)),
            return_exceptions=True,
        )

        assert sum(isinstance(claim, Claim) for claim in claims) == 3
        assert len(await twins[0].sessions.list_owned(ALICE)) == 3

    async def test_a_list_has_the_owners_sessions_the_most_recently_used_first(self, stores):
        for record in (session("b", used_at=2.0), session("c", used_at=3.0), session("a", used_at=1.0)):
            await stores.sessions.claim(record)
        await stores.sessions.claim(session("bobs", BOB))
        await stores.sessions.claim(session("blues", OTHER_ALICE))

        await stores.sessions.touch("a", 4.0)

        assert [record.session_id for record in await stores.sessions.list_owned(ALICE)] == ["a", "c", "b"]
        assert [record.session_id for record in await stores.sessions.list_owned(BOB)] == ["bobs"]
        assert await stores.sessions.list_owned(Owner("green", "alice")) == []

    async def test_sessions_used_at_the_same_time_are_listed_by_id(self, stores):
        for session_id in ("b", "c", "a"):
            await stores.sessions.claim(session(session_id))

        assert [record.session_id for record in await stores.sessions.list_owned(ALICE)] == ["a", "b", "c"]

    async def test_stale_sessions_are_a_tenants_that_were_used_or_created_at_or_before_a_time(self, stores):
        for session_id, owner, created_at, used_at in (
            ("old", ALICE, 1.0, 90.0),
            ("unused", BOB, 50.0, 60.0),
            ("both", BOB, 1.0, 1.0),
            ("fresh", ALICE, 50.0, 90.0),
            ("blues", OTHER_ALICE, 1.0, 1.0),
        ):
            await stores.sessions.claim(replace(session(session_id, owner, used_at), created_at=created_at))

        async def stale(used_before: float, created_before: float) -> list[str]:
            horizon = Horizon(used_before, created_before)
            return [record.session_id for record in await stores.sessions.list_stale("red", horizon, 10)]

        assert await stale(60.0, -math.inf) == ["both", "unused"]
        assert await stale(-math.inf, 1.0) == ["old", "both"]
        assert await stale(60.0, 1.0) == ["old", "both", "unused"]
        assert await stale(59.0, 0.5) == ["both"]
        assert await stale(math.inf, -math.inf) == ["fresh", "old", "both", "unused"]
        assert await stale(-math.inf, -math.inf) == []
        assert await stores.sessions.list_stale("green", Horizon(math.inf, math.inf), 10) == []

    async def test_pages_of_stale_sessions_have_each_once_though_some_are_forgotten_between_them(self, stores):
        owners = [Owner("red", name) for name in ("a", "a.b", "a-b", "b")]
        records = [session(f"{number:02}", owners[number % 4]) for number in range(11)]
        for record in random.sample(records, len(records)):
            await stores.sessions.claim(record)
        everything = Horizon(math.inf, -math.inf)

        found: list[SessionRecord] = []
        while page := await stores.sessions.list_stale("red", everything, 3, found[-1] if found else None):
            assert len(page) <= 3
            found += page
            await stores.sessions.forget(page[-1].session_id, page[-1].owner)

        assert found == sorted(records, key=lambda record: (record.owner.user, record.session_id))

    async def test_a_touch_moves_the_last_use_forward_and_nothing_else(self, stores):
        await stores.sessions.claim(session("s", used_at=10.0))
        await stores.sessions.claim(session("t", used_at=10.0))

        await stores.sessions.touch("s", 10.25)

        assert await stores.sessions.find("s") == session("s", used_at=10.25)
        assert await stores.sessions.find("t") == session("t", used_at=10.0)

    async def test_an_older_touch_changes_nothing(self, stores):
        await stores.sessions.claim(session("s", used_at=10.0))

        await stores.sessions.touch("s", 9.0)

        assert await stores.sessions.find("s") == session("s", used_at=10.0)

    async def test_touches_at_once_leave_the_latest(self, twins):
        await twins[0].sessions.claim(session("s", used_at=0.0))
        times = [float(number) for number in range(1, 41)]
        random.shuffle(times)

        await asyncio.gather(*(twins[n % 2].sessions.touch("s", used_at) for n, used_at in enumerate(times)))

        assert await twins[0].sessions.find("s") == session("s", used_at=40.0)

    async def test_a_touch_of_an_unknown_id_makes_no_session(self, stores):
        await stores.sessions.touch("s", 10.0)

        assert await stores.sessions.find("s") is None

    async def test_the_owner_forgets_a_session_once(self, stores):
        await stores.sessions.claim(session("s"))

        assert await stores.sessions.forget("s", ALICE) is True
        assert await stores.sessions.find("s") is None
        assert await stores.sessions.forget("s", ALICE) is False

    @pytest.mark.parametrize("other", [BOB, OTHER_ALICE])
    async def test_nobody_else_can_make_a_session_forgotten(self, stores, other):
        await stores.sessions.claim(session("s"))

        assert await stores.sessions.forget("s", other) is False
        assert await stores.sessions.find("s") == session("s")

    async def test_a_forgotten_id_can_be_claimed_by_another(self, stores):
        await stores.sessions.claim(session("s"))
        await stores.sessions.forget("s", ALICE)

        assert await stores.sessions.claim(session("s", BOB)) == Claim(session("s", BOB), created=True)

    @pytest.mark.parametrize("turns", [0, 1, 2, 3, 8])
    async def test_a_cancelled_claim_happened_or_not_and_the_registry_goes_on(self, stores, turns):
        for number in range(20):
            await self._cancel_claim_after(turns, stores.sessions, f"s{number}")

            after = await stores.sessions.claim(session(f"s{number}", BOB))

            assert after.created == (after.record.owner == BOB)
            assert after.record in (session(f"s{number}", ALICE), session(f"s{number}", BOB))
            assert await stores.sessions.find(f"s{number}") == after.record

    async def _cancel_claim_after(self, turns: int, sessions: SessionRegistry, session_id: str) -> None:
        task = asyncio.create_task(sessions.claim(session(session_id, ALICE)))
        for _ in range(turns):
            await asyncio.sleep(0)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)

    async def test_cancelling_many_claims_at_once_leaves_every_id_with_one_answer(self, stores):
        tasks = [asyncio.create_task(stores.sessions.claim(session(f"s{number}"))) for number in range(50)]
        await tasks[0]
        for task in tasks:
            task.cancel()
        outcomes = await asyncio.gather(*tasks, return_exceptions=True)

        claims = [await stores.sessions.claim(session(f"s{number}", BOB)) for number in range(50)]

        for outcome, claim in zip(outcomes, claims, strict=True):
            assert claim.created == (claim.record.owner == BOB)
            assert isinstance(outcome, asyncio.CancelledError) or outcome.record == claim.record

    async def test_a_closed_registry_answers_that_it_is_unavailable(self, stores):
        await stores.sessions.claim(session("s"))
        await stores.sessions.aclose()
        await stores.sessions.aclose()

        for call in (
            lambda: stores.sessions.claim(session("t")),
            lambda: stores.sessions.find("s"),
            lambda: stores.sessions.list_owned(ALICE),
            lambda: stores.sessions.list_stale("red", Horizon(0.0, 0.0), 1),
            lambda: stores.sessions.touch("s", 99.0),
            lambda: stores.sessions.forget("s", ALICE),
        ):
            with pytest.raises(errors.StoreUnavailable):
                await call()

    async def test_closing_the_registry_leaves_tenants_and_keys_open(self, stores):
        await stores.sessions.aclose()

        await stores.keys.add(key("k"))
        await stores.tenants.add(Tenant("red", Policy()))

        assert await stores.keys.find("k") == key("k")


class KeyStoreContract:
    async def test_a_stored_key_is_found_as_it_was_stored(self, twins):
        one, other = twins
        lasting, expiring = key("k1"), key("k2", expires_at=99.5)
        await one.keys.add(lasting)
        await one.keys.add(expiring)

        assert await one.keys.find("k1") == lasting
        assert await other.keys.find("k2") == expiring
        assert await one.keys.find("k3") is None

    async def test_a_taken_key_id_is_refused_and_the_first_key_stays(self, stores):
        await stores.keys.add(key("k"))

        with pytest.raises(errors.AlreadyExists):
            await stores.keys.add(key("k", BOB))

        assert await stores.keys.find("k") == key("k")

    async def test_keys_are_listed_oldest_first_all_or_of_one_tenant(self, stores):
        old, middle, new = key("kc", created_at=1.0), key("ka", OTHER_ALICE, 2.0), key("kb", BOB, 3.0)
        for each in (new, old, middle):
            await stores.keys.add(each)

        assert await stores.keys.list_all() == [old, middle, new]
        assert await stores.keys.list_all("red") == [old, new]
        assert await stores.keys.list_all("green") == []

    async def test_a_revoked_key_keeps_the_time_of_its_first_revocation(self, twins):
        one, other = twins
        await one.keys.add(key("k"))
        await one.keys.add(key("untouched"))

        await one.keys.revoke("k", 50.0)
        await other.keys.revoke("k", 60.0)

        assert await one.keys.find("k") == replace(key("k"), revoked_at=50.0)
        assert await one.keys.find("untouched") == key("untouched")

    async def test_revoking_an_unknown_key_says_so(self, stores):
        with pytest.raises(errors.KeyMissing, match="k9"):
            await stores.keys.revoke("k9", 50.0)

    @pytest.mark.parametrize("scopes", [{Scope.CONNECT}, {Scope.MINT}, {Scope.CONNECT, Scope.MINT}, {Scope.SIGN}])
    async def test_a_key_keeps_its_scopes(self, twins, scopes):
        stored = replace(key("k"), scopes=frozenset(scopes))
        await twins[0].keys.add(stored)

        assert await twins[1].keys.find("k") == stored

    async def test_dead_keys_are_those_revoked_expired_or_not_there(self, twins):
        one, other = twins
        for each in (key("lasting"), key("later", expires_at=99.5), key("now", expires_at=99.0), key("gone")):
            await one.keys.add(each)
        await one.keys.revoke("gone", 1.0)

        assert await other.keys.find_dead({"lasting", "later", "now", "gone", "never"}, 99.0) == {
            "now",
            "gone",
            "never",
        }
        assert await other.keys.find_dead({"now"}, 98.9) == set()
        assert await other.keys.find_dead([], 99.0) == set()

    async def test_of_very_many_keys_the_dead_are_found(self, stores):
        await stores.keys.add(key("k"))
        unknown = {f"x{number}" for number in range(25_000)}

        assert await stores.keys.find_dead({"k"} | unknown, 1.0) == unknown

    async def test_a_rotated_key_expires_after_the_overlap_and_its_successor_is_there(self, twins):
        one, other = twins
        await one.keys.add(key("old"))
        await one.keys.add(key("other"))

        await one.keys.rotate("old", key("new", BOB, 2.0), 60.0)

        assert await other.keys.find("old") == key("old", expires_at=60.0)
        assert await other.keys.find("new") == key("new", BOB, 2.0)
        assert await other.keys.find("other") == key("other")

    async def test_a_rotation_never_lets_a_key_live_longer(self, stores):
        await stores.keys.add(key("old", expires_at=50.0))

        await stores.keys.rotate("old", key("new"), 60.0)
        await stores.keys.rotate("old", key("newer"), 55.0)

        assert (await stores.keys.find("old")).expires_at == 50.0

    async def test_rotating_a_revoked_or_unknown_key_changes_nothing(self, stores):
        await stores.keys.add(key("revoked"))
        await stores.keys.revoke("revoked", 5.0)

        for key_id in ("revoked", "unknown"):
            with pytest.raises(errors.KeyMissing, match=key_id):
                await stores.keys.rotate(key_id, key("new"), 60.0)

        assert await stores.keys.list_all() == [replace(key("revoked"), revoked_at=5.0)]

    async def test_a_rotation_to_a_taken_id_changes_nothing(self, stores):
        await stores.keys.add(key("old"))
        await stores.keys.add(key("taken", BOB))

        with pytest.raises(errors.AlreadyExists):
            await stores.keys.rotate("old", key("taken"), 60.0)

        assert await stores.keys.find("old") == key("old")
        assert await stores.keys.find("taken") == key("taken", BOB)

    async def test_a_closed_key_store_answers_that_it_is_unavailable(self, stores):
        await stores.keys.aclose()
        await stores.keys.aclose()

        for call in (
            lambda: stores.keys.add(key("k")),
            lambda: stores.keys.find("k"),
            stores.keys.list_all,
            lambda: stores.keys.revoke("k", 50.0),
            lambda: stores.keys.find_dead({"k"}, 50.0),
            lambda: stores.keys.rotate("k", key("new"), 50.0),
        ):
            with pytest.raises(errors.StoreUnavailable):
                await call()


class TenantStoreContract:
    @pytest.mark.parametrize(
        "policy",
        [
            Policy(),
            Policy(Isolation.SHARED, Trust.LIMITED, ("https://one.example/v1", "*")),
            Policy(Isolation.TENANT, Trust.FULL, ("https://é.example",)),
            Policy(session_idle_seconds=2_592_000.0, session_age_seconds=0.5),
            Policy(
                models=("demo", "gpt-*"), tools=("custom:*", "!mcp:git/push"), work_root="/srv", egress=("x.example",)
            ),
            Policy(Isolation.TENANT, max_sessions_per_user=1, max_turns_per_tenant=2, host_tools=True),
            Policy(models=(), tools=()),
        ],
    )
    async def test_a_stored_tenant_is_found_as_it_was_stored(self, twins, policy):
        await twins[0].tenants.add(Tenant("red", policy))

        assert await twins[0].tenants.find("red") == Tenant("red", policy)
        assert await twins[1].tenants.find("red") == Tenant("red", policy)
        assert await twins[0].tenants.find("blue") is None

    async def test_what_differs_for_users_is_found_as_it_was_stored_also_where_it_is_nothing(self, twins):
        users = {
            "ann": Override(models=("demo",), session_idle_seconds=None, client_loss=ClientLoss.FINISH),
            "ben@x.example": Override(tools=None, max_turns_per_user=0, host_tools=True),
        }
        stored = Tenant("red", Policy(models=("*",)), users=users)
        await twins[0].tenants.add(stored)

        found = await twins[1].tenants.find("red")
        assert found == stored
        assert found.policy_for("ann").models == ("demo",)
        assert list(await twins[1].tenants.list_all()) == [stored]
        await twins[1].tenants.update(Tenant("red", Policy()))
        assert await twins[0].tenants.find("red") == Tenant("red", Policy())

    async def test_a_taken_name_is_refused_and_the_first_tenant_stays(self, stores):
        await stores.tenants.add(Tenant("red", Policy(Isolation.SHARED)))

        with pytest.raises(errors.AlreadyExists, match="red"):
            await stores.tenants.add(Tenant("red", Policy(Isolation.USER)))

        assert await stores.tenants.find("red") == Tenant("red", Policy(Isolation.SHARED))

    async def test_tenants_are_listed_by_name(self, stores):
        for name in ("red", "amber", "blue"):
            await stores.tenants.add(Tenant(name, Policy()))

        assert [tenant.name for tenant in await stores.tenants.list_all()] == ["amber", "blue", "red"]

    async def test_an_update_replaces_the_policy_of_that_tenant_alone(self, twins):
        one, other = twins
        await one.tenants.add(Tenant("red", Policy(provider_urls=("https://one.example",))))
        await one.tenants.add(Tenant("blue", Policy()))

        await one.tenants.update(Tenant("red", Policy(Isolation.SHARED)))

        assert await other.tenants.find("red") == Tenant("red", Policy(Isolation.SHARED))
        assert await other.tenants.find("blue") == Tenant("blue", Policy())

    async def test_an_unknown_tenant_is_neither_updated_nor_removed_nor_made(self, stores):
        with pytest.raises(errors.TenantMissing, match="red"):
            await stores.tenants.update(Tenant("red", Policy()))
        with pytest.raises(errors.TenantMissing, match="red"):
            await stores.tenants.remove("red")

        assert await stores.tenants.list_all() == []

    async def test_removing_a_tenant_revokes_its_keys_and_no_others(self, twins):
        one, other = twins
        await one.tenants.add(Tenant("red", Policy()))
        for each in (key("k1", ALICE), key("k2", BOB), key("k3", OTHER_ALICE)):
            await one.keys.add(each)
        await one.keys.revoke("k2", 50.0)

        await one.tenants.remove("red")

        assert await other.tenants.find("red") is None
        assert await other.keys.find("k1") == replace(key("k1", ALICE), revoked_at=NOW)
        assert await other.keys.find("k2") == replace(key("k2", BOB), revoked_at=50.0)
        assert await other.keys.find("k3") == key("k3", OTHER_ALICE)

    async def test_keys_of_a_removed_tenant_stay_revoked_when_its_name_is_taken_again(self, stores):
        await stores.tenants.add(Tenant("red", Policy()))
        await stores.keys.add(key("k"))
        await stores.tenants.remove("red")

        await stores.tenants.add(Tenant("red", Policy()))

        assert await stores.keys.find("k") == replace(key("k"), revoked_at=NOW)

    async def test_refusing_to_remove_an_unknown_tenant_leaves_keys_of_that_name_alone(self, stores):
        # Tenants defined in the configuration have keys here and no entry.
        await stores.keys.add(key("k"))

        with pytest.raises(errors.TenantMissing):
            await stores.tenants.remove("red")

        assert await stores.keys.find("k") == key("k")

    async def test_a_closed_tenant_store_answers_that_it_is_unavailable(self, stores):
        await stores.tenants.add(Tenant("red", Policy()))
        await stores.tenants.aclose()
        await stores.tenants.aclose()

        for call in (
            lambda: stores.tenants.add(Tenant("blue", Policy())),
            lambda: stores.tenants.find("red"),
            stores.tenants.list_all,
            lambda: stores.tenants.update(Tenant("red", Policy())),
            lambda: stores.tenants.remove("red"),
        ):
            with pytest.raises(errors.StoreUnavailable):
                await call()
