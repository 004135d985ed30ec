"""`/v1/me`, `/v1/models`, `/v1/usage`, `/v1/tokens`: what a caller is, may have, has used, and may make."""

from __future__ import annotations

import re
from datetime import date
from typing import Annotated

from fastapi import APIRouter, Depends, Query, Response
from pydantic import BaseModel, Field

from aerodrome import errors
from aerodrome.core.identity import Owner
from aerodrome.core.policy import Policy
from aerodrome.core.provider import NamedProvider
from aerodrome.core.usage import DayUsage, day_of
from aerodrome.http import callers, problems, shapes
from aerodrome.http.callers import Authenticated, MintingCaller
from aerodrome.http.options import Body
from aerodrome.http.shapes import UsageFigures

router = APIRouter(prefix="/v1", tags=["account"])
_DAYS = 30
_PAGE = 200
_USER = re.compile(r"[a-z0-9](?:[a-z0-9_.@-]{0,62}[a-z0-9])?\Z")


class Limits(BaseModel):
    """What bounds a caller; 0: nothing."""

    requests_per_minute: int
    sessions: int = Field(description="that the user may own")
    sessions_of_tenant: int
    turns: int = Field(description="of the user that may run at once")
    turns_of_tenant: int


class Me(BaseModel):
    """Who calls, and what holds for them."""

    tenant: str
    user: str
    expires_at: float | None = Field(description="when the token ends; null: it does not by itself")
    isolation: str = Field(description="who shares runtimes with whom: `user`, `tenant` or `shared`")
    models: list[str] | None = Field(description="patterns of models that may be used; null: any")
    tools: list[str] | None = Field(description="patterns of tools that may be had; null: any")
    providers: list[str] = Field(description="the gateway's providers that sessions may name")
    default_provider: str | None
    limits: Limits


class Model(BaseModel):
    """A model that sessions may use."""

    id: str = Field(description="as `model` of a session")
    provider: str = Field(description="as `provider` of a session")
    is_default: bool = Field(description="what a session has that names neither")


class Models(BaseModel):
    """Models of the gateway's providers that the caller may use, by provider."""

    models: list[Model]
    open_providers: list[str] = Field(
        description="providers that take any model that policy allows; what they have is not known here"
    )
    next: str | None = Field(description="give it as `after` for the next page; null: this is the last")


class UsedDay(BaseModel):
    """What calls of one model took on one day, in UTC."""

    day: str
    model: str
    usage: UsageFigures


class UsedDays(BaseModel):
    """What the caller's model calls took, over HTTP and SDK links alike, the newest day first."""

    days: list[UsedDay]
    total: UsageFigures = Field(description="of all days asked for, whatever the page")
    next: str | None = Field(description="give it as `after` for the next page; null: this is the last")


class NewToken(Body):
    """A connection token to be made for a user of the caller's tenant."""

    user: str = Field(min_length=1, max_length=64, examples=["alice"])
    seconds: float = Field(default=3600.0, gt=0, description="how long it is good for")


class Token(BaseModel):
    """A connection token; it is shown once."""

    token: str
    key_id: str = Field(description="of the key that signed it: revoking that ends it")
    expires_at: float


@router.get("/me", responses=problems.documented(), operation_id="getMe")
async def me(caller: Authenticated) -> Me:
    """Return who calls, and what holds for them."""
    policy = caller.principal.policy
    known = caller.site.services.supplier.providers
    return Me(
        tenant=caller.owner.tenant,
        user=caller.owner.user,
        expires_at=caller.principal.expires_at,
        isolation=policy.isolation.value,
        models=list(policy.models) if policy.models is not None else None,
        tools=list(policy.tools) if policy.tools is not None else None,
        providers=[name for name in known if policy.allows_named(name)],
        default_provider=policy.provider,
        limits=Limits(
            requests_per_minute=caller.site.settings.requests_per_minute,
            sessions=policy.max_sessions_per_user,
            sessions_of_tenant=policy.max_sessions_per_tenant,
            turns=policy.max_turns_per_user,
            turns_of_tenant=policy.max_turns_per_tenant,
        ),
    )


@router.get("/models", responses=problems.documented(), operation_id="listModels")
async def list_models(
    caller: Authenticated,
    limit: Annotated[int, Query(ge=1, le=1000)] = _PAGE,
    after: Annotated[str | None, Query(max_length=400, description="`next` of the page before")] = None,
) -> Models:
    """List the models that the caller's sessions may use by the gateway's providers."""
    policy = caller.principal.policy
    allowed = [one for name, one in caller.site.services.supplier.providers.items() if policy.allows_named(name)]
    found = [model for provider in allowed for model in _models_of(provider, policy)]
    page, following = shapes.page(found, lambda one: f"{one.provider}/{one.id}", limit, after)
    return Models(models=page, open_providers=[one.name for one in allowed if not one.models], next=following)


def _models_of(provider: NamedProvider, policy: Policy) -> list[Model]:
    names = [*provider.models, *(alias for alias, _ in provider.aliases)]
    return [
        Model(
            id=name,
            provider=provider.name,
            is_default=provider.name == policy.provider and name == provider.default_model,
        )
        for name in dict.fromkeys(names)
        if policy.judge_model(name).is_allowed
    ]


@router.get("/usage", responses=problems.documented(), operation_id="getUsage")
async def usage(
    caller: Authenticated,
    first: Annotated[date | None, Query(description="a day in UTC; default: 29 days before `last`")] = None,
    last: Annotated[date | None, Query(description="a day in UTC; default: today")] = None,
    limit: Annotated[int, Query(ge=1, le=1000)] = _PAGE,
    after: Annotated[str | None, Query(max_length=200, description="`next` of the page before")] = None,
) -> UsedDays:
    """Return what the caller's model calls took, by day and model."""
    until = last or date.fromisoformat(day_of(caller.site.clock.now()))
    since = first or date.fromordinal(max(1, until.toordinal() - _DAYS + 1))
    found = list(await caller.site.services.usage.list_days(caller.owner, since.isoformat(), until.isoformat()))
    total = UsageFigures()
    for one in found:
        total = _sum(total, one)
    page, following = shapes.page(found, lambda one: f"{one.day}/{one.model}", limit, after)
    days = [UsedDay(day=one.day, model=one.model, usage=_sum(UsageFigures(), one)) for one in page]
    return UsedDays(days=days, total=total, next=following)


def _sum(total: UsageFigures, one: DayUsage) -> UsageFigures:
    return UsageFigures(**{name: getattr(total, name) + getattr(one.usage, name) for name in UsageFigures.model_fields})


@router.post("/tokens", status_code=201, responses=problems.documented(404), operation_id="mintToken")
async def mint(
    wanted: NewToken, minting: Annotated[MintingCaller, Depends(callers.authenticate_minter)], response: Response
) -> Token:
    """Make a connection token for a user of the tenant of the key that asks, which must have the scope `mint`.

    An idempotency key makes no difference here: tokens are not kept, so each call makes a new one.
    """
    if not _USER.match(wanted.user):
        raise errors.InvalidParams("user: expected 1 to 64 of a-z, 0-9, '_', '.', '@', '-', found another name")
    minted = await minting.minter.mint(Owner(minting.tenant, wanted.user), wanted.seconds)
    minting.note(wanted.user)
    response.headers["Cache-Control"] = "no-store"
    return Token(token=minted.token, key_id=minted.key_id, expires_at=minted.expires_at)
