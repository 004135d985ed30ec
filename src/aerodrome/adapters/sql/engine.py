"""Open a database and run short pieces of work on it: the only file that knows which SQL dialect is spoken.

Work is a plain function of a SQLAlchemy connection, run as a whole on a thread: one hop per call instead of one per cursor
operation (measured: half the latency of the asyncio driver), a write lock is never held across turns of the event loop, and
a cancelled caller cannot leave work half done. A PostgreSQL database will run the same functions on an asyncio engine
through `AsyncConnection.run_sync`. Not a query layer: statements live in sessions.py, tenants.py and keys.py.
"""

from __future__ import annotations

import asyncio
import functools
import os
import sqlite3
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeAlias, TypeVar

import sqlalchemy as sa
from sqlalchemy.dialects import sqlite

from aerodrome import errors

T = TypeVar("T")
Work: TypeAlias = Callable[[sa.Connection], T]

#: How long one call may wait for other processes' writes, in seconds.
BUSY_SECONDS = 5.0
#: Readers never wait for the writer in WAL mode; a few are enough, since each call takes a fraction of a millisecond.
READERS = 4

#: Any driver may be named; the work runs on Python's own.
_SQLITE = ("sqlite", "sqlite+pysqlite", "sqlite+aiosqlite")


class Database:
    """An open database: one writer, several readers. Whoever opens it closes it, after the stores that use it."""

    def __init__(self, name: str, writer: sa.Engine, readers: sa.Engine, busy_seconds: float) -> None:
        self.name = name
        self._closed = False
        self._writer = _Lane(writer, 1, busy_seconds)
        self._readers = _Lane(readers, READERS, busy_seconds)

    async def read(self, work: Work[T]) -> T:
        """Run `work`, which only reads.

        Raises:
            errors.StoreUnavailable: the database did not answer, or is closed.
        """
        return await self._run(self._readers, work)

    async def write(self, work: Work[T]) -> T:
        """Run `work` in one transaction that no other write interleaves; it happens whole or not, also when cancelled.

        Raises:
            errors.StoreUnavailable: the database did not answer, or is closed; nothing was written.
        """
        return await self._run(self._writer, work)

    async def _run(self, lane: _Lane, work: Work[T]) -> T:
        if self._closed:
            raise closed()
        return await lane.run(work)

    async def aclose(self) -> None:
        """Finish the work at hand and close every connection; idempotent."""
        if not self._closed:
            self._closed = True
            await asyncio.to_thread(self._close)

    def _close(self) -> None:
        self._readers.close()
        self._writer.close()


class Closed:
    """What a closed store keeps in place of its database: it answers every call with StoreUnavailable."""

    async def read(self, work: Work[T]) -> T:
        """Refuse."""
        raise closed()

    async def write(self, work: Work[T]) -> T:
        """Refuse."""
        raise closed()


class _Lane:
    """An engine and the threads that use it, one connection each."""

    def __init__(self, engine: sa.Engine, threads: int, busy_seconds: float) -> None:
        self._engine = engine
        self._busy_seconds = busy_seconds
        self._threads = ThreadPoolExecutor(threads, thread_name_prefix="aerodrome-sql")

    async def run(self, work: Work[T]) -> T:
        deadline = time.monotonic() + self._busy_seconds
        return await asyncio.get_running_loop().run_in_executor(self._threads, self._attempt, work, deadline)

    def _attempt(self, work: Work[T], deadline: float) -> T:
        # Calls queue behind one that waits for a lock; each of them waiting its own turn would add up without bound.
        if time.monotonic() > deadline:
            raise errors.StoreUnavailable("the database is busy: try again")
        try:
            with self._engine.begin() as connection:
                return work(connection)
        except sa.exc.DBAPIError as error:
            raise unavailable(error) from error

    def close(self) -> None:
        self._threads.shutdown()
        self._engine.dispose()


async def open_database(url: str, busy_seconds: float = BUSY_SECONDS) -> Database:
    """Open the database at `sqlite:///PATH`, creating the file if there is none; the schema is migrate.py's.

    A call waits up to `busy_seconds` for other processes' writes. The file is made for this user alone: mode 0600, and 0700
    for a directory that has to be made.

    Raises:
        errors.ConfigError: the URL is not of a known form, or the file cannot be used.
        errors.StoreUnavailable: other processes held the file for too long.
    """
    return await asyncio.to_thread(_open_sqlite, _sqlite_path(url), busy_seconds)


def insert_once(connection: sa.Connection, table: sa.Table, values: Mapping[str, Any]) -> bool:
    """Insert a row unless its key is taken; say whether it was inserted."""
    return connection.execute(_insert(connection.dialect.name, table), values).rowcount == 1


def list_texts(dialect: str, name: str) -> sa.TableValuedAlias:
    """Return the texts of a JSON list bound as `name`, as rows with a column `value`: one parameter, however many there are."""
    if dialect == "sqlite":
        return sa.func.json_each(sa.bindparam(name)).table_valued("value")
    return sa.func.json_array_elements_text(sa.cast(sa.bindparam(name, type_=sa.Text), sa.JSON)).table_valued("value")


