"""What a call of the client can raise.

ClientError            any of these
  ApiError             the gateway answered with a problem: `status`, `code`, `retryable`, `details`
  ConnectionLost       the gateway could not be reached, also not by trying again
  TurnFailed           a turn is over without an answer (only where the caller asked for that: `Turn.text`)
"""

from __future__ import annotations

from typing import Any


class ClientError(Exception):
    """Anything this client raises. `retryable` says whether the same call may succeed later."""

    code = "client_error"
    retryable = False


class ApiError(ClientError):
    """The gateway refused: `code` is stable and for programs, the text is for people."""

    def __init__(self, status: int, code: str, detail: str, retryable: bool, details: dict[str, Any]) -> None:
        super().__init__(detail)
        self.status = status
        self.code = code
        self.detail = detail
        self.retryable = retryable
        self.details = details


class ConnectionLost(ClientError):
    """The gateway could not be reached within the time that was given for it."""

    code = "connection_lost"
    retryable = True


class TurnFailed(ClientError):
    """A turn ended without an answer: it failed, was aborted or withdrawn, or waits for an answer of the caller's."""

    def __init__(self, status: str, error: dict[str, Any] | None) -> None:
        error = error or {}
        said = f": {error['message']}" if error.get("message") else ""
        super().__init__(f"expected a completed turn, found one that is {status}{said}")
        self.status = status
        self.code = str(error.get("code", f"turn_{status}"))
        self.retryable = bool(error.get("retryable", False))
