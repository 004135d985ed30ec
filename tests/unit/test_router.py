"""Routes: where a live session is, for its own realm only, and for as long as someone holds it there."""

import asyncio

from aerodrome.gateway.router import Router


def test_a_route_lasts_until_its_last_holder_lets_go():
    router = Router()
    router.attach("user:acme/alice", "s", "rt-1", 1)
    router.attach("user:acme/alice", "s", "rt-1", 2)

    router.detach("user:acme/alice", "s", 1)
    assert router.find("user:acme/alice", "s") == "rt-1"

    router.detach("user:acme/alice", "s", 2)
    assert router.find("user:acme/alice", "s") is None
    assert len(router) == 0


def test_an_id_that_another_realm_tries_to_take_keeps_its_route_and_leads_nobody_there():
    router = Router()
    router.attach("user:acme/alice", "s", "rt-1", 1)

    assert router.find("user:globex/carol", "s") is None
    router.attach("user:globex/carol", "s", "rt-2", 2)
    router.detach("user:globex/carol", "s", 2)
    router.forget("user:globex/carol", "s")

    assert router.find("user:acme/alice", "s") == "rt-1"


async def test_the_routes_into_a_runtime_end_with_it():
    router, lost = Router(), asyncio.get_running_loop().create_future()
    router.watch("rt-1", lost)
    router.attach("shared", "a", "rt-1", 1)
    router.attach("shared", "b", "rt-2", 1)

    lost.set_result("killed")
    await asyncio.sleep(0)

    assert router.find("shared", "a") is None
    assert router.find("shared", "b") == "rt-2"


def test_a_session_that_two_move_at_once_goes_where_the_later_one_says_and_nothing_stays():
    router = Router()
    first, second = router.directed("shared", "s", "rt-1"), router.directed("shared", "s", "rt-2")
    first.__enter__()
    second.__enter__()
    first.__exit__(None, None, None)
    assert router.destination("shared", "s") == "rt-2"
    second.__exit__(None, None, None)
    assert router.destination("shared", "s") is None
