"""The filter of system calls of a sandboxed runtime, as the program that seccomp(2) takes.

A deny-list on purpose: agents run whatever their users have installed, and a call that is not listed is still held by
namespaces, no_new_privs and the lack of capabilities. Denied calls fail with EPERM; calls of another architecture kill the
process, for their numbers mean other things. Formats: linux/filter.h, linux/seccomp.h.
"""

from __future__ import annotations

import errno
import functools
import platform
import struct

from aerodrome.adapters.sandbox import syscalls
from aerodrome.adapters.sandbox.syscalls import Architecture

# One instruction: operation, jump if true, jump if false, operand.
_Instruction = tuple[int, int, int, int]

_LOAD = 0x20  # BPF_LD | BPF_W | BPF_ABS
_IF_EQUAL = 0x15  # BPF_JMP | BPF_JEQ | BPF_K
_IF_AT_LEAST = 0x35  # BPF_JMP | BPF_JGE | BPF_K
_IF_ANY_BIT = 0x45  # BPF_JMP | BPF_JSET | BPF_K
_RETURN = 0x06  # BPF_RET | BPF_K

_NUMBER, _ARCHITECTURE, _FIRST_ARGUMENT, _SECOND_ARGUMENT = 0, 4, 16, 24  # offsets in struct seccomp_data

_ALLOW = 0x7FFF0000
_KILL = 0x80000000
_DENY = 0x00050000 | errno.EPERM
_MISSING = 0x00050000 | errno.ENOSYS

#: All but CLONE_NEWTIME, which to clone(2) is part of the exit signal; without a user namespace it needs privileges.
_NEW_NAMESPACES = 0x00020000 | 0x02000000 | 0x04000000 | 0x08000000 | 0x10000000 | 0x20000000 | 0x40000000
#: unix, inet, netlink, inet6. Not vsock (the hypervisor: no network namespace holds it), not alg, packet and the rest.
_FAMILIES = (1, 2, 16, 10)
#: Putting words into a terminal's input: TIOCSTI, TIOCLINUX.
_TERMINAL_INPUT = (0x5412, 0x541C)


@functools.cache
def program(machine: str | None = None) -> bytes:
    """Return the filter for a machine (platform.machine()), by default this one.

    Raises:
        KeyError: it is neither x86_64 nor aarch64.
    """
    architecture = syscalls.ARCHITECTURES[machine or platform.machine()]
    return b"".join(struct.pack("=HBBI", *instruction) for instruction in _instructions(architecture))


def _instructions(architecture: Architecture) -> list[_Instruction]:
    index = architecture.index
    made: list[_Instruction] = [
        (_LOAD, 0, 0, _ARCHITECTURE),
        (_IF_EQUAL, 1, 0, architecture.audit_word),
        (_RETURN, 0, 0, _KILL),
        (_LOAD, 0, 0, _NUMBER),
    ]
    if architecture.foreign_from is not None:
        made += [(_IF_AT_LEAST, 0, 1, architecture.foreign_from), (_RETURN, 0, 0, _DENY)]
    for numbers in syscalls.DENIED.values():
        if (number := numbers[index]) is not None:
            made += _when(number, [(_RETURN, 0, 0, _DENY)])
    # Its flags are behind a pointer, where no filter can look: programs fall back to clone(2) when it is missing.
    made += _when(syscalls.CLONE3[index], [(_RETURN, 0, 0, _MISSING)])
    for call in (syscalls.CLONE, syscalls.UNSHARE):
        flags: list[_Instruction] = [(_LOAD, 0, 0, _FIRST_ARGUMENT), (_IF_ANY_BIT, 0, 1, _NEW_NAMESPACES)]
        made += _when(call[index], [*flags, (_RETURN, 0, 0, _DENY), (_RETURN, 0, 0, _ALLOW)])
    made += _when(syscalls.SOCKET[index], _one_of(_FIRST_ARGUMENT, _FAMILIES, _ALLOW, _DENY))
    made += _when(syscalls.IOCTL[index], _one_of(_SECOND_ARGUMENT, _TERMINAL_INPUT, _DENY, _ALLOW))
    return [*made, (_RETURN, 0, 0, _ALLOW)]


def _when(number: int, body: list[_Instruction]) -> list[_Instruction]:
    """Return a body that is run for one call only; it must return."""
    return [(_IF_EQUAL, 0, len(body), number), *body]


def _one_of(offset: int, values: tuple[int, ...], verdict: int, otherwise: int) -> list[_Instruction]:
    """Return a body that decides by whether an argument (its lower half, which is all the kernel reads) is one of some values."""
    found = [instruction for value in values for instruction in ((_IF_EQUAL, 0, 1, value), (_RETURN, 0, 0, verdict))]
    return [(_LOAD, 0, 0, offset), *found, (_RETURN, 0, 0, otherwise)]
