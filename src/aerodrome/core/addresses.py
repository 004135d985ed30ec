"""Which hosts of a URL are the internet's, and which this machine's or its network's. Pure: nothing is looked up.

What a name leads to is not known here: where that matters it is asked when a connection is made (core.egress).
"""

from __future__ import annotations

import ipaddress
import re

_NAT64 = ipaddress.IPv6Network("64:ff9b::/96")
#: All that is given out as global unicast; what lies elsewhere is of some network's own, or stands for an IPv4 address of it.
_GIVEN_OUT = ipaddress.IPv6Network("2000::/3")
#: What a resolver or an HTTP client may take for a number: then all of the host is one, in some notation.
_NUMBER = re.compile(r"(?:[0-9]+|0[xX][0-9a-fA-F]*)\Z")
#: Names that no public server has.
_INNER_NAMES = ("localhost", "local", "localdomain", "internal", "intranet", "lan", "home.arpa")


def is_public(address: str) -> bool:
    """Say whether an address is one of the internet's: not this machine's, nor of a private or link-local network."""
    try:
        found = ipaddress.ip_address(address.partition("%")[0])
    except ValueError:
        return False
    inner = getattr(found, "ipv4_mapped", None) or getattr(found, "sixtofour", None)
    if isinstance(found, ipaddress.IPv6Address):
        if found in _NAT64:
            inner = ipaddress.IPv4Address(int(found) & 0xFFFFFFFF)
        elif inner is None and found not in _GIVEN_OUT:
            return False
    return found.is_global and not found.is_multicast and (inner is None or is_public(str(inner)))


def is_public_host(host: str) -> bool:
    """Say whether the host of a URL is a public address in its plain notation, or a name that may be a public server's."""
    if host.startswith("["):
        return is_public(host.strip("[]"))
    name = host.lower().removesuffix(".")
    if _NUMBER.match(name.rpartition(".")[2]):
        return is_public(name)  # 2130706433, 0x7f.1 and 0177.0.0.1 are 127.0.0.1 to many, and no address to this
    return "." in name and not any(name.endswith(f".{inner}") for inner in _INNER_NAMES)
