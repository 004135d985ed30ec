"""The system calls that a sandboxed runtime may not make, by number, for the two architectures that runtimes exist for.

Data only; the filter is made of it in `seccomp`. What is here reaches past the sandbox (kernel, other processes, mounts, keys) or
is a large and often broken part of the kernel that no agent needs. Numbers: the kernel's unistd.h of each architecture.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Architecture:
    """An architecture as seccomp(2) sees it: the word that its calls carry, and the index of its numbers in the table."""

    audit_word: int
    index: int
    #: Numbers from here on are another ABI of the same architecture (x32); None: there is none.
    foreign_from: int | None = None


#: By what platform.machine() says.
ARCHITECTURES = {
    "x86_64": Architecture(0xC000003E, 0, foreign_from=0x40000000),
    "aarch64": Architecture(0xC00000B7, 1),
}

#: name -> number on x86_64 and on aarch64; None: not there.
DENIED: dict[str, tuple[int | None, int | None]] = {
    # other processes
    "ptrace": (101, 117),
    "process_vm_readv": (310, 270),
    "process_vm_writev": (311, 271),
    "process_madvise": (440, 440),
    "kcmp": (312, 272),
    "pidfd_getfd": (438, 438),
    # mounts and namespaces
    "mount": (165, 40),
    "umount2": (166, 39),
    "pivot_root": (155, 41),
    "chroot": (161, 51),
    "move_mount": (429, 429),
    "open_tree": (428, 428),
    "fsopen": (430, 430),
    "fsconfig": (431, 431),
    "fsmount": (432, 432),
    "fspick": (433, 433),
    "mount_setattr": (442, 442),
    "setns": (308, 268),
    "sethostname": (170, 161),
    "setdomainname": (171, 162),
    # the kernel's key rings
    "keyctl": (250, 219),
    "add_key": (248, 217),
    "request_key": (249, 218),
    # parts of the kernel that are attacked again and again
    "bpf": (321, 280),
    "perf_event_open": (298, 241),
    "userfaultfd": (323, 282),
    "io_uring_setup": (425, 425),
    "io_uring_enter": (426, 426),
    "io_uring_register": (427, 427),
    "fanotify_init": (300, 262),
    "move_pages": (279, 239),
    "migrate_pages": (256, 238),
    # the machine
    "kexec_load": (246, 104),
    "kexec_file_load": (320, 294),
    "init_module": (175, 105),
    "finit_module": (313, 273),
    "delete_module": (176, 106),
    "reboot": (169, 142),
    "swapon": (167, 224),
    "swapoff": (168, 225),
    "syslog": (103, 116),
    "acct": (163, 89),
    "quotactl": (179, 60),
    "quotactl_fd": (443, 443),
    "iopl": (172, None),
    "ioperm": (173, None),
    "settimeofday": (164, 170),
    "clock_settime": (227, 112),
    "clock_adjtime": (305, 266),
    "adjtimex": (159, 171),
    "vhangup": (153, 58),
    # files by handle, past every mount; calls of another age
    "open_by_handle_at": (304, 265),
    "lookup_dcookie": (212, 18),
    "nfsservctl": (180, 42),
    "modify_ldt": (154, None),
    "uselib": (134, None),
    "ustat": (136, None),
    "sysfs": (139, None),
    "_sysctl": (156, None),
}

#: Calls whose arguments decide (seccomp.py says how).
CLONE = (56, 220)
CLONE3 = (435, 435)
UNSHARE = (272, 97)
SOCKET = (41, 198)
IOCTL = (16, 29)
