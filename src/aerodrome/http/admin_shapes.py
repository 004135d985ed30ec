"""The bodies of /v1/admin that are not the gateway's own views (admin.views): keys, tenants, timelines, figures."""

from __future__ import annotations

import dataclasses
from typing import Any, Literal

import msgspec
from pydantic import BaseModel, Field

from aerodrome.core import identity, policy_document
from aerodrome.core.flights import ToolUse, Totals, TurnFlight
from aerodrome.core.identity import Key, Scope, Tenant
from aerodrome.http.desk import MOST_OVERLAP_SECONDS, Flight, NewKey, UserRow
from aerodrome.http.options import Body

_YEARS = 10 * 366 * 86400.0


class KeyWanted(Body):
    """A key to be made."""

    tenant: str = Field(
        default="", max_length=64, description="left out by a tenant's admin, and for an operator's key"
    )
    user: str = Field(max_length=64, description="whose it is: 1 to 64 of a-z, 0-9, `_ . @ -`")
    scopes: list[Literal["connect", "mint", "admin", "operate"]] = Field(
        default=["connect"], min_length=1, max_length=4
    )
    expires_seconds: float | None = Field(
        default=None, gt=0, le=_YEARS, description="how long it lives; never without it"
    )

    def wanted(self) -> NewKey:
        """Return it as the desk takes it."""
        return NewKey(self.tenant, self.user, frozenset(Scope(word) for word in self.scopes), self.expires_seconds)


class Rotation(Body):
    """How a key is rotated."""

    overlap_seconds: float = Field(
        default=86400.0, ge=0, le=MOST_OVERLAP_SECONDS, description="how long the old one works"
    )


class CordonWanted(Body):
    """Why a runtime is cordoned."""

    reason: str = Field(default="cordoned by an operator", min_length=1, max_length=200)


class MigrationWanted(Body):
    """Where a session goes."""

    to_runtime_id: str | None = Field(default=None, max_length=250, description="any other runtime without it")


class KeyInfo(BaseModel):
    """A key: everything but its secret, which is not kept."""

    key_id: str
    tenant: str | None = Field(description="null for an operator's")
    user: str
    scopes: list[str]
    state: Literal["active", "expired", "revoked"]
    created_at: float
    expires_at: float | None
    revoked_at: float | None


class KeyMade(KeyInfo):
    """A key that was just made; `token` is shown this once."""

    token: str


class KeyList(BaseModel):
    """Keys, the newest first, page by page; `next` is what to continue after."""

    keys: list[KeyInfo]
    next: str | None


class TenantInfo(BaseModel):
    """A tenant, its policy as the configuration would say it, and what differs for some users."""

    name: str
    source: Literal["config", "database"]
    policy: dict[str, Any]
    users: dict[str, dict[str, Any]]


class TenantList(BaseModel):
    """Tenants, by name, page by page; `next` is what to continue after."""

    tenants: list[TenantInfo]
    next: str | None


class UsageInfo(BaseModel):
    """What was taken since the gateway started."""

    turns: int
    failed_turns: int
    seconds: float
    model_calls: int
    input_tokens: int
    output_tokens: int
    cache_read_tokens: int


class UserInfo(BaseModel):
    """A user of a tenant."""

    tenant: str
    user: str
    live_keys: int
    held_sessions: int
    usage: UsageInfo


class UserList(BaseModel):
    """Users, by name, page by page; `next` is what to continue after."""

    users: list[UserInfo]
    next: str | None


class AuditList(BaseModel):
    """The last records of the audit log, the newest first."""

    records: list[dict[str, Any]]


class ToolInfo(BaseModel):
    """A call of a tool within a turn."""

    name: str
    began_at: float
    ended_at: float | None
    is_failed: bool


class TurnInfo(BaseModel):
    """A turn of a session, whichever link sent it. `status` is `running` while it does."""

    began_at: float
    spoke_at: float | None
    ended_at: float | None
    status: str
    error: str | None
    model: str | None
    runtime_id: str | None
    model_calls: int
    input_tokens: int
    output_tokens: int
    tools: list[ToolInfo]


class PlaceInfo(BaseModel):
    """Where a session came to be: in a runtime, or (null) in none; and why."""

    at: float
    runtime_id: str | None
    why: str


