"""`/v1/sessions/{id}/members`, `/links`, `/queue` and `/lease`: shared sessions over HTTP.

Thin: each is one call of gateway.sharing_calls on the caller's link, where rights are judged; what comes back is written in this
API's names.
"""

from __future__ import annotations

import asyncio
from contextlib import suppress
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Path, Query, Request, Response
from pydantic import BaseModel, Field

from aerodrome import errors
from aerodrome.http import presence, problems, program, shapes
from aerodrome.http.callers import Authenticated, Caller
from aerodrome.http.options import Body
from aerodrome.http.session_routes import SessionId

router = APIRouter(prefix="/v1", tags=["sharing"])
_Role = Literal["driver", "approver", "observer"]
User = Annotated[str, Path(min_length=1, max_length=64)]
Limit = Annotated[int, Query(ge=1, le=200)]
After = Annotated[str | None, Query(max_length=250, description="`next` of the page before")]
_ONE = "/sessions/{session_id}"
_PAGE = 200
#: A call that waits for its turn is answered so long after the end of its wait at the latest.
_SPARE_SECONDS = 10.0


class Roles(Body):
    """What somebody is to be."""

    roles: list[_Role] = Field(min_length=1, max_length=3)


class NewMember(Roles):
    """Whom to invite, of the owner's tenant."""

    user: str = Field(min_length=1, max_length=64)


class NewLink(Roles):
    """A share link: whoever of the tenant has its token becomes a member."""

    seconds: float = Field(default=86400, gt=0, le=30 * 86400)
    uses: int = Field(default=1, ge=1, le=1000)


class SharingChange(Body):
    """How a session is shared; what is left out stays."""

    busy: Literal["enqueue", "reject", "interrupt", "steer"] | None = Field(
        default=None, description="what becomes of a message while a turn runs"
    )
    billing: Literal["sender", "owner"] | None = Field(default=None, description="whose usage a turn is")


class ShareToken(Body):
    """The token of a share link."""

    token: str = Field(max_length=200)


class NewLease(Body):
    """A turn that the caller will send itself: nobody else sends until it is released or expires."""

    ttl_seconds: float = Field(default=15, ge=0.1, le=3600)
    wait_seconds: float = Field(default=30, ge=0, le=3600)


class LeaseChange(Body):
    """A lease to be renewed."""

    token: int
    ttl_seconds: float = Field(default=15, ge=0.1, le=3600)


class MemberView(BaseModel):
    """Somebody in a session."""

    session_id: str
    user: str
    roles: list[str]
    since: float
    is_invited: bool = Field(description="has not accepted yet, and may nothing until then")


class Waiting(BaseModel):
    """A turn that waits; position 1 is the next."""

    turn_id: str
    sender: str
    position: int
    waiting_seconds: float


class Running(BaseModel):
    """The turn that runs."""

    turn_id: str
    sender: str
    since_seconds: float


class Queue(BaseModel):
    """What runs and what waits."""

    running: Running | None
    queue: list[Waiting]


class QueuePage(Queue):
    """What runs and some of what waits, the next one first."""

    next: str | None = Field(description="give it as `after` for the next page; null: this is the last")


class Here(BaseModel):
    """Somebody whose links have the session open."""

    user: str
    links: int


class SharingView(Queue):
    """How a session is shared, and who is in it."""

    owner: str
    busy: Literal["enqueue", "reject", "interrupt", "steer"]
    billing: Literal["sender", "owner"]
    members: list[MemberView]
    here: list[Here]


class MemberPage(BaseModel):
    """Some of the members of a session and of those invited, the longest there first."""

    members: list[MemberView]
    next: str | None = Field(description="give it as `after` for the next page; null: this is the last")


class LinkMade(BaseModel):
    """A new share link; its token is shown once."""

    link_id: str
    token: str
    expires_at: float
    uses: int


class LinkView(BaseModel):
    """A share link."""

    link_id: str
    roles: list[str]
    expires_at: float
    uses_left: int


class LinkList(BaseModel):
    """Some of the share links of a session, by id."""

    links: list[LinkView]
    next: str | None = Field(description="give it as `after` for the next page; null: this is the last")


class LeaseView(BaseModel):
    """A lease: send `lease` with messages; a token that is stale is told 409 `lease_lost`."""

    turn_id: str | None = None
    token: int
    ttl_seconds: float


