"""GitHub's sign-ins: the web flow and the device flow, for tokens (port: ports.sign_in.TokenGranter) and as an identity.

GitHub is no OpenID provider: who signed in is asked with the token, at `/user`. It answers 200 to most refusals, with an error's
code. Where tokens go is gateway.token_sign_in; how they are renewed, adapters.github.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote, urlencode

from authlib.oauth2.rfc8628 import DEVICE_CODE_GRANT_TYPE

from aerodrome import errors
from aerodrome.adapters.oauth.client import Answer, Client, OAuthClient
from aerodrome.clock import Clock
from aerodrome.core import github, sign_in
from aerodrome.core.device_flow import DeviceGrant, Waiting
from aerodrome.core.github import Account, Endpoints, GitHubToken
from aerodrome.core.identity import Owner
from aerodrome.core.secret import Secret
from aerodrome.core.sign_in import Begun, Identity, Kept
from aerodrome.ports.secrets import SecretSource

_TOKEN_PATH = "/login/oauth/access_token"  # noqa: S105  a path
_PURPOSE, _IDENTITY_PURPOSE = "github-token", "github-identity"
_MAX_EXPIRES_SECONDS = 3600.0


@dataclass(frozen=True, slots=True)
class GitHubApp:
    """The app in whose name users are asked. GitHub Apps have no scopes: their permissions are set at GitHub."""

    endpoints: Endpoints
    client: Client
    scopes: tuple[str, ...] = ()


class GitHubGranter:
    """Asks users for tokens. `sleep` waits between a device's questions."""

    def __init__(
        self,
        app: GitHubApp,
        secrets: SecretSource,
        clock: Clock,
        sleep: Callable[[float], Awaitable[object]] = asyncio.sleep,
    ) -> None:
        self._app = app
        self._http = OAuthClient("GitHub", app.client, secrets)
        self._clock = clock
        self._sleep = sleep

    async def begin(self, redirect_uri: str, owner: Owner | None = None, purpose: str = _PURPOSE) -> Begun:
        """Return where the browser goes."""
        if self._app.client.client_secret is None:
            raise errors.ConfigError(
                "github.client_secret: GitHub's web flow needs the app's secret; set it, or use the device flow"
            )
        kept = sign_in.begin(purpose, redirect_uri, self._clock.now(), owner)
        place = f"{self._app.endpoints.host}/login/oauth/authorize"
        return Begun(self._http.authorize_url(place, kept, " ".join(self._app.scopes)), kept)

    async def finish(self, params: Mapping[str, str], kept: Kept, purpose: str = _PURPOSE) -> GitHubToken:
        """Return the token for the query that the browser came back with."""
        code = sign_in.read_code(params, kept, purpose, self._clock.now())
        place = f"{self._app.endpoints.host}{_TOKEN_PATH}"
        return self._token(await self._http.exchange(place, kept, code, "client_secret_post"))

    async def begin_device(self) -> DeviceGrant:
        """Return what a person is to enter, and where."""
        form = {"client_id": self._app.client.client_id}
        if self._app.scopes:
            form["scope"] = " ".join(self._app.scopes)
        headers = {"Content-Type": "application/x-www-form-urlencoded"}
        place = f"{self._app.endpoints.host}/login/device/code"
        answer = (await self._http.send("POST", place, headers, urlencode(form))).document
        if "error" in answer:
            raise _refused(answer)
        codes = [answer.get(name) for name in ("device_code", "user_code", "verification_uri")]
        if not all(isinstance(code, str) and code.isprintable() and code for code in codes):
            raise self._http.unavailable("no device code")
        expires, interval = _seconds(answer.get("expires_in"), 900.0), _seconds(answer.get("interval"), 5.0)
        return DeviceGrant(Secret(str(codes[0])), str(codes[1]), str(codes[2]), expires, interval)

    async def wait(self, grant: DeviceGrant) -> GitHubToken:
        """Return the token once the person has entered the code."""
        waiting = Waiting(grant, self._clock.monotonic())
        place = f"{self._app.endpoints.host}{_TOKEN_PATH}"
        while True:
            waiting.check(self._clock.monotonic())
            await self._sleep(waiting.interval)
            try:
                # A public client's grant: the device flow has no secret.
                answer = await self._http.ask_for_token(
                    place, "none", DEVICE_CODE_GRANT_TYPE, device_code=grant.device_code.reveal()
                )
            except errors.SignInUnavailable:
                waiting.miss()
                continue
            token = github.token_of(answer.document, self._clock.now())
            if token is not None:
                return token
            if answer.document.get("error") in _ADVICE:
                raise _refused(answer.document)
            waiting.hear(answer.document.get("error"), answer.document.get("interval"))

    async def find_account(self, token: GitHubToken) -> Account:
        """Return whose token it is."""
        answer = await self._get("/user", token)
        number, login = answer.document.get("id"), answer.document.get("login")
        if answer.status in (401, 403):
            raise errors.SignInFailed(
                "GitHub does not take the token that it gave; sign in again", f"HTTP {answer.status}"
            )
        if answer.status != 200 or not isinstance(number, int) or not isinstance(login, str) or not login:
            raise self._http.unavailable(f"HTTP {answer.status} to whose token it is")
        name, email = answer.document.get("name"), answer.document.get("email")
        return Account(
            number,
            login.lower(),  # GitHub does not tell them apart by case
            name if isinstance(name, str) else None,
            email if isinstance(email, str) else None,
        )

    async def is_member(self, token: GitHubToken, organization: str) -> bool:
        """Say whether the token's user is an active member of an organization that the app may see."""
        answer = await self._get(f"/user/memberships/orgs/{quote(organization, safe='')}", token)
        return answer.status == 200 and answer.document.get("state") == "active"

    async def aclose(self) -> None:
        """Close the connections; idempotent."""
        await self._http.aclose()

    def _token(self, answer: Answer) -> GitHubToken:
        token = github.token_of(answer.document, self._clock.now())
        if token is None:
            raise _refused(answer.document)
        return token

    async def _get(self, path: str, token: GitHubToken) -> Answer:
        headers = {"Authorization": f"Bearer {token.access.reveal()}", "X-GitHub-Api-Version": "2022-11-28"}
        return await self._http.send("GET", f"{self._app.endpoints.api}{path}", headers)


