"""The pages' files: a style sheet, a little script, htmx (vendored, its licence beside it), a logo. Read once, served by name.

The address has a digest of the content, so that browsers keep them for ever and never an old one. Modules import each other by
relative addresses, so those of a folder share one digest, in their path.
"""

from __future__ import annotations

import functools
import hashlib
from dataclasses import dataclass
from pathlib import Path

from fastapi import APIRouter, Response

from aerodrome import errors

router = APIRouter(include_in_schema=False)
_DIRECTORY = Path(__file__).parent / "static"
_TYPES = {".css": "text/css", ".js": "text/javascript", ".svg": "image/svg+xml", ".txt": "text/plain"}


@dataclass(frozen=True, slots=True)
class StaticFile:
    """A file as it is served."""

    content: bytes
    media_type: str
    digest: str


@functools.cache
def _files() -> dict[str, StaticFile]:
    found = {}
    for path in _DIRECTORY.rglob("*"):
        if path.suffix in _TYPES:
            content = path.read_bytes()
            digest = hashlib.sha256(content).hexdigest()[:16]
            found[path.relative_to(_DIRECTORY).as_posix()] = StaticFile(content, _TYPES[path.suffix], digest)
    return found


@functools.cache
def _folder_digest(folder: str) -> str:
    inside = sorted((name, file.digest) for name, file in _files().items() if name.startswith(f"{folder}/"))
    return hashlib.sha256(repr(inside).encode()).hexdigest()[:16]


def address(name: str) -> str:
    """Return where a file is."""
    return f"/static/{name}?v={_files()[name].digest}"


def module(name: str) -> str:
    """Return where a module of a folder is: "folder/file.js"."""
    folder, _, file = name.partition("/")
    assert name in _files()
    return f"/static/{folder}/{_folder_digest(folder)}/{file}"


@router.get("/static/{name}")
async def get(name: str, v: str = "") -> Response:
    """Serve a file."""
    found = _files().get(name)
    return _serve(found, found is not None and v == found.digest)


@router.get("/static/{folder}/{digest}/{name}")
async def get_module(folder: str, digest: str, name: str) -> Response:
    """Serve a file of a folder."""
    found = _files().get(f"{folder}/{name}")
    # Of our own folders only: a digest is kept for each, and anyone may name others.
    return _serve(found, found is not None and digest == _folder_digest(folder))


def _serve(found: StaticFile | None, is_kept: bool) -> Response:
    if found is None:
        raise errors.MethodUnknown("no such file")
    headers = {
        "Cache-Control": "public, max-age=31536000, immutable" if is_kept else "no-cache",
        "X-Content-Type-Options": "nosniff",
        "Content-Security-Policy": "default-src 'none'",
    }
    return Response(found.content, headers=headers, media_type=found.media_type)
