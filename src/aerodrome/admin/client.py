"""The operator's side of the admin socket: what the commands call."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import msgspec

from aerodrome import errors
from aerodrome.admin import address
from aerodrome.transport import control
from aerodrome.transport.control import ControlLink
from aerodrome.transport.link import Link

_MAX_FRAME_BYTES = 64 * 1024 * 1024
_CONNECT_SECONDS = 5.0
_ANSWER_SECONDS = 30.0
#: Longer than any drain or recycling; a link that ends ends the waiting.
_FOREVER_SECONDS = 30 * 86400.0

Progress = Callable[[str, dict[str, Any]], None]


class NoGateway(errors.ConfigError):
    """There is no admin socket, or nobody behind it."""


class AdminClient:
    """A link to the admin socket of a running gateway."""

    def __init__(self, link: Link, directory: Path, progress: Progress) -> None:
        self._directory = directory
        self._progress = progress
        self._has_stopped = False
        self._control = ControlLink(link, self._hear)

    async def call(self, verb: str, *, patient: bool = False, **params: Any) -> Any:
        """Ask for a verb; return its result, None if the gateway has stopped meanwhile. `patient`: however long it takes.

        Raises:
            errors.AerodromeError: it cannot be done, or the gateway does not answer; says why.
        """
        try:
            return await self._control.call(verb, params, _FOREVER_SECONDS if patient else _ANSWER_SECONDS)
        except control.RemoteError as error:
            raise errors.ConfigError(error.message) from None
        except errors.RuntimeLost:
            if self._has_stopped:
                return None
            if self._control.closed.done():
                raise errors.ConfigError(
                    f"the gateway over {self._directory} closed the link; its log says why"
                ) from None
            raise errors.ConfigError(
                f"the gateway over {self._directory} did not answer within {_ANSWER_SECONDS:g} s"
            ) from None

    async def aclose(self) -> None:
        """Close the link."""
        await self._control.aclose()

    def _hear(self, method: str, body: bytes) -> None:
        if method == address.STOPPED:
            self._has_stopped = True
        else:
            self._progress(method, msgspec.json.decode(body)["params"])


@asynccontextmanager
async def open_client(directory: Path, progress: Progress = lambda _, __: None) -> AsyncIterator[AdminClient]:
    """Connect to the gateway that runs over a state directory.

    Raises:
        NoGateway: none runs. errors.ConfigError: one does, but not for this user.
    """
    client = AdminClient(await _connect(directory), directory, progress)
    try:
        yield client
    finally:
        await client.aclose()


async def _connect(directory: Path) -> Link:
    path = address.socket_path(directory)
    try:
        async with asyncio.timeout(_CONNECT_SECONDS):
            with address.short_path(directory) as short:
                loop = asyncio.get_running_loop()
                _, link = await loop.create_unix_connection(lambda: Link(_MAX_FRAME_BYTES), short)
    except PermissionError:
        raise errors.ConfigError(
            f"not permitted to use {path}; run this as the gateway's user ({_owner(directory)}) or as root"
        ) from None
    except (FileNotFoundError, NotADirectoryError, ConnectionRefusedError):
        raise NoGateway(f"no gateway runs over {directory}; start it with aerodrome serve") from None
    except (OSError, TimeoutError) as error:
        raise errors.ConfigError(f"cannot connect to {path}: {error or 'timeout'}") from None
    return link


def _owner(directory: Path) -> str:
    try:
        return directory.owner()
    except (OSError, KeyError):
        return "see who owns the directory"
