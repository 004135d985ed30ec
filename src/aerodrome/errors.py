"""The one error tree of Aerodrome, and the one table that maps it to every edge.

    AerodromeError
    ├── ConfigError                a setting is missing or wrong; names the key and the fix
    ├── AuthenticationRequired     a call came before `connect`
    ├── AuthenticationFailed       wrong, missing, expired or revoked token
    ├── InvalidRequest             bytes or JSON that are not a JSON-RPC message
    │   ├── ParseFailed            not JSON, or a broken frame header
    │   └── FrameTooLarge          a frame over the limit of its link
    ├── InvalidParams              a parameter has the wrong type or form
    ├── MethodUnknown              no such method
    ├── PolicyRejected             the tenant's policy refuses this method or parameter
    ├── SessionMissing             no such session, or not the caller's: the two are never told apart
    ├── TenantMissing · KeyMissing · AlreadyExists      administration
    ├── MediaTypeUnknown           the body is of a type that is not taken
    ├── KeyReused                  an idempotency key stands for another request already
    ├── KeyBusy                    the first request of an idempotency key still runs
    ├── OutcomeUnknown             what the first request of an idempotency key did is not known; it is not done again
    ├── SessionBusy                a turn runs, and the session's busy policy is to refuse
    ├── TurnWithdrawn              a turn that waited was taken back
    ├── LeaseLost                  a fencing token is stale: the lease has expired or passed on
    ├── OverCapacity               try later: a limit of this gateway is reached
    │   └── RateLimited            the caller makes too many requests
    ├── Draining                   try elsewhere: this gateway takes no new work
    ├── RuntimeUnavailable         no runtime could serve the call now
    │   ├── RuntimeLost            the runtime died while the call was in flight
    │   └── SpawnFailed            a runtime did not become ready
    ├── RuntimeRefused             the runtime answered a call with an error of its own
    ├── RuntimeMissing             no usable Copilot CLI on this machine
    ├── SecretUnavailable          a secret could not be read; names its reference, never the value
    ├── SignInFailed               a browser's or device's sign-in did not end well: denied, late, not to be proved
    │   └── SignInUnavailable      the provider did not answer
    ├── AuditBroken                the audit log's chain does not hold
    └── StoreUnavailable           the registry's store did not answer

Every error has a stable `code`, says whether trying again can help (`retryable`) and carries `details` without secrets.
Adapters turn driver errors into these; each edge turns these into its wire form at one place. Imports nothing of ours.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar


class AerodromeError(Exception):
    """Say what was expected, what was found and what to do; carry a stable code."""

    code: ClassVar[str] = "internal"
    retryable: ClassVar[bool] = False

    def __init__(self, message: str, **details: Any) -> None:
        super().__init__(message)
        self.message = message
        self.details = details


class ConfigError(AerodromeError):
    """A setting is missing or wrong."""

    code = "config_invalid"


class AuthenticationRequired(AerodromeError):
    """A call came before the link was authenticated."""

    code = "authentication_required"

    def __init__(self) -> None:
        super().__init__("AUTHENTICATION_REQUIRED")


class AuthenticationFailed(AerodromeError):
    """The token is wrong, missing, expired or revoked; which of them is never said: `reason` is for the log."""

    code = "authentication_failed"

    def __init__(self, reason: str = "") -> None:
        super().__init__("AUTHENTICATION_FAILED")
        self.reason = reason


class InvalidRequest(AerodromeError):
    """The message is not a JSON-RPC 2.0 request, notification or response."""

    code = "request_invalid"


class ParseFailed(InvalidRequest):
    """The bytes are not a frame, or the frame's body is not JSON."""

    code = "parse_failed"


class FrameTooLarge(InvalidRequest):
    """A frame is larger than its link accepts."""

    code = "frame_too_large"


class InvalidParams(AerodromeError):
    """A parameter has the wrong type or form."""

    code = "params_invalid"


class MethodUnknown(AerodromeError):
    """The method does not exist here."""

    code = "method_unknown"


class PolicyRejected(AerodromeError):
    """The tenant's policy refuses this method or parameter."""

    code = "policy_rejected"


class SessionMissing(AerodromeError):
    """The session does not exist or is not the caller's."""

    code = "session_missing"


class TenantMissing(AerodromeError):
    """No tenant of that name."""

    code = "tenant_missing"


class KeyMissing(AerodromeError):
    """No key of that id."""

    code = "key_missing"


class AlreadyExists(AerodromeError):
    """Something of that name is there already."""

    code = "already_exists"


class SessionBusy(AerodromeError):
    """A turn runs in a shared session whose busy policy is to refuse; says whose, and since when."""

    code = "session_busy"
    retryable = True


class TurnWithdrawn(AerodromeError):
    """A turn that waited was taken back, by its sender, the owner, or because its member has left."""

    code = "turn_withdrawn"


class LeaseLost(AerodromeError):
    """A fencing token is stale: the lease it came with has expired, or passed on."""

    code = "lease_lost"


class OverCapacity(AerodromeError):
    """A limit of this gateway is reached; the caller may try again later."""

    code = "over_capacity"
    retryable = True


class RateLimited(OverCapacity):
    """The caller makes more requests than it may; `retry_after_seconds` says when one more is taken."""

    code = "rate_limited"


