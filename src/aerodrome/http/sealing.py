"""Options of sessions as they are stored: headers of MCP servers are secrets, and lie sealed in the registry.

Sealed with a key made from the gateway's master key and bound to the session, so that a stolen database tells none and a record
copied elsewhere does not open. Without a master key there is nowhere to put a secret, and none is taken.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec

from aerodrome import errors
from aerodrome.core.envelope import Envelopes
from aerodrome.core.identity import Owner
from aerodrome.http.options import SessionOptions

_SEALED = "sealed"
_JOINED = "joined"


class SealedOptions:
    """Seals and opens with these master keys, the current one first."""

    def __init__(self, masters: Sequence[bytes]) -> None:
        self._envelopes = Envelopes(masters, "http-options") if masters else None

    def check(self, chosen: SessionOptions) -> None:
        """Check that what is secret can be kept. Raises errors.PolicyRejected: this gateway has no master key."""
        if self._envelopes is None and any(server.headers for server in chosen.mcp_servers.values()):
            raise errors.PolicyRejected(
                "headers of MCP servers are stored sealed, and this gateway has no master key to seal with; ask your operator"
            )

    def seal(self, chosen: SessionOptions, owner: Owner, session_id: str, is_joined: bool = False) -> str:
        """Return options as they are stored; `is_joined`: a program made the session, and HTTP callers use it too."""
        said = chosen.model_dump(mode="json", exclude_defaults=True) | ({_JOINED: True} if is_joined else {})
        for name, server in chosen.mcp_servers.items():
            if server.headers:
                assert self._envelopes is not None
                plain = {header: value.get_secret_value() for header, value in server.headers.items()}
                sealed = self._envelopes.seal(msgspec.json.encode(plain), _context(owner, session_id, name))
                said["mcp_servers"][name]["headers"] = {_SEALED: sealed}
        return msgspec.json.encode(said).decode()

    def open(self, stored: str, owner: Owner, session_id: str) -> SessionOptions:
        """Return options as a session is opened with them.

        Raises:
            errors.SecretUnavailable: what is sealed in them was sealed with a master key that is not here.
        """
        said: dict[str, Any] = msgspec.json.decode(stored)
        for server, sealed, name in _sealed_in(said):
            server["headers"] = self._open_one(sealed, _context(owner, session_id, name))
        return _options(said)

    def show(self, stored: str, owner: Owner, session_id: str) -> SessionOptions:
        """Return the same to be looked at: headers that cannot be opened are left out, for nobody is shown them anyway."""
        said: dict[str, Any] = msgspec.json.decode(stored)
        for server, sealed, name in _sealed_in(said):
            try:
                server["headers"] = self._open_one(sealed, _context(owner, session_id, name))
            except errors.SecretUnavailable:
                del server["headers"]
        return _options(said)

    def _open_one(self, sealed: str, context: str) -> Any:
        if self._envelopes is None:
            raise errors.SecretUnavailable("headers of an MCP server are sealed, and there is no master key")
        return msgspec.json.decode(self._envelopes.open(sealed, context))


def _sealed_in(said: dict[str, Any]) -> list[tuple[dict[str, Any], str, str]]:
    """Return the servers whose headers are sealed: the server, what is sealed, its name."""
    servers = said.get("mcp_servers", {}).items()
    return [(one, one["headers"][_SEALED], name) for name, one in servers if _SEALED in one.get("headers", {})]


def _options(said: dict[str, Any]) -> SessionOptions:
    return SessionOptions.model_validate({name: value for name, value in said.items() if name != _JOINED})


def is_made_here(stored: str | None) -> bool:
    """Say whether what is stored of a session is of one that was made over HTTP."""
    return stored is not None and not msgspec.json.decode(stored).get(_JOINED, False)


def _context(owner: Owner, session_id: str, name: str) -> str:
    return f"{owner.tenant}/{owner.user}/{session_id}/mcp/{name}"
