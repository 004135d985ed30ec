"""How much of something a user, and a tenant in all, may have: a cap each, and how it is said that one is reached.

Sessions that are owned count until they are deleted, so that trying again does not help; turns end by themselves. Who counts is
the store of the sessions, and gateway.limits for turns.
"""

from __future__ import annotations

from dataclasses import dataclass

from aerodrome import errors
from aerodrome.core.policy import Policy


@dataclass(frozen=True, slots=True)
class Quota:
    """Caps; 0 is none."""

    per_user: int = 0
    per_tenant: int = 0

    @property
    def is_set(self) -> bool:
        """Say whether anything has to be counted."""
        return bool(self.per_user or self.per_tenant)

    def passed(self, of_user: int, of_tenant: int) -> tuple[str, int] | None:
        """Return the setting that leaves no room for one more, and its cap; None while there is room."""
        if self.per_user and of_user >= self.per_user:
            return "per_user", self.per_user
        if self.per_tenant and of_tenant >= self.per_tenant:
            return "per_tenant", self.per_tenant
        return None


NO_QUOTA = Quota()


def sessions_of(policy: Policy) -> Quota:
    """Return how many sessions may be owned."""
    return Quota(policy.max_sessions_per_user, policy.max_sessions_per_tenant)


def turns_of(policy: Policy) -> Quota:
    """Return how many turns may run at once."""
    return Quota(policy.max_turns_per_user, policy.max_turns_per_tenant)


def check_sessions(quota: Quota, of_user: int, of_tenant: int) -> None:
    """Check that one more session may be owned.

    Raises:
        errors.PolicyRejected: a cap is reached; trying again does not help before a session is deleted.
    """
    passed = quota.passed(of_user, of_tenant)
    if passed is not None:
        setting, cap = f"max_sessions_{passed[0]}", passed[1]
        raise errors.PolicyRejected(
            f"{setting} is {cap} by the policy of this tenant, and as many sessions are owned; delete one, or ask your "
            "operator for more",
            limit=setting,
            cap=cap,
        )


def check_turns(quota: Quota, of_user: int, of_tenant: int) -> None:
    """Check that one more turn may run.

    Raises:
        errors.OverCapacity: a cap is reached; try again when a turn has ended.
    """
    passed = quota.passed(of_user, of_tenant)
    if passed is not None:
        setting, cap = f"max_turns_{passed[0]}", passed[1]
        raise errors.OverCapacity(
            f"{setting} is {cap} by the policy of this tenant, and as many turns run; try again when one has ended",
            limit=setting,
            cap=cap,
        )
