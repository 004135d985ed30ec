"""The composition root's part for sign-ins: adapters.oauth from settings. Beside app, which stays quick to import without it.

Import it where a sign-in is wanted: authlib takes 40 to 90 ms.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from aerodrome import errors
from aerodrome.adapters.jwks.keys import JwksKeys
from aerodrome.adapters.oauth.client import Client
from aerodrome.adapters.oauth.github import GitHubApp, GitHubGranter, GitHubSignIn
from aerodrome.adapters.oauth.loopback import Loopback
from aerodrome.adapters.oauth.oidc import OidcSettings, OidcSignIn
from aerodrome.clock import Clock
from aerodrome.core import secret
from aerodrome.core.sign_in import Rules
from aerodrome.gateway.token_sign_in import Note, TokenSignIn
from aerodrome.ports.secrets import SecretSource
from aerodrome.ports.sign_in import SignIn, TokenGranter
from aerodrome.ports.tokens import TokenStore
from aerodrome.settings import Settings

Sleep = Callable[[float], Awaitable[object]]


@dataclass(frozen=True, slots=True)
class BrowserSignIn:
    """Who says who a browser's user is, and what that means here."""

    provider: SignIn
    rules: Rules


def open_granter(
    settings: Settings, secrets: SecretSource, clock: Clock, sleep: Sleep = asyncio.sleep
) -> GitHubGranter:
    """Return GitHub as it grants tokens; to be closed.

    Raises:
        errors.ConfigError: no app is configured; says what to set.
    """
    section = settings.github
    if section.client_id is None:
        raise errors.ConfigError(
            "github.client_id: no app is configured that users could sign in to; register a GitHub App (or OAuth App), enable "
            "its device flow, and set AERODROME_GITHUB__CLIENT_ID or client_id in [github] (docs/credentials.md)"
        )
    client = Client(section.client_id, _reference("github.client_secret", section.client_secret))
    return GitHubGranter(GitHubApp(settings.github_endpoints(), client, section.scopes), secrets, clock, sleep)


def open_token_sign_in(
    settings: Settings, granter: TokenGranter, tokens: TokenStore, clock: Clock, note: Note | None = None
) -> TokenSignIn:
    """Return what stores users' tokens.

    Raises:
        errors.ConfigError: there is no master key to seal them with.
    """
    envelopes = settings.envelopes()
    if envelopes is None:
        raise errors.ConfigError(
            "no master key is given; set AERODROME_MASTER_KEY or AERODROME_MASTER_KEY_FILE as for the gateway"
        )
    return TokenSignIn(granter, tokens, envelopes, clock, note)


def open_browser_sign_in(settings: Settings, secrets: SecretSource, clock: Clock) -> BrowserSignIn | None:
    """Return how browsers sign in, None if `[sign_in]` is not there; its provider is to be closed."""
    section, rules = settings.sign_in, settings.sign_in_rules()
    if section is None or rules is None:
        return None
    if section.provider == "github":
        granter = open_granter(settings, secrets, clock)
        return BrowserSignIn(GitHubSignIn(granter, settings.github.host, section.organizations), rules)
    assert section.issuer is not None
    assert section.client_id is not None
    client = Client(section.client_id, _reference("sign_in.client_secret", section.client_secret))
    oidc = OidcSettings(section.issuer, client, section.scopes, section.skew_seconds)
    return BrowserSignIn(OidcSignIn(oidc, secrets, lambda issuer: JwksKeys(issuer, clock), clock), rules)


def open_loopback() -> Loopback:
    """Return where a browser of this machine comes back to; to be closed."""
    return Loopback()


def _reference(name: str, text: str | None) -> secret.Reference | None:
    return None if text is None else secret.parse(name, text)
