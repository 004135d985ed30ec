"""A user's GitHub token, as it is used and as it is stored. Times are seconds since the Unix epoch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

import msgspec

from aerodrome import errors
from aerodrome.core import places
from aerodrome.core import policy as policies
from aerodrome.core.envelope import Envelopes
from aerodrome.core.identity import Owner
from aerodrome.core.secret import Secret

DEFAULT_HOST = "https://github.com"
#: Stands for the user's stored token in the parameters of a session.
STORED = "aerodrome:stored"


@dataclass(frozen=True, slots=True)
class GitHubToken:
    """An access token, and what it can be renewed with. `expires_at` None: it does not expire."""

    access: Secret
    refresh: Secret | None = None
    expires_at: float | None = None

    def needs_refresh(self, now: float, before_seconds: float) -> bool:
        """Say whether it should be renewed now, and can be."""
        return self.refresh is not None and self.expires_at is not None and now >= self.expires_at - before_seconds

    def is_expired(self, now: float) -> bool:
        """Say whether it is of no use any more."""
        return self.expires_at is not None and now >= self.expires_at


@dataclass(frozen=True, slots=True)
class StoredToken:
    """A token as it is kept: everything but the secrets, which are sealed for this owner."""

    owner: Owner
    sealed: str
    expires_at: float | None
    updated_at: float
    can_refresh: bool


@dataclass(frozen=True, slots=True)
class Account:
    """Whose token it is, at GitHub. `number` is theirs for ever; a login can be changed, and then be taken by another."""

    number: int
    login: str
    name: str | None = None
    email: str | None = None


@dataclass(frozen=True, slots=True)
class Endpoints:
    """Where a GitHub is asked: sign-ins and tokens at `host`, everything else at `api`."""

    host: str
    api: str


class _Content(msgspec.Struct):
    access: str
    refresh: str | None = None


def seal(envelopes: Envelopes, owner: Owner, token: GitHubToken, now: float) -> StoredToken:
    """Return a token as it may be stored."""
    refresh = None if token.refresh is None else token.refresh.reveal()
    content = msgspec.json.encode(_Content(token.access.reveal(), refresh))
    return StoredToken(owner, envelopes.seal(content, context(owner)), token.expires_at, now, refresh is not None)


def unseal(envelopes: Envelopes, stored: StoredToken) -> GitHubToken:
    """Return a stored token. Raises errors.SecretUnavailable."""
    try:
        content = msgspec.json.decode(envelopes.open(stored.sealed, context(stored.owner)), type=_Content)
    except msgspec.MsgspecError:
        raise errors.SecretUnavailable("a stored GitHub token is not readable; set it again") from None
    refresh = None if content.refresh is None else Secret(content.refresh)
    return GitHubToken(Secret(content.access), refresh, stored.expires_at)


def context(owner: Owner) -> str:
    """Return what a token is bound to: neither name may hold a slash (core.identity)."""
    return f"github-token/{owner.tenant}/{owner.user}"


def token_of(document: Any, now: float) -> GitHubToken | None:
    """Return the token in an answer of GitHub's, None if there is none in it."""
    access = document.get("access_token") if isinstance(document, dict) else None
    if not isinstance(access, str) or not access:
        return None
    refresh, seconds = document.get("refresh_token"), document.get("expires_in")
    return GitHubToken(
        Secret(access),
        Secret(refresh) if isinstance(refresh, str) and refresh else None,
        now + float(seconds) if isinstance(seconds, (int, float)) else None,
    )


def endpoints(host: str, api: str | None = None) -> Endpoints:
    """Return where the GitHub at `host` is asked: github.com, a company's own server, or its part of ghe.com.

    Raises:
        errors.ConfigError: tokens would cross a network in clear.
    """
    host = places.check("github.host", policies.check_url("github.host", host)).rstrip("/")
    parts = urlsplit(host)
    if api is not None:
        return Endpoints(host, places.check("github.api", policies.check_url("github.api", api)).rstrip("/"))
    if parts.hostname == "github.com" or (parts.hostname or "").endswith(".ghe.com"):
        return Endpoints(host, f"https://api.{parts.netloc}")
    return Endpoints(host, f"{host}/api/v3")