class Withdrawn(BaseModel):
    """The turns that were taken back."""

    withdrawn: list[str]


@router.get(f"{_ONE}/sharing", responses=problems.documented(404), operation_id="getSharing")
async def look(session_id: SessionId, caller: Authenticated) -> SharingView:
    """Say how a session is shared, who is in it, who is here, and whose turn it is."""
    return SharingView.model_validate(await _ask(caller, "sharing.look", session_id))


@router.patch(f"{_ONE}/sharing", responses=problems.documented(404), operation_id="changeSharing")
async def change(session_id: SessionId, wanted: SharingChange, caller: Authenticated) -> SharingView:
    """Change what becomes of messages while a turn runs, and whose usage turns are."""
    await _ask(caller, "sharing.set", session_id, **wanted.model_dump(exclude_none=True))
    return await look(session_id, caller)


@router.get(f"{_ONE}/members", responses=problems.documented(404), operation_id="listMembers")
async def list_members(
    session_id: SessionId, caller: Authenticated, limit: Limit = _PAGE, after: After = None
) -> MemberPage:
    """List the members of a session and those invited, the longest there first."""
    view = SharingView.model_validate(await _ask(caller, "sharing.look", session_id))
    page, following = shapes.page(view.members, lambda one: one.user, limit, after)
    return MemberPage(members=page, next=following)


@router.post(f"{_ONE}/members", status_code=201, responses=problems.documented(404), operation_id="inviteMember")
async def invite(session_id: SessionId, wanted: NewMember, caller: Authenticated) -> MemberView:
    """Invite somebody of the same tenant; they are in once they accept."""
    return _member(await _ask(caller, "members.invite", session_id, user=wanted.user, roles=wanted.roles))


@router.post(f"{_ONE}/members/accept", responses=problems.documented(404), operation_id="acceptInvitation")
async def accept(session_id: SessionId, caller: Authenticated) -> MemberView:
    """Accept an invitation."""
    return _member(await _ask(caller, "members.accept", session_id))


@router.post(f"{_ONE}/members/leave", responses=problems.documented(404), operation_id="leaveSession")
async def leave(session_id: SessionId, caller: Authenticated) -> Withdrawn:
    """Leave a session; turns of one's own that wait in it are taken back."""
    return Withdrawn.model_validate(await _ask(caller, "members.leave", session_id))


@router.patch(f"{_ONE}/members/{{user}}", responses=problems.documented(404), operation_id="changeMember")
async def change_member(session_id: SessionId, user: User, wanted: Roles, caller: Authenticated) -> MemberView:
    """Give a member other roles, from now on."""
    return _member(await _ask(caller, "members.change", session_id, user=user, roles=wanted.roles))


@router.delete(f"{_ONE}/members/{{user}}", responses=problems.documented(404), operation_id="removeMember")
async def remove(session_id: SessionId, user: User, caller: Authenticated) -> Withdrawn:
    """Remove a member: it hears and says nothing more from now on."""
    return Withdrawn.model_validate(await _ask(caller, "members.remove", session_id, user=user))


@router.post(f"{_ONE}/links", status_code=201, responses=problems.documented(404), operation_id="createShareLink")
async def create_link(session_id: SessionId, wanted: NewLink, caller: Authenticated, response: Response) -> LinkMade:
    """Make a share link. Its token is shown once, also to a retry with the same idempotency key."""
    response.headers["Cache-Control"] = "no-store"
    return LinkMade.model_validate(await _ask(caller, "links.create", session_id, **wanted.model_dump()))


@router.get(f"{_ONE}/links", responses=problems.documented(404), operation_id="listShareLinks")
async def list_links(
    session_id: SessionId, caller: Authenticated, limit: Limit = _PAGE, after: After = None
) -> LinkList:
    """List the share links of a session; their tokens cannot be had again."""
    found = [LinkView.model_validate(one) for one in (await _ask(caller, "links.list", session_id))["links"]]
    page, following = shapes.page(found, lambda one: one.link_id, limit, after)
    return LinkList(links=page, next=following)


@router.delete(
    f"{_ONE}/links/{{link_id}}", status_code=204, responses=problems.documented(404), operation_id="revokeShareLink"
)
async def revoke_link(
    session_id: SessionId, link_id: Annotated[str, Path(pattern=shapes.SESSION_ID)], caller: Authenticated
) -> None:
    """Revoke a share link; who came by it stays a member."""
    await _ask(caller, "links.revoke", session_id, linkId=link_id)


