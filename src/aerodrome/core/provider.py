"""Named providers: model endpoints whose keys the gateway keeps, as values, and what of one a runtime is told.

A client or a policy names one as `aerodrome:NAME`; that is also what is stored of a session, so that no key is. How the key gets
into a model call is gateway.forwarder; which parameters may name one is protocol.named_providers.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum
from typing import Any

from aerodrome import errors
from aerodrome.core import policy as policies
from aerodrome.core import secret
from aerodrome.core.secret import Reference

_NAME = re.compile(r"[a-z0-9](?:[a-z0-9_-]{0,62}[a-z0-9])?\Z")
_HEADER = re.compile(r"[A-Za-z0-9-]{1,64}\Z")


class ProviderKind(Enum):
    """Whose API an endpoint speaks, and so how its key is presented."""

    OPENAI = "openai"
    AZURE = "azure"
    ANTHROPIC = "anthropic"


@dataclass(frozen=True, slots=True)
class NamedProvider:
    """A model endpoint. No `models`: any; `aliases` are more names for some of them. `headers` are secrets too."""

    name: str
    kind: ProviderKind
    base_url: str
    wire_api: str | None = None
    api_key: Reference | None = None
    bearer_token: Reference | None = None
    models: tuple[str, ...] = ()
    aliases: tuple[tuple[str, str], ...] = ()
    headers: tuple[tuple[str, Reference], ...] = ()
    azure_api_version: str | None = None

    @property
    def default_model(self) -> str | None:
        """Return the model of a session that names none."""
        return self.models[0] if self.models else None

    def wire_model(self, wanted: str) -> str | None:
        """Return the endpoint's own name of a model, None for one that is not offered."""
        actual = dict(self.aliases).get(wanted, wanted)
        return actual if not self.models or actual in self.models else None

    def described(self, base_url: str, api_key: str) -> dict[str, Any]:
        """Return the `provider` parameter of a session that reaches it under this address with this key."""
        wire: dict[str, Any] = {"type": self.kind.value, "baseUrl": base_url, "apiKey": api_key}
        if self.wire_api is not None:
            wire["wireApi"] = self.wire_api
        if self.azure_api_version is not None:
            wire["azure"] = {"apiVersion": self.azure_api_version}
        return wire


def check_name(where: str, name: str) -> str:
    """Return a provider's name. Raises errors.ConfigError."""
    if not _NAME.match(name):
        raise errors.ConfigError(f"{where}: expected a name of a-z, 0-9, '_' and '-' (at most 64), found {name!r}")
    return name


def make(name: str, values: Mapping[str, Any]) -> NamedProvider:
    """Return a provider of its settings.

    Raises:
        errors.ConfigError: a value is wrong; a key that is written out is refused without repeating it.
    """
    where = f"providers.{check_name('providers', name)}"
    base_url = policies.check_url(f"{where}.base_url", values["base_url"])
    kind = ProviderKind(values["type"])
    models, aliases = tuple(values["models"]), dict(values["aliases"])
    if base_url == "*":
        raise errors.ConfigError(f"{where}.base_url: expected the URL of an endpoint, found '*'")
    if aliases and kind is ProviderKind.AZURE:
        raise errors.ConfigError(f"{where}.aliases: an azure endpoint has models in its paths; name its deployments")
    for alias, model in aliases.items():
        if models and model not in models:
            raise errors.ConfigError(f"{where}.aliases.{alias}: {model!r} is not among the provider's models")
    if (values["api_key"] is None) == (values["bearer_token"] is None) and not values["headers"]:
        raise errors.ConfigError(f"{where}: expected api_key or bearer_token, one of the two, as a reference")
    return NamedProvider(
        name,
        kind,
        base_url.rstrip("/"),
        values["wire_api"],
        _reference(f"{where}.api_key", values["api_key"]),
        _reference(f"{where}.bearer_token", values["bearer_token"]),
        models,
        tuple(aliases.items()),
        tuple(_header(f"{where}.headers", header, text) for header, text in values["headers"].items()),
        values["azure_api_version"],
    )


def _reference(where: str, text: str | None) -> Reference | None:
    return None if text is None else secret.parse(where, text)


def _header(where: str, header: str, text: str) -> tuple[str, Reference]:
    if not _HEADER.match(header):
        raise errors.ConfigError(f"{where}: expected header names of letters, digits and '-', found another")
    return header, secret.parse(f"{where}.{header}", text)
