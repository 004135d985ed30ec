"""Where the gateway is, how it is verified, and what proves us to it: read from options and environment, and dialled.

An address without a scheme means TLS. Plaintext must be asked for by that word, because a token crosses it.
"""

from __future__ import annotations

import asyncio
import socket
import ssl
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from aerodrome import errors
from aerodrome.forward.carrier import Upstream
from aerodrome.transport import tls
from aerodrome.transport.link import Link

_MAX_FRAME_BYTES = 64 * 1024 * 1024
_CONNECT_SECONDS = 10.0
_PORTS = {"tls": 4321, "https": 443, "plaintext": 4321}
#: A network that went away is noticed by the kernel: no message of ours would keep a runtime awake.
_KEEPALIVE = (("TCP_KEEPIDLE", 15), ("TCP_KEEPINTVL", 5), ("TCP_KEEPCNT", 3), ("TCP_USER_TIMEOUT", 30_000))


@dataclass(frozen=True, slots=True)
class GatewayOptions:
    """What was given of a gateway; None where nothing was. The token itself comes from the environment or a file only."""

    url: str | None = None
    ca: Path | None = None
    certificate: Path | None = None
    key: Path | None = None
    server_name: str | None = None
    token: str | None = None
    token_file: Path | None = None


@dataclass(frozen=True, slots=True)
class _Target:
    host: str
    port: int
    context: ssl.SSLContext | None
    server_name: str

    async def dial(self) -> Link:
        """Open a link. Raises errors.RuntimeUnavailable; errors.ConfigError: whoever answers is not our gateway."""
        loop = asyncio.get_running_loop()
        name = self.server_name if self.context is not None else None
        try:
            async with asyncio.timeout(_CONNECT_SECONDS):
                _, link = await loop.create_connection(
                    lambda: Link(_MAX_FRAME_BYTES, _watch), self.host, self.port, ssl=self.context, server_hostname=name
                )
        except ssl.SSLCertVerificationError as error:
            raise errors.ConfigError(
                f"{self.host}:{self.port} cannot prove that it is {self.server_name}: {error.verify_message}; "
                "check AERODROME_CA, or AERODROME_SERVER_NAME if the certificate has another name"
            ) from None
        except ssl.SSLError as error:
            reason = (error.reason or "TLS failed").lower().replace("_", " ")
            raise errors.RuntimeUnavailable(f"no TLS with {self.host}:{self.port}: {reason}") from None
        except (OSError, TimeoutError) as error:
            raise errors.RuntimeUnavailable(f"no connection: {getattr(error, 'strerror', '') or 'timeout'}") from None
        return link


def from_environment(environment: Mapping[str, str], given: GatewayOptions | None = None) -> GatewayOptions:
    """Return what is given, and what is not from AERODROME_URL, _CA, _CERT, _KEY, _SERVER_NAME, _TOKEN, _TOKEN_FILE."""
    given = given or GatewayOptions()

    def path(name: str) -> Path | None:
        return Path(environment[name]) if environment.get(name) else None

    return GatewayOptions(
        given.url or environment.get("AERODROME_URL") or None,
        given.ca or path("AERODROME_CA"),
        given.certificate or path("AERODROME_CERT"),
        given.key or path("AERODROME_KEY"),
        given.server_name or environment.get("AERODROME_SERVER_NAME") or None,
        environment.get("AERODROME_TOKEN") or None,
        given.token_file or path("AERODROME_TOKEN_FILE"),
    )


def open_upstream(options: GatewayOptions) -> Upstream:
    """Return how the gateway is reached; everything that can be checked without it is.

    Raises:
        errors.ConfigError: something is missing or wrong.
    """
    if options.url is None:
        raise errors.ConfigError("no gateway given; set AERODROME_URL, for example to tls://gateway.example.com:4321")
    scheme, host, port = split_url(options.url)
    context = None
    if scheme != "plaintext":
        context = tls.client_context(options.ca, options.certificate, options.key)
    target = _Target(host, port, context, options.server_name or host)
    _read_token(options)
    return Upstream(f"{host}:{port}", target.dial, lambda: _read_token(options))


def split_url(url: str) -> tuple[str, str, int]:
    """Return scheme, host and port of `tls://HOST:PORT`, `https://HOST`, `HOST:PORT` (TLS) or `plaintext://HOST:PORT`.

    Raises:
        errors.ConfigError: it is none of them.
    """
    parts = urlsplit(url if "://" in url else f"tls://{url}")
    try:
        host, port = parts.hostname, parts.port
    except ValueError:
        host, port = None, None
    if parts.username is not None or parts.password is not None:
        raise errors.ConfigError("the gateway's address holds a user or password; give the token by AERODROME_TOKEN")
    if parts.scheme not in _PORTS or not host or parts.path not in ("", "/") or parts.query or parts.fragment:
        raise errors.ConfigError(
            f"expected tls://HOST:PORT (or plaintext://HOST:PORT where nobody else can listen), found {url!r}"
        )
    return parts.scheme, host, port or _PORTS[parts.scheme]


def _read_token(options: GatewayOptions) -> str:
    if options.token is not None and options.token_file is not None:
        raise errors.ConfigError("both AERODROME_TOKEN and AERODROME_TOKEN_FILE are set; keep one of them")
    if options.token is not None:
        return options.token
    if options.token_file is None:
        raise errors.ConfigError("no token given; set AERODROME_TOKEN_FILE or AERODROME_TOKEN (aerodrome key create)")
    return read_secret("AERODROME_TOKEN_FILE", options.token_file)


def read_secret(name: str, path: Path) -> str:
    """Return the secret in a file that only its owner can read. Raises errors.ConfigError."""
    try:
        mode = path.stat().st_mode
        text = path.read_text("utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise errors.ConfigError(f"{name}: cannot read {path}: {getattr(error, 'strerror', 'not text')}") from None
    if mode & 0o077:
        raise errors.ConfigError(f"{name}: others can read {path}; make its mode 0600 and replace the token")
    if not text:
        raise errors.ConfigError(f"{name}: {path} is empty; expected a token")
    return text


def _watch(link: Link) -> None:
    """Have a silent network noticed within half a minute."""
    for name, value in _KEEPALIVE:
        option = getattr(socket, name, None)
        if option is not None:
            link.set_option(socket.IPPROTO_TCP, option, value)
