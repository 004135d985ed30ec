"""The files of the audit log: STATE/audit/<number of its first record>.jsonl, appended to by one process at a time.

`lock` is held for each append, so that the commands of operators and the gateway write one chain. A segment that is large
enough, or of another day, is followed by a new one; none is ever written to again. A line without its end, which only a crash
leaves, is cut off before the next append, and a record says so. Blocking: adapters.audit.log calls it from a thread.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from aerodrome import errors
from aerodrome.core import audit
from aerodrome.core.audit import Action, Broken, Head, Outcome, Record

_TAIL_BYTES = 65536
_DAY_SECONDS = 86400


@dataclass(slots=True)
class _Place:
    """Where the next record goes."""

    path: Path
    size_bytes: int
    head: Head


class Segments:
    """The chain on disk."""

    def __init__(self, directory: Path, keys: Sequence[bytes], segment_bytes: int) -> None:
        self._directory = directory
        self._keys = keys
        self._segment_bytes = segment_bytes
        self._place: _Place | None = None
        #: Says what was cut off, until it is written.
        self._unsaid: list[Record] = []

    def append(self, records: Sequence[Record]) -> Head:
        """Write records behind the last one and see them on disk; return the new head. All are written, or none.

        Raises:
            errors.StoreUnavailable: they cannot be written, or the last record on disk is not one.
            errors.ConfigError: the chain is sealed and no key is given.
        """
        try:
            with self._locked():
                place = self._place_for(self._find_place())
                self._place = None  # until it is written
                text, place.head = _bind(place.head, [*self._unsaid, *records], self._keys)
                _write(place, text)
                self._place, self._unsaid = place, []
                return place.head
        except OSError as error:
            raise errors.StoreUnavailable(f"the audit log cannot be written: {error.strerror or error}") from error
        except Broken as error:
            raise errors.StoreUnavailable(
                f"the audit log is damaged at its end ({error}): run aerodrome audit verify, then move "
                f"{self._directory} away to begin a new one"
            ) from error

    def head(self) -> Head:
        """Return the last record's number and hash; a torn line behind it does not count.

        Raises:
            errors.StoreUnavailable: it cannot be read, or is no record.
        """
        try:
            return _last(self._directory, self._keys)[1]
        except OSError as error:
            raise errors.StoreUnavailable(f"the audit log cannot be read: {error.strerror or error}") from error
        except Broken as error:
            raise errors.StoreUnavailable(f"the audit log is damaged at its end ({error})") from error

    def _find_place(self) -> _Place:
        """Return where the last record ends; a torn one behind it is cut off, and the next append says so."""
        place = self._place
        if place is not None and _is_last(self._directory, place):
            return place
        path, head, torn = _last(self._directory, self._keys)
        if path is None:
            return _Place(self._directory / _name(1), 0, head)
        size = path.stat().st_size - len(torn)
        if torn:
            os.truncate(path, size)
            self._unsaid.append(_cut_off(torn))
        return _Place(path, size, head)

    def _place_for(self, place: _Place) -> _Place:
        """Return the place itself, or the beginning of the next segment."""
        if not place.size_bytes:
            return place
        day = int(place.path.stat().st_mtime) // _DAY_SECONDS
        if place.size_bytes < self._segment_bytes and day == int(time.time()) // _DAY_SECONDS:
            return place
        return _Place(self._directory / _name(place.head.number + 1), 0, place.head)

    @contextmanager
    def _locked(self) -> Iterator[None]:
        self._directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        descriptor = os.open(self._directory / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            yield
        finally:
            os.close(descriptor)


def _cut_off(torn: bytes) -> Record:
    digest = hashlib.sha256(torn).hexdigest()
    reason = f"{len(torn)} bytes of a record that was being written were cut off, SHA-256 {digest}"
    return Record(0, round(time.time(), 3), Action.LOG_REPAIR.value, Outcome.DONE.value, "gateway", reason=reason)


def list_segments(directory: Path) -> list[Path]:
    """Return the segments in order."""
    return sorted(directory.glob("[0-9]*.jsonl"))


def _name(first: int) -> str:
    return f"{first:012d}.jsonl"


def _is_last(directory: Path, place: _Place) -> bool:
    """Say whether nobody else has written since."""
    with suppress(OSError):
        is_there = place.path.stat().st_size == place.size_bytes
        return is_there and not (directory / _name(place.head.number + 1)).exists()
    return False


def _last(directory: Path, keys: Sequence[bytes]) -> tuple[Path | None, Head, bytes]:
    """Return the last segment, the head of the chain, and what stands behind the last line's end."""
    found: Path | None = None
    torn = b""
    for path in reversed(list_segments(directory)):
        line, behind = _last_line(path)
        if found is None:
            found, torn = path, behind
        if line is not None:
            return found, audit.check(audit.head_before(line), line, keys)[1], torn
    return found, Head(), torn


def _last_line(path: Path) -> tuple[bytes | None, bytes]:
    """Return the last whole line of a segment, None if it has none, and the bytes behind it."""
    with path.open("rb") as file:
        size = file.seek(0, os.SEEK_END)
        file.seek(max(0, size - _TAIL_BYTES))
        tail = file.read()
    whole, newline, behind = tail.rpartition(b"\n")
    if not newline:
        if size > len(tail):
            raise Broken(0, f"{path.name} ends in bytes that are no record")
        return None, behind
    return whole[whole.rfind(b"\n") + 1 :] + b"\n", behind


def _bind(head: Head, records: Sequence[Record], keys: Sequence[bytes]) -> tuple[bytes, Head]:
    lines = []
    for record in records:
        line, head = audit.append(head, record, keys)
        lines.append(line)
    return b"".join(lines), head


def _write(place: _Place, text: bytes) -> None:
    """Append to a segment and see it on disk; what was written of it in vain is taken back."""
    is_new = not place.path.exists()
    descriptor = os.open(place.path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
    try:
        rest = memoryview(text)
        while rest:
            rest = rest[os.write(descriptor, rest) :]
        os.fsync(descriptor)
    except OSError:
        with suppress(OSError):
            os.ftruncate(descriptor, place.size_bytes)
        raise
    finally:
        os.close(descriptor)
    place.size_bytes += len(text)
    if is_new:
        _sync_directory(place.path.parent)


def _sync_directory(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
