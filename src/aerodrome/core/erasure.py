"""What is remembered of an erasure: that tokens made for the user before it prove nobody, for as long as there may be any.

Nothing of the user is in it but a digest of the name: whoever has it and guesses the name learns that they were erased.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

from aerodrome.core.identity import Owner

#: Stands for every user of a tenant; no user can be called so.
EVERYONE = ""


@dataclass(frozen=True, slots=True)
class Erasure:
    """Whose tokens prove nobody: those issued up to `until` (Unix time). It is forgotten at `kept_until`."""

    digest: str
    until: float
    kept_until: float


def digest(owner: Owner) -> str:
    """Return what stands for a user, or with EVERYONE for all of a tenant."""
    return hashlib.sha256(f"aerodrome erasure\0{owner.tenant}\0{owner.user}".encode()).hexdigest()


def digests(owner: Owner) -> tuple[str, str]:
    """Return what an erasure that concerns a user may stand under: theirs, and that of all users of their tenant."""
    return digest(owner), digest(Owner(owner.tenant, EVERYONE))
