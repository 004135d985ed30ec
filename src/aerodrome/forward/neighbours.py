"""Who on this machine is at the other end of a local connection: the kernel says it, by user id.

For a unix socket by its credentials, for loopback TCP by the kernel's table of sockets. Where the kernel does not say it, nobody
is known, and whoever asks must not let in.
"""

from __future__ import annotations

import asyncio
import ipaddress
import os
import socket
import struct
from pathlib import Path

_CREDENTIALS = struct.Struct("3i")
_ESTABLISHED = "01"
_TABLES = ("/proc/net/tcp", "/proc/net/tcp6")


def is_own(transport: asyncio.BaseTransport) -> bool:
    """Say whether the peer is a process of our user's, or root's."""
    uid = uid_of_peer(transport)
    return uid is not None and uid in (os.geteuid(), 0)


def uid_of_peer(transport: asyncio.BaseTransport) -> int | None:
    """Return the user id behind a connection; None if the kernel does not say it."""
    sock = transport.get_extra_info("socket")
    if sock is not None and sock.family == socket.AF_UNIX:
        option = getattr(socket, "SO_PEERCRED", None)
        if option is None:
            return None
        raw = sock.getsockopt(socket.SOL_SOCKET, option, _CREDENTIALS.size)
        return int(_CREDENTIALS.unpack(raw)[1])
    peer, ours = transport.get_extra_info("peername"), transport.get_extra_info("sockname")
    if not isinstance(peer, tuple) or not isinstance(ours, tuple):
        return None
    return _find(_spellings(peer[0], peer[1]), _spellings(ours[0], ours[1]))


def _find(local: set[str], remote: set[str]) -> int | None:
    """Look for the peer's own end of the connection."""
    for table in _TABLES:
        try:
            lines = Path(table).read_text("ascii").splitlines()[1:]
        except OSError:
            continue
        for line in lines:
            parts = line.split()
            # A socket that its process has closed has no inode any more, and claims to be root's.
            if parts[1] in local and parts[2] in remote and parts[3] == _ESTABLISHED and parts[9] != "0":
                return int(parts[7])
    return None


def _spellings(host: str, port: int) -> set[str]:
    """Return an address as the table writes it: words of the machine's byte order, also as IPv6 writes an IPv4 address."""
    address = ipaddress.ip_address(host.partition("%")[0])
    packed = [address.packed]
    if isinstance(address, ipaddress.IPv4Address):
        packed.append(b"\0" * 10 + b"\xff\xff" + address.packed)
    elif address.ipv4_mapped is not None:
        packed.append(address.ipv4_mapped.packed)
    return {f"{_words(raw)}:{port:04X}" for raw in packed}


def _words(raw: bytes) -> str:
    return "".join(f"{word:08X}" for word in struct.unpack(f"={len(raw) // 4}I", raw))
