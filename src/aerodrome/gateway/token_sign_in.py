"""Users sign in at GitHub, and the token they grant is stored for them: sealed, and for nobody else.

By the web flow for whoever is signed in here already (an edge mounts `begin` and `finish`), by the device flow for commands. From
then on gateway.github_tokens has it. Who the user is, is the edge's to know: a sign-in that one user began finishes for no other.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping

import structlog

from aerodrome import errors
from aerodrome.clock import Clock
from aerodrome.core import github
from aerodrome.core.device_flow import DeviceGrant
from aerodrome.core.envelope import Envelopes
from aerodrome.core.github import Account, GitHubToken
from aerodrome.core.identity import Owner
from aerodrome.core.sign_in import Begun, Kept
from aerodrome.ports.sign_in import TokenGranter
from aerodrome.ports.tokens import TokenStore

Note = Callable[[Owner], Awaitable[None]]
_log = structlog.get_logger()


class TokenSignIn:
    """Stores what GitHub grants. `note` is called before: what could not be recorded is not stored."""

    def __init__(
        self, granter: TokenGranter, store: TokenStore, envelopes: Envelopes, clock: Clock, note: Note | None = None
    ) -> None:
        self._granter = granter
        self._store = store
        self._envelopes = envelopes
        self._clock = clock
        self._note = note

    async def begin(self, owner: Owner, redirect_uri: str) -> Begun:
        """Return where the user's browser goes, and what must be kept with that browser until it comes back.

        Raises:
            errors.ConfigError: the app has no secret, without which there is no web flow.
        """
        return await self._granter.begin(redirect_uri, owner)

    async def finish(self, owner: Owner, params: Mapping[str, str], kept: Kept) -> Account:
        """Store the token for the query that the browser came back with; `owner` is who is signed in here now.

        Raises:
            errors.SignInFailed: denied, late, another's, or GitHub refuses. errors.SignInUnavailable, errors.StoreUnavailable.
        """
        if kept.owner != owner:
            raise errors.SignInFailed("another user began this sign-in; begin again", "another owner")
        return await self._keep(owner, await self._granter.finish(params, kept))

    async def begin_device(self) -> DeviceGrant:
        """Return the code that a person is to enter at GitHub, and where."""
        return await self._granter.begin_device()

    async def finish_device(self, owner: Owner, grant: DeviceGrant) -> Account:
        """Wait for the person, then store the token.

        Raises:
            errors.SignInFailed: denied, expired, or GitHub refuses. errors.SignInUnavailable, errors.StoreUnavailable.
        """
        return await self._keep(owner, await self._granter.wait(grant))

    async def _keep(self, owner: Owner, token: GitHubToken) -> Account:
        account = await self._granter.find_account(token)
        if self._note is not None:
            await self._note(owner)
        await self._store.put(github.seal(self._envelopes, owner, token, self._clock.now()))
        _log.info("token.granted", tenant=owner.tenant)
        return account
