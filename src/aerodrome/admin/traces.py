"""Looks whether anything below the state directory still names what was erased: names of files, and what is in them.

Reads every file in full, up to bounds; says so when they were reached, because what was not read proves nothing. Blocking.
Follows no link. Deliberately looks for ids and for `tenant/user`, not for a user's bare name: that may be a word in what others
wrote.
"""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

_CHUNK_BYTES = 1024 * 1024
_WIDEST_BYTES = 512
_PER_PATTERN = 200
#: Ids that are shorter are common words: they are looked for in the names of files only.
_MIN_CONTENT_CHARACTERS = 8
#: From this length on an id is not part of anything else by chance.
_UNMISTAKABLE_CHARACTERS = 20
_EDGE = rb"[A-Za-z0-9_.@-]"


@dataclass(frozen=True, slots=True)
class Bounds:
    """How much is read at most."""

    files: int = 500_000
    content_bytes: int = 16 * 1024**3


@dataclass(slots=True)
class Search:
    """What a search has seen: `found` are paths below the directory, with what of them names an id."""

    files: int = 0
    content_bytes: int = 0
    is_complete: bool = True
    found: list[str] = field(default_factory=list)


def search(directory: Path, needles: Sequence[str], bounds: Bounds | None = None) -> Search:
    """Look for needles in all names and contents below a directory."""
    bounds = bounds or Bounds()
    done = Search()
    in_names = _patterns(needles)
    in_contents = _patterns([needle for needle in needles if len(needle) >= _MIN_CONTENT_CHARACTERS])
    for path, is_file in _walk(directory, done):
        shown = path.relative_to(directory)
        if any(pattern.search(os.fsencode(path.name)) for pattern in in_names):
            done.found.append(f"{shown} (its name)")
        if not is_file:
            continue
        done.files += 1
        if done.files > bounds.files or done.content_bytes >= bounds.content_bytes:
            done.is_complete = False
            break
        if _is_in(path, in_contents, done):
            done.found.append(f"{shown} (its content)")
    return done


def _walk(directory: Path, done: Search) -> Iterator[tuple[Path, bool]]:
    def failed(_: OSError) -> None:
        done.is_complete = False

    for parent, folders, files in os.walk(directory, onerror=failed):
        for name in (*folders, *files):
            path = Path(parent, name)
            try:
                yield path, stat.S_ISREG(path.lstat().st_mode)
            except FileNotFoundError:
                continue


def _patterns(needles: Sequence[str]) -> list[re.Pattern[bytes]]:
    unique = sorted(set(needles))
    groups = [unique[at : at + _PER_PATTERN] for at in range(0, len(unique), _PER_PATTERN)]
    return [re.compile(b"|".join(_pattern(needle) for needle in group)) for group in groups]


def _pattern(needle: str) -> bytes:
    text = re.escape(needle.encode())
    if len(needle) >= _UNMISTAKABLE_CHARACTERS and "/" not in needle:
        return text
    return rb"(?<!%b)%b(?!%b)" % (_EDGE, text, _EDGE)


def _is_in(path: Path, patterns: list[re.Pattern[bytes]], done: Search) -> bool:
    if not patterns:
        return False
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except FileNotFoundError:
        return False
    except OSError:
        done.is_complete = False
        return False
    with open(descriptor, "rb") as file:
        kept = b""
        while piece := file.read(_CHUNK_BYTES):
            done.content_bytes += len(piece)
            text = kept + piece
            if any(pattern.search(text) for pattern in patterns):
                return True
            kept = text[-_WIDEST_BYTES:]
    return False
