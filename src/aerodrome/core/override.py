"""What one user of a tenant has that differs from the tenant's policy: merged field by field, the user's first.

A field that is said replaces the tenant's as a whole, lists included; one that is not said is the tenant's. Isolation, trust
and what counts over all users are the tenant's alone: the first two decide whose runtimes a user shares, which is not one
user's affair. `egress` and `host_tools` belong to a runtime, so that they may differ only where a user has one alone
(core.policy_document checks it).
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

from msgspec import UNSET, UnsetType

from aerodrome.core.policy import ClientLoss, GitHubAccess, Policy


@dataclass(frozen=True, slots=True)
class Override:
    """The fields of a policy that are said anew for one user; what is UNSET is not said."""

    provider_urls: tuple[str, ...] | UnsetType = UNSET
    mcp_urls: tuple[str, ...] | UnsetType = UNSET
    webhook_urls: tuple[str, ...] | UnsetType = UNSET
    session_idle_seconds: float | UnsetType | None = UNSET
    session_age_seconds: float | UnsetType | None = UNSET
    client_loss: ClientLoss | UnsetType = UNSET
    provider: str | UnsetType | None = UNSET
    provider_names: tuple[str, ...] | UnsetType = UNSET
    github: GitHubAccess | UnsetType = UNSET
    models: tuple[str, ...] | UnsetType | None = UNSET
    tools: tuple[str, ...] | UnsetType | None = UNSET
    max_sessions_per_user: int | UnsetType = UNSET
    max_turns_per_user: int | UnsetType = UNSET
    work_root: str | UnsetType | None = UNSET
    egress: tuple[str, ...] | UnsetType = UNSET
    host_tools: bool | UnsetType = UNSET

    @property
    def said(self) -> dict[str, Any]:
        """Return the fields that are said, by name."""
        values = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        return {name: value for name, value in values.items() if value is not UNSET}

    def apply(self, policy: Policy) -> Policy:
        """Return the tenant's policy with what is said here in its place."""
        return dataclasses.replace(policy, **self.said)


FIELDS = frozenset(field.name for field in dataclasses.fields(Override))
