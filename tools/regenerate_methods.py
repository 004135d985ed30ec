"""Bring src/aerodrome/protocol/methods.tsv up to date with a runtime's api.schema.json.

    python tools/regenerate_methods.py SCHEMA.json [--check]

The schema decides what a method is and where its session ids stand; people decide who may call it (guarded, open, reason)
and correct the rest where the schema misleads (`hand` = yes: nothing of such a row is overwritten). New methods come in as
refused where a runtime is shared; methods that left the schema stay, marked. docs/methods.md tells the whole procedure.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from aerodrome.protocol import methods

TABLE = Path(__file__).parents[1] / "src/aerodrome/protocol/methods.tsv"
GONE = " (gone)"
_LINK_METHODS = ("connect", "ping")
_DERIVED = ("kind", "scope", "session_ids", "result_ids", "visibility")

#: Members that hold session ids: by name, except ids of the remote service's own sessions; lists and maps also by description.
_BY_NAME = re.compile(r"^(?!remote|mc_?session)\w*session_?ids?$", re.IGNORECASE)
_BY_DESCRIPTION = re.compile(r"^(session ids\b|map of session ?id\b)", re.IGNORECASE)

Row = dict[str, str]
Key = tuple[str, str]


def derive(schema: dict[str, Any]) -> dict[Key, Row]:
    """Return what the schema says about each of its methods, keyed by (direction, method)."""
    rows: dict[Key, Row] = {}
    definitions = schema["definitions"]
    for section, direction in (
        ("server", "c2s"),
        ("session", "c2s"),
        ("clientSession", "s2c"),
        ("clientGlobal", "s2c"),
    ):
        for node in _method_nodes(schema[section]):
            name = node["rpcMethod"]
            in_params = _ids(node.get("params"), definitions)
            in_session = section in ("session", "clientSession") or (
                direction == "s2c" and in_params.get("sessionId", False)
            )
            if in_session:
                in_params["sessionId"] = True
            scope = "session" if in_session else "connection" if name in _LINK_METHODS else "server"
            rows[direction, name] = {
                "method": name,
                "direction": direction,
                "kind": "notification" if node.get("notification") else "request",
                "scope": scope,
                "session_ids": _join(in_params),
                "result_ids": _join(_ids(node.get("result"), definitions)),
                "visibility": node.get("visibility", "public"),
            }
    return rows


def _method_nodes(node: object) -> Iterator[dict[str, Any]]:
    if not isinstance(node, dict):
        return
    if "rpcMethod" in node:
        yield node
        return
    for child in node.values():
        yield from _method_nodes(child)


def _join(paths: dict[str, bool]) -> str:
    return ",".join(path if required else path + "?" for path, required in paths.items()) or "-"


def _ids(node: Any, definitions: dict[str, Any], above: tuple[str, ...] = ()) -> dict[str, bool]:
    """Map each path of a session id below a schema node to whether it is always there."""
    if not isinstance(node, dict):
        return {}
    name = node.get("$ref", "").rsplit("/", 1)[-1]
    if name:
        known = name in definitions and name not in above
        return _ids(definitions[name], definitions, (*above, name)) if known else {}
    found = _alternatives([_ids(part, definitions, above) for part in node.get("anyOf", []) + node.get("oneOf", [])])
    for part in node.get("allOf", []):
        found |= _ids(part, definitions, above)
    for name, member in node.get("properties", {}).items():
        required = name in node.get("required", [])
        here = _holder(name, member)
        if here:
            found[here] = required
            continue
        for path, always in _ids(member, definitions, above).items():
            found[name + ("" if path.startswith("[]") else ".") + path] = required and always
    for path, always in _ids(node.get("items"), definitions, above).items():
        found["[]." + path] = always
    if _ids(node.get("additionalProperties"), definitions, above):
        raise SystemExit(
            "session ids inside the values of a map: teach aerodrome.protocol.id_paths to reach them first"
        )
    return found


def _alternatives(parts: list[dict[str, bool]]) -> dict[str, bool]:
    """A path is always there only if every alternative has it so."""
    return {path: all(part.get(path, False) for part in parts) for part in parts for path in part}


def _holder(name: str, member: Any) -> str | None:
    """Return the path step of a member that itself holds session ids, None for any other."""
    kind = member.get("type") if isinstance(member, dict) else None
    by_name = _BY_NAME.match(name)
    by_description = kind in ("array", "object") and _BY_DESCRIPTION.match(member.get("description", ""))
    if not by_name and not by_description:
        return None
    return name + {"array": "[]", "object": "{}"}.get(str(kind), "")


def read(text: str) -> dict[Key, Row]:
    """Return the rows of a table, keyed by (direction, method)."""
    lines = [line.split("\t") for line in text.splitlines()[1:]]
    rows = [dict(zip(methods.COLUMNS, cells, strict=True)) for cells in lines]
    return {(row["direction"], row["method"]): row for row in rows}


def merge(rows: dict[Key, Row], derived: dict[Key, Row], version: str) -> tuple[dict[Key, Row], list[str]]:
    """Return the table brought up to date, and one line for each difference.

    `+` new, `-` gone, `~` changed, `!` a hand-corrected row lacks an id that the schema has: correct it by hand.
    """
    merged = {key: dict(row) for key, row in rows.items()}
    changes: list[str] = []
    for key, row in derived.items():
        if key not in merged:
            merged[key] = _new(row, version)
            changes.append(f"+ {' '.join(key)}")
        elif merged[key]["hand"] == "yes":
            changes += [f"! {' '.join(key)}: the schema also has {path}" for path in _overlooked(merged[key], row)]
        else:
            merged[key]["reason"] = merged[key]["reason"].removesuffix(GONE)
            changes += [
                f"~ {' '.join(key)}: {column} {merged[key][column]} -> {row[column]}"
                for column in _DERIVED
                if merged[key][column] != row[column]
            ]
            merged[key] |= {column: row[column] for column in _DERIVED}
    for key, row in merged.items():
        if key not in derived and row["hand"] == "no" and not row["reason"].endswith(GONE):
            row["reason"] += GONE
            changes.append(f"- {' '.join(key)}")
    return merged, changes


def _overlooked(kept: Row, derived: Row) -> list[str]:
    """Return the paths of the schema that a hand-corrected row does not have, whatever their marks."""
    columns = ("session_ids", "result_ids")
    return [
        path
        for column in columns
        for path in derived[column].split(",")
        if path.strip("?") not in re.split(r"[+?,]+", kept[column].strip("+?")) and path != "-"
    ]


def _new(row: Row, version: str) -> Row:
    opened = "OWN" if row["scope"] == "session" else "PASS"
    return row | {"guarded": "DENY", "open": opened, "reason": f"new in {version}: not reviewed", "hand": "no"}


def render(rows: dict[Key, Row]) -> str:
    """Return the text of a table, sorted by direction and method."""
    lines = ["\t".join(methods.COLUMNS)]
    lines += ["\t".join(rows[key][column] for column in methods.COLUMNS) for key in sorted(rows)]
    return "\n".join(lines) + "\n"


def version_of(schema_path: Path) -> str:
    """Return the version of the release that a schema file lies in."""
    package = schema_path.resolve().parents[1] / "package.json"
    return str(json.loads(package.read_text("utf-8"))["version"]) if package.is_file() else "an unnamed release"


def main() -> int:
    """Update the table, or with --check say what would change and return 1 if anything."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("schema", type=Path, metavar="SCHEMA.json")
    parser.add_argument("--check", action="store_true", help="change nothing; exit 1 on differences")
    arguments = parser.parse_args()
    before = TABLE.read_text("utf-8")
    derived = derive(json.loads(arguments.schema.read_text("utf-8")))
    merged, changes = merge(read(before), derived, version_of(arguments.schema))
    print("\n".join(changes) or f"{len(merged)} methods, no differences")
    if arguments.check:
        return 1 if changes or render(merged) != before else 0
    TABLE.write_text(render(merged), "utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