class MediaTypeUnknown(AerodromeError):
    """The body of a request is of a type that is not taken."""

    code = "media_type_unknown"


class KeyReused(AerodromeError):
    """An idempotency key was used for another request."""

    code = "idempotency_key_reused"


class KeyBusy(AerodromeError):
    """The first request of an idempotency key still runs."""

    code = "idempotency_key_busy"
    retryable = True


class OutcomeUnknown(AerodromeError):
    """The first request of an idempotency key has no answer any more; it is not done again."""

    code = "idempotency_outcome_unknown"


class Draining(AerodromeError):
    """This gateway takes no new work."""

    code = "draining"
    retryable = True


class RuntimeUnavailable(AerodromeError):
    """No runtime could serve the call now."""

    code = "runtime_unavailable"
    retryable = True


class RuntimeLost(RuntimeUnavailable):
    """The runtime died while the call was in flight; its outcome is not known."""

    code = "runtime_lost"


class SpawnFailed(RuntimeUnavailable):
    """A runtime process did not become ready."""

    code = "spawn_failed"


class RuntimeRefused(AerodromeError):
    """The runtime answered a call with an error of its own; the message is what it says."""

    code = "runtime_refused"


class RuntimeMissing(AerodromeError):
    """No usable Copilot CLI release was found on this machine."""

    code = "runtime_missing"


class SecretUnavailable(AerodromeError):
    """A secret could not be read. `is_outage`: its source may only be away for a while."""

    code = "secret_unavailable"
    retryable = True

    def __init__(self, message: str, is_outage: bool = False) -> None:
        super().__init__(message)
        self.is_outage = is_outage


class SignInFailed(AerodromeError):
    """A sign-in at GitHub or an identity provider did not end well; `reason` is for the log."""

    code = "sign_in_failed"

    def __init__(self, message: str, reason: str = "") -> None:
        super().__init__(message)
        self.reason = reason or message


class SignInUnavailable(SignInFailed):
    """The provider did not answer, or not in a form that can be read."""

    code = "sign_in_unavailable"
    retryable = True


class AuditBroken(AerodromeError):
    """A record of the audit log was changed, removed or put in."""

    code = "audit_broken"


class StoreUnavailable(AerodromeError):
    """The store behind a registry did not answer."""

    code = "store_unavailable"
    retryable = True


@dataclass(frozen=True, slots=True)
class Wire:
    """How one error code looks at the edges."""

    jsonrpc: int
    http: int
    reason: str


#: The first five JSON-RPC codes are the runtime's own (measured on release 1.0.102); -3201x are Aerodrome's.
WIRE: dict[str, Wire] = {
    "internal": Wire(-32603, 500, "internal"),
    "config_invalid": Wire(-32603, 500, "config"),
    "authentication_required": Wire(-32001, 401, "authentication"),
    "authentication_failed": Wire(-32002, 401, "authentication"),
    "request_invalid": Wire(-32600, 400, "invalid"),
    "parse_failed": Wire(-32700, 400, "invalid"),
    "frame_too_large": Wire(-32600, 413, "too_large"),
    "params_invalid": Wire(-32602, 400, "invalid"),
    "method_unknown": Wire(-32601, 404, "method"),
    "policy_rejected": Wire(-32010, 403, "policy"),
    "session_missing": Wire(-32603, 404, "ownership"),
    "tenant_missing": Wire(-32603, 404, "tenant"),
    "key_missing": Wire(-32603, 404, "key"),
    "already_exists": Wire(-32603, 409, "conflict"),
    "session_busy": Wire(-32016, 409, "busy"),
    "turn_withdrawn": Wire(-32018, 409, "withdrawn"),
    "lease_lost": Wire(-32017, 409, "lease"),
    "over_capacity": Wire(-32011, 429, "capacity"),
    "rate_limited": Wire(-32011, 429, "rate"),
    "media_type_unknown": Wire(-32600, 415, "invalid"),
    "idempotency_key_reused": Wire(-32602, 422, "conflict"),
    "idempotency_key_busy": Wire(-32603, 409, "conflict"),
    "idempotency_outcome_unknown": Wire(-32603, 409, "conflict"),
    "draining": Wire(-32012, 503, "draining"),
    "runtime_unavailable": Wire(-32013, 503, "runtime"),
    "runtime_lost": Wire(-32014, 503, "runtime"),
    "spawn_failed": Wire(-32013, 503, "runtime"),
    "runtime_refused": Wire(-32603, 422, "runtime"),
    "runtime_missing": Wire(-32013, 503, "runtime"),
    "secret_unavailable": Wire(-32015, 503, "secret"),
    "sign_in_failed": Wire(-32002, 401, "authentication"),
    "sign_in_unavailable": Wire(-32015, 503, "sign_in"),
    "audit_broken": Wire(-32603, 500, "audit"),
    "store_unavailable": Wire(-32015, 503, "store"),
}


def wire(error: BaseException) -> Wire:
    """Return the wire form of an error; anything that is not ours is `internal`."""
    code = error.code if isinstance(error, AerodromeError) else "internal"
    return WIRE[code]


def data(error: AerodromeError) -> dict[str, Any]:
    """Return the machine-readable part of an error: code, retryable, and its details."""
    return {"code": error.code, "retryable": error.retryable, **error.details}
