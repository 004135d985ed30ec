"""Calls that wait for the gateway's own part while their runtime, or another link, goes: each is answered, nothing stays."""

from __future__ import annotations

import asyncio

import pytest

from aerodrome.gateway.supplying import Supplier
from aerodrome.testing.peer import RpcError
from aerodrome.testing.scripted_runtime import Faults

from .test_evictions import turn


class SlowSupplier(Supplier):
    """Has openings wait for what they are supplied with until the test says."""

    def __init__(self) -> None:
        super().__init__()
        self.reached = asyncio.Event()
        self.may_go = asyncio.Event()
        self.may_go.set()

    async def fill_opening(self, owner, realm, session_id, params):
        self.reached.set()
        await self.may_go.wait()
        return await super().fill_opening(owner, realm, session_id, params)

    def hold(self) -> None:
        self.reached.clear()
        self.may_go.clear()


@pytest.mark.parametrize("tenant", ["alone", "guarded", "shared"])
@pytest.mark.parametrize("method", ["session.create", "session.resume"])
async def test_an_opening_whose_runtime_dies_before_it_is_sent_is_answered(open_rig, tenant, method):
    supplier = SlowSupplier()
    rig = await open_rig(supplier=supplier)
    client = await rig.client(tenant)
    await client.call("session.create", {"sessionId": "s"})
    await turn(client, "s")
    await client.call("session.detach", {"sessionId": "s"})
    supplier.hold()
    opening = client.ask(method, {"sessionId": "s" if method == "session.resume" else "new"})
    await asyncio.wait_for(supplier.reached.wait(), 30)
    rig.scripted.processes[0].kill()
    await rig.settled(lambda: rig.upstreams() == 0 and rig.links() == 0)
    supplier.may_go.set()

    with pytest.raises(RpcError) as lost:
        await asyncio.wait_for(opening, 30)
    assert lost.value.data["retryable"] is True
    await client.call(method, {"sessionId": "s" if method == "session.resume" else "new"})
    await turn(client, "s" if method == "session.resume" else "new")
    assert rig.services.drainer.at_work == 0


async def test_a_link_that_goes_while_another_has_its_session_brought_back_leaves_no_connection(rig):
    first, second = await rig.client("shared"), await rig.client("shared")
    await first.call("session.create", {"sessionId": "s"})
    await second.call("session.resume", {"sessionId": "s"})
    await turn(first, "s")
    rig.scripted.processes[0].kill()
    await rig.settled(lambda: rig.upstreams() == 0 and rig.links() == 0)
    rig.scripted.may_spawn.clear()
    asking = second.ask("session.getMessages", {"sessionId": "s"})
    await rig.settled(lambda: len(rig.scripted.processes) == 2)

    await first.aclose()
    await rig.settled(lambda: len(rig.gateway.clients) == 1)
    rig.scripted.may_spawn.set()

    await asyncio.wait_for(asking, 30)
    assert (rig.links(), rig.upstreams()) == (1, 1)
    assert len(rig.scripted.runtimes[1].peers) == 2  # the control link's, and the one that is there


async def test_a_resume_whose_runtime_dies_leaves_nothing_in_the_way_of_later_events(open_rig):
    rig = await open_rig(faults=lambda n: Faults(dies_at="session.resume") if n == 0 else Faults())
    client = await rig.client("alone")
    await client.call("session.create", {"sessionId": "s"})
    await turn(client, "s")
    await client.call("session.detach", {"sessionId": "s"})
    with pytest.raises(RpcError, match="try again"):
        await client.call("session.resume", {"sessionId": "s"})

    await client.call("session.send", {"sessionId": "s", "prompt": "x"})

    await client.wait_for_event("s", "session.idle", 2)
