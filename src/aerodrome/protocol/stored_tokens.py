"""Where a session has its user's stored GitHub token: `gitHubToken` holds the word for it until the call is sent.

Pure rule; what takes the word's place is gateway.supplying. A runtime takes a token or a provider, not both (measured, 1.0.102).
"""

from __future__ import annotations

from typing import Any

from aerodrome.core.github import STORED
from aerodrome.core.policy import GitHubAccess, Policy

_CLIENTS = ("gitHubToken", "gitHubTokenProviderRegistrationId")


def choose(params: dict[str, Any], policy: Policy) -> dict[str, Any]:
    """Return the parameters of a create or resume with the word for the stored token where policy says so, and nowhere else.

    A token of the client's own is left out then: it would be another user's as easily as theirs.
    """
    if policy.github is GitHubAccess.STORED:
        params = leave_out(params, policy)
        return params if params.get("provider") else {**params, "gitHubToken": STORED}
    if params.get("gitHubToken") == STORED:
        return {member: value for member, value in params.items() if member != "gitHubToken"}
    return params


def leave_out(params: dict[str, Any], policy: Policy) -> dict[str, Any]:
    """Return the parameters of a create or resume without a token of the client's own where it is not to be used, nor kept."""
    if policy.github is not GitHubAccess.STORED:
        return params
    return {member: value for member, value in params.items() if member not in _CLIENTS}
