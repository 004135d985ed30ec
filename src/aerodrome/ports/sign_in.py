"""Who can say who a browser's user is, and who gives out GitHub tokens. Implemented by adapters.oauth.

All methods raise errors.SignInUnavailable when the provider does not answer, and are safe to cancel; a code or a device that was
being exchanged may then be used up, and the sign-in has to begin again.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

from aerodrome.core.device_flow import DeviceGrant
from aerodrome.core.github import Account, GitHubToken
from aerodrome.core.identity import Owner
from aerodrome.core.sign_in import Begun, Identity, Kept


class SignIn(Protocol):
    """An identity provider, for browsers."""

    async def begin(self, redirect_uri: str) -> Begun:
        """Return where the browser goes. What is kept must come from the same browser again, and from nowhere else."""
        ...

    async def finish(self, params: Mapping[str, str], kept: Kept) -> Identity:
        """Return who signed in, from the query that the browser came back with. Raises errors.SignInFailed."""
        ...

    async def aclose(self) -> None:
        """Release what it holds; idempotent."""
        ...


class TokenGranter(Protocol):
    """GitHub, as the app that asks its users for tokens."""

    async def begin(self, redirect_uri: str, owner: Owner | None = None) -> Begun:
        """Return where the browser goes (authorization code flow, PKCE). Raises errors.ConfigError without a client secret."""
        ...

    async def finish(self, params: Mapping[str, str], kept: Kept) -> GitHubToken:
        """Return the token for the query that the browser came back with. Raises errors.SignInFailed."""
        ...

    async def begin_device(self) -> DeviceGrant:
        """Return what a person is to enter, and where (device flow). Raises errors.SignInFailed: the app may not."""
        ...

    async def wait(self, grant: DeviceGrant) -> GitHubToken:
        """Return the token once the person has entered the code. Raises errors.SignInFailed: denied, or expired."""
        ...

    async def find_account(self, token: GitHubToken) -> Account:
        """Return whose token it is. Raises errors.SignInFailed: nobody's."""
        ...

    async def aclose(self) -> None:
        """Release what it holds; idempotent."""
        ...
