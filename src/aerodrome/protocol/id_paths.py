"""Where session ids stand in params and results: a small path language, and two total functions over decoded JSON.

    sessionId            a required id
    sessionId?           an id that may be absent, null or ""
    sessionIds[]         every element of an array;  [].sessionId  for a result that is itself an array
    sizes{}              every key of an object
    status.sessionId?    an id inside an object
    +sessionId           in results: the id of a session that this call made, to be recorded for the caller

Total means: whatever the JSON holds, each function returns or raises `errors.InvalidParams`. An id given as a number, a list
or null never slips by as "no id given". Not here: whose an id is (the gateway's ownership), and which method has which
paths (`methods`).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cache

from aerodrome import errors

_ELEMENTS = "[]"
_KEYS = "{}"
_FORM = re.compile(r"\+?(\[\]|\w+(\[\])?)(\.\w+(\[\])?)*(\{\})?\??", re.ASCII)
_STEPS = re.compile(r"\w+|\[\]|\{\}", re.ASCII)
_FOREIGN = object()


@dataclass(frozen=True, slots=True)
class IdPath:
    """One place of session ids: member names, `[]` for each element, `{}` for each key."""

    steps: tuple[str, ...]
    optional: bool = False
    born: bool = False

    def __str__(self) -> str:
        steps = ".".join(self.steps).replace("." + _ELEMENTS, _ELEMENTS).replace("." + _KEYS, _KEYS)
        return f"{'+' if self.born else ''}{steps}{'?' if self.optional else ''}"


def parse(text: str) -> IdPath:
    """Parse one path expression.

    Raises:
        ValueError: not an expression of this language; a programming error, never a caller's.
    """
    if not _FORM.fullmatch(text):
        raise ValueError(f"expected a path such as sessions[].sessionId?, found {text!r}")
    return IdPath(tuple(_STEPS.findall(text)), optional=text.endswith("?"), born=text.startswith("+"))


@cache  # the same few expressions stand in hundreds of rows
def parse_list(text: str) -> tuple[IdPath, ...]:
    """Parse comma-separated path expressions; `-` is none.

    Raises:
        ValueError: one of them is not an expression of this language.
    """
    return () if text == "-" else tuple(parse(part) for part in text.split(","))


def find_ids(params: object, paths: Iterable[IdPath]) -> list[str]:
    """Return every session id at these paths, in order, repeated ids repeated.

    Raises:
        errors.InvalidParams: a required id is missing, or what stands there is not a non-empty string.
    """
    found: list[str] = []
    for path in paths:
        _collect(params, path.steps, path, found)
    return found


def filter_result(result: object, paths: Iterable[IdPath], keep: Callable[[str], bool]) -> object:
    """Return the result without what belongs to sessions that `keep` refuses; the input is not changed.

    A foreign id takes with it the array element or map entry that holds it, else the member of the result that holds it.

    Raises:
        errors.InvalidParams: the result does not have the expected shape, so it cannot be filtered safely.
        errors.SessionMissing: the result as a whole is about a foreign session.
    """
    for path in paths:
        kept = _prune(result, path.steps, path, keep)
        result = _without(result, path) if kept is _FOREIGN else kept
    return result


def _collect(value: object, steps: tuple[str, ...], path: IdPath, found: list[str]) -> None:
    if path.optional and (value is None or (value == "" and not steps)):
        return
    if not steps:
        found.append(_session_id(value, path))
    elif steps[0] == _ELEMENTS:
        for element in _elements(value, path):
            _collect(element, steps[1:], path, found)
    elif steps[0] == _KEYS:
        found.extend(_session_id(key, path) for key in _members(value, path))
    else:
        _collect(_members(value, path).get(steps[0]), steps[1:], path, found)


def _prune(value: object, steps: tuple[str, ...], path: IdPath, keep: Callable[[str], bool]) -> object:
    if path.optional and (value is None or (value == "" and not steps)):
        return value
    if not steps:
        return value if keep(_session_id(value, path)) else _FOREIGN
    if steps[0] == _ELEMENTS:
        pruned = [_prune(element, steps[1:], path, keep) for element in _elements(value, path)]
        return [element for element in pruned if element is not _FOREIGN]
    members = _members(value, path)
    if steps[0] == _KEYS:
        return {key: member for key, member in members.items() if keep(_session_id(key, path))}
    kept = _prune(members.get(steps[0]), steps[1:], path, keep)
    if kept is _FOREIGN or kept is members.get(steps[0]):
        return kept if kept is _FOREIGN else value
    return {**members, steps[0]: kept}


def _without(result: object, path: IdPath) -> object:
    if not path.optional:
        raise errors.SessionMissing("session not found")
    return {name: member for name, member in _members(result, path).items() if name != path.steps[0]}


def _session_id(value: object, path: IdPath) -> str:
    if not isinstance(value, str) or not value:
        raise _malformed(path, "a session id", value)
    return value


def _elements(value: object, path: IdPath) -> list[object]:
    if not isinstance(value, list):
        raise _malformed(path, "an array", value)
    if None in value or "" in value:  # `?` allows an absent member, never a hole in an array
        raise _malformed(path, "an array without holes", None)
    return value


def _members(value: object, path: IdPath) -> dict[str, object]:
    if not isinstance(value, dict):
        raise _malformed(path, "an object", value)
    return value


def _malformed(path: IdPath, expected: str, found: object) -> errors.InvalidParams:
    kind = "nothing" if found is None else "an empty string" if found == "" else type(found).__name__
    return errors.InvalidParams(f"expected {expected} at or within {str(path).strip('+?')}, found {kind}")
