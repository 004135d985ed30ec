"""Secrets that a command prints: `exec:/path/to/command argument ...`, for password stores and clouds' own tools.

No shell: the words are split at spaces and quotes, and the command is named by its whole path. Bounded in time and output; what
it says on standard error is not repeated, for it may hold the secret.
"""

from __future__ import annotations

import asyncio
import os
import shlex
import signal
from contextlib import suppress

from aerodrome import errors
from aerodrome.adapters.secrets import local
from aerodrome.core.secret import Reference, Secret


class CommandSource:
    """Runs commands with the gateway's environment and reads their standard output."""

    def __init__(self, timeout_seconds: float = 10.0) -> None:
        self._timeout_seconds = timeout_seconds

    async def read(self, reference: Reference) -> Secret:
        """Return what the command prints."""
        try:
            words = shlex.split(reference.rest)
            process = await asyncio.create_subprocess_exec(
                *words,
                stdin=asyncio.subprocess.DEVNULL,
                stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.DEVNULL,
                start_new_session=True,
            )
        except (OSError, ValueError) as error:
            reason = error.strerror if isinstance(error, OSError) else "its quotes do not match"
            raise errors.SecretUnavailable(f"secret {reference}: cannot be run: {reason}") from None
        try:
            async with asyncio.timeout(self._timeout_seconds):
                data = await _read_bounded(process)
                code = await process.wait() if len(data) <= local.MAX_SECRET_BYTES else 0
        except TimeoutError:
            limit = f"{self._timeout_seconds:g} s"
            raise errors.SecretUnavailable(f"secret {reference}: the command took longer than {limit}") from None
        finally:
            await _end(process)
        if code:
            raise errors.SecretUnavailable(f"secret {reference}: the command ended with code {code}; run it by hand")
        return local.as_secret(reference, data)

    async def aclose(self) -> None:
        """Do nothing: nothing is held."""


async def _read_bounded(process: asyncio.subprocess.Process) -> bytes:
    assert process.stdout is not None
    data = b""
    while len(data) <= local.MAX_SECRET_BYTES and (part := await process.stdout.read(local.MAX_SECRET_BYTES)):
        data += part
    return data


async def _end(process: asyncio.subprocess.Process) -> None:
    """Kill the command's whole session, also what it left behind; its number is not another's before `wait`."""
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)
    await process.wait()
