"""Which session may call which named provider: the placeholder keys that runtimes have in place of real ones.

A placeholder is random, good for one provider and one session, and gone with the last link that holds the session. Kept by its
digest, so that looking one up says nothing of the others by how long it takes. Neighbours: supplying (gives them), forwarder.
"""

from __future__ import annotations

import secrets
from dataclasses import dataclass

from aerodrome.core import identity

_PREFIX = "aerodrome-session-"


@dataclass(frozen=True, slots=True)
class Grant:
    """What a placeholder key stands for."""

    realm: str
    session_id: str
    provider: str


class Grants:
    """The placeholder keys in use."""

    def __init__(self) -> None:
        self._by_digest: dict[str, Grant] = {}
        self._keys: dict[Grant, str] = {}
        self._of_session: dict[tuple[str, str], list[Grant]] = {}

    def __len__(self) -> int:
        return len(self._keys)

    def give(self, grant: Grant) -> str:
        """Return the placeholder key of a session for a provider; the same one until it is withdrawn."""
        key = self._keys.get(grant)
        if key is None:
            key = self._keys[grant] = _PREFIX + secrets.token_urlsafe(32)
            self._by_digest[identity.hash_secret(key)] = grant
            self._of_session.setdefault((grant.realm, grant.session_id), []).append(grant)
        return key

    def find(self, key: str) -> Grant | None:
        """Return what a placeholder key stands for, None if it is none."""
        return self._by_digest.get(identity.hash_secret(key))

    def withdraw(self, realm: str, session_id: str) -> None:
        """Make a session's placeholder keys useless; idempotent."""
        for grant in self._of_session.pop((realm, session_id), ()):
            del self._by_digest[identity.hash_secret(self._keys.pop(grant))]
