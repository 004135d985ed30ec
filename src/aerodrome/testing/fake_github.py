"""A GitHub that grants tokens, on loopback: web flow, device flow, renewal, `/user`, memberships. For tests; nobody's data.

It holds its clients to the protocol as GitHub does: codes are good once and for their redirect address, PKCE is checked, a device
that asks too early is told to slow down. It answers 200 to refusals, as GitHub does. `browse` is a user's browser.
"""

from __future__ import annotations

import base64
import hashlib
import itertools
import ssl
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import parse_qsl, urlencode

import httpx
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, RedirectResponse, Response
from starlette.routing import Route

from aerodrome.transport.asgi import AsgiServer

CLIENT_ID, CLIENT_SECRET = "Iv1.demo", "canary-of-the-client-secret"


@dataclass(slots=True)
class Device:
    """A device flow. `verdict` None: nobody has entered the code yet."""

    login: str
    interval: float
    verdict: str | None = None
    asked_at: float = -1e9


@dataclass(slots=True)
class FakeGitHub:
    """The whole of it. `user` is who sits at the browser; `seconds` (None: for ever) is how long tokens live."""

    now: Callable[[], float] = lambda: 0.0
    user: str = "Octocat"
    denies: bool = False
    seconds: int | None = 28800
    refuses_with: str | None = None
    status: int = 200
    members: dict[str, list[str]] = field(default_factory=dict)
    codes: dict[str, dict[str, str]] = field(default_factory=dict)
    devices: dict[str, Device] = field(default_factory=dict)
    tokens: dict[str, str] = field(default_factory=dict)
    refreshes: dict[str, str] = field(default_factory=dict)
    heard: list[dict[str, str]] = field(default_factory=list)
    host: str = ""
    _numbers: Any = field(default_factory=lambda: itertools.count(1))
    _server: AsgiServer | None = None

    async def start(self) -> str:
        """Listen; return the address."""
        self._server = AsgiServer(self._application(), 100)
        self.host = f"http://127.0.0.1:{await self._server.start()}"
        return self.host

    async def aclose(self) -> None:
        """Stop."""
        if self._server is not None:
            await self._server.aclose()

    def enter(self, user_code: str, verdict: str = "granted") -> None:
        """Enter a device's code, or deny it (`access_denied`), or have it expire (`expired_token`)."""
        self.devices[user_code].verdict = verdict
        self.devices[user_code].login = self.user

    def _application(self) -> Starlette:
        return Starlette(
            routes=[
                Route("/login/oauth/authorize", self._authorize),
                Route("/login/oauth/access_token", self._token, methods=["POST"]),
                Route("/login/device/code", self._device, methods=["POST"]),
                Route("/api/v3/user", self._whose),
                Route("/api/v3/user/memberships/orgs/{name}", self._membership),
            ]
        )

    async def _authorize(self, request: Request) -> Response:
        asked = dict(request.query_params)
        self.heard.append(asked)
        if asked.get("client_id") != CLIENT_ID:
            return Response("no such app", 404)
        back: dict[str, str] = {"state": asked["state"]}
        if self.denies:
            back |= {"error": "access_denied", "error_description": "The user has denied your application access."}
        else:
            back["code"] = f"code{next(self._numbers)}"
            self.codes[back["code"]] = {**asked, "login": self.user}
        return RedirectResponse(f"{asked['redirect_uri']}?{urlencode(back)}", 302)

    async def _device(self, request: Request) -> Response:
        form = await _form(request)
        self.heard.append(form)
        if self.refuses_with is not None:
            return JSONResponse({"error": self.refuses_with, "error_description": "no"})
        number = next(self._numbers)
        user_code = f"WDJB-{number:04}"
        self.devices[user_code] = Device(self.user, 5.0, asked_at=self.now())
        return JSONResponse(
            {
                "device_code": f"canary-device-{user_code}",
                "user_code": user_code,
                "verification_uri": f"{self.host}/login/device",
                "expires_in": 900,
                "interval": 5,
            }
        )

    async def _token(self, request: Request) -> Response:
        form = await _form(request)
        self.heard.append(form)
        if self.status != 200:
            return Response("<html>unicorn</html>", self.status)
        if self.refuses_with is not None:
            return JSONResponse({"error": self.refuses_with, "error_description": form.get("client_secret", "")})
        if form.get("client_id") != CLIENT_ID:
            return JSONResponse({"error": "incorrect_client_credentials"})
        if form["grant_type"].endswith("device_code"):
            return self._of_device(form)
        if form.get("client_secret") != CLIENT_SECRET:
            return JSONResponse({"error": "incorrect_client_credentials", "error_description": form["client_secret"]})
        is_renewal = form["grant_type"] == "refresh_token"
        login = self.refreshes.pop(form["refresh_token"], None) if is_renewal else self._of_code(form)
        return self._grant(login) if login else JSONResponse({"error": "bad_verification_code"})

    def _of_code(self, form: dict[str, str]) -> str | None:
        begun = self.codes.pop(form["code"], None)
        if begun is None or form.get("redirect_uri") != begun["redirect_uri"]:
            return None
        digest = hashlib.sha256(form.get("code_verifier", "").encode()).digest()
        is_proved = base64.urlsafe_b64encode(digest).rstrip(b"=").decode() == begun["code_challenge"]
        return begun["login"] if is_proved and begun["code_challenge_method"] == "S256" else None

    def _of_device(self, form: dict[str, str]) -> Response:
        device = self.devices[form["device_code"].removeprefix("canary-device-")]
        is_early = self.now() - device.asked_at < device.interval
        device.asked_at = self.now()
        if is_early:
            device.interval += 5
            return JSONResponse({"error": "slow_down", "interval": device.interval})
        if device.verdict is None:
            return JSONResponse({"error": "authorization_pending"})
        return self._grant(device.login) if device.verdict == "granted" else JSONResponse({"error": device.verdict})

    def _grant(self, login: str) -> Response:
        number = next(self._numbers)
        access, refresh = f"ghu_canary{number}{login}", f"ghr_canary{number}{login}"
        self.tokens[access] = login
        answer: dict[str, Any] = {"access_token": access, "token_type": "bearer", "scope": ""}
        if self.seconds is not None:
            self.refreshes[refresh] = login
            answer |= {"refresh_token": refresh, "expires_in": self.seconds, "refresh_token_expires_in": 15897600}
        return JSONResponse(answer)

    def _login(self, request: Request) -> str | None:
        return self.tokens.get(request.headers.get("authorization", "").removeprefix("Bearer "))

    async def _whose(self, request: Request) -> Response:
        login = self._login(request)
        if login is None:
            return JSONResponse({"message": "Bad credentials"}, 401)
        number = int.from_bytes(hashlib.sha256(login.encode()).digest()[:4], "big")
        return JSONResponse({"login": login, "id": number, "name": f"{login} the cat", "email": None})

    async def _membership(self, request: Request) -> Response:
        login, name = self._login(request), request.path_params["name"]
        if login not in self.members.get(name, []):
            return JSONResponse({"message": "Not Found"}, 404)
        return JSONResponse({"state": "active", "organization": {"login": name}})


def new_browser() -> httpx.AsyncClient:
    """Return a browser for loopback: it trusts no authority, because reading the system's takes longer than the rest."""
    return httpx.AsyncClient(trust_env=False, verify=ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT))


async def browse(url: str, follows: bool = False) -> dict[str, str]:
    """Go where a sign-in sends a browser; return the query that it is sent back with, and go there too if it `follows`."""
    async with new_browser() as browser:
        answer = await browser.get(url)
        if answer.status_code != 302:
            raise AssertionError(f"expected to be sent back, got {answer.status_code}: {answer.text}")
        if follows:
            with suppress(httpx.HTTPError):  # who waited there may leave before the page is read
                await browser.get(answer.headers["location"])
        return dict(parse_qsl(httpx.URL(answer.headers["location"]).query.decode()))


async def _form(request: Request) -> dict[str, str]:
    return dict(parse_qsl((await request.body()).decode()))
