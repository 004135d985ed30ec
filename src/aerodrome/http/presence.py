"""Callers who leave while their request waits, or whose token ends meanwhile: nothing goes on waiting for them.

What they began goes on all the same.
"""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any

from fastapi import Request, Response

from aerodrome import errors
from aerodrome.http.callers import Caller, StreamGuest

#: What is answered to nobody.
LEFT = 499


async def stays(request: Request, caller: Caller, work: Coroutine[Any, Any, None]) -> bool:
    """Do what a caller waits for; say whether they are still there at its end. The body must have been read.

    Raises:
        errors.AuthenticationFailed: their token has ended meanwhile.
    """
    guest, guests = StreamGuest(caller.principal), caller.site.gateway.guests
    working = asyncio.ensure_future(work)
    leaving = asyncio.ensure_future(_left(request))
    guests.add(guest)
    try:
        await asyncio.wait((working, leaving, guest.over), return_when=asyncio.FIRST_COMPLETED)
        is_done = working.done()
    finally:
        guests.discard(guest)
        working.cancel()
        leaving.cancel()
        await asyncio.wait((working, leaving))
    if guest.over.done():
        raise errors.AuthenticationFailed("its principal has ended")
    if is_done:
        working.result()
    return is_done


def nobody() -> Response:
    """Return what is answered when the caller has left."""
    return Response(status_code=LEFT)


async def _left(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass
