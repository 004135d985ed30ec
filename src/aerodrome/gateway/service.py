"""The gateway for tenants: handshake, then a relay for each client link; and who of an owner's links hears what.

`serve` is what the listener runs for each link. Closing a link closes its upstream links at once (client loss policy `close`), or
when its turns have ended (`finish`).
"""

from __future__ import annotations

import asyncio
import functools
from collections import Counter
from collections.abc import Awaitable, Callable
from typing import Any, Protocol

from msgspec import UNSET

from aerodrome import errors
from aerodrome.core.flights import TurnEnd
from aerodrome.core.identity import Owner, Principal
from aerodrome.core.placement import Realm
from aerodrome.core.policy import Access, Policy
from aerodrome.gateway import handshake, reattach
from aerodrome.gateway.admission import Admission, TenantAdmission
from aerodrome.gateway.audience import Reader
from aerodrome.gateway.client import Client, Services
from aerodrome.gateway.downward import Downward
from aerodrome.gateway.handshake import Greeting
from aerodrome.gateway.relay import Relay
from aerodrome.gateway.sharing import NoteClient
from aerodrome.gateway.upstream import Upstream
from aerodrome.protocol import messages, reopening
from aerodrome.protocol.messages import PeekParams
from aerodrome.transport import tls
from aerodrome.transport.link import Link

#: Members of `connect` that would have one tenant told about, or act for, a whole runtime.
_GUARDED_CONNECT = ("entra", "enableGitHubTelemetryForwarding")


class Guest(Protocol):
    """Whoever is served on a principal's word without a link of its own: a stream of an HTTP edge."""

    @property
    def principal(self) -> Principal:
        """Return who it is."""
        ...

    def dismiss(self) -> None:
        """End what is served, because the principal has ended. Idempotent."""
        ...


class TenantGateway:
    """Serves the client links of many tenants. `guests` come and go by themselves; gateway.principal_watch looks at them too."""

    def __init__(self, services: Services, admission: Admission) -> None:
        self._services = services
        self._admission = admission
        self._clients: dict[str, set[Client]] = {}
        #: How many links each user has, without those of this process.
        self._links: Counter[Owner] = Counter()
        self.guests: set[Guest] = set()
        #: What edges keep of a person beside that, and forget when the person is erased.
        self.forgetters: list[Callable[[Owner], Awaitable[None]]] = []
        services.fleet.subscribe(self._broadcast)
        if isinstance(admission, TenantAdmission):
            admission.note_refused = functools.partial(services.recorder.reject, "authentication")
        if services.sharing is not None:
            services.sharing.serve_for = self.serve_for

    @property
    def services(self) -> Services:
        """Return what all its links share."""
        return self._services

    @property
    def admission(self) -> Admission:
        """Return what turns tokens into principals, for the other edges."""
        return self._admission

    @property
    def clients(self) -> list[Client]:
        """Return the client links that are open."""
        return [client for clients in self._clients.values() for client in clients]

    def find_policy(self, owner: Owner) -> Policy | None:
        """Return the policy that is in force for an owner who has a link here; None for one who has none."""
        return next((client.principal.policy for client in self.clients if client.owner == owner), None)

    def find_recipe(self, owner: Owner, session_id: str) -> dict[str, Any] | None:
        """Return what another link of an owner, that is here, opened a session with; None if none of theirs holds it."""
        for client in self.clients:
            held = client.attachments.get(session_id)
            if client.owner != owner or held is None or not held.is_live:
                continue
            if held.opening is not None:
                return dict(held.opening.asked)
            return reopening.resume_params(session_id, held.create, held.resume)
        return None

    async def serve(self, link: Link) -> None:
        """Serve one client link until it ends."""
        audit = self._services.audit
        try:
            greeting = await handshake.greet(link, self._admission, self._services.settings, audit)
        except errors.InvalidRequest as error:
            audit.broke_off(link.peer, None, error)
            raise
        if greeting is None:
            return
        tenant = greeting.principal.owner.tenant
        if self._services.settings.client_names_tenant and tenant not in tls.names_in(link.certificate):
            refusal = errors.AuthenticationFailed(f"the client's certificate does not name {tenant}")
            audit.not_authenticated(link.peer, None, refusal)
            link.send(handshake.answer_error(greeting.request_id, refusal))
            return
        owner, limit = greeting.principal.owner, self._services.settings.links_per_user
        if limit and self._links[owner] >= limit:
            crowded = errors.OverCapacity(f"expected at most {limit} links of one user, which are open: close some")
            self._services.recorder.reject("capacity")
            audit.not_authenticated(link.peer, None, crowded)
            link.send(handshake.answer_error(greeting.request_id, crowded))
            return
        audit.authenticated(link.peer, greeting.principal)
        self._links[owner] += 1
        try:
            await self._serve(link, greeting)
        finally:
            self._links[owner] -= 1
            if not self._links[owner]:
                del self._links[owner]

    async def serve_principal(self, link: Link, principal: Principal) -> None:
        """Serve a link of this process whose principal an edge has authenticated (http.program), until it ends."""
        link.limit_frames(self._services.settings.max_frame_bytes)
        await self._serve(link, Greeting(principal, None, {}, b""))

    async def serve_for(self, link: Link, principal: Principal, actor: Owner, note: NoteClient) -> None:
        """Serve a link of this process with an owner's identity, on behalf of a member of its sessions (gateway.seats)."""
        link.limit_frames(self._services.settings.max_frame_bytes)
        await self._serve(link, Greeting(principal, None, {}, b""), actor, note)

    async def _serve(
        self, link: Link, greeting: Greeting, actor: Owner | None = None, note: NoteClient = lambda _: None
    ) -> None:
        introduction = dict(greeting.params)
        if greeting.principal.policy.access is Access.GUARDED:
            for member in _GUARDED_CONNECT:
                introduction.pop(member, None)
        client = Client(link, greeting, introduction, self._services, actor)
        client.pump = Downward(client).pump
        note(client)
        if greeting.request_id is not None:
            result = handshake.connect_result(greeting.params, self._services.fleet.version)
            link.send(messages.result(greeting.request_id, result))
        try:
            await self._relay(client, greeting.rest)
        finally:
            self._forget(client)
            _answer_for(client)
            if client.is_dismissed:
                _say_last(client)
            if client.is_dismissed or not self._services.finishing.take(client, _release):
                await _release(client)

    def dismiss(self, client: Client, reason: str) -> None:
        """Close a link whose principal has ended: open requests are refused, turns end, nothing more is heard. Idempotent."""
        if client.is_dismissed:
            return
        client.is_dismissed = True
        client.log.warning("link.dismissed", reason=reason, user=client.owner.user)
        self._services.audit.closed(client, reason)
        if client in self._clients.get(client.realm.key, ()):
            client.term.reschedule(asyncio.get_running_loop().time())
        else:
            self._services.finishing.cut(client)

    async def _relay(self, client: Client, rest: list[bytes]) -> None:
        try:
            async with client.term:
                self._clients.setdefault(client.realm.key, set()).add(client)
                await Relay(client).run(rest)
        except errors.InvalidRequest as error:
            self._services.audit.broke_off(client.link.peer, client, error)
            raise
        except TimeoutError:
            if not client.is_dismissed:
                raise

    def _forget(self, client: Client) -> None:
        for reader in [seat for seat in client.seats.values() if isinstance(seat, Reader)]:
            reader.end()
            if self._services.sharing is not None:
                self._services.sharing.note_holders(self._services, reader.realm, reader.session_id)
        peers = self._clients.get(client.realm.key)
        if peers is not None:
            peers.discard(client)
            if not peers:
                del self._clients[client.realm.key]

    def _broadcast(self, realm: Realm, runtime_id: str, body: bytes) -> None:
        """Tell links without an upstream to that runtime what its lifecycle broadcast says of their owner's sessions."""
        clients = self._clients.get(realm.key)
        if not clients:
            return
        peek = messages.peek(body)
        params = peek.params if peek is not None else UNSET
        if not isinstance(params, PeekParams) or not isinstance(params.sessionId, str):
            return
        for client in clients:
            hears = client.is_alone or self._services.ownership.may_see(params.sessionId, client.owner)
            # A stalled client misses it: lifecycle is a hint, and memory for it would have no bound.
            if hears and runtime_id not in client.upstreams and not client.link.is_stalled:
                client.link.send(body)
                client.link.flush()


def _answer_for(client: Client) -> None:
    """Answer what an owner's program was asked for members of its session: their links to the runtime stay."""
    own = set(client.upstreams.values())
    for number, asked in client.asked.items():
        if isinstance(asked.upstream, Upstream) and asked.upstream not in own:
            client.asked.close(number)
            asked.upstream.send(
                messages.failure(asked.request_id, -32603, "the session's owner has left; it alone can answer")
            )
            asked.upstream.link.flush()


def _say_last(client: Client) -> None:
    """Refuse what is open and close the link, before its turns end: what becomes of them it is not told."""
    error = errors.AuthenticationFailed()
    for upstream in client.upstreams.values():
        for pending in upstream.owed.origins():
            if pending.waiter is None and pending.client_id is not None:
                client.refuse(pending.client_id, error)
                pending.client_id, pending.finish = None, None
    client.refuse(None, error)
    client.link.close()


async def _release(client: Client) -> None:
    """Close what a client link leaves: its upstream links at once, then the tasks that served it."""
    client.is_released = True
    for upstream in list(client.upstreams.values()):
        upstream.link.abort()
    for task in list(client.tasks):
        task.cancel()
    if client.tasks:
        await asyncio.wait(list(client.tasks))
    for upstream in list(client.upstreams.values()):
        reattach.settle(client, upstream)  # its reader was cancelled before it began
    for held in client.attachments.values():
        held.forget_ending()
        client.end_turn(held, TurnEnd.LEFT)
        client.services.router.detach(client.realm.key, held.session_id, client.number)
        client.services.residents.release(client, held.session_id)
