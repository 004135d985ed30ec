"""What the gateway has recorded in the audit log: decisions about links, sessions and calls; never what a call carries.

One small object that all links share; hooks elsewhere are one line each. A call that is allowed and is none of those below is
not seen here at all. Equal refusals of one link (of one address, before it has proved who it is) are recorded once a second,
with their count. Why something was refused is said in fixed words: an error's code, the parameter's name, the method table's
reason.
"""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING, Any

from aerodrome import errors
from aerodrome.core import identity
from aerodrome.core.audit import Action, Damper, Entry, Outcome
from aerodrome.core.identity import Owner, Principal
from aerodrome.core.session import SessionRecord
from aerodrome.ports.audit import AuditLog

if TYPE_CHECKING:
    from aerodrome.gateway.client import Client, Request

#: What a verb is about: a session and whose it is, or a user; as far as they are known.
About = tuple[str | None, Owner | None]
_COLLECT_SECONDS = 1.0
#: Refusals that are decisions; the others are accidents and mistakes, and are in no audit.
_DECISIONS = ("policy_rejected", "method_unknown", "session_missing", "already_exists", "authentication_failed")


class Auditor:
    """Says to an audit log what happens; to none (a gateway without one) it says nothing."""

    def __init__(self, log: AuditLog | None = None) -> None:
        self._log = log
        self._damper = Damper()
        self._timer: asyncio.TimerHandle | None = None

    @property
    def log(self) -> AuditLog | None:
        """Return the log, None where there is none."""
        return self._log

    def check(self) -> None:
        """Refuse to begin what could not be recorded. Raises errors.StoreUnavailable."""
        if self._log is not None:
            self._log.check()

    def close(self) -> None:
        """Record what is still counted. Idempotent."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._collect(float("inf"))

    # -- links ------------------------------------------------------------------------------------------------------------

    def authenticated(self, peer: str, principal: Principal) -> None:
        """A link has proved who it is."""
        self.note(Entry(Action.LINK_AUTHENTICATE, owner=principal.owner, key_id=principal.key_id or None, peer=peer))

    def not_authenticated(self, peer: str, token: object, error: errors.AerodromeError) -> None:
        """A link has failed to; of its token the key's id is kept, if it has the form of one."""
        parts = identity.split_token(token) if isinstance(token, str) else None
        entry = Entry(
            Action.LINK_AUTHENTICATE,
            Outcome.REFUSED,
            by="stranger",
            key_id=parts[0] if parts else None,
            peer=peer.rpartition(":")[0] or peer,
            reason=error.code,
        )
        self._note_damped(("peer", entry.peer), entry)

    # -- sessions and calls ---------------------------------------------------------------------------------------------

    def session(self, client: Client, action: Action, session_id: str, method: str | None = None) -> None:
        """A client has begun or ended a session."""
        owner = client.owner if client.is_seat else None
        self.note(Entry(action, **_who(client), session_id=session_id, session_owner=owner, method=method))

    def shared(self, client: Client, session_id: str, owner: Owner, what: str) -> None:
        """A client has changed who may do what in a session, or its own place in it."""
        entry = Entry(Action.SESSION_SHARE, **_who(client), session_id=session_id, session_owner=owner, method=what)
        self.note(entry)

    def refused(self, client: Client, request: Request, error: errors.AerodromeError) -> None:
        """A call was refused by a decision."""
        if self._log is None or error.code not in _DECISIONS:
            return
        reason = error.code
        if isinstance(error, errors.PolicyRejected):
            why = error.details.get("parameter") or (request.row.reason if request.row is not None else "")
            reason = f"{reason}: {why}" if why and why != "-" else reason
        entry = Entry(
            Action.CALL,
            Outcome.REFUSED,
            **_who(client),
            session_id=request.session_id,
            method=request.method,
            reason=reason,
        )
        self._note_damped(client.number, entry)

    def foreign(self, client: Client, method: str, session_id: str, owner: Owner | None) -> None:
        """A client named a session that is not its own, or is nobody's; it was told the same in both cases."""
        if self._log is None:
            return
        reason = "session_missing" if owner is None or owner == client.owner else "session_foreign"
        entry = Entry(
            Action.CALL,
            Outcome.REFUSED,
            **_who(client),
            session_id=session_id,
            session_owner=owner,
            method=method,
            reason=reason,
        )
        self._note_damped(client.number, entry)

    def foreign_to(self, principal: Principal, peer: str, method: str, session_id: str, owner: Owner | None) -> None:
        """A caller without a link of its own named a session that is not its own; told like the others."""
        reason = "session_missing" if owner is None else "session_foreign"
        entry = Entry(
            Action.CALL,
            Outcome.REFUSED,
            owner=principal.owner,
            key_id=principal.key_id or None,
            peer=peer,
            session_id=session_id,
            session_owner=owner,
            method=method,
            reason=reason,
        )
        self._note_damped((principal.owner, peer.rpartition(":")[0]), entry)

    def expired(self, record: SessionRecord, limit: str) -> None:
        """The gateway has deleted a session that had passed a limit."""
        entry = Entry(
            Action.SESSION_DELETE,
            by="gateway",
            tenant=record.owner.tenant,
            session_id=record.session_id,
            session_owner=record.owner,
            reason=limit,
        )
        self.note(entry)

    # -- operators --------------------------------------------------------------------------------------------------------

    def operated(
        self, caller: str, verb: str, runtime_id: str | None, whom: About, error: errors.AerodromeError | None = None
    ) -> None:
        """An operator uses a verb of the admin socket, or has tried to in vain."""
        session_id, owner = whom
        entry = Entry(
            Action.OPERATE,
            Outcome.ASKED if error is None else Outcome.FAILED,
            by=caller,
            method=verb,
            target=runtime_id,
            owner=owner if session_id is None else None,
            session_id=session_id,
            session_owner=owner,
            tenant=owner.tenant if owner is not None else None,
            reason=None if error is None else error.code,
        )
        self.note(entry)

    def note(self, entry: Entry) -> None:
        """Record something as it is."""
        if self._log is not None:
            self._log.record(entry)

    def _note_damped(self, source: object, entry: Entry) -> None:
        if self._log is None:
            return
        if self._damper.admits(source, entry, time.monotonic()):
            self._log.record(entry)
        if self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(_COLLECT_SECONDS, self._collect_later)

    def _collect_later(self) -> None:
        self._timer = None
        self._collect(time.monotonic())
        if len(self._damper):
            self._timer = asyncio.get_running_loop().call_later(_COLLECT_SECONDS, self._collect_later)

    def _collect(self, now: float) -> None:
        for entry in self._damper.collect(now):
            self.note(entry)


def _who(client: Client) -> dict[str, Any]:
    return {"owner": client.actor, "key_id": client.principal.key_id or None, "peer": client.link.peer}


#: For gateways that keep no audit log.
UNAUDITED = Auditor()
