"""An OpenID provider on loopback: discovery, authorization code with PKCE, JWKS. For tests; a test may have it lie.

It holds its clients to the protocol: codes are good once, for their redirect address and their verifier; a client proves
itself by Basic or by the form, whichever `auth_methods` says. `claims` and `key` are what its id_tokens say and are signed with.
"""

from __future__ import annotations

import base64
import hashlib
import itertools
import time
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import parse_qsl, urlencode

import msgspec
from joserfc import jws
from joserfc.jwk import ECKey
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, RedirectResponse, Response
from starlette.routing import Route

from aerodrome.transport.asgi import AsgiServer

CLIENT_ID, CLIENT_SECRET = "aerodrome", "canary-of-the-oidc-secret"


@dataclass(slots=True)
class FakeOidc:
    """The whole of it. `changes` go into an id_token in place of what is true; None takes a claim out."""

    claims: dict[str, Any] = field(default_factory=lambda: {"sub": "u-1", "name": "Ann", "email": "ann@example.com"})
    changes: dict[str, Any] = field(default_factory=dict)
    about: dict[str, Any] = field(default_factory=dict)
    auth_methods: list[str] = field(default_factory=lambda: ["client_secret_basic"])
    back: dict[str, str] = field(default_factory=dict)
    key: ECKey = field(default_factory=lambda: ECKey.generate_key("P-256", {"kid": "one"}))
    shown: list[ECKey] = field(default_factory=list)
    denies: bool = False
    status: int = 200
    discoveries: int = 0
    issuer: str = ""
    codes: dict[str, dict[str, str]] = field(default_factory=dict)
    heard: list[dict[str, str]] = field(default_factory=list)
    _numbers: Any = field(default_factory=lambda: itertools.count(1))
    _server: AsgiServer | None = None

    async def start(self) -> str:
        """Listen; return the issuer."""
        self.shown = self.shown or [self.key]
        routes = [
            Route("/.well-known/openid-configuration", self._discovery),
            Route("/authorize", self._authorize),
            Route("/token", self._token, methods=["POST"]),
            Route("/jwks", self._jwks),
        ]
        self._server = AsgiServer(Starlette(routes=routes), 100)
        self.issuer = f"http://127.0.0.1:{await self._server.start()}"
        return self.issuer

    async def aclose(self) -> None:
        """Stop."""
        if self._server is not None:
            await self._server.aclose()

    async def _discovery(self, _: Request) -> Response:
        self.discoveries += 1
        document = {
            "issuer": self.issuer,
            "authorization_endpoint": f"{self.issuer}/authorize",
            "token_endpoint": f"{self.issuer}/token",
            "jwks_uri": f"{self.issuer}/jwks",
            "token_endpoint_auth_methods_supported": self.auth_methods,
            **self.about,
        }
        return JSONResponse(document, self.status)

    async def _jwks(self, _: Request) -> Response:
        return JSONResponse({"keys": [key.as_dict(private=False) for key in self.shown]})

    async def _authorize(self, request: Request) -> Response:
        asked = dict(request.query_params)
        self.heard.append(asked)
        if asked.get("client_id") != CLIENT_ID or asked.get("response_type") != "code":
            return Response("no such client", 400)
        back: dict[str, str] = {"state": asked["state"], **self.back}
        if self.denies:
            back["error"] = "access_denied"
        else:
            back["code"] = f"code{next(self._numbers)}"
            self.codes[back["code"]] = asked
        return RedirectResponse(f"{asked['redirect_uri']}?{urlencode(back)}", 302)

    async def _token(self, request: Request) -> Response:
        form = dict(parse_qsl((await request.body()).decode()))
        self.heard.append(form)
        if not self._knows(request, form):
            return JSONResponse({"error": "invalid_client", "error_description": CLIENT_SECRET}, 401)
        begun = self.codes.pop(form["code"], None)
        digest = hashlib.sha256(form.get("code_verifier", "").encode()).digest()
        challenge = base64.urlsafe_b64encode(digest).rstrip(b"=").decode()
        if begun is None or challenge != begun["code_challenge"] or form["redirect_uri"] != begun["redirect_uri"]:
            return JSONResponse({"error": "invalid_grant"}, 400)
        token = {"access_token": "canary-access", "token_type": "Bearer", "id_token": self._id_token(begun["nonce"])}
        return JSONResponse(token)

    def _knows(self, request: Request, form: dict[str, str]) -> bool:
        basic = f"Basic {base64.b64encode(f'{CLIENT_ID}:{CLIENT_SECRET}'.encode()).decode()}"
        proofs = {
            "client_secret_basic": request.headers.get("authorization") == basic and "client_secret" not in form,
            "client_secret_post": (form.get("client_id"), form.get("client_secret")) == (CLIENT_ID, CLIENT_SECRET),
            "none": form.get("client_id") == CLIENT_ID and "client_secret" not in form,
        }
        return any(proofs[method] for method in self.auth_methods)

    def _id_token(self, nonce: str) -> str:
        now = int(time.time())
        truth = {"iss": self.issuer, "aud": CLIENT_ID, "iat": now, "exp": now + 300, "nonce": nonce, **self.claims}
        said = {name: value for name, value in {**truth, **self.changes}.items() if value is not None}
        return jws.serialize_compact({"alg": "ES256", "kid": "one"}, msgspec.json.encode(said), self.key)
