"""What every store of sealed GitHub tokens must do, over each adapter (conftest.py says which)."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import pytest

from aerodrome import errors
from aerodrome.core.github import StoredToken

from .registry_suite import ALICE, BOB, OTHER_ALICE


def stored(owner=ALICE, sealed="v1.k.a.b", expires_at: float | None = 1.5) -> StoredToken:
    return StoredToken(owner, sealed, expires_at, 1.25, expires_at is not None)


async def test_a_stored_token_is_found_as_it_is_by_its_owner_only(twins):
    one, other = twins
    await one.tokens.put(stored())
    assert await other.tokens.find(ALICE) == stored()
    assert await one.tokens.find(BOB) is None
    assert await one.tokens.find(OTHER_ALICE) is None


async def test_a_later_token_takes_the_place_of_the_one_before(stores):
    await stores.tokens.put(stored())
    await stores.tokens.put(stored(sealed="v1.k.c.d", expires_at=None))
    assert await stores.tokens.list_all() == [stored(sealed="v1.k.c.d", expires_at=None)]


async def test_a_token_is_replaced_only_while_it_is_the_one_that_was_read(twins):
    one, other = twins
    assert not await one.tokens.replace(stored(sealed="x"), stored())
    await one.tokens.put(stored())
    wishes = [replace(stored(), sealed=f"v1.k.{number}.x", updated_at=2.0) for number in range(8)]
    stores = [one.tokens, other.tokens] * 4
    won = await asyncio.gather(*(store.replace(wish, stored()) for store, wish in zip(stores, wishes, strict=True)))
    assert won.count(True) == 1
    assert await one.tokens.find(ALICE) == wishes[won.index(True)]


async def test_tokens_are_listed_by_tenant_and_user_and_removed_once(stores):
    for owner in (ALICE, OTHER_ALICE, BOB):
        await stores.tokens.put(stored(owner))
    assert [token.owner for token in await stores.tokens.list_all()] == [OTHER_ALICE, ALICE, BOB]
    assert [token.owner for token in await stores.tokens.list_all("red")] == [ALICE, BOB]
    assert await stores.tokens.remove(ALICE)
    assert not await stores.tokens.remove(ALICE)
    assert [token.owner for token in await stores.tokens.list_all("red")] == [BOB]


async def test_a_closed_store_of_tokens_refuses(stores):
    await stores.tokens.aclose()
    await stores.tokens.aclose()
    for call in (stores.tokens.find(ALICE), stores.tokens.put(stored()), stores.tokens.list_all()):
        with pytest.raises(errors.StoreUnavailable):
            await call
