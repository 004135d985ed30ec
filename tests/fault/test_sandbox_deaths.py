"""A gateway that is killed while agents work in sandboxes: nothing in any of them lives on, whatever it did to stay."""

from __future__ import annotations

import asyncio
import json
import os
import secrets
import shutil
import signal
from contextlib import suppress
from typing import Any

import pytest

from aerodrome.core.policy import Isolation, Policy, Trust
from aerodrome.testing.peer import Peer
from aerodrome.testing.process_table import eventually, find, parent_of, read

from . import served as gateways
from .served import Served

pytestmark = [
    pytest.mark.runtime,
    pytest.mark.skipif(
        shutil.which("bwrap") is None,
        reason="NOT TESTED: the sandbox, for bubblewrap is missing; install it (make setup tries to)",
    ),
]
TENANTS = {
    "full": (Policy(Isolation.USER, Trust.FULL), ("ann",)),
    "guarded": (Policy(Isolation.USER, host_tools=True), ("ben",)),
    "team": (Policy(Isolation.TENANT, host_tools=True), ("cat",)),
}
#: It takes far less than one; the machine may take the rest.
GONE_SECONDS = 15.0
STAY = """
setsid sleep MARK &
(env -i setsid sh -c 'sleep MARK & sleep MARK & exit' &)
env -i setsid nohup sh -c 'trap "" TERM HUP INT; while :; do sleep MARK; done' >/dev/null 2>&1 &
sleep MARK
"""


async def begin_to_stay(served: Served, tenant: str, user: str, mark: str) -> Peer:
    """Have an agent start what is not to end, in a turn that goes on."""
    client = await served.connect(tenant, user)
    create = {**served.create, "sessionId": tenant, "requestPermission": True, "availableTools": ["builtin:bash"]}
    await client.call("session.create", create)
    command = json.dumps({"command": STAY.replace("MARK", mark), "description": "as asked"})
    await client.call("session.send", {"sessionId": tenant, "prompt": f"[tool bash {command}]"})
    asked = await client.wait_until(lambda: permissions_asked(client), 60)
    answer = {"sessionId": tenant, "requestId": asked[0]["requestId"], "result": {"kind": "approve-once"}}
    await client.call("session.permissions.handlePendingPermissionRequest", answer)
    return client


def permissions_asked(client: Peer) -> list[dict[str, Any]]:
    events = [params["event"] for params in client.notifications("session.event")]
    return [event["data"] for event in events if event["type"] == "permission.requested"]


def ancestors(pid: int, last: int) -> list[int]:
    """Return the processes above one, up to the gateway."""
    found = [pid]
    while found[-1] != last:
        found.append(parent_of(found[-1]))
        assert found[-1] > 1
    return found[1:]


def inside(namespaces: set[str]) -> list[int]:
    """Return the processes of these process namespaces."""
    found = []
    for pid in (int(name) for name in os.listdir("/proc") if name.isdigit()):
        with suppress(OSError):
            if os.readlink(f"/proc/{pid}/ns/pid") in namespaces:
                found.append(pid)
    return found


@pytest.mark.parametrize("killed", ["the gateway", "the gateway and its helpers"])
async def test_a_gateway_that_is_killed_takes_everything_in_its_sandboxes_with_it(tmp_path, killed):
    mark = f"2345.{secrets.randbelow(10**9):09d}"
    sleeping = f"sleep\0{mark}"
    async with gateways.serving(
        tmp_path / "state", TENANTS, SANDBOX__MODE="bubblewrap", RUNTIME__WARM_RUNTIMES="0"
    ) as served:
        owners = [(tenant, user) for tenant, (_, users) in TENANTS.items() for user in users]
        clients = await asyncio.gather(*(begin_to_stay(served, *owner, mark) for owner in owners))
        await eventually(lambda: len(find(sleeping)) == 5 * len(owners), 60)
        namespaces = {os.readlink(f"/proc/{pid}/ns/pid") for pid in find(sleeping)}
        assert len(namespaces - {os.readlink("/proc/self/ns/pid")}) == len(owners)
        assert len(inside(namespaces)) > 6 * len(owners)

        victims = [served.process.pid]
        if killed != "the gateway":
            # Of those that stay: others in there come and go.
            above = {pid for found in find(sleeping) for pid in ancestors(found, served.process.pid)}
            victims += [pid for pid in above if b"guardian" in read(pid, "cmdline")]
            assert len(victims) == 2 + len(owners), "one guardian, and a keeper for each runtime"
        for number in (signal.SIGSTOP, signal.SIGKILL):  # so that none sees another go
            for pid in victims:
                os.kill(pid, number)
        await eventually(lambda: inside(namespaces) == [] and find(mark) == [], GONE_SECONDS)
        await eventually(lambda: gateways.carriers(served.state) == [], GONE_SECONDS)
        served.exit_code = -signal.SIGKILL
        for client in clients:
            await client.wait_closed()
            await client.aclose()
