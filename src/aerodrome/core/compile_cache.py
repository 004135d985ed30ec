"""How Node names the directories of code that it compiled. Pure.

`<version>-<cpu>-<tag>-<uid>` below NODE_COMPILE_CACHE (measured with the Node 24 in release 1.0.102): a process looks for
that of its own user id, whoever filled the cache.
"""

from __future__ import annotations


def directory_name(filled: str, uid: int) -> str:
    """Return the name under which a process of a user id looks for what another one filled."""
    return f"{filled.rpartition('-')[0]}-{uid}"
