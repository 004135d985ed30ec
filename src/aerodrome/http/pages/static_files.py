"""The pages' files: a style sheet, a little script, htmx (vendored, its licence beside it), a logo. Read once, served by name.

The address has a digest of the content, so that browsers keep them for ever and never an old one.
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
    for path in _DIRECTORY.iterdir():
        if path.suffix in _TYPES:
            content = path.read_bytes()
            digest = hashlib.sha256(content).hexdigest()[:16]
            found[path.name] = StaticFile(content, _TYPES[path.suffix], digest)
    return found


def address(name: str) -> str:
    """Return where a file is."""
    return f"/static/{name}?v={_files()[name].digest}"


@router.get("/static/{name}")
async def get(name: str, v: str = "") -> Response:
    """Serve a file."""
    found = _files().get(name)
    if found is None:
        raise errors.MethodUnknown("no such file")
    is_kept = v == found.digest
    headers = {
        "Cache-Control": "public, max-age=31536000, immutable" if is_kept else "no-cache",
        "X-Content-Type-Options": "nosniff",
        "Content-Security-Policy": "default-src 'none'",
    }
    return Response(found.content, headers=headers, media_type=found.media_type)
