"""Reading the audit log: verify the chain, list records with the names of those who are not erased. Blocking; writes nothing.

Neighbours: segments.py writes what is read here, core.audit says what holds.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from aerodrome import errors
from aerodrome.adapters.audit import segments
from aerodrome.adapters.audit.people import People
from aerodrome.core import audit
from aerodrome.core.audit import Broken, Head, Record
from aerodrome.core.identity import Owner


@dataclass(frozen=True, slots=True)
class Verdict:
    """What a walk over the chain found: the last record that holds, and what is wrong after it, None if nothing is."""

    head: Head
    fault: Broken | None = None
    #: Records before the first that is sealed with a key: who has the files could have written them anew, all together.
    unsealed: int = 0
    #: Whether a line without its end stands last: it is being written, or a crash left it and the next append cuts it off.
    is_torn: bool = False


class AuditTrail:
    """The records of a state directory."""

    def __init__(self, directory: Path, keys: Sequence[bytes]) -> None:
        self._directory = directory
        self._keys = keys
        self._people = People(directory / "people.db")

    def head(self) -> Head:
        """Return the last record's number and hash. Raises errors.StoreUnavailable."""
        return segments.Segments(self._directory, self._keys, 1).head()

    def verify(self, anchor: Head | None = None) -> Verdict:
        """Walk the chain over all segments until its first break.

        An anchor is a head that was noted elsewhere: the chain must lead to it, or begin right behind it where its segments were
        put away. Only an anchor shows that records at the end are gone.

        Raises:
            errors.ConfigError: it is sealed with a key that is not given. errors.StoreUnavailable: it cannot be read.
        """
        walk = _Walk(self._keys, anchor)
        is_torn = False
        try:
            for line in self._lines():
                is_torn = not line.endswith(b"\n")
                if not is_torn:
                    walk.step(line)
            walk.finish()
        except Broken as fault:
            return Verdict(walk.head, fault, walk.unsealed)
        return Verdict(walk.head, None, walk.unsealed, is_torn)

    def owners(self) -> list[Owner]:
        """Return the users whose records still have their names. Raises errors.StoreUnavailable."""
        return list(self._people.everyone())

    def records(
        self,
        since: float | None = None,
        tenant: str | None = None,
        session_id: str | None = None,
        sessions: Iterable[tuple[str, Owner]] = (),
    ) -> Iterator[dict[str, Any]]:
        """Yield records as plain values: from a time on, of a tenant, about a session; None for all.

        Users stand by name where they are not erased, and so do the sessions that are given, with their owners.

        Raises:
            errors.StoreUnavailable: they cannot be read. What is no record is left out: `verify` says where it is.
        """
        salts = self._people.everyone()
        names = {audit.pseudonym(salt, "u", owner.user): owner.user for owner, salt in salts.items()}
        ids = {audit.pseudonym(salts[owner], "s", name): name for name, owner in sessions if owner in salts}
        if session_id is not None:
            ids |= {audit.pseudonym(salt, "s", session_id): session_id for salt in salts.values()}
        for line in self._lines():
            record = _read(line)
            if record is None or (since is not None and record.at < since) or tenant not in (None, record.tenant):
                continue
            found = _named(record, names, ids)
            if session_id in (None, found.get("session")):
                yield found

    def tail(self, count: int, tenant: str | None = None) -> list[dict[str, Any]]:
        """Return the last records (of one tenant), the newest first, users by name where they are not erased.

        Raises:
            errors.StoreUnavailable: they cannot be read.
        """
        salts = self._people.everyone()
        names = {audit.pseudonym(salt, "u", owner.user): owner.user for owner, salt in salts.items()}
        found: list[dict[str, Any]] = []
        for path in reversed(segments.list_segments(self._directory)):
            # The last of a segment only: what is behind them in it is older.
            wanted: deque[Record] = deque(maxlen=count - len(found))
            for line in _lines_of(path):
                record = _read(line)
                if record is not None and tenant in (None, record.tenant):
                    wanted.append(record)
            found.extend(_named(record, names, {}) for record in reversed(wanted))
            if len(found) >= count:
                break
        return found

    def _lines(self) -> Iterator[bytes]:
        for path in segments.list_segments(self._directory):
            yield from _lines_of(path)


def _lines_of(path: Path) -> Iterator[bytes]:
    try:
        with path.open("rb") as file:
            yield from file
    except OSError as error:
        raise errors.StoreUnavailable(f"the audit log cannot be read: {error.strerror or error}") from error


class _Walk:
    """One pass over the chain."""

    def __init__(self, keys: Sequence[bytes], anchor: Head | None) -> None:
        self._keys = keys
        self._anchor = anchor
        self._is_begun = False
        self.head = Head()
        self.unsealed = 0

    def step(self, line: bytes) -> None:
        """Check the next line."""
        if not self._is_begun:
            self._begin(line)
        record, self.head = audit.check(self.head, line, self._keys)
        self.unsealed += record.seal is None
        if self._anchor is not None and record.number == self._anchor.number and self.head.hash != self._anchor.hash:
            raise Broken(record.number, "is not the one that was anchored: it, or one before it, was written anew")

    def finish(self) -> None:
        """Check what can only be known at the end."""
        if self._anchor is not None and self.head.number < self._anchor.number:
            raise Broken(
                self.head.number + 1, f"is missing: record {self._anchor.number} was anchored, the log ends before"
            )
        if self._keys and self.head.number and not self.head.is_sealed:
            raise Broken(self.head.number, "is not sealed, though a key is given and the gateway seals as it starts")

    def _begin(self, line: bytes) -> None:
        self._is_begun = True
        before = audit.head_before(line)
        if self._anchor is not None and before == Head(self._anchor.number, self._anchor.hash):
            self.head = before


def _read(line: bytes) -> Record | None:
    try:
        return msgspec.json.decode(line, type=_Stored).record
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None


class _Stored(msgspec.Struct):
    record: Record


def _named(record: Record, names: dict[str, str], ids: dict[str, str]) -> dict[str, Any]:
    found = msgspec.to_builtins(record)
    for member, known in (("user", names), ("whose", names), ("session", ids)):
        if member in found:
            found[member] = known.get(found[member], found[member])
    return dict(found)
