"""The method table: what each JSON-RPC method is, where its session ids stand, and who may call it.

The data is `methods.tsv` beside this file, made and kept current by tools/regenerate_methods.py from the runtime's own
schema (docs/methods.md). Not here: the parameter rules behind `POLICY`, the answers behind `VIRTUAL`, and whose a session is;
those are the gateway's.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from enum import Enum
from importlib import resources
from types import MappingProxyType

from aerodrome.core.policy import Access
from aerodrome.protocol import id_paths
from aerodrome.protocol.id_paths import IdPath


class Direction(Enum):
    """Who sends the message."""

    C2S = "c2s"
    S2C = "s2c"


class Kind(Enum):
    """Whether an answer is due."""

    REQUEST = "request"
    NOTIFICATION = "notification"


class Scope(Enum):
    """What a method acts on: one session (params always name it), the whole runtime, or the link itself."""

    SESSION = "session"
    SERVER = "server"
    CONNECTION = "connection"


class Verdict(Enum):
    """What the gateway does with a message."""

    PASS = "PASS"  # noqa: S105  (not a password)
    OWN = "OWN"
    FILTER = "FILTER"
    VIRTUAL = "VIRTUAL"
    POLICY = "POLICY"
    DENY = "DENY"


@dataclass(frozen=True, slots=True)
class Method:
    """One row of the table. `session_ids` are paths into the params, `result_ids` into the result."""

    name: str
    direction: Direction
    kind: Kind
    scope: Scope
    session_ids: tuple[IdPath, ...]
    result_ids: tuple[IdPath, ...]
    internal: bool
    guarded: Verdict
    open: Verdict
    reason: str

    def verdict(self, access: Access) -> Verdict:
        """Return the verdict under an access."""
        return self.open if access is Access.OPEN else self.guarded

    @property
    def born_ids(self) -> tuple[IdPath, ...]:
        """Return the paths in the result where a session that this call made is named."""
        return tuple(path for path in self.result_ids if path.born)


COLUMNS = (
    "method",
    "direction",
    "kind",
    "scope",
    "session_ids",
    "result_ids",
    "visibility",
    "guarded",
    "open",
    "reason",
    "hand",
)


def load(text: str) -> dict[Direction, Mapping[str, Method]]:
    """Read a whole table from its tab-separated text, header first.

    Raises:
        ValueError: a row is malformed or repeated; the message has its line number.
    """
    lines = text.splitlines()
    if not lines or lines[0].split("\t") != list(COLUMNS):
        raise ValueError(f"expected a header with the columns {' '.join(COLUMNS)}")
    tables: dict[Direction, dict[str, Method]] = {Direction.C2S: {}, Direction.S2C: {}}
    for number, line in enumerate(lines[1:], start=2):
        try:
            method = _row(line)
        except ValueError as error:
            raise ValueError(f"line {number}: {error}") from None
        if tables[method.direction].setdefault(method.name, method) is not method:
            raise ValueError(f"line {number}: {method.name} is there twice")
    return {direction: MappingProxyType(table) for direction, table in tables.items()}


def _row(line: str) -> Method:
    cells = line.split("\t")
    if len(cells) != len(COLUMNS):
        raise ValueError(f"expected {len(COLUMNS)} columns, found {len(cells)}")
    name, direction, kind, scope, session_ids, result_ids, visibility, guarded, opened, reason, _ = cells
    return Method(
        name=name,
        direction=Direction(direction),
        kind=Kind(kind),
        scope=Scope(scope),
        session_ids=id_paths.parse_list(session_ids),
        result_ids=id_paths.parse_list(result_ids),
        internal=visibility == "internal",
        guarded=Verdict(guarded),
        open=Verdict(opened),
        reason=reason,
    )


_TABLES = load(resources.files("aerodrome.protocol").joinpath("methods.tsv").read_text("utf-8"))

#: What a client may send to a runtime, and what a runtime may send to a client.
TABLE: Mapping[str, Method] = _TABLES[Direction.C2S]
CALLBACKS: Mapping[str, Method] = _TABLES[Direction.S2C]


def lookup(name: str, direction: Direction = Direction.C2S) -> Method | None:
    """Return the method of that name, None for one the table does not know."""
    return _TABLES[direction].get(name)


def names(direction: Direction = Direction.C2S) -> Collection[str]:
    """Return the names of all methods of a direction."""
    return _TABLES[direction].keys()


def judge(name: str, access: Access, has_session: bool, direction: Direction = Direction.C2S) -> Verdict:
    """Return the verdict for a message; `has_session` says whether its params name a session.

    Unknown methods are refused, except that where the runtime is the caller's alone and trusted they pass like any
    session-scoped method when they name a session.
    """
    method = lookup(name, direction)
    if method is not None:
        return method.verdict(access)
    return Verdict.OWN if access is Access.OPEN and has_session else Verdict.DENY
