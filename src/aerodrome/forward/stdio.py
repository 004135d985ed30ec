"""A link over standard input and output: how an SDK speaks to a runtime that it started itself.

Two pipes (or one socket pair: the npm SDK's) are one transport to the link. Their owner must be the only one to use them:
whatever else writes to standard output breaks the framing.
"""

from __future__ import annotations

import asyncio
import sys
from typing import Any

from aerodrome import errors
from aerodrome.transport.link import Link


class _Pair(asyncio.Transport):
    """Both pipes; the link's transport."""

    def __init__(self, link: Link) -> None:
        super().__init__()
        self._link = link
        self._reader: asyncio.ReadTransport | None = None
        self._writer: asyncio.WriteTransport | None = None
        self._has_ended = False

    def join(self, reader: asyncio.ReadTransport, writer: asyncio.WriteTransport) -> None:
        """Take the pipes."""
        self._reader, self._writer = reader, writer

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        return default

    def is_closing(self) -> bool:
        return self._has_ended or self._writer is None or self._writer.is_closing()

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        if self._writer is not None:
            self._writer.set_write_buffer_limits(high, low)

    def pause_reading(self) -> None:
        if self._reader is not None:
            self._reader.pause_reading()

    def resume_reading(self) -> None:
        if self._reader is not None:
            self._reader.resume_reading()

    def write(self, data: Any) -> None:
        if self._writer is not None:
            self._writer.write(data)

    def can_write_eof(self) -> bool:
        return False

    def close(self) -> None:
        """Write what is left, then end."""
        if self._writer is not None:
            self._writer.close()
        if self._reader is not None:
            self._reader.close()

    def abort(self) -> None:
        if self._writer is not None:
            self._writer.abort()
        if self._reader is not None:
            self._reader.close()

    def end(self, error: Exception | None) -> None:
        """Tell the link once that it is over."""
        if not self._has_ended:
            self._has_ended = True
            self._link.connection_lost(error)


class _Reading(asyncio.Protocol):
    def __init__(self, pair: _Pair, link: Link) -> None:
        self._pair = pair
        self._link = link

    def data_received(self, data: bytes) -> None:
        self._link.data_received(data)

    def eof_received(self) -> bool:
        if not self._link.eof_received():
            self._pair.close()
        return True

    def connection_lost(self, exc: Exception | None) -> None:
        self._pair.close()


class _Writing(asyncio.Protocol):
    def __init__(self, pair: _Pair, link: Link) -> None:
        self._pair = pair
        self._link = link

    def pause_writing(self) -> None:
        self._link.pause_writing()

    def resume_writing(self) -> None:
        self._link.resume_writing()

    def connection_lost(self, exc: Exception | None) -> None:
        self._pair.end(exc)


async def open_link(max_frame_bytes: int) -> Link:
    """Open the link to whoever started this process.

    Raises:
        errors.ConfigError: standard input and output are no pipes.
    """
    loop = asyncio.get_running_loop()
    link = Link(max_frame_bytes)
    pair = _Pair(link)
    try:
        writer, _ = await loop.connect_write_pipe(lambda: _Writing(pair, link), sys.stdout.buffer)
        reader, _ = await loop.connect_read_pipe(lambda: _Reading(pair, link), sys.stdin.buffer)
    except (ValueError, OSError) as error:
        raise errors.ConfigError(f"standard input and output are no pipes of an SDK ({error})") from None
    pair.join(reader, writer)
    link.connection_made(pair)
    return link
