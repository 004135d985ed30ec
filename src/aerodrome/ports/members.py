"""Who is a member of which session, and the links that make one so.

Implemented by adapters.memory and adapters.sql; one contract suite runs over both. Not who owns a session: ports.registry. All
methods are safe to cancel, and raise errors.StoreUnavailable when the store does not answer.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from typing import Protocol

from aerodrome.core.identity import Owner
from aerodrome.core.membership import Member, SentBy, ShareLink, Sharing

#: Is given how a session is shared, None for not, and returns how it is to be; None leaves it. Quick, and without effects.
ChangeSharing = Callable[[Sharing | None], Sharing | None]
#: Is given what somebody is, None for nothing, and returns what they are to be; None leaves it. Quick, and without effects.
Change = Callable[[Member | None], Member | None]


class MemberStore(Protocol):
    """Members, by session and by person."""

    async def put(self, member: Member) -> None:
        """Make somebody a member, in place of what they were. Idempotent."""
        ...

    async def amend(self, session_id: str, person: Owner, change: Change) -> Member | None:
        """Change what somebody is in a session, in one step with reading it; return what they are then.

        What `change` raises is raised here, and nothing has changed.
        """
        ...

    async def find(self, session_id: str, person: Owner) -> Member | None:
        """Return what somebody is in a session."""
        ...

    async def list_of(self, session_id: str) -> Sequence[Member]:
        """Return the members of a session, the longest there first."""
        ...

    async def list_for(self, person: Owner) -> Sequence[Member]:
        """Return where somebody is a member, the latest first."""
        ...

    async def remove(self, session_id: str, person: Owner | None = None) -> int:
        """Remove a member, or (without one) everybody, the sharing and the links; return how many members went."""
        ...

    async def aclose(self) -> None:
        """Release the store."""
        ...


class SharingStore(Protocol):
    """How sessions are shared, and by which links."""

    async def amend_sharing(self, session_id: str, change: ChangeSharing) -> Sharing | None:
        """Change how a session is shared, in one step with reading it; return how it is then."""
        ...

    async def find_sharing(self, session_id: str) -> Sharing | None:
        """Return how a session is shared; None for one that is not."""
        ...

    async def add_sent(self, sent: SentBy) -> None:
        """Keep who sent a message. Idempotent."""
        ...

    async def list_sent(self, session_id: str, message_ids: Collection[str] | None = None) -> Sequence[SentBy]:
        """Return who sent the messages of a session (these of them; None: all), oldest first."""
        ...

    async def add_link(self, link: ShareLink) -> None:
        """Keep a new link."""
        ...

    async def list_links(self, session_id: str) -> Sequence[ShareLink]:
        """Return the links of a session."""
        ...

    async def use_link(self, link_id: str, now: float) -> ShareLink | None:
        """Use a link once: count its use and return it as it was, in one step; None if it is not there or used up or expired."""
        ...

    async def find_link(self, link_id: str) -> ShareLink | None:
        """Return a link."""
        ...

    async def revoke_link(self, session_id: str, link_id: str) -> bool:
        """Remove a link; say whether it was there."""
        ...
