"""Members, sharings and share links, in SQL (ports: ports.members.MemberStore and SharingStore).

A use of a link is counted by one statement that only counts what is left: two who come at once never use one up twice.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

import sqlalchemy as sa

from aerodrome.adapters.sql import engine, tables
from aerodrome.core.identity import Owner
from aerodrome.core.membership import Billing, BusyPolicy, Member, Role, SentBy, ShareLink, Sharing
from aerodrome.ports.members import Change, ChangeSharing

_M, _S, _L, _T = tables.MEMBERS.c, tables.SHARINGS.c, tables.SHARE_LINKS.c, tables.SENT_MESSAGES.c
_OF = _M.session_id == sa.bindparam("id")
_WHO = (_M.tenant_name == sa.bindparam("tenant")) & (_M.user_name == sa.bindparam("user"))
_FIND = sa.select(tables.MEMBERS).where(_OF, _WHO)
_LIST_OF = sa.select(tables.MEMBERS).where(_OF).order_by(_M.since, _M.user_name)
_LIST_FOR = sa.select(tables.MEMBERS).where(_WHO).order_by(_M.since.desc(), _M.session_id)
_REMOVE = sa.delete(tables.MEMBERS).where(_OF, _WHO)
_REMOVE_ALL = sa.delete(tables.MEMBERS).where(_OF)
_INSERT = sa.insert(tables.MEMBERS)
_FIND_SHARING = sa.select(tables.SHARINGS).where(_S.session_id == sa.bindparam("id"))
_REMOVE_SHARING = sa.delete(tables.SHARINGS).where(_S.session_id == sa.bindparam("id"))
_INSERT_SHARING = sa.insert(tables.SHARINGS)
_FIND_LINK = sa.select(tables.SHARE_LINKS).where(_L.link_id == sa.bindparam("link"))
_LIST_LINKS = sa.select(tables.SHARE_LINKS).where(_L.session_id == sa.bindparam("id")).order_by(_L.link_id)
_INSERT_LINK = sa.insert(tables.SHARE_LINKS)
_USE_LINK = (
    sa.update(tables.SHARE_LINKS)
    .where(_L.link_id == sa.bindparam("link"), _L.uses_left > 0, _L.expires_at > sa.bindparam("now"))
    .values(uses_left=_L.uses_left - 1)
)
_REMOVE_LINK = sa.delete(tables.SHARE_LINKS).where(
    _L.link_id == sa.bindparam("link"), _L.session_id == sa.bindparam("id")
)
_INSERT_SENT = sa.insert(tables.SENT_MESSAGES)
_LIST_SENT = (
    sa.select(tables.SENT_MESSAGES).where(_T.session_id == sa.bindparam("id")).order_by(_T.sent_at, _T.message_id)
)
_LIST_SENT_OF = _LIST_SENT.where(_T.message_id.in_(sa.bindparam("messages", expanding=True)))
_REMOVE_SENT = sa.delete(tables.SENT_MESSAGES).where(_T.session_id == sa.bindparam("id"))
_REMOVE_LINKS = sa.delete(tables.SHARE_LINKS).where(_L.session_id == sa.bindparam("id"))


class SqlMemberStore:
    """Members and links, in tables."""

    def __init__(self, database: engine.Database) -> None:
        self._database: engine.Database | engine.Closed = database

    async def put(self, member: Member) -> None:
        """Make somebody a member, in place of what they were."""
        await self._database.write(lambda connection: _replace(connection, member))

    async def amend(self, session_id: str, person: Owner, change: Change) -> Member | None:
        """Change what somebody is, in one transaction with reading it."""

        def write(connection: sa.Connection) -> Member | None:
            row = connection.execute(_FIND.with_for_update(), _key(session_id, person)).first()
            before = None if row is None else _member(row)
            changed = change(before)
            if changed is None:
                return before
            _replace(connection, changed)
            return changed

        return await self._database.write(write)

    async def find(self, session_id: str, person: Owner) -> Member | None:
        """Return what somebody is in a session."""
        row = await self._database.read(lambda c: c.execute(_FIND, _key(session_id, person)).first())
        return None if row is None else _member(row)

    async def list_of(self, session_id: str) -> Sequence[Member]:
        """Return the members of a session."""
        return await self._database.read(lambda c: [_member(row) for row in c.execute(_LIST_OF, {"id": session_id})])

    async def list_for(self, person: Owner) -> Sequence[Member]:
        """Return where somebody is a member."""
        values = {"tenant": person.tenant, "user": person.user}
        return await self._database.read(lambda c: [_member(row) for row in c.execute(_LIST_FOR, values)])

    async def remove(self, session_id: str, person: Owner | None = None) -> int:
        """Remove a member, or everybody, the sharing and the links."""

        def write(connection: sa.Connection) -> int:
            if person is not None:
                return connection.execute(_REMOVE, _key(session_id, person)).rowcount
            connection.execute(_REMOVE_SHARING, {"id": session_id})
            connection.execute(_REMOVE_LINKS, {"id": session_id})
            connection.execute(_REMOVE_SENT, {"id": session_id})
            return connection.execute(_REMOVE_ALL, {"id": session_id}).rowcount

        return await self._database.write(write)

    async def amend_sharing(self, session_id: str, change: ChangeSharing) -> Sharing | None:
        """Change how a session is shared, in one transaction with reading it."""

        def write(connection: sa.Connection) -> Sharing | None:
            row = connection.execute(_FIND_SHARING.with_for_update(), {"id": session_id}).first()
            before = None if row is None else _sharing(row)
            changed = change(before)
            if changed is None:
                return before
            said = {"session_id": session_id, "busy": changed.busy.value, "billing": changed.billing.value}
            connection.execute(_REMOVE_SHARING, {"id": session_id})
            connection.execute(_INSERT_SHARING, said)
            return changed

        return await self._database.write(write)

    async def find_sharing(self, session_id: str) -> Sharing | None:
        """Return how a session is shared."""
        row = await self._database.read(lambda c: c.execute(_FIND_SHARING, {"id": session_id}).first())
        return None if row is None else _sharing(row)

    async def add_sent(self, sent: SentBy) -> None:
        """Keep who sent a message."""
        row = {
            "session_id": sent.session_id,
            "message_id": sent.message_id,
            "turn_id": sent.turn_id,
            "user_name": sent.user,
            "sent_at": sent.at,
        }
        await self._database.write(lambda c: engine.insert_once(c, tables.SENT_MESSAGES, row))

    async def list_sent(self, session_id: str, message_ids: Collection[str] | None = None) -> Sequence[SentBy]:
        """Return who sent the messages of a session."""
        wanted, values = (_LIST_SENT, {}) if message_ids is None else (_LIST_SENT_OF, {"messages": list(message_ids)})
        given = {"id": session_id, **values}
        return await self._database.read(lambda c: [SentBy(*row) for row in c.execute(wanted, given)])

    async def add_link(self, link: ShareLink) -> None:
        """Keep a new link."""
        row = {
            "link_id": link.link_id,
            "session_id": link.session_id,
            "secret_hash": link.secret_hash,
            "roles": _words(link.roles),
            "expires_at": link.expires_at,
            "uses_left": link.uses_left,
        }
        await self._database.write(lambda c: c.execute(_INSERT_LINK, row))

    async def list_links(self, session_id: str) -> Sequence[ShareLink]:
        """Return the links of a session."""
        return await self._database.read(lambda c: [_link(row) for row in c.execute(_LIST_LINKS, {"id": session_id})])

    async def find_link(self, link_id: str) -> ShareLink | None:
        """Return a link."""
        row = await self._database.read(lambda c: c.execute(_FIND_LINK, {"link": link_id}).first())
        return None if row is None else _link(row)

    async def use_link(self, link_id: str, now: float) -> ShareLink | None:
        """Use a link once."""

        def write(connection: sa.Connection) -> ShareLink | None:
            row = connection.execute(_FIND_LINK, {"link": link_id}).first()
            was_used = connection.execute(_USE_LINK, {"link": link_id, "now": now}).rowcount == 1
            return _link(row) if row is not None and was_used else None

        return await self._database.write(write)

    async def revoke_link(self, session_id: str, link_id: str) -> bool:
        """Remove a link."""
        values = {"link": link_id, "id": session_id}
        return await self._database.write(lambda c: c.execute(_REMOVE_LINK, values).rowcount == 1)

    async def aclose(self) -> None:
        """Refuse further calls; the database is closed by whoever opened it. Idempotent."""
        self._database = engine.Closed()


def _key(session_id: str, person: Owner) -> dict[str, str]:
    return {"id": session_id, "tenant": person.tenant, "user": person.user}


def _replace(connection: sa.Connection, member: Member) -> None:
    row = {
        "session_id": member.session_id,
        "tenant_name": member.person.tenant,
        "user_name": member.person.user,
        "roles": _words(member.roles),
        "since": member.since,
        "is_invited": int(member.is_invited),
    }
    connection.execute(_REMOVE, _key(member.session_id, member.person))
    connection.execute(_INSERT, row)


def _words(roles: frozenset[Role]) -> str:
    return ",".join(sorted(role.value for role in roles))


def _roles(words: str) -> frozenset[Role]:
    return frozenset(Role(word) for word in words.split(","))


def _sharing(row: sa.Row[*tuple[str, str, str]]) -> Sharing:
    session_id, busy, billing = row
    return Sharing(session_id, BusyPolicy(busy), Billing(billing))


def _member(row: sa.Row[*tuple[str, str, str, str, float, int]]) -> Member:
    session_id, tenant, user, roles, since, is_invited = row
    return Member(session_id, Owner(tenant, user), _roles(roles), since, bool(is_invited))


def _link(row: sa.Row[*tuple[str, str, str, str, float, int]]) -> ShareLink:
    link_id, session_id, secret_hash, roles, expires_at, uses_left = row
    return ShareLink(link_id, session_id, secret_hash, _roles(roles), expires_at, uses_left)
