"""The device flow's waiting (RFC 8628): when to ask again, and when it is over. Pure; times are seconds of one clock.

Neighbour: adapters.oauth.github, which asks.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from aerodrome import errors
from aerodrome.core import sign_in
from aerodrome.core.secret import Secret

DEFAULT_INTERVAL_SECONDS = 5.0
_SLOWER_SECONDS = 5.0
_LONGEST_SECONDS = 60.0


@dataclass(frozen=True, slots=True)
class DeviceGrant:
    """What a person is shown (`user_code`, at `url`), and what is asked with meanwhile. `expires_in` is in seconds."""

    device_code: Secret
    user_code: str
    url: str
    expires_in: float
    interval: float = DEFAULT_INTERVAL_SECONDS


class Waiting:
    """One device flow that waits for its person."""

    def __init__(self, grant: DeviceGrant, now: float) -> None:
        self.interval = grant.interval
        self._until = now + grant.expires_in

    def check(self, now: float) -> None:
        """Raise errors.SignInFailed if the code has expired before the next question can be asked."""
        if now + self.interval >= self._until:
            raise _expired()

    def hear(self, error: object, interval: Any = None) -> None:
        """Take the provider's word that there is no token yet: go on, or slower from now on (3.5).

        Raises:
            errors.SignInFailed: there will be none; says why.
        """
        if error == "slow_down":
            said = float(interval) if isinstance(interval, (int, float)) else 0.0
            self.interval = max(self.interval + _SLOWER_SECONDS, said)
        elif error == "expired_token":
            raise _expired()
        elif error != "authorization_pending":
            raise sign_in.refusal(error)

    def miss(self) -> None:
        """Take it that the provider did not answer: ask half as often."""
        self.interval = max(self.interval, min(self.interval * 2, _LONGEST_SECONDS))


def _expired() -> errors.SignInFailed:
    return errors.SignInFailed("the code has expired before anyone entered it; begin again", "expired_token")
