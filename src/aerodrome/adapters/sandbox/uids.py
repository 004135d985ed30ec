"""A user id of its own for each realm, where the gateway is root and may give such.

Nothing is written down: the owner of a realm's directories is the record, so that it is as stable as they are. The realm's root
directory, which no sandbox shows, says whether all below it has been given to that user (fleet.spec takes it back
when the realm is used without a sandbox).
"""

from __future__ import annotations

import os
import threading
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from aerodrome import errors


class UidRange:
    """The user ids from `first` on, `count` of them, over the realms of one state directory."""

    def __init__(self, first: int, count: int) -> None:
        self._wanted = range(first, first + count)
        self._taken: dict[Path, int] | None = None
        self._choosing = threading.Lock()

    @property
    def first(self) -> int:
        """Return the lowest."""
        return self._wanted.start

    def give(self, root: Path, directories: Sequence[Path]) -> int:
        """Make a realm's directories those of its user id, giving it one first if need be; return it. Blocking.

        Raises:
            errors.SpawnFailed: all ids are taken, or the directories cannot be given away.
        """
        try:
            with self._choosing:
                uid = self._of(root, directories)
            is_new = root.stat().st_uid != uid
            for directory in directories:
                # Where sessions work may be outside the realm (a policy's work_root), and be named later.
                if is_new or directory.stat().st_uid != uid:
                    _give_away(directory, uid)
            os.chown(root, uid, uid)
        except OSError as error:
            raise errors.SpawnFailed(
                f"cannot give {root.name} to a user id of its own: {error.strerror}; may this gateway chown?"
            ) from None
        return uid

    def _of(self, root: Path, directories: Sequence[Path]) -> int:
        if self._taken is None:
            # Once: whatever comes later was given by us.
            self._taken = {
                realm: uid for realm in root.parent.iterdir() if (uid := self._owner(realm / directories[0].name))
            }
        uid = self._taken.get(root)
        if uid is None:
            # Not the whole range as a set: that would cost more than all else of a sandbox (13 ms for 100,000).
            taken = set(self._taken.values())
            free = next((wanted for wanted in self._wanted if wanted not in taken), None)
            if free is None:
                raise errors.SpawnFailed(
                    f"all {len(self._wanted)} user ids of sandboxed realms are taken; raise sandbox.uids"
                )
            uid = self._taken[root] = free
        return uid

    def _owner(self, directory: Path) -> int | None:
        with suppress(OSError):
            uid = directory.stat().st_uid
            return uid if uid in self._wanted else None
        return None


def _give_away(directory: Path, uid: int) -> None:
    """Give a tree to a user id. No link is followed, nor is a path looked up twice: an agent may be at work in it."""
    for _, _, names, descriptor in os.fwalk(directory):
        os.chown(descriptor, uid, uid)
        for name in names:
            found = os.stat(name, dir_fd=descriptor, follow_symlinks=False)
            # A second name of a file may be one from outside the realm, made before it was sandboxed.
            if found.st_nlink == 1:
                os.chown(name, uid, uid, dir_fd=descriptor, follow_symlinks=False)
