"""Caps of a tenant's policy that are held here: sessions owned, where they come to be otherwise than by create; turns at once.

`session.create` claims its id under the quota in one step with the counting (ports.registry). A turn is counted in the step of
the event loop that begins it, so that no two pass the cap together; a message to a session at work joins its queue and
begins none. Caps count what runs through this gateway.
"""

from __future__ import annotations

import math

from aerodrome.core import quota
from aerodrome.core.expiry import Horizon
from aerodrome.gateway.client import Client
from aerodrome.gateway.residents import Resident

_EVER = Horizon(math.inf, math.inf)


def check_turn(client: Client, session_id: str) -> None:
    """Check that a message may begin a turn now; nothing may wait between this and its sending.

    Raises:
        errors.OverCapacity: a cap is reached; the caller may try again when a turn has ended.
    """
    caps = quota.turns_of(client.principal.policy)
    if not caps.is_set:
        return
    of_user = of_tenant = 0
    for resident in client.services.residents.of_tenant(client.owner.tenant):
        if not _has_turn(resident):
            continue
        if (resident.realm, resident.session_id) == (client.realm.key, session_id):
            return
        of_tenant += 1
        of_user += any(holder.client.owner == client.owner for holder in resident.holders.values())
    quota.check_turns(caps, of_user, of_tenant)


async def check_birth(client: Client) -> None:
    """Check that a call may make one more session whose id is not known yet (a fork).

    Raises:
        errors.PolicyRejected: a cap is reached. errors.StoreUnavailable: the sessions could not be counted.
    """
    caps = quota.sessions_of(client.principal.policy)
    registry, of_tenant = client.services.ownership.registry, 0
    of_user = len(await registry.list_owned(client.owner)) if caps.per_user else 0
    if caps.per_tenant:
        of_tenant = len(await registry.list_stale(client.owner.tenant, _EVER, caps.per_tenant))
    quota.check_sessions(caps, of_user, of_tenant)


def _has_turn(resident: Resident) -> bool:
    return any(holder.held.has_turn for holder in resident.holders.values())
