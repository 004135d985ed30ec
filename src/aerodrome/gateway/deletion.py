"""How a session is deleted in a runtime of its realm while clients may be at it: for the reaper and for erasures.

The order of a deletion, and why no client can lose a session that it was just given access to:

1. The session is withdrawn (gateway.ownership): whoever asks for its owner from now on waits, whoever claims its id is refused.
   Its record stays. Were the record removed first, its id would be free while the runtime still has the session: the next
   `session.create` with that id would join it; and where a user is alone with a runtime, an unclaimed id passes unchecked.
   A crash then would leave a session on disk that nobody owns and no pass finds.
2. Those who were told before the withdrawal are waited for. Each has attached by then, or has failed. Without this, a resume on
   its way could reach the runtime just before the deletion: on another connection, in whatever order the runtime likes.
3. Whether it has expired and is at work is asked again, and the deletion is sent in the same step of the event loop. An
   attachment is noted in the step that sends its resume, so one that is not seen here is not on its way either.
4. The record is removed when the runtime has answered; then the withdrawal ends. Those who waited find the session missing if it
   is, and theirs if it was left. If the runtime's answer does not come, the record stays and the next pass tries again.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from enum import Enum
from pathlib import Path
from typing import Protocol

import structlog

from aerodrome import errors
from aerodrome.core import session as sessions
from aerodrome.core.placement import Realm
from aerodrome.core.session import SessionRecord
from aerodrome.gateway.ownership import Ownership
from aerodrome.gateway.workplaces import Workplace
from aerodrome.ports.fleet import Fleet, RuntimeHandle
from aerodrome.protocol import hardening
from aerodrome.transport import control
from aerodrome.transport.control import ControlLink

_log = structlog.get_logger()

#: A runtime that does not answer a deletion this long answers nobody: it is retired, so that the deletion cannot come later.
_DELETE_SECONDS = 120.0
#: Where a runtime keeps the locks of sessions, below its realm's directory.
_LOCKS = ("copilot", "session-state", ".session-operation-locks")


class Presence(Protocol):
    """What of a session is in use through this gateway."""

    def is_at_work(self, realm_key: str, session_id: str) -> bool:
        """Say, without waiting, whether a runtime holds the session and it must not be deleted now."""
        ...

    async def unload(self, realm_key: str, session_id: str) -> bool:
        """Have its runtime unload the session, for every client that holds it, if it is idle; its clients can wake it.

        Says whether it is unloaded now (or was); False: it is at work. When it returns True, `is_at_work` is False until the
        next turn of the event loop.
        """
        ...


class Outcome(Enum):
    """What a pass did with an expired session."""

    REAPED = "reaped"
    LEFT = "left"
    FAILED = "failed"
    WOULD_BE_REAPED = "would_be_reaped"


class SessionDeletion:
    """Deletes sessions one by one, each if it is still wanted then."""

    def __init__(self, fleet: Fleet, ownership: Ownership, presence: Presence, settle_seconds: float) -> None:
        self._fleet = fleet
        self._ownership = ownership
        self._presence = presence
        self._settle_seconds = settle_seconds

    @asynccontextmanager
    async def open_runtime(self, realm: Realm) -> AsyncIterator[tuple[RuntimeHandle, ControlLink]]:
        """Lend a runtime of the realm and a link to it."""
        handle = await self._fleet.acquire(realm)
        try:
            handle.thaw()
            link, _ = await control.open_control(handle.host, handle.port, handle.token, dial=handle.dial)
            try:
                yield handle, link
            finally:
                await link.aclose()
        finally:
            self._fleet.release(handle)
            if handle.links == 0 and handle.opened == 0:
                # It came for this: a pass over a thousand users' realms must not leave a thousand idle runtimes behind.
                self._fleet.retire(handle, "sessions are deleted")

    async def delete(
        self,
        record: SessionRecord,
        handle: RuntimeHandle,
        link: ControlLink,
        is_due: Callable[[], Awaitable[bool]],
        place: Workplace | None,
    ) -> Outcome:
        """Delete one session if it is still to be and not at work; see this module's docstring for the order.

        `place` is where the owner's sessions work; None: nobody knows.

        Raises:
            errors.RuntimeLost: the runtime did not answer; whether it has deleted the session is not known.
            errors.StoreUnavailable: the registry does not answer.
        """
        session_id, ownership = record.session_id, self._ownership
        if not await is_due() or not await self._presence.unload(record.realm, session_id):
            return Outcome.LEFT
        with ownership.withdrawn(session_id):
            if not await ownership.wait_unasked(session_id, self._settle_seconds):
                return Outcome.LEFT
            try:
                may_have = await _may_have(session_id, link)
                still_due = await is_due()
                # From here to the sending of the deletion nothing waits.
                if not still_due or self._presence.is_at_work(record.realm, session_id):
                    return Outcome.LEFT
                refusal = await _delete(session_id, link) if may_have else None
            except errors.RuntimeLost as error:
                self._fleet.retire(handle, error.message)
                raise
            if refusal is not None and "in use" in refusal:
                return Outcome.LEFT  # another process has it open: at work, though not through us
            if refusal is not None:
                _log.warning("session.reap_failed", session=session_id, realm=record.realm, reason=refusal)
                return Outcome.FAILED
            if sessions.is_valid_id(session_id):
                await self.remove_files(place, handle.work_directory, session_id)
            await ownership.forget(session_id, record.owner)
        return Outcome.REAPED

    async def remove_files(self, place: Workplace | None, of_realm: Path | None, session_id: str) -> None:
        """Remove what a runtime leaves of a session that it has deleted: its working directory and its lock."""
        try:
            if place is not None:
                await asyncio.to_thread(place.remove, session_id)
            if of_realm is not None:
                await asyncio.to_thread(_remove_lock, of_realm.parent.joinpath(*_LOCKS), session_id)
        except OSError as error:
            # The session is gone all the same; a record without one would only fail again in every pass.
            _log.warning("session.directory_kept", session=session_id, reason=error.strerror)


async def _delete(session_id: str, link: ControlLink) -> str | None:
    """Have a runtime delete a session; return why it did not, None once it is gone (or never was on its disk)."""
    try:
        answer = await link.call("session.delete", {"sessionId": session_id}, _DELETE_SECONDS)
    except control.RemoteError as error:
        return error.message
    if isinstance(answer, dict) and answer.get("success") is True:
        return None
    refusal = str(answer.get("error") if isinstance(answer, dict) else answer)
    return None if "not found" in refusal.lower() else refusal


async def _may_have(session_id: str, link: ControlLink) -> bool:
    """Say whether a runtime must be asked to delete an id, and would not take it for the beginning of another session's.

    Where it has none of that name, it deletes the one that begins so (protocol.hardening): then it must be known to have it.
    """
    if not hardening.is_abbreviation(session_id):
        return sessions.is_valid_id(session_id)  # the runtime has none by any other id
    listed = await link.call("session.list")
    return any(found.get("sessionId") == session_id for found in listed["sessions"])


def _remove_lock(directory: Path, session_id: str) -> None:
    """Remove the lock file of a session, which the runtime leaves behind when it deletes the session (measured on 1.0.102)."""
    with suppress(FileNotFoundError):
        below = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
        try:
            os.unlink(f"{session_id}.lock", dir_fd=below)
        finally:
            os.close(below)


def remove_directory(parent: Path, name: str) -> None:
    """Remove a directory and all in it, if it is there and really below `parent`: no link is followed.

    `name` must be a plain one: what climbs out of `parent` is for the caller to refuse.

    Raises:
        OSError: it, or something in it, cannot be removed; a link of that name is left alone.
    """
    Workplace(parent).remove(name)
