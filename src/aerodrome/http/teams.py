"""A tenant's team chat, as the guide's `/team-chat` has it: one session, everyone's turns in order, each with its sender.

The session is a service user's, so that nobody's going ends it; whoever of the tenant may call may speak in it, and is told
the answers only. Sessions with members and roles are gateway.sharing.
"""

from __future__ import annotations

import asyncio
import uuid

from aerodrome import errors
from aerodrome.core.identity import Owner, Principal
from aerodrome.gateway.service import TenantGateway
from aerodrome.http.conversation import Conversation
from aerodrome.http.options import SessionOptions
from aerodrome.http.users import HttpUsers

#: Whose a team's session is. A person of this name would own it: do not give it to one.
SERVICE_USER = "team-chat"
_OPTIONS = SessionOptions(
    title="team chat",
    permissions="reject",
    ask_user=False,
    instructions="Several people speak here. Each message begins with a line that says who it is from.",
)


class Teams:
    """The team chats of all tenants."""

    def __init__(self, gateway: TenantGateway, users: HttpUsers) -> None:
        self._gateway = gateway
        self._users = users
        self._finding: dict[str, asyncio.Lock] = {}

    async def find(self, tenant: str) -> Conversation:
        """Return a tenant's session, made if there is none.

        Raises:
            errors.AerodromeError: it cannot be opened now, or by policy.
        """
        owner = Owner(tenant, SERVICE_USER)
        policy = await self._gateway.admission.find_policy(owner)
        if policy is None:
            raise errors.AuthenticationFailed("the tenant is gone")
        user = await self._users.of(Principal(owner, policy, ""))
        async with self._finding.setdefault(tenant, asyncio.Lock()):
            owned = await self._gateway.services.ownership.list_ids(owner)
            known = await self._users.store.find_all(owned, owner)
            # Found, not named: an id that could be guessed could be taken by another tenant first.
            mine = next((one for one in owned if one in known), None)
            if mine is not None:
                return await user.find(mine)
            return await user.create(str(uuid.uuid4()), _OPTIONS)


def attributed(sender: str, message: str) -> str:
    """Return what the agent is told of who says what; a sender's name has no line end (core.identity)."""
    return f"From {sender}:\n{message}"
