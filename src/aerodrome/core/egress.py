"""What a sandboxed runtime may reach over the network: HOST:PORT by policy, and which addresses a name may not lead to.

A URL of a policy counts by its host and port. Paths are held by the rules for parameters (`protocol`), not here: inside TLS no
proxy sees them.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

from aerodrome import errors
from aerodrome.core import addresses
from aerodrome.core.policy import Policy

ANYTHING = "*"
is_public = addresses.is_public
_TARGET = re.compile(r"(?P<host>[a-z0-9._-]+|\[[0-9a-f:.]+\]):(?P<port>[0-9]{1,5})\Z", re.ASCII)
_URL = re.compile(r"(?P<scheme>https?)://(?P<host>[^/:\[\]]+|\[[^\]]+\])(?::(?P<port>[0-9]+))?", re.ASCII)
_PORTS = {"http": 80, "https": 443}


def targets_of(policy: Policy) -> tuple[str, ...]:
    """Return HOST:PORT of every model endpoint and MCP server that a policy allows; `*` where it allows all."""
    found = {_target(url) for url in (*policy.provider_urls, *policy.mcp_urls)}
    return tuple(sorted(found))


def check_target(name: str, text: str) -> str:
    """Return HOST:PORT of a setting, in lower case.

    Raises:
        errors.ConfigError: it is neither that nor `*`.
    """
    if text == ANYTHING or split(text.lower()) is not None:
        return text.lower()
    raise errors.ConfigError(f"{name}: expected HOST:PORT or '*', found {text!r}; for example api.example.com:443")


def split(text: str) -> tuple[str, int] | None:
    """Return the host, without brackets, and the port of HOST:PORT; None if it is not that."""
    match = _TARGET.match(text)
    if match is None or not 0 < int(match["port"]) < 65536:
        return None
    return match["host"].strip("[]"), int(match["port"])


def is_allowed(host: str, port: int, targets: Iterable[str]) -> bool:
    """Say whether a host and port are among the targets; which addresses the name leads to is asked afterwards."""
    return is_named(host, port, targets) or ANYTHING in targets


def is_named(host: str, port: int, targets: Iterable[str]) -> bool:
    """Say whether a host and port are there literally: only such may lead to an address of this machine or network."""
    wanted = (host.lower(), port)
    return any(split(target) == wanted for target in targets)


def loopback_ports(targets: Iterable[str]) -> list[int]:
    """Return the ports of targets on this machine's loopback, which are reached at the same address inside a sandbox."""
    found = [split(target) for target in targets]
    return sorted({port for host, port in filter(None, found) if host in ("127.0.0.1", "localhost")})


def _target(url: str) -> str:
    match = _URL.match(url.lower())
    if match is None:
        return ANYTHING  # policies hold checked URLs and "*" only
    return f"{match['host']}:{match['port'] or _PORTS[match['scheme']]}"
