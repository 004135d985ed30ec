"""The directories in which guarded sessions work: made one for each session, removed with it, no link ever followed.

They lie below the realm's own directory, or below a policy's `work_root`, outside the state directory, where others may have
files too. What is below a root is named by its owner and session ids alone; agents, and whoever else may write there, can
put a link in the place of any of them: each step is opened by its name in the one before. A new one belongs to whom the one
above it does: agents in a sandbox may have a user of their own. The registry is the list of what was made: a session whose
directory has something in it before it began is not begun. Blocking, and quick.
"""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from aerodrome import errors
from aerodrome.core.identity import Owner
from aerodrome.core.policy import Policy

_OPEN = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
_NO_DIRECTORY = (errno.ELOOP, errno.ENOTDIR)


@dataclass(frozen=True, slots=True)
class Workplace:
    """Where the sessions of one owner work: `root` is the operator's (links in its own path are theirs), `below` is ours."""

    root: Path
    below: tuple[str, ...] = ()

    def path(self, session_id: str) -> Path:
        """Return the directory of a session."""
        return self.root.joinpath(*self.below, session_id)

    def make(self, session_id: str) -> bool:
        """Make a session's directory and those above it, for this user alone; say whether one with something in it was there.

        Raises:
            errors.PolicyRejected: a link, or a file, stands in the place of one of them.
            errors.RuntimeUnavailable: it cannot be made.
        """
        try:
            self.root.mkdir(mode=0o700, parents=True, exist_ok=True)
            with self._opened(*self.below, session_id, makes=True) as place:
                return bool(os.listdir(place))
        except OSError as error:
            if error.errno in _NO_DIRECTORY:
                raise errors.PolicyRejected(
                    f"the working directory of session {session_id} is refused: a link or a file stands in its place; ask your "
                    "operator to remove it",
                    parameter="workingDirectory",
                ) from None
            raise errors.RuntimeUnavailable(
                f"the working directory of session {session_id} cannot be made: {error.strerror}"
            ) from error

    def remove(self, session_id: str) -> bool:
        """Remove a session's directory and all in it; say whether there was one.

        Raises:
            OSError: it, or something in it, cannot be removed; a link in its place, or above it, is left alone.
        """
        try:
            with self._opened(*self.below) as parent:
                shutil.rmtree(session_id, dir_fd=parent)
        except FileNotFoundError:
            return False
        return True

    def remove_unused(self, session_id: str) -> None:
        """Remove a session's directory if there is nothing in it; what stands in the way stays."""
        with suppress(OSError), self._opened(*self.below) as parent:
            os.rmdir(session_id, dir_fd=parent)

    def close(self) -> int:
        """Remove the owner's own directory if no session has one in it; return how many entries keep it from that.

        Raises:
            OSError: it cannot be read or removed; a link in its place is left alone.
        """
        *above, own = self.below
        try:
            with self._opened(*self.below) as place:
                left = len(os.listdir(place))
            if not left:
                with self._opened(*above) as parent:
                    os.rmdir(own, dir_fd=parent)
        except FileNotFoundError:
            return 0
        return left

    @contextmanager
    def _opened(self, *names: str, makes: bool = False) -> Iterator[int]:
        """Lend a descriptor of a directory below the root, reached step by step."""
        place = os.open(self.root, _OPEN if self.below else _OPEN | os.O_NOFOLLOW)
        try:
            for name in names:
                is_new = makes and _make(place, name)
                inner, above = os.open(name, _OPEN | os.O_NOFOLLOW, dir_fd=place), os.fstat(place)
                os.close(place)
                place = inner
                if is_new and os.geteuid() == 0:
                    os.fchown(inner, above.st_uid, above.st_gid)
            yield place
        finally:
            os.close(place)


def _make(place: int, name: str) -> bool:
    """Make a directory; say whether there was none."""
    try:
        os.mkdir(name, 0o700, dir_fd=place)
    except FileExistsError:
        return False
    return True


def find(policy: Policy, owner: Owner, of_realm: Path | None) -> Workplace | None:
    """Return where the sessions of an owner work; None where this gateway did not spawn the runtime."""
    if policy.work_root is None or of_realm is None:
        return None if of_realm is None else Workplace(of_realm)
    return below_root(policy.work_root, owner)


def below_root(work_root: str, owner: Owner) -> Workplace:
    """Return where the sessions of an owner work below a policy's `work_root`."""
    return Workplace(Path(work_root), (owner.tenant, owner.user))
