"""What every request of an authenticated caller passes: the rate of its owner, and its key if it has one.

Here and not in a middleware, because both are the owner's, and who that is the route's authentication says.
"""

from __future__ import annotations

from fastapi import Request

from aerodrome import errors
from aerodrome.core import idempotency as keyed
from aerodrome.core.identity import Owner
from aerodrome.http import idempotency
from aerodrome.http.idempotency import HEADER, Attempt, Replayed
from aerodrome.http.site import Site


async def enter(request: Request, site: Site, owner: Owner) -> None:
    """Let a request in.

    Raises:
        errors.RateLimited, errors.OverCapacity: its owner made too many. idempotency.Replayed: it was answered before.
        errors.AerodromeError: as idempotency.Replays.begin says.
    """
    take_rate(request, site, owner)
    if request.method == "POST":
        request.state.attempt = await _begin(request, site, owner)


def take_rate(request: Request, site: Site, owner: Owner) -> None:
    """Count a request, for as long as it is under way.

    Raises:
        errors.RateLimited: its owner made too many. errors.OverCapacity: its owner has too many under way.
    """
    try:
        request.state.allowance = site.rates.take(owner)
    except errors.RateLimited:
        request.state.allowance = site.rates.spent()
        raise
    if not hasattr(request.state, "leave"):
        request.state.leave = site.under_way.enter(owner)


async def _begin(request: Request, site: Site, owner: Owner) -> Attempt | None:
    key = request.headers.get(HEADER)
    if key is None:
        return None
    if not keyed.is_key(key):
        raise errors.InvalidParams(f"{HEADER}: expected 1 to 255 printable ASCII characters without spaces")
    target = request.url.path + (f"?{request.url.query}" if request.url.query else "")
    print_of = idempotency.fingerprint(request.method, target, await request.body())
    while True:
        try:
            return await site.replays.begin(owner, key, print_of)
        except Replayed as before:
            wants_stream = "text/event-stream" in request.headers.get("accept", "")
            if before.resource and wants_stream and _is_of_turns(request):
                request.state.earlier = before
                return None
            if before.answer is not None:
                raise
        # Its turn runs, and this request cannot follow that.
        await site.replays.wait(owner, key)


def _is_of_turns(request: Request) -> bool:
    """Say whether the route can stream the turn that an earlier request of the same key made."""
    return getattr(request.scope.get("route"), "operation_id", None) == "sendMessage"
