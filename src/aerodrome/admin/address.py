"""What both sides of the admin socket know: where it is, a name for it that is short enough, and the last word on it.

The kernel takes 107 bytes for the path of a unix socket. A longer one is reached through a descriptor of its directory
(/proc/self/fd/N/admin.sock): the socket is where it belongs all the same, and nothing has to be recorded elsewhere.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_MAX_PATH_BYTES = 107

#: The last words on every link that is open when the gateway has stopped.
STOPPED = "gateway.stopped"


def socket_path(directory: Path) -> Path:
    """Return where the socket is."""
    return directory.absolute() / "admin.sock"


@contextmanager
def short_path(directory: Path) -> Iterator[str]:
    """Yield a path by which the socket can be bound or connected to, valid within the block.

    Raises:
        OSError: the directory cannot be opened.
    """
    path = str(socket_path(directory))
    if len(os.fsencode(path)) <= _MAX_PATH_BYTES:
        yield path
        return
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield f"/proc/self/fd/{descriptor}/admin.sock"
    finally:
        os.close(descriptor)


def is_socket(path: str) -> bool:
    """Say whether there is a socket of that name."""
    try:
        return stat.S_ISSOCK(os.lstat(path).st_mode)
    except FileNotFoundError:
        return False
