"""Members and share links in memory (ports: ports.members.MemberStore and SharingStore)."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import replace

from aerodrome.core.identity import Owner
from aerodrome.core.membership import Member, SentBy, ShareLink, Sharing
from aerodrome.ports.members import Change, ChangeSharing


class MemoryMemberStore:
    """Dicts."""

    def __init__(self) -> None:
        self._members: dict[tuple[str, Owner], Member] = {}
        self._sharings: dict[str, Sharing] = {}
        self._links: dict[str, ShareLink] = {}
        self._sent: dict[tuple[str, str], SentBy] = {}

    async def put(self, member: Member) -> None:
        """Make somebody a member."""
        self._members[member.session_id, member.person] = member

    async def amend(self, session_id: str, person: Owner, change: Change) -> Member | None:
        """Change what somebody is."""
        before = self._members.get((session_id, person))
        changed = change(before)
        if changed is None:
            return before
        self._members[session_id, person] = changed
        return changed

    async def find(self, session_id: str, person: Owner) -> Member | None:
        """Return what somebody is in a session."""
        return self._members.get((session_id, person))

    async def list_of(self, session_id: str) -> Sequence[Member]:
        """Return the members of a session."""
        found = [member for member in self._members.values() if member.session_id == session_id]
        return sorted(found, key=lambda member: (member.since, member.person.user))

    async def list_for(self, person: Owner) -> Sequence[Member]:
        """Return where somebody is a member."""
        found = [member for member in self._members.values() if member.person == person]
        return sorted(found, key=lambda member: (-member.since, member.session_id))

    async def remove(self, session_id: str, person: Owner | None = None) -> int:
        """Remove a member, or everybody."""
        gone = [key for key in self._members if key[0] == session_id and person in (None, key[1])]
        for key in gone:
            del self._members[key]
        if person is None:
            self._sharings.pop(session_id, None)
            self._sent = {key: sent for key, sent in self._sent.items() if sent.session_id != session_id}
            self._links = {key: link for key, link in self._links.items() if link.session_id != session_id}
        return len(gone)

    async def amend_sharing(self, session_id: str, change: ChangeSharing) -> Sharing | None:
        """Change how a session is shared."""
        before = self._sharings.get(session_id)
        changed = change(before)
        if changed is None:
            return before
        self._sharings[session_id] = changed
        return changed

    async def find_sharing(self, session_id: str) -> Sharing | None:
        """Return how a session is shared."""
        return self._sharings.get(session_id)

    async def add_sent(self, sent: SentBy) -> None:
        """Keep who sent a message."""
        self._sent[sent.session_id, sent.message_id] = sent

    async def list_sent(self, session_id: str, message_ids: Collection[str] | None = None) -> Sequence[SentBy]:
        """Return who sent the messages of a session."""
        every = (sent for sent in self._sent.values() if sent.session_id == session_id)
        found = (sent for sent in every if message_ids is None or sent.message_id in message_ids)
        return sorted(found, key=lambda sent: (sent.at, sent.message_id))

    async def add_link(self, link: ShareLink) -> None:
        """Keep a new link."""
        self._links[link.link_id] = link

    async def list_links(self, session_id: str) -> Sequence[ShareLink]:
        """Return the links of a session."""
        return sorted(
            (one for one in self._links.values() if one.session_id == session_id), key=lambda one: one.link_id
        )

    async def find_link(self, link_id: str) -> ShareLink | None:
        """Return a link."""
        return self._links.get(link_id)

    async def use_link(self, link_id: str, now: float) -> ShareLink | None:
        """Use a link once."""
        link = self._links.get(link_id)
        if link is None or link.uses_left < 1 or now >= link.expires_at:
            return None
        self._links[link_id] = replace(link, uses_left=link.uses_left - 1)
        return link

    async def revoke_link(self, session_id: str, link_id: str) -> bool:
        """Remove a link."""
        link = self._links.get(link_id)
        if link is None or link.session_id != session_id:
            return False
        del self._links[link_id]
        return True

    async def aclose(self) -> None:
        """Release nothing."""
