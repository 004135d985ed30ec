"""Having a new gateway link know what the lost one did: registrations, then every session the program has open.

All of it is said before any request of the program passes, so that no request can find its session missing. Which gateway it is
does not matter, nor whether it is the same process as before.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

import structlog
from msgspec import UNSET

from aerodrome import errors
from aerodrome.forward.ledger import HeldSession, Ledger
from aerodrome.protocol import messages, reopening
from aerodrome.protocol.messages import Envelope

_log = structlog.get_logger()

Call = Callable[[str, dict[str, Any]], Awaitable[Envelope]]


async def restore(ledger: Ledger, call: Call) -> None:
    """Say again what the program had said.

    Raises:
        errors.RuntimeUnavailable: a session cannot be had now, but may be later; or the link ended.
    """
    for method, params in list(ledger.registrations.items()):
        await call(method, params)
    for held in list(ledger.sessions.values()):
        await _restore_session(ledger, held, call)


async def _restore_session(ledger: Ledger, held: HeldSession, call: Call) -> None:
    held.hush()
    params = reopening.resume_params(held.session_id, held.create, held.resume)
    answer = await call("session.resume", params)
    if answer.error is not UNSET and not held.is_kept and reopening.is_missing(answer):
        answer = await call("session.create", reopening.create_params(held.create, held.resume))
    if answer.error is not UNSET:
        reason = reopening.message_of(answer)
        if _may_try_again(answer):
            raise errors.RuntimeUnavailable(f"session {held.session_id} cannot be resumed now: {reason}")
        # The program hears of it when it names the session: the gateway answers that it is missing.
        _log.warning("session.restore_failed", session=held.session_id, reason=reason)
        ledger.sessions.pop(held.session_id, None)
        return
    if held.options:
        await call("session.options.update", {**held.options, "sessionId": held.session_id})
    for method, replayed in list(held.replays.values()):
        await call(method, replayed)
    _log.info("session.restored", session=held.session_id)


def _may_try_again(answer: Envelope) -> bool:
    try:
        data = messages.params_object(answer.error).get("data")
    except errors.InvalidParams:
        return False
    return isinstance(data, dict) and data.get("retryable") is True