@functools.cache
def _insert(dialect: str, table: sa.Table) -> sa.Executable:
    if dialect == "sqlite":
        return sqlite.insert(table).on_conflict_do_nothing()
    # Here, because it is a twelfth of the start of every process that opens a database of the other kind.
    from sqlalchemy.dialects import postgresql  # noqa: PLC0415

    return postgresql.insert(table).on_conflict_do_nothing()


def closed() -> errors.StoreUnavailable:
    """Return the error of a call on something closed."""
    return errors.StoreUnavailable("expected an open store, found a closed one: open it again")


def unavailable(error: sa.exc.DBAPIError) -> errors.StoreUnavailable:
    """Return a driver's error as ours; the driver's words, without the statement and its values."""
    return errors.StoreUnavailable(f"the database did not answer: {error.orig}")


def _sqlite_path(url: str) -> Path:
    try:
        parsed = sa.make_url(url)
    except sa.exc.ArgumentError:
        parsed = None
    path = (parsed and parsed.database) or ""
    named = path not in ("", ":memory:") and not path.startswith("file:")
    plain = parsed and parsed.drivername in _SQLITE and not parsed.host and not parsed.query
    if not (named and plain):
        # What was found is not repeated: it may be a URL with a password.
        raise errors.ConfigError("database URL is not usable: expected sqlite:///PATH, naming one file on disk")
    return Path(path)


def _open_sqlite(path: Path, busy_seconds: float) -> Database:
    _make_private(path)
    writer, readers = _sqlite_engine(path, 1, busy_seconds), _sqlite_engine(path, READERS, busy_seconds)
    sa.event.listen(writer, "begin", _begin_immediate)
    sa.event.listen(readers, "connect", _forbid_writes)
    try:
        writer.connect().close()
    except sa.exc.DBAPIError as error:
        writer.dispose()
        if _is_busy(error.orig):
            raise unavailable(error) from error
        raise errors.ConfigError(
            f"database {path} cannot be used ({error.orig}): expected an SQLite file this user may write, on a local disk"
        ) from error
    return Database(str(path), writer, readers, busy_seconds)


def _make_private(path: Path) -> None:
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        # Never open and close a database that may be in use here: closing any descriptor of a file drops this
        # process's POSIX locks on it, SQLite's own included. A file just made is in nobody's use.
        os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))
    except FileExistsError:
        _tighten(path)
    except OSError as error:
        raise errors.ConfigError(
            f"database {path} cannot be created ({error.strerror}): expected a directory this user may write"
        ) from error


def _tighten(path: Path) -> None:
    try:
        if path.is_file() and path.stat().st_mode & 0o077:
            path.chmod(0o600)
    except OSError as error:
        raise errors.ConfigError(
            f"database {path} is open to other users and cannot be closed to them ({error.strerror}): make its mode 0600"
        ) from error


def _sqlite_engine(path: Path, connections: int, busy_seconds: float) -> sa.Engine:
    engine = sa.create_engine(
        sa.URL.create("sqlite", database=str(path)),
        poolclass=sa.QueuePool,
        pool_size=connections,
        max_overflow=0,
        hide_parameters=True,
        # Each connection is used by one thread at a time, but made and closed on different ones.
        connect_args={"timeout": busy_seconds, "check_same_thread": False},
    )

    def prepare(connection: sqlite3.Connection, _record: object) -> None:
        # The driver's own implicit BEGIN would start with a read and fail when it has to become a write.
        connection.isolation_level = None
        _enter_wal(connection, busy_seconds)
        connection.execute("PRAGMA synchronous=NORMAL")
        connection.execute("PRAGMA foreign_keys=ON")

    sa.event.listen(engine, "connect", prepare)
    return engine


def _enter_wal(connection: sqlite3.Connection, busy_seconds: float) -> None:
    """Switch to write-ahead logging; tried again here, because SQLite does not wait for another's write at this switch."""
    deadline = time.monotonic() + busy_seconds
    while True:
        try:
            (mode,) = connection.execute("PRAGMA journal_mode=WAL").fetchone()
        except sqlite3.OperationalError as error:
            if not _is_busy(error) or time.monotonic() > deadline:
                raise
            time.sleep(0.01)
        else:
            if mode != "wal":
                raise sqlite3.NotSupportedError(f"no write-ahead log here, journal mode stays {mode!r}")
            return


def _is_busy(error: BaseException | None) -> bool:
    code = getattr(error, "sqlite_errorcode", 0) & 0xFF
    return code in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED)


def _forbid_writes(connection: sqlite3.Connection, _record: object) -> None:
    connection.execute("PRAGMA query_only=ON")


def _begin_immediate(connection: sa.Connection) -> None:
    # Takes the write lock at once, waiting up to the busy timeout: a read that turns into a write would not wait.
    connection.exec_driver_sql("BEGIN IMMEDIATE")
