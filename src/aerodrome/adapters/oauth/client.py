"""An OAuth client's requests: authlib makes them and knows the protocol, our httpx sends them.

authlib's own clients are not used: they are tied to one HTTP library or another and keep the token of one user. Its parts that do
no I/O are: URLs and forms (RFC 6749), code challenges (RFC 7636), the client's proof of itself. Answers are bounded, redirections
are not followed, and nothing of a request or an answer gets into an error but an error's code.
"""

from __future__ import annotations

import functools
import ssl
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import httpx
import msgspec
from authlib.oauth2.auth import ClientAuth
from authlib.oauth2.rfc6749.parameters import prepare_grant_uri, prepare_token_request
from authlib.oauth2.rfc7636 import create_s256_code_challenge

from aerodrome import errors
from aerodrome.core.secret import Reference, Secret
from aerodrome.core.sign_in import Kept
from aerodrome.ports.secrets import SecretSource

_TIMEOUT_SECONDS = 15.0
_MAX_BYTES = 1024 * 1024
_FORM = "application/x-www-form-urlencoded"


@dataclass(frozen=True, slots=True)
class Client:
    """Who we are at a provider; without a secret a public client, which proves itself by PKCE alone."""

    client_id: str
    client_secret: Reference | None = None


@dataclass(frozen=True, slots=True)
class Answer:
    """A provider's answer: its status, and its JSON object (empty if it is none)."""

    status: int
    document: Mapping[str, Any]


class OAuthClient:
    """Speaks to one provider; `name` is what errors call it."""

    def __init__(self, name: str, client: Client, secrets: SecretSource) -> None:
        self._name = name
        self._client = client
        self._secrets = secrets
        self._http = httpx.AsyncClient(timeout=_TIMEOUT_SECONDS, follow_redirects=False, verify=_authorities())

    def authorize_url(self, endpoint: str, kept: Kept, scopes: str | None, **more: str) -> str:
        """Return where a browser asks for a code."""
        url = prepare_grant_uri(
            endpoint,
            client_id=self._client.client_id,
            response_type="code",
            redirect_uri=kept.redirect_uri,
            scope=scopes or None,
            state=kept.state.reveal(),
            code_challenge=create_s256_code_challenge(kept.verifier.reveal()),
            code_challenge_method="S256",
            **more,
        )
        return str(url)

    async def exchange(self, endpoint: str, kept: Kept, code: Secret, auth_method: str) -> Answer:
        """Return what a token endpoint gives for a code."""
        return await self.ask_for_token(
            endpoint,
            auth_method,
            "authorization_code",
            redirect_uri=kept.redirect_uri,
            code=code.reveal(),
            code_verifier=kept.verifier.reveal(),
        )

    async def ask_for_token(self, endpoint: str, auth_method: str, grant_type: str, **form: str) -> Answer:
        """Return what a token endpoint answers to a grant."""
        has_secret = self._client.client_secret is not None and auth_method != "none"
        proof = ClientAuth(
            self._client.client_id,
            (await self._secrets.read(self._client.client_secret)).reveal() if has_secret else None,  # type: ignore[arg-type]
            auth_method if has_secret else "none",
        )
        body = prepare_token_request(grant_type, **form)
        _, headers, body = proof.prepare("POST", endpoint, {"Content-Type": _FORM}, body)
        return await self.send("POST", endpoint, headers, body)

    async def send(self, method: str, url: str, headers: Mapping[str, str] | None = None, body: str = "") -> Answer:
        """Return the answer to a request.

        Raises:
            errors.SignInUnavailable: there is none, or it says that the provider is at fault.
        """
        try:
            async with self._http.stream(
                method, url, headers={"Accept": "application/json", **(headers or {})}, content=body or None
            ) as response:
                content = bytearray()
                async for part in response.aiter_bytes():
                    content += part
                    if len(content) > _MAX_BYTES:
                        raise self.unavailable("more than 1 MiB")
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            raise self.unavailable(type(error).__name__) from None
        if response.status_code >= 500 or response.status_code == 429:
            raise self.unavailable(f"HTTP {response.status_code}")
        return Answer(response.status_code, _object(bytes(content)))

    def unavailable(self, what: str) -> errors.SignInUnavailable:
        """Return the error for a provider that does not answer as it should."""
        return errors.SignInUnavailable(f"{self._name} gave no usable answer ({what}); try again")

    async def aclose(self) -> None:
        """Close the connections; idempotent."""
        await self._http.aclose()


@functools.cache
def _authorities() -> ssl.SSLContext:
    """Return whom we trust, read once: it takes longer than a request on loopback."""
    return httpx.create_ssl_context()


def _object(content: bytes) -> dict[str, Any]:
    try:
        return msgspec.json.decode(content, type=dict[str, Any])
    except (msgspec.MsgspecError, RecursionError, UnicodeDecodeError):
        return {}
