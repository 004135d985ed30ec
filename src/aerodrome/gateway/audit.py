"""What the gateway has recorded in the audit log: decisions about links, sessions and calls; never what a call carries.

One small object that all links share; hooks elsewhere are one line each. A call that is allowed and is none of those below is
not seen here at all. A refusal is recorded where it is made, once; equal ones of one user (of one address, before it has
proved who it is) are counted (core.damping). Why something was refused is said in fixed words: an error's code, the parameter's
name, the method table's reason. What a client chose of a record (a method, a name) is cut short and masked.
"""

from __future__ import annotations

import asyncio
import ipaddress
import time
from typing import TYPE_CHECKING, Any

from aerodrome import errors, redaction
from aerodrome.core import audit, identity, jwt
from aerodrome.core.audit import Action, Entry, Outcome
from aerodrome.core.damping import Damper
from aerodrome.core.identity import Owner, Principal
from aerodrome.core.session import SessionRecord
from aerodrome.core.turn_order import Lease
from aerodrome.ports.audit import AuditLog

if TYPE_CHECKING:
    from aerodrome.gateway.client import Client, Request

#: What a verb is about: a session and whose it is, or a user; as far as they are known.
About = tuple[str | None, Owner | None]
_COLLECT_SECONDS = 1.0
#: Refusals of what was asked for; the others say that it cannot be had now, which is no judgement of who asked.
_DECISIONS = frozenset(
    {
        "policy_rejected",
        "method_unknown",
        "params_invalid",
        "session_missing",
        "already_exists",
        "authentication_failed",
        "request_invalid",
        "parse_failed",
        "frame_too_large",
    }
)
#: Those who have not proved who they are share one budget.
_STRANGERS = ""
#: An id that is longer names no session.
_MAX_ID_CHARACTERS = 300


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
        self._note_stranger(Action.LINK_AUTHENTICATE, peer, error.code, _key_id_of(token))

    def broke_off(self, peer: str, client: Client | None, error: errors.InvalidRequest) -> None:
        """A link said what is no message: a broken or too large frame, no JSON, JSON that is nested too deep."""
        if client is None:
            self._note_stranger(Action.LINK_FRAME, peer, error.code)
        else:
            self._note_refusal(client, Entry(Action.LINK_FRAME, Outcome.REFUSED, **_who(client), reason=error.code))

    def closed(self, client: Client, reason: str) -> None:
        """The gateway closes a link: its principal has ended, or its policy has changed."""
        self.note(Entry(Action.LINK_CLOSE, **{**_who(client), "by": "gateway"}, reason=reason))

    # -- sessions and calls ---------------------------------------------------------------------------------------------

    def session(self, client: Client, action: Action, session_id: str, method: str | None = None) -> None:
        """A client has begun or ended a session."""
        owner = client.owner if client.is_seat else None
        self.note(Entry(action, **_who(client), session_id=session_id, session_owner=owner, method=method))

    def sent(self, client: Client, session_id: str, turn_id: str) -> None:
        """A turn of a shared session has begun: who sent it, in whose session."""
        entry = Entry(
            Action.TURN_SEND, **_who(client), session_id=session_id, session_owner=client.owner, target=_short(turn_id)
        )
        self.note(entry)

    def joined(self, client: Client, session_id: str, owner: Owner) -> None:
        """A client reads another's session from now on."""
        self.note(Entry(Action.SESSION_RESUME, **_who(client), session_id=session_id, session_owner=owner))

    def withdrew(self, client: Client, session_id: str, owner: Owner, turn: tuple[str, Owner], reason: str) -> None:
        """A client has taken back a turn (its id, and whose it is) that waited in a session of an owner, or held the lease."""
        turn_id, sender = turn
        entry = Entry(
            Action.TURN_WITHDRAW,
            **_who(client),
            session_id=session_id,
            session_owner=owner,
            whose=sender,
            target=_short(turn_id),
            reason=reason,
        )
        self.note(entry)

    def took_over(self, client: Client, session_id: str, owner: Owner, lease: Lease) -> None:
        """A client has the turn lease of a session after one that its holder did not release: it was lost to it."""
        if lease.lapsed is None:
            return
        entry = Entry(
            Action.TURN_TAKEOVER,
            **_who(client),
            session_id=session_id,
            session_owner=owner,
            whose=Owner(owner.tenant, lease.lapsed.member),
            target=_short(lease.lapsed.turn_id),
            reason="expired",
        )
        self.note(entry)

    def shared(self, client: Client, session_id: str, owner: Owner, what: str, whose: Owner | None = None) -> None:
        """A client has changed who may do what in a session (`whose` part in it), or its own place in it."""
        entry = Entry(
            Action.SESSION_SHARE, **_who(client), session_id=session_id, session_owner=owner, whose=whose, method=what
        )
        self.note(entry)

    def refused(self, client: Client, request: Request, error: errors.AerodromeError) -> None:
        """A call was refused for what it asks."""
        if self._log is None or error.code not in _DECISIONS:
            return
        reason = error.code
        if isinstance(error, (errors.PolicyRejected, errors.InvalidParams)):
            why = _plain(error.details.get("parameter") or error.details.get("limit"))
            if not why and request.row is not None and error.code == "policy_rejected":
                why = request.row.reason
            reason = f"{reason}: {why}" if why and why != "-" else reason
        entry = Entry(
            Action.CALL,
            Outcome.REFUSED,
            **_who(client),
            session_id=_short(request.session_id),
            method=_plain(request.method),
            reason=reason,
        )
        self._note_refusal(client, entry)

    def foreign(self, client: Client, method: str, session_id: str, owner: Owner | None) -> None:
        """A client named a session that is not its own, or is nobody's; it was told the same in both cases."""
        self.foreign_to(client.principal, client.link.peer, method, session_id, owner)

    def foreign_to(self, principal: Principal, peer: str, method: str, session_id: str, owner: Owner | None) -> None:
        """A caller, who need not have a link of its own, named a session that is not its own."""
        if self._log is None:
            return
        reason = "session_missing" if owner is None or owner == principal.owner else "session_foreign"
        entry = Entry(
            Action.CALL,
            Outcome.REFUSED,
            owner=principal.owner,
            key_id=principal.key_id or None,
            peer=peer,
            session_id=_short(session_id),
            session_owner=owner,
            method=_plain(method),
            reason=reason,
        )
        self._note_damped(principal.owner.tenant, principal.owner.user, entry)

    def unheard(self, client: Client, method: str) -> None:
        """A client said as a notification what only a request can ask for; nothing was done."""
        if self._log is None:
            return
        entry = Entry(Action.CALL, Outcome.REFUSED, **_who(client), method=_plain(method), reason="not_a_request")
        self._note_refusal(client, entry)

    # -- what policy does to sessions ---------------------------------------------------------------------------------

    def tool_refused(self, client: Client, session_id: str, tool: object) -> None:
        """A model called a tool of the client that policy denies; the client was not asked."""
        if self._log is None:
            return
        entry = Entry(
            Action.TOOL,
            Outcome.REFUSED,
            **_who(client),
            session_id=session_id,
            target=f"custom:{_plain(tool)}",
            reason="policy_rejected: tools",
        )
        self._note_refusal(client, entry)

    def restricted(self, client: Client, session_id: str, error: errors.AerodromeError | None = None) -> None:
        """A session that was open when its policy changed is held to it now; with an error its turn was aborted for it."""
        action = Action.SESSION_RESTRICT if error is None else Action.TURN_ABORT
        reason = "policy" if error is None else f"{error.code}: {_plain(error.details.get('parameter'))}".rstrip(": ")
        self.note(Entry(action, **{**_who(client), "by": "gateway"}, session_id=session_id, reason=reason))

    def policy_changed(self, tenant: str, reason: str, outcome: Outcome = Outcome.DONE) -> None:
        """A tenant's policy in the database is in force as it is there now, or could not be read."""
        self.note(Entry(Action.POLICY_RELOAD, outcome, by="gateway", tenant=tenant, reason=reason))

    def reloaded(self, by: str, reason: str, outcome: Outcome = Outcome.DONE) -> None:
        """The configuration was read again, and is in force or was refused."""
        self.note(Entry(Action.POLICY_RELOAD, outcome, by=by, reason=reason))

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

    def _note_refusal(self, client: Client, entry: Entry) -> None:
        self._note_damped(client.owner.tenant, client.owner.user, entry)

    def _note_stranger(self, action: Action, peer: str, reason: str, key_id: str | None = None) -> None:
        address = peer.rpartition(":")[0] or peer
        entry = Entry(action, Outcome.REFUSED, by="stranger", key_id=key_id, peer=address, reason=reason)
        self._note_damped(_STRANGERS, _network_of(address), entry)

    def _note_damped(self, group: str, member: str, entry: Entry) -> None:
        if self._log is None:
            return
        if self._damper.admits(group, member, entry, time.monotonic()):
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


def _short(session_id: str | None) -> str | None:
    return session_id[:_MAX_ID_CHARACTERS] if session_id is not None else None


def _plain(text: object) -> str:
    """Return a name that a client may have chosen, as a record may hold it."""
    return redaction.mask(audit.cut(text) or "") if isinstance(text, str) else ""


def _key_id_of(token: object) -> str | None:
    """Return the id of the key that a token says it stands on, where it has the form of one."""
    if not isinstance(token, str):
        return None
    parts = identity.split_token(token)
    if parts is not None:
        return parts[0]
    try:
        said = jwt.peek(token).key_id or ""
    except errors.AuthenticationFailed:
        return None
    return said if identity.is_id(said) else None


def _network_of(address: str) -> str:
    """Return whose an address is: itself, or the /64 of an IPv6 address, of which one host has as many as it likes."""
    try:
        found = ipaddress.ip_address(address.strip("[]").partition("%")[0])
    except ValueError:
        return address
    return address if found.version == 4 else str(ipaddress.ip_network((found, 64), strict=False))


#: For gateways that keep no audit log.
UNAUDITED = Auditor()
