"""A member's program in a process of its own, that can be stopped: acquires the turn, waits to be told, sends under its token."""

from __future__ import annotations

import asyncio
import json
import os
import sys

from aerodrome.testing import peer
from aerodrome.testing.peer import RpcError


async def run(host: str, port: str, session_id: str, seconds: str) -> None:
    member = await peer.open_client(host, int(port), os.environ["MEMBER_TOKEN"])
    await member.call("session.resume", {"sessionId": session_id})
    params = {"sessionId": session_id, "ttlSeconds": float(seconds)}
    lease = await member.call("aerodrome.turns.acquire", params)
    print(json.dumps({"token": lease["token"]}), flush=True)
    await asyncio.get_running_loop().run_in_executor(None, sys.stdin.readline)
    try:
        sent = {"sessionId": session_id, "prompt": "[say too late]", "aerodromeLease": lease["token"]}
        result = await member.call("session.send", sent)
    except RpcError as error:
        result = {"refused": error.data["code"]}
    print(json.dumps(result), flush=True)
    await member.aclose()


if __name__ == "__main__":
    asyncio.run(run(*sys.argv[1:]))
