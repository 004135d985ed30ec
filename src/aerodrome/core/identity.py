"""Who calls: tenants, principals, and the keys that prove them.

A key's token is shown once; only its hash is kept. The secret half has 256 random bits, so a plain SHA-256 is enough:
slow hashes guard low-entropy passwords, which these are not.
"""

from __future__ import annotations

import hashlib
import hmac
import re
import secrets
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from enum import Enum

from aerodrome import errors
from aerodrome.core.override import Override
from aerodrome.core.policy import Policy

_TOKEN = re.compile(r"aero_([0-9a-f]{12})_([A-Za-z0-9_-]{43})\Z")
_ID = re.compile(r"[0-9a-f]{12}\Z")
_NAME = re.compile(r"[a-z0-9](?:[a-z0-9_.@-]{0,62}[a-z0-9])?\Z")


@dataclass(frozen=True, slots=True)
class Owner:
    """A user of a tenant: the unit that owns sessions."""

    tenant: str
    user: str


@dataclass(frozen=True, slots=True)
class Tenant:
    """A tenant, its policy, and what differs for some users. `source` says where it is defined: `config` or `database`."""

    name: str
    policy: Policy
    source: str = "database"
    users: Mapping[str, Override] = field(default_factory=dict)

    def policy_for(self, user: str) -> Policy:
        """Return the policy that holds for a user."""
        override = self.users.get(user)
        return self.policy if override is None else override.apply(self.policy)


class Role(Enum):
    """What a principal may see and manage; each may do what those before it may, the last one in every tenant."""

    USER = "user"
    TENANT_ADMIN = "tenant-admin"
    OPERATOR = "operator"


class Scope(Enum):
    """What a key may be used for."""

    #: To use sessions of its user, over SDK links and HTTP.
    CONNECT = "connect"
    #: To have the gateway mint connection tokens for users of its tenant.
    MINT = "mint"
    #: To see and manage the sessions, users and keys of its tenant.
    ADMIN = "admin"
    #: To operate the gateway; stands alone, and is no tenant's.
    OPERATE = "operate"
    #: To sign such tokens elsewhere (core.connection_token); stands alone, and proves nothing when it is itself shown.
    SIGN = "sign"


DEFAULT_SCOPES = frozenset({Scope.CONNECT})
OPERATOR_SCOPES = frozenset({Scope.OPERATE})
#: The tenant of those who belong to none: no tenant can be called so.
NO_TENANT = ""


@dataclass(frozen=True, slots=True)
class Principal:
    """The authenticated caller of a link or a request.

    `key_id` is the key it stands on, empty where an issuer vouches for it; past `expires_at` (Unix time) it is nobody.
    Without the scope to connect it uses no sessions, whatever its role.
    """

    owner: Owner
    policy: Policy
    key_id: str
    expires_at: float | None = None
    scopes: frozenset[Scope] = DEFAULT_SCOPES
    role: Role = Role.USER

    @property
    def may_connect(self) -> bool:
        """Say whether it may use sessions of its user."""
        return Scope.CONNECT in self.scopes


def role_of(scopes: frozenset[Scope]) -> Role:
    """Return the role of whoever shows a key with these scopes."""
    if Scope.OPERATE in scopes:
        return Role.OPERATOR
    return Role.TENANT_ADMIN if Scope.ADMIN in scopes else Role.USER


@dataclass(frozen=True, slots=True)
class Key:
    """A stored key: everything but the secret. Times are seconds since the Unix epoch."""

    key_id: str
    owner: Owner
    secret_hash: str
    created_at: float
    expires_at: float | None = None
    revoked_at: float | None = None
    scopes: frozenset[Scope] = DEFAULT_SCOPES

    def is_live(self, now: float) -> bool:
        """Say whether it is neither revoked nor expired at `now`."""
        return self.revoked_at is None and (self.expires_at is None or now < self.expires_at)

    def proves(self, secret: str, now: float) -> bool:
        """Say whether `secret` opens this key at `now`; takes the same time for any wrong secret."""
        matches = hmac.compare_digest(self.secret_hash, hash_secret(secret))
        return matches and self.is_live(now)


#: Compared against when a key id is unknown, so that an unknown id costs what a wrong secret costs.
NO_KEY = Key("000000000000", Owner("", ""), "0" * 64, 0.0, expires_at=0.0)


def check_name(kind: str, name: str) -> str:
    """Return `name` if it may name a tenant or user.

    Raises:
        errors.ConfigError: it is empty, too long, or has characters outside [a-z0-9_.@-].
    """
    if not _NAME.match(name):
        raise errors.ConfigError(
            f"{kind} name {name!r} is not usable: expected 1 to 64 of a-z, 0-9, '_', '.', '@', '-', "
            "beginning and ending with a letter or digit"
        )
    return name


def hash_secret(secret: str) -> str:
    """Return the stored form of a key's secret, 64 hex digits."""
    return hashlib.sha256(secret.encode()).hexdigest()


def check_scopes(words: Iterable[str]) -> frozenset[Scope]:
    """Return the scopes that a key of a tenant may be made with.

    Raises:
        errors.ConfigError: there is none, or one that no such key can have.
    """
    known = {scope.value: scope for scope in Scope if scope not in (Scope.SIGN, Scope.OPERATE)}
    scopes = frozenset(known.get(word) for word in words)
    if not scopes or None in scopes:
        found = ", ".join(sorted(words)) or "none"
        raise errors.ConfigError(f"scope: expected some of {', '.join(known)}, found {found}")
    return frozenset(scope for scope in scopes if scope is not None)


def is_id(text: str) -> bool:
    """Say whether a text has the form of a key's id."""
    return _ID.match(text) is not None


def create_id() -> str:
    """Return a new key's id: 12 hex digits."""
    return secrets.token_hex(6)


def create_key(
    owner: Owner, now: float, expires_at: float | None = None, scopes: frozenset[Scope] = DEFAULT_SCOPES
) -> tuple[Key, str]:
    """Make a new key and its token `aero_<key id>_<secret>`; the token cannot be had again."""
    key_id, secret = create_id(), secrets.token_urlsafe(32)
    key = Key(key_id, owner, hash_secret(secret), now, expires_at, scopes=scopes)
    return key, f"aero_{key_id}_{secret}"


def split_token(token: str) -> tuple[str, str] | None:
    """Return (key id, secret) of a token, None if it has not the form of one."""
    match = _TOKEN.match(token)
    return (match[1], match[2]) if match else None
