"""Policies as they are written: the words of a configuration or a command, checked and made values; and what must go together.

One table: word -> field of `Policy` and the check of its value, for tenants and users alike. Where the words come from (TOML,
environment, options) is for settings and cli; stores keep the values, and check them with the same rules.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any

from aerodrome import errors
from aerodrome.core import duration, egress, patterns
from aerodrome.core.identity import Tenant
from aerodrome.core.override import FIELDS, Override
from aerodrome.core.policy import Access, ClientLoss, GitHubAccess, Isolation, Policy, Trust, check_url

Check = Callable[[str, Any], Any]

_LABEL = r"[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?"
#: HOST, *.HOST, IPv4 or [IPv6], each with :PORT or without: what a sandbox can hold without reading traffic.
_HOST = re.compile(
    rf"(?:(?:\*\.)?{_LABEL}(?:\.{_LABEL})*|\[[0-9a-f:.]+\])(?::(?P<port>[0-9]{{1,5}}))?\Z", re.ASCII | re.IGNORECASE
)
#: Fields of a runtime as a whole: a user may have their own only with a runtime of their own.
_OF_RUNTIMES = ("egress", "host_tools")
#: What else a sandbox holds, for all who share it.
_OF_SANDBOXES = ("provider_urls", "mcp_urls", "work_root")
#: Fields that are held by rebuilding what a client sends, which a tenant to whom the host is open sends as it likes.
_OF_GUARDED = ("models", "tools", "work_root")


def _each(check: Callable[[str, str], str]) -> Check:
    def checked(name: str, values: Any) -> tuple[str, ...]:
        if isinstance(values, str) or not all(isinstance(value, str) for value in values):
            raise errors.ConfigError(f"{name}: expected a list of words, found {values!r}")
        return tuple(check(name, value) for value in values)

    return checked


def _host(name: str, value: str) -> str:
    match = _HOST.match(value)
    if match is None or int(match["port"] or 1) not in range(1, 65536):
        raise errors.ConfigError(
            f"{name}: expected HOST, *.HOST, an IPv4 address or [IPv6], with :PORT or without, found {value!r}"
        )
    if match["port"] is None and egress.is_loopback(value.lower().removeprefix("*.").strip("[]")):
        raise errors.ConfigError(
            f"{name}: this machine is reached at the ports that are named, found {value!r} without one"
        )
    return value.lower()


def _ttl(name: str, value: Any) -> float | None:
    return None if value is None or value == "never" else duration.check(name, value)


def _cap(name: str, value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
        raise errors.ConfigError(f"{name}: expected a number, 0 for no cap, found {value!r}")
    return value


def _directory(name: str, value: Any) -> str:
    if not isinstance(value, str) or not value.startswith("/") or ".." in value.split("/") or "\0" in value:
        raise errors.ConfigError(f"{name}: expected an absolute path without '..', found {value!r}")
    return value.rstrip("/") or "/"


def _name(name: str, value: Any) -> str:
    """Take the name of a provider; whether there is one of it is for settings to say."""
    if not isinstance(value, str) or not value:
        raise errors.ConfigError(f"{name}: expected the name of a configured provider, found {value!r}")
    return value


def _switch(name: str, value: Any) -> bool:
    if not isinstance(value, bool):
        raise errors.ConfigError(f"{name}: expected true or false, found {value!r}")
    return value


#: Word of the configuration -> field of Policy, and the check that makes its value.
WORDS: Mapping[str, tuple[str, Check]] = {
    "isolation": ("isolation", lambda _, value: Isolation(value)),
    "trust": ("trust", lambda _, value: Trust(value)),
    "providers": ("provider_urls", _each(check_url)),
    "mcp_servers": ("mcp_urls", _each(check_url)),
    "webhooks": ("webhook_urls", _each(check_url)),
    "session_idle_ttl": ("session_idle_seconds", _ttl),
    "session_max_age": ("session_age_seconds", _ttl),
    "client_loss": ("client_loss", lambda _, value: ClientLoss(value)),
    "provider": ("provider", _name),
    "provider_names": ("provider_names", _each(_name)),
    "github": ("github", lambda _, value: GitHubAccess(value)),
    "models": ("models", _each(patterns.check_model)),
    "tools": ("tools", _each(patterns.check_tool)),
    "max_sessions_per_user": ("max_sessions_per_user", _cap),
    "max_sessions_per_tenant": ("max_sessions_per_tenant", _cap),
    "max_turns_per_user": ("max_turns_per_user", _cap),
    "max_turns_per_tenant": ("max_turns_per_tenant", _cap),
    "work_root": ("work_root", _directory),
    "egress": ("egress", _each(_host)),
    "host_tools": ("host_tools", _switch),
}
#: Field of Policy -> its word.
WORD_OF = {field: word for word, (field, _) in WORDS.items()}
#: What may be said for one user.
USER_WORDS = frozenset(word for word, (field, _) in WORDS.items() if field in FIELDS)


def policy_of(where: str, said: Mapping[str, Any]) -> Policy:
    """Return the policy of these words; `where` is for messages.

    Raises:
        errors.ConfigError: a value is wrong, or two do not go together; names it and says what to do.
    """
    policy = Policy(**_values(where, said))
    check(where, policy)
    return policy


def override_of(where: str, said: Mapping[str, Any]) -> Override:
    """Return what is said for one user; `check_tenant` says whether it goes with the tenant's policy.

    Raises:
        errors.ConfigError: a value is wrong, or is the tenant's alone.
    """
    for word in said:
        if word not in USER_WORDS:
            raise errors.ConfigError(f"{where}.{word}: this is the tenant's alone; say it for the tenant")
    return Override(**_values(where, said))


def check_tenant(where: str, tenant: Tenant) -> Tenant:
    """Return a tenant whose policy and users go together.

    Raises:
        errors.ConfigError: they do not; names the user and what to do.
    """
    check(where, tenant.policy)
    for user, override in tenant.users.items():
        at = f"{where}.users.{user}"
        of_all = (*_OF_RUNTIMES, *_OF_SANDBOXES) if tenant.policy.gives_host_tools else _OF_RUNTIMES
        shared = [field for field in of_all if field in override.said]
        if shared and tenant.policy.isolation is not Isolation.USER:
            raise errors.ConfigError(
                f"{at}.{WORD_OF[shared[0]]}: users of this tenant share runtimes; say it for the tenant, or set isolation to user"
            )
        check(at, override.apply(tenant.policy))
    return tenant


def check(where: str, policy: Policy) -> None:
    """Check what must go together in a policy.

    Raises:
        errors.ConfigError: a field cannot be held under this isolation or trust.
    """
    if policy.host_tools and policy.isolation is Isolation.SHARED:
        raise errors.ConfigError(
            f"{where}.host_tools: tools that reach the host are never shared by tenants; set isolation to user or tenant"
        )
    if policy.github is GitHubAccess.STORED and policy.isolation is Isolation.SHARED:
        raise errors.ConfigError(
            f'{where}.github: "stored" would put users\' tokens into a runtime that strangers share; choose isolation '
            '"user" or "tenant"'
        )
    if policy.access is Access.OPEN:
        for field in _OF_GUARDED:
            if getattr(policy, field) is not None:
                raise errors.ConfigError(
                    f'{where}.{field}: cannot be held where trust is "full", which opens the host; leave one of them out'
                )


def _values(where: str, said: Mapping[str, Any]) -> dict[str, Any]:
    return {WORDS[word][0]: WORDS[word][1](f"{where}.{word}", value) for word, value in said.items()}
