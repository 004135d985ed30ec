"""What becomes of runtimes with host tools under the `[sandbox]` settings: a sandbox, refusal, or neither by the operator's word.

Default deny: where no sandbox can be made, only the operator's own words let such runtimes be. What is in force is logged.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import structlog

from aerodrome import errors
from aerodrome.adapters.sandbox import probe
from aerodrome.adapters.sandbox.bubblewrap import Network, Sandbox
from aerodrome.adapters.sandbox.host import SandboxHost
from aerodrome.adapters.sandbox.uids import UidRange
from aerodrome.ports.host import RuntimeHost

_log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class Wishes:
    """What an operator asks for: `mode` is auto, bubblewrap or off; `is_waived`: agents may do without."""

    mode: str
    is_waived: bool
    program: Path | None
    network: Network
    read_only: tuple[Path, ...]
    first_uid: int
    uids: int


def choose(wishes: Wishes) -> Sandbox | None:
    """Return the sandbox to use, proved; None: there is none. Says in the log what is in force. Blocking.

    Raises:
        errors.ConfigError: bubblewrap is demanded and cannot make a sandbox here.
    """
    reason = "sandbox.mode is off"
    if wishes.mode != "off":
        try:
            sandbox = probe.find(wishes.program, wishes.network, wishes.read_only, wishes.first_uid)
        except errors.ConfigError as error:
            if wishes.mode == "bubblewrap":
                raise errors.ConfigError(f"sandbox.mode: {error.message}") from None
            reason = error.message
        else:
            users = "one for each realm" if sandbox.setpriv else "the gateway's"
            _log.info("sandbox.ready", program=str(sandbox.program), network=wishes.network.value, users=users)
            return sandbox
    if wishes.is_waived:
        _log.warning(
            "sandbox.waived", reason=reason, effect="agents of fully trusted tenants run as the gateway's user"
        )
    else:
        _log.warning("sandbox.missing", reason=reason, effect="fully trusted tenants are refused")
    return None


def host_of(host: RuntimeHost, sandbox: Sandbox, wishes: Wishes) -> SandboxHost:
    """Return a host that confines what is to be confined."""
    return SandboxHost(host, sandbox, UidRange(wishes.first_uid, wishes.uids) if sandbox.setpriv else None)
