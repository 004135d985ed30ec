"""Where guarded sessions work: each in a directory of its own, below its realm's or where policy says.

Agents with host tools may write to what is above it, and have a user of their own where the gateway is root: so no link of
theirs is followed, and a new directory belongs to whom the one above it does.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from aerodrome import errors
from aerodrome.core.identity import Owner
from aerodrome.core.policy import Policy

_OPEN = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


def directory_of(policy: Policy, owner: Owner, of_realm: Path | None) -> Path | None:
    """Return the directory below which the sessions of an owner work; None where this gateway did not spawn the runtime."""
    if policy.work_root is None or of_realm is None:
        return of_realm
    return Path(policy.work_root, *_names(policy, owner))


def make(policy: Policy, owner: Owner, of_realm: Path | None, session_id: str) -> Path:
    """Make the directory of a session, if it is not there; return it. Blocking.

    Raises:
        errors.PolicyRejected: this gateway did not spawn the runtime, or something else is in its place.
    """
    if of_realm is None:
        raise errors.PolicyRejected("guarded sessions need a runtime that this gateway spawned; the upstream was given")
    root = of_realm if policy.work_root is None else Path(policy.work_root)
    names = (*_names(policy, owner), session_id)
    try:
        root.mkdir(mode=0o700, parents=True, exist_ok=True)
        _make_below(root, names)
    except OSError as error:
        raise errors.PolicyRejected(
            f"the working directory of session {session_id} cannot be had: {error.strerror}; it must be a directory, not a link"
        ) from None
    return root.joinpath(*names)


def _names(policy: Policy, owner: Owner) -> tuple[str, ...]:
    return () if policy.work_root is None else (owner.tenant, owner.user)


def _make_below(root: Path, names: Sequence[str]) -> None:
    above = os.open(root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        for name in names:
            is_new = True
            try:
                os.mkdir(name, 0o700, dir_fd=above)
            except FileExistsError:
                is_new = False
            made, owner = os.open(name, _OPEN, dir_fd=above), os.fstat(above)
            os.close(above)
            above = made
            if is_new and os.geteuid() == 0:
                os.fchown(made, owner.st_uid, owner.st_gid)
    finally:
        os.close(above)
