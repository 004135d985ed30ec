"""The salts under which users and their sessions stand in the audit records: one for each user, dropped at their erasure.

In a database of its own (STATE/audit/people.db), so that dropping one leaves nothing behind: deleted content is overwritten,
the file is rewritten, no write-ahead log keeps it. Blocking; used from threads, by any number of processes.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import sqlite3
from collections.abc import Iterator
from pathlib import Path

from aerodrome import errors
from aerodrome.core.identity import Owner

_SCHEMA = (
    "CREATE TABLE IF NOT EXISTS people (tenant TEXT, name TEXT, salt BLOB, PRIMARY KEY (tenant, name)) WITHOUT ROWID"
)
_BUSY_SECONDS = 5.0
_CACHED = 10_000


class People:
    """Salts by user."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._salts: dict[Owner, bytes] = {}

    def salt(self, owner: Owner) -> bytes:
        """Return a user's salt, made if there is none.

        Raises:
            errors.StoreUnavailable: the database does not answer.
        """
        found = self._salts.get(owner)
        if found is None:
            if len(self._salts) >= _CACHED:
                self._salts.clear()
            found = self._salts[owner] = self._make(owner)
        return found

    def drop(self, owner: Owner) -> None:
        """Forget a user's salt for good.

        Raises:
            errors.StoreUnavailable: the database does not answer.
        """
        self._salts.pop(owner, None)
        with self._open() as connection:
            connection.execute("DELETE FROM people WHERE tenant = ? AND name = ?", (owner.tenant, owner.user))
            connection.execute("VACUUM")

    def everyone(self, tenant: str | None = None) -> dict[Owner, bytes]:
        """Return the salts of all users (of one tenant) who are not erased.

        Raises:
            errors.StoreUnavailable: the database does not answer.
        """
        if not self._path.exists():
            return {}
        with self._open() as connection:
            rows = connection.execute(
                "SELECT tenant, name, salt FROM people WHERE ?1 IS NULL OR tenant = ?1", (tenant,)
            )
            return {Owner(row[0], row[1]): row[2] for row in rows}

    def _make(self, owner: Owner) -> bytes:
        with self._open() as connection:
            fresh = secrets.token_bytes(32)
            connection.execute("INSERT OR IGNORE INTO people VALUES (?, ?, ?)", (owner.tenant, owner.user, fresh))
            key = (owner.tenant, owner.user)
            row = connection.execute("SELECT salt FROM people WHERE tenant = ? AND name = ?", key).fetchone()
            return bytes(row[0])

    @contextlib.contextmanager
    def _open(self) -> Iterator[sqlite3.Connection]:
        try:
            self._path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            with contextlib.suppress(FileExistsError):
                os.close(os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))
            with contextlib.closing(sqlite3.connect(self._path, _BUSY_SECONDS, isolation_level=None)) as connection:
                connection.execute("PRAGMA secure_delete=ON")
                connection.execute("PRAGMA synchronous=FULL")
                connection.execute(_SCHEMA)
                yield connection
        except (sqlite3.Error, OSError) as error:
            raise errors.StoreUnavailable(f"the audit log's salts cannot be used: {error}") from error
