"""What becomes of runtimes with host tools under the `[sandbox]` settings: a sandbox, refusal, or neither by the operator's word.

Default deny: where no sandbox can be made, only the operator's own words let such runtimes be. What is in force is logged.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import structlog

from aerodrome import errors
from aerodrome.adapters.sandbox import probe
from aerodrome.adapters.sandbox.bubblewrap import Network, Sandbox
from aerodrome.adapters.sandbox.host import SandboxHost
from aerodrome.adapters.sandbox.uids import UidRange
from aerodrome.core.policy import HostTools
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
    compile_cache: Path | None = None


def choose(wishes: Wishes) -> Sandbox | None:
    """Return the sandbox to use, proved; None: there is none. Says in the log what is in force. Blocking.

    Raises:
        errors.ConfigError: bubblewrap is demanded and cannot make a sandbox here.
    """
    sandbox, reason = _look(wishes)
    if sandbox is not None:
        users = "one for each realm" if sandbox.setpriv else "the gateway's"
        _log.info("sandbox.ready", program=str(sandbox.program), network=wishes.network.value, users=users)
    elif wishes.mode == "bubblewrap":
        raise errors.ConfigError(f"sandbox.mode: {reason}")
    elif wishes.is_waived:
        _log.warning("sandbox.waived", reason=reason, effect="agents with host tools run as the gateway's user")
    else:
        _log.warning("sandbox.missing", reason=reason, effect="tenants with host tools are refused")
    return sandbox


def foresee(wishes: Wishes) -> tuple[HostTools, str]:
    """Return what becomes of host tools in a gateway that this user starts here now, and why; one sandbox is made. Blocking."""
    sandbox, reason = _look(wishes)
    if sandbox is not None:
        return HostTools.SANDBOXED, f"in a sandbox of {sandbox.program}, network {wishes.network.value}"
    if wishes.is_waived and wishes.mode != "bubblewrap":
        return HostTools.UNSANDBOXED, f"without a sandbox, by the words of sandbox.unsandboxed ({reason})"
    return HostTools.REFUSED, f"there is no sandbox ({reason})"


def open_host(host: RuntimeHost, sandbox: Sandbox | None, wishes: Wishes) -> tuple[RuntimeHost, HostTools]:
    """Return a host that confines what is to be confined, and what becomes of host tools there."""
    if sandbox is None:
        return host, HostTools.UNSANDBOXED if wishes.is_waived else HostTools.REFUSED
    uids = UidRange(wishes.first_uid, wishes.uids) if sandbox.setpriv else None
    return SandboxHost(host, sandbox, uids), HostTools.SANDBOXED


def _look(wishes: Wishes) -> tuple[Sandbox | None, str]:
    """Make one sandbox; return how, or why there is none."""
    if wishes.mode == "off":
        return None, "sandbox.mode is off"
    try:
        found = probe.find(wishes.program, wishes.network, wishes.read_only, wishes.first_uid)
        return replace(found, compile_cache=wishes.compile_cache), ""
    except errors.ConfigError as error:
        return None, error.message