class Timeline(BaseModel):
    """What a session did of late, since the gateway started."""

    session_id: str
    tenant: str
    user: str
    turns: list[TurnInfo]
    places: list[PlaceInfo]


class Outcome(BaseModel):
    """What became of an action."""

    outcome: str
    runtime_id: str | None = None


class Drained(BaseModel):
    """A drain has begun."""

    at_work: int | None
    drain_seconds: float


class Cordoned(BaseModel):
    """A runtime takes nothing new."""

    runtime_id: str
    reason: str
    was_cordoned: bool


class Recycled(BaseModel):
    """Runtimes that are being replaced."""

    runtimes: list[str]
    left: list[str]


class ReloadInfo(BaseModel):
    """What a reload did."""

    tenants: int
    links: int
    needs_restart: list[str]


class Figure(BaseModel):
    """What happened in a few seconds from `begins` on (Unix time)."""

    begins: float
    turns: int
    failed_turns: int
    rejections: int
    turn_seconds_p50: float | None
    turn_seconds_p95: float | None
    active_sessions: int | None
    links: int | None
    runtimes: int | None


class Figures(BaseModel):
    """The last hour, the oldest first."""

    bucket_seconds: float
    figures: list[Figure]


def key_info(key: Key, now: float) -> KeyInfo:
    """Return a key as it is shown."""
    state: Literal["active", "expired", "revoked"] = "active"
    if not key.is_live(now):
        state = "revoked" if key.revoked_at is not None else "expired"
    return KeyInfo(
        key_id=key.key_id,
        tenant=None if key.owner.tenant == identity.NO_TENANT else key.owner.tenant,
        user=key.owner.user,
        scopes=sorted(scope.value for scope in key.scopes),
        state=state,
        created_at=key.created_at,
        expires_at=key.expires_at,
        revoked_at=key.revoked_at,
    )


def tenant_info(tenant: Tenant) -> TenantInfo:
    """Return a tenant as it is shown."""
    source: Literal["config", "database"] = "config" if tenant.source == "config" else "database"
    words = {field: word for word, (field, _) in policy_document.WORDS.items()}
    policy = {word: msgspec.to_builtins(getattr(tenant.policy, field)) for field, word in words.items()}
    overrides = {
        user: {words[field]: msgspec.to_builtins(value) for field, value in override.said.items()}
        for user, override in tenant.users.items()
    }
    return TenantInfo(name=tenant.name, source=source, policy=policy, users=overrides)


def usage_info(totals: Totals) -> UsageInfo:
    """Return what was taken as it is shown."""
    return UsageInfo(
        turns=totals.turns,
        failed_turns=totals.failed,
        seconds=totals.seconds,
        model_calls=totals.tokens.calls,
        input_tokens=totals.tokens.taken,
        output_tokens=totals.tokens.given,
        cache_read_tokens=totals.tokens.cached,
    )


def user_info(row: UserRow) -> UserInfo:
    """Return a user as it is shown."""
    return UserInfo(
        tenant=row.tenant,
        user=row.user,
        live_keys=row.live_keys,
        held_sessions=row.held_sessions,
        usage=usage_info(row.totals),
    )


def timeline(found: Flight) -> Timeline:
    """Return what a session did as it is shown."""
    return Timeline(
        session_id=found.session_id,
        tenant=found.owner.tenant,
        user=found.owner.user,
        turns=[_turn(turn) for turn in found.flight.turns],
        places=[PlaceInfo(**dataclasses.asdict(place)) for place in found.flight.places],
    )


def _turn(turn: TurnFlight) -> TurnInfo:
    return TurnInfo(
        began_at=turn.began_at,
        spoke_at=turn.spoke_at,
        ended_at=turn.ended_at,
        status=turn.end.value if turn.ended_at is not None and turn.end is not None else "running",
        error=turn.error,
        model=turn.model,
        runtime_id=turn.runtime_id,
        model_calls=turn.tokens.calls,
        input_tokens=turn.tokens.taken,
        output_tokens=turn.tokens.given,
        tools=[_tool(tool) for tool in turn.tools.values()],
    )


def _tool(tool: ToolUse) -> ToolInfo:
    return ToolInfo(name=tool.name, began_at=tool.began_at, ended_at=tool.ended_at, is_failed=tool.is_failed)
