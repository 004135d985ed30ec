"""Browsers that have signed in, as values and rules: what is kept of one, and what comes of the token in its cookie.

Pure. Only a hash of the token is kept: whoever has the record has neither the cookie, nor the word that forms must bring, nor
what the gateway last told the browser. The token has 256 random bits, so a plain SHA-256 is enough (core.identity says why).
Neighbours: ports.browsers (who keeps them), core.sign_in (how one comes to be signed in at a provider).
"""

from __future__ import annotations

import hashlib
import hmac
import secrets
from dataclasses import dataclass

from aerodrome.core.identity import Principal


@dataclass(frozen=True, slots=True)
class Browser:
    """A browser that has signed in. Times are seconds since the Unix epoch.

    The principal is as it was proved then: whether it still is one, and under which policy, is asked at every request.
    """

    token_hash: str
    principal: Principal
    began_at: float
    used_at: float
    #: When it is over, however much it is used.
    ends_at: float

    def is_over(self, now: float, idle_seconds: float) -> bool:
        """Say whether its time is up, or it was not used for so long."""
        return now >= self.ends_at or now >= self.used_at + idle_seconds


def create_token() -> str:
    """Return what a new browser's cookie is to be."""
    return secrets.token_urlsafe(32)


def hash_token(token: str) -> str:
    """Return the stored form of a cookie's token, 64 hex digits."""
    return hashlib.sha256(token.encode()).hexdigest()


def csrf_of(token: str) -> str:
    """Return what must come with every form of a browser: known to its own pages, and stored nowhere."""
    return hmac.digest(token.encode(), b"aerodrome forms", "sha256").hex()