class GitHubSignIn:
    """GitHub as an identity provider (port: ports.sign_in.SignIn).

    With `organizations`, only their members are anybody; the claim `organizations` then says which of them.
    """

    def __init__(self, granter: GitHubGranter, issuer: str, organizations: tuple[str, ...] = ()) -> None:
        self._granter = granter
        self._issuer = issuer
        self._organizations = organizations

    async def begin(self, redirect_uri: str) -> Begun:
        """Return where the browser goes."""
        return await self._granter.begin(redirect_uri, purpose=_IDENTITY_PURPOSE)

    async def finish(self, params: Mapping[str, str], kept: Kept) -> Identity:
        """Return who signed in; the token that says so is dropped."""
        token = await self._granter.finish(params, kept, purpose=_IDENTITY_PURPOSE)
        account = await self._granter.find_account(token)
        theirs = [name for name in self._organizations if await self._granter.is_member(token, name)]
        if self._organizations and not theirs:
            raise errors.SignInFailed(
                "you are signed in at GitHub, but are in none of the organizations that are let in here",
                "no membership",
            )
        # Addresses on a profile are whatever their owner wrote there: none is verified.
        claims = {"login": account.login, "id": str(account.number), "organizations": theirs}
        return Identity(self._issuer, str(account.number), account.name, account.email, claims)

    async def aclose(self) -> None:
        """Close the connections; idempotent."""
        await self._granter.aclose()


_ADVICE = {
    "device_flow_disabled": "GitHub's device flow is not enabled for this app; enable it in the app's settings at GitHub",
    "incorrect_client_credentials": "GitHub does not know github.client_id, or github.client_secret is another app's",
    "redirect_uri_mismatch": "GitHub does not know the redirect address; add it to the app's callback URLs",
    "bad_verification_code": "GitHub does not take the code: it was used, is too old, or is not of this sign-in; begin again",
}


def _refused(document: Mapping[str, Any]) -> errors.SignInFailed:
    code = document.get("error")
    advice = _ADVICE.get(code) if isinstance(code, str) else None
    return sign_in.refusal(code) if advice is None else errors.SignInFailed(advice, str(code))


def _seconds(value: Any, default: float) -> float:
    is_number = isinstance(value, (int, float)) and 1 <= value <= _MAX_EXPIRES_SECONDS
    return float(value) if is_number else default
