"""Secrets of this machine: environment variables, files, mounted Kubernetes Secrets.

A file is read anew each time, so one that is replaced is seen at the next read; Kubernetes replaces a mounted Secret by
swapping a symlink of its directory, and a reader that holds no file open always finds one whole version. Neighbours: command.py,
vault.py; cached.py remembers values for a while.
"""

from __future__ import annotations

import asyncio
import os
import stat
from collections.abc import Mapping

from aerodrome import errors
from aerodrome.core.secret import Reference, Secret

MAX_SECRET_BYTES = 64 * 1024


def as_secret(reference: Reference, data: bytes) -> Secret:
    """Return what a source gave, one trailing newline cut.

    Raises:
        errors.SecretUnavailable: it is empty, too long, or not text.
    """
    if len(data) > MAX_SECRET_BYTES:
        raise errors.SecretUnavailable(f"secret {reference}: expected at most {MAX_SECRET_BYTES} bytes, found more")
    try:
        text = data.decode()
    except UnicodeDecodeError:
        raise errors.SecretUnavailable(f"secret {reference}: expected UTF-8 text, found other bytes") from None
    text = text.removesuffix("\n").removesuffix("\r")
    if not text:
        raise errors.SecretUnavailable(f"secret {reference}: expected a value, found an empty one")
    return Secret(text)


class EnvironmentSource:
    """`env:NAME`: a variable of the gateway's own environment, which no runtime gets."""

    def __init__(self, environment: Mapping[str, str]) -> None:
        self._environment = environment

    async def read(self, reference: Reference) -> Secret:
        """Return the variable's value."""
        value = self._environment.get(reference.rest)
        if value is None:
            raise errors.SecretUnavailable(f"secret {reference}: that variable is not set in the gateway's environment")
        return as_secret(reference, value.encode("utf-8", "surrogateescape"))

    async def aclose(self) -> None:
        """Do nothing: nothing is held."""


class FileSource:
    """`file:/path`: only a file that no other user can read or write. `k8s:/path`: whatever mode the kubelet gave it."""

    def __init__(self, checks_mode: bool) -> None:
        self._checks_mode = checks_mode

    async def read(self, reference: Reference) -> Secret:
        """Return the file's content."""
        return await asyncio.to_thread(self._read, reference)

    def _read(self, reference: Reference) -> Secret:
        try:
            # Not to hang on a pipe that nobody writes to.
            descriptor = os.open(reference.rest, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        except OSError as error:
            raise errors.SecretUnavailable(f"secret {reference}: cannot be read: {error.strerror}") from None
        try:
            self._check(reference, os.fstat(descriptor))
            with os.fdopen(descriptor, "rb", closefd=False) as file:
                return as_secret(reference, file.read(MAX_SECRET_BYTES + 1))
        finally:
            os.close(descriptor)

    def _check(self, reference: Reference, status: os.stat_result) -> None:
        if not stat.S_ISREG(status.st_mode):
            raise errors.SecretUnavailable(f"secret {reference}: expected a regular file")
        if not self._checks_mode:
            return
        if status.st_mode & 0o077:
            mode = stat.S_IMODE(status.st_mode)
            raise errors.SecretUnavailable(
                f"secret {reference}: other users may use the file (mode {mode:04o}); chmod 600 it"
            )
        if status.st_uid not in (0, os.geteuid()):
            raise errors.SecretUnavailable(f"secret {reference}: the file is another user's; chown it to the gateway's")

    async def aclose(self) -> None:
        """Do nothing: nothing is held."""
