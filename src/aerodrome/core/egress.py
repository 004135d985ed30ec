"""What a sandboxed runtime may reach over the network: hosts and ports by policy, and which addresses a name may not lead to.

A URL of a policy counts by its host and port. Its `egress` may leave the port out (any port), or say `*.HOST` for every name
below a host. Paths are held by the rules for parameters (`protocol`), not here: inside TLS no
proxy sees them.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterable

from aerodrome import errors
from aerodrome.core import addresses
from aerodrome.core.policy import Policy

ANYTHING = "*"
is_public = addresses.is_public
_TARGET = re.compile(r"(?P<host>[a-z0-9._-]+|\[[0-9a-f:.]+\]):(?P<port>[0-9]{1,5})\Z", re.ASCII)
_PATTERN = re.compile(r"(?P<wild>\*\.)?(?P<host>[a-z0-9._-]+|\[[0-9a-f:.]+\])(?::(?P<port>[0-9]{1,5}))?\Z", re.ASCII)
_URL = re.compile(r"(?P<scheme>https?)://(?P<host>[^/:\[\]]+|\[[^\]]+\])(?::(?P<port>[0-9]+))?", re.ASCII)
_PORTS = {"http": 80, "https": 443}


def targets_of(policy: Policy) -> tuple[str, ...]:
    """Return HOST:PORT of every model endpoint and MCP server that a policy allows, `*` where it allows all; and its `egress`."""
    found = {target_of(url) for url in (*policy.provider_urls, *policy.mcp_urls)}
    return tuple(sorted({*found, *policy.egress}))


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
    return any(target == ANYTHING or _matches(target, host.lower(), port) for target in targets)


def is_named(host: str, port: int, targets: Iterable[str]) -> bool:
    """Say whether a host and port are there literally: only such may lead to an address of this machine or network.

    A private address may be there without a port. A name without one may not lead there: whoever answers for the name would
    choose among all ports of this machine.
    """
    host = host.lower()
    if any(split(target) == (host, port) for target in targets):
        return True
    return not is_loopback(host) and _is_address(host) and any(target.strip("[]") == host for target in targets)


def is_loopback(host: str) -> bool:
    """Say whether a host is this machine itself, by name or address; a host of another name may still lead there."""
    if host == "localhost" or host.endswith(".localhost"):
        return True
    if not _is_address(host):
        return False
    found = ipaddress.ip_address(host)
    inner = getattr(found, "ipv4_mapped", None) or found
    return bool(inner.is_loopback or inner.is_unspecified)


def may_reach(host: str, port: int, address: str, targets: Iterable[str]) -> bool:
    """Say whether an address that a host's name led to may be reached at a port."""
    known = tuple(targets)
    return is_allowed(host, port, known) and (is_named(host, port, known) or is_public(address))


def _matches(target: str, host: str, port: int) -> bool:
    match = _PATTERN.match(target)
    if match is None or (match["port"] is not None and int(match["port"]) != port):
        return False
    named = match["host"].strip("[]")
    return host.endswith(f".{named}") if match["wild"] else host == named


def _is_address(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True


def loopback_ports(targets: Iterable[str]) -> list[int]:
    """Return the ports of targets on this machine's loopback, which are reached at the same address inside a sandbox."""
    found = [split(target) for target in targets]
    return sorted({port for host, port in filter(None, found) if host in ("127.0.0.1", "localhost")})


def target_of(url: str) -> str:
    """Return HOST:PORT of a URL; `*` if it is none."""
    match = _URL.match(url.lower())
    if match is None:
        return ANYTHING  # policies hold checked URLs and "*" only
    return f"{match['host']}:{match['port'] or _PORTS[match['scheme']]}"
