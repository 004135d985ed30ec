"""What every store of erasures must do, over each adapter (conftest.py says which)."""

from __future__ import annotations

import pytest

from aerodrome import errors
from aerodrome.core import erasure
from aerodrome.core.erasure import Erasure
from aerodrome.core.identity import Owner

from .registry_suite import ALICE, BOB

OF_ALICE, OF_BOB = erasure.digest(ALICE), erasure.digest(BOB)


async def test_an_erasure_is_found_until_its_time_is_over(twins):
    one, other = twins
    await one.erasures.note(Erasure(OF_ALICE, 10.0, 100.0), 9.0)
    assert await other.erasures.find([OF_ALICE], 99.0) == 10.0
    assert await other.erasures.find([OF_ALICE], 100.0) is None
    assert await other.erasures.find([OF_BOB], 50.0) is None
    assert await other.erasures.find([], 50.0) is None


async def test_of_two_erasures_of_one_user_the_later_times_hold(stores):
    await stores.erasures.note(Erasure(OF_ALICE, 20.0, 100.0), 9.0)
    await stores.erasures.note(Erasure(OF_ALICE, 10.0, 200.0), 9.0)
    assert await stores.erasures.find([OF_ALICE], 150.0) == 20.0


async def test_of_several_digests_the_latest_time_counts(stores):
    everyone = erasure.digest(Owner(ALICE.tenant, erasure.EVERYONE))
    await stores.erasures.note(Erasure(OF_ALICE, 10.0, 100.0), 9.0)
    await stores.erasures.note(Erasure(everyone, 30.0, 100.0), 9.0)
    assert await stores.erasures.find(erasure.digests(ALICE), 50.0) == 30.0


async def test_noting_one_forgets_those_whose_time_is_over(stores):
    await stores.erasures.note(Erasure(OF_ALICE, 10.0, 100.0), 9.0)
    await stores.erasures.note(Erasure(OF_BOB, 10.0, 300.0), 100.0)
    assert await stores.erasures.find([OF_ALICE], 50.0) is None
    assert await stores.erasures.find([OF_BOB], 150.0) == 10.0


async def test_a_closed_store_says_so(stores):
    await stores.erasures.aclose()
    with pytest.raises(errors.StoreUnavailable):
        await stores.erasures.find([OF_ALICE], 1.0)
    with pytest.raises(errors.StoreUnavailable):
        await stores.erasures.note(Erasure(OF_ALICE, 10.0, 100.0), 9.0)


def test_no_two_users_and_no_user_and_tenant_have_one_digest():
    owners = [Owner("a", "b"), Owner("a", "bc"), Owner("ab", "c"), Owner("a", ""), Owner("ab", "")]
    assert len({erasure.digest(owner) for owner in owners}) == len(owners)
    assert "alice" not in erasure.digest(ALICE)
