"""GitHub's OAuth endpoint, as far as tokens are renewed there (port: ports.tokens.TokenIssuer).

For user tokens of a GitHub App: they expire after some hours and come with a refresh token that is good once. Signing in is
in adapters.oauth. The app's own secret is read by reference for each call.
"""

from __future__ import annotations

import httpx

from aerodrome import errors
from aerodrome.clock import Clock
from aerodrome.core import github
from aerodrome.core.github import GitHubToken
from aerodrome.core.secret import Reference, Secret
from aerodrome.ports.secrets import SecretSource

_TIMEOUT_SECONDS = 15.0


class GitHubIssuer:
    """Renews tokens at `host`, in the name of an app."""

    def __init__(
        self, host: str, client_id: str, client_secret: Reference | None, secrets: SecretSource, clock: Clock
    ) -> None:
        self._client_id = client_id
        self._client_secret = client_secret
        self._secrets = secrets
        self._clock = clock
        self._http = httpx.AsyncClient(base_url=host, timeout=_TIMEOUT_SECONDS, follow_redirects=False)

    async def refresh(self, refresh_token: Secret) -> GitHubToken:
        """Return a new token for a refresh token."""
        form = {
            "client_id": self._client_id,
            "grant_type": "refresh_token",
            "refresh_token": refresh_token.reveal(),
        }
        if self._client_secret is not None:  # GitHub wants none where the token came by the device flow
            form["client_secret"] = (await self._secrets.read(self._client_secret)).reveal()
        try:
            answer = await self._http.post(
                "/login/oauth/access_token", data=form, headers={"accept": "application/json"}
            )
            document = answer.json() if answer.status_code == 200 else {}
        except (httpx.HTTPError, ValueError) as error:
            raise errors.SecretUnavailable(
                f"GitHub did not answer to a token's renewal ({type(error).__name__})", is_outage=True
            ) from None
        token = github.token_of(document, self._clock.now())
        if token is None:
            # GitHub answers 200 to a refused one, with an error's code, which is no secret, and a text that may be anything.
            code = document.get("error") if isinstance(document, dict) else None
            reason = code if isinstance(code, str) and code.isidentifier() else f"HTTP {answer.status_code}"
            raise errors.SecretUnavailable(
                f"GitHub refused a token's renewal ({reason}); its user must sign in again",
                is_outage=answer.status_code >= 500,
            )
        return token

    async def aclose(self) -> None:
        """Close the connections."""
        await self._http.aclose()