@router.post("/share", responses=problems.documented(404), operation_id="useShareLink")
async def use_link(wanted: ShareToken, caller: Authenticated) -> MemberView:
    """Become a member by a share link."""
    user = await caller.user()
    return _member(await user.program.call("aerodrome.links.use", {"token": wanted.token}))


@router.get(f"{_ONE}/queue", responses=problems.documented(404), operation_id="getQueue")
async def queue(session_id: SessionId, caller: Authenticated, limit: Limit = _PAGE, after: After = None) -> QueuePage:
    """Say which turn runs and which wait, in order."""
    found = Queue.model_validate(await _ask(caller, "turns.look", session_id))
    page, following = shapes.page(found.queue, lambda one: one.turn_id, limit, after)
    return QueuePage(running=found.running, queue=page, next=following)


@router.delete(f"{_ONE}/queue/{{turn_id}}", responses=problems.documented(404), operation_id="withdrawWaitingTurn")
async def withdraw(
    session_id: SessionId, turn_id: Annotated[str, Path(pattern=shapes.SESSION_ID)], caller: Authenticated
) -> Withdrawn:
    """Take back a turn that waits: one's own, or any of one's own session."""
    return Withdrawn.model_validate(await _ask(caller, "turns.withdraw", session_id, turnId=turn_id))


@router.post(
    f"{_ONE}/lease", responses=problems.documented(404, 409), response_model=LeaseView, operation_id="acquireLease"
)
async def acquire(session_id: SessionId, wanted: NewLease, caller: Authenticated, request: Request) -> Any:
    """Acquire the turn, in order with those who wait, and hold it for messages of one's own."""
    work = _ask(caller, "turns.acquire", session_id, wanted.wait_seconds + _SPARE_SECONDS, **wanted.model_dump())
    asking = asyncio.ensure_future(work)
    is_here = False
    try:
        is_here = await presence.stays(request, caller, _over(asking))
    finally:
        if not is_here:
            caller.site.users.spawn(_give_back(caller, session_id, asking))
    return LeaseView.model_validate(asking.result()) if is_here else presence.nobody()


async def _over(asking: asyncio.Future[dict[str, Any]]) -> None:
    await asyncio.wait((asking,))


async def _give_back(caller: Caller, session_id: str, asking: asyncio.Future[dict[str, Any]]) -> None:
    """Release a lease that nobody waits for any more, once it is there."""
    with suppress(errors.AerodromeError):
        await _ask(caller, "turns.release", session_id, token=(await asking)["token"])


@router.patch(f"{_ONE}/lease", responses=problems.documented(404, 409), operation_id="renewLease")
async def renew(session_id: SessionId, wanted: LeaseChange, caller: Authenticated) -> LeaseView:
    """Hold the turn longer."""
    return LeaseView.model_validate(await _ask(caller, "turns.renew", session_id, **wanted.model_dump()))


@router.delete(f"{_ONE}/lease", status_code=204, responses=problems.documented(404, 409), operation_id="releaseLease")
async def release(session_id: SessionId, token: Annotated[int, Query()], caller: Authenticated) -> None:
    """Let the next one go. Releasing what is over already is no mistake."""
    await _ask(caller, "turns.release", session_id, token=token)


async def _ask(
    caller: Caller, verb: str, session_id: str, seconds: float = program.CALL_SECONDS, **params: Any
) -> dict[str, Any]:
    user = await caller.user()
    said = {"sessionId": session_id, **{_camel(name): value for name, value in params.items()}}
    answer = await user.program.call(f"aerodrome.{verb}", said, seconds)
    found = _snake(answer)
    assert isinstance(found, dict)
    return found


def _member(answer: dict[str, Any]) -> MemberView:
    return MemberView.model_validate(_snake(answer))


def _camel(name: str) -> str:
    first, *rest = name.split("_")
    return first + "".join(word.capitalize() for word in rest)


def _snake(value: Any) -> Any:
    """Return an answer in this API's names."""
    if isinstance(value, dict):
        return {_snake_name(name): _snake(member) for name, member in value.items()}
    return [_snake(member) for member in value] if isinstance(value, list) else value


def _snake_name(name: str) -> str:
    return "".join(f"_{letter.lower()}" if letter.isupper() else letter for letter in name)
