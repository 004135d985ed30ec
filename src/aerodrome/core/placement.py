"""Which runtimes may serve a principal: the realm, computed from policy alone.

A realm is a set of runtimes that share one state directory. Two principals share a realm only if policy says so.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from aerodrome import errors
from aerodrome.core import egress
from aerodrome.core.identity import Owner
from aerodrome.core.policy import Access, Isolation, Policy


@dataclass(frozen=True, slots=True)
class Realm:
    """`key` is stable across restarts and names the state directory; `isolation` says who shares it.

    `is_open`: its users' parameters pass as they come. `has_host_tools`: agents may run commands, so they may rely on what a
    runtime is started with: its directories, and the settings that it reads once. `egress` is what a sandboxed runtime of it
    may reach (core.egress), None before policy says it; guarded sessions work below `work_root`, if there is one.
    """

    key: str
    isolation: Isolation
    is_open: bool = field(default=False, compare=False)
    has_host_tools: bool = field(default=False, compare=False)
    egress: tuple[str, ...] | None = field(default=None, compare=False)
    work_root: str | None = field(default=None, compare=False)

    @property
    def tenant(self) -> str:
        """Return whose turn it is when spawns must wait: the tenant's name, "" for what all share."""
        return self.key.partition(":")[2].partition("/")[0]

    @property
    def user(self) -> str | None:
        """Return the one user whom it serves; None where it serves several."""
        return self.key.partition("/")[2] or None


def realm_of(owner: Owner, policy: Policy) -> Realm:
    """Return the realm whose runtimes serve this owner."""
    match policy.isolation:
        case Isolation.USER:
            key = f"user:{owner.tenant}/{owner.user}"
        case Isolation.TENANT:
            key = f"tenant:{owner.tenant}"
        case Isolation.SHARED:
            key = "shared"
    return under(Realm(key, policy.isolation), policy)


def under(realm: Realm, policy: Policy) -> Realm:
    """Return a realm as the clients of a policy have it; one of another isolation gets none of what only its own may have."""
    is_its_own = realm.isolation is policy.isolation
    return replace(
        realm,
        is_open=is_its_own and policy.access is Access.OPEN,
        has_host_tools=is_its_own and policy.gives_host_tools,
        egress=egress.targets_of(policy),
        work_root=policy.work_root if is_its_own and policy.isolation is not Isolation.SHARED else None,
    )


def realm_of_key(key: str) -> Realm:
    """Return the realm that a key of `realm_of` names; a stored key outlives the policy that it was made under.

    Raises:
        errors.ConfigError: no isolation makes such a key.
    """
    kind, _, name = key.partition(":")
    isolations = {isolation.value: isolation for isolation in Isolation}
    if kind not in isolations or (isolations[kind] is Isolation.SHARED) != (not name):
        raise errors.ConfigError(f"expected a realm such as user:TENANT/USER, tenant:NAME or shared, found {key!r}")
    return Realm(key, isolations[kind])
