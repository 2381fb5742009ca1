"""Writes the seccomp filter: the system calls that fail inside the sandbox.

It is a second wall behind the namespaces. The filter denies what reaches other processes, the kernel's own tables, new
namespaces, other sockets than Unix ones, and memory that no limit counts.
"""

from __future__ import annotations

import errno
import platform
import struct
from dataclasses import dataclass

X86_64, AARCH64 = "x86_64", "aarch64"

AUDIT_ARCHITECTURES = {X86_64: 0xC000003E, AARCH64: 0xC00000B7}

DENIED = {
    # other processes
    "ptrace": (101, 117),
    "process_vm_readv": (310, 270),
    "process_vm_writev": (311, 271),
    "process_madvise": (440, 440),
    "kcmp": (312, 272),
    "pidfd_getfd": (438, 438),
    "move_pages": (279, 239),
    "migrate_pages": (256, 238),
    # mounts and namespaces
    "mount": (165, 40),
    "umount2": (166, 39),
    "pivot_root": (155, 41),
    "chroot": (161, 51),
    "open_tree": (428, 428),
    "move_mount": (429, 429),
    "fsopen": (430, 430),
    "fsconfig": (431, 431),
    "fsmount": (432, 432),
    "fspick": (433, 433),
    "mount_setattr": (442, 442),
    "unshare": (272, 97),
    "setns": (308, 268),
    "open_by_handle_at": (304, 265),
    "name_to_handle_at": (303, 264),
    "fanotify_init": (300, 262),
    # parts of the kernel with many past faults
    "keyctl": (250, 219),
    "add_key": (248, 217),
    "request_key": (249, 218),
    "bpf": (321, 280),
    "perf_event_open": (298, 241),
    "io_uring_setup": (425, 425),
    "io_uring_enter": (426, 426),
    "io_uring_register": (427, 427),
    "userfaultfd": (323, 282),
    "lookup_dcookie": (212, 18),
    "personality": (135, 92),
    # the machine
    "kexec_load": (246, 104),
    "kexec_file_load": (320, 294),
    "init_module": (175, 105),
    "finit_module": (313, 273),
    "delete_module": (176, 106),
    "reboot": (169, 142),
    "swapon": (167, 224),
    "swapoff": (168, 225),
    "acct": (163, 89),
    "quotactl": (179, 60),
    "quotactl_fd": (443, 443),
    "syslog": (103, 116),
    "settimeofday": (164, 170),
    "clock_settime": (227, 112),
    "clock_adjtime": (305, 266),
    "adjtimex": (159, 171),
    "sethostname": (170, 161),
    "setdomainname": (171, 162),
    # memory that RLIMIT_AS and the size of /tmp do not count
    "memfd_create": (319, 279),
    "memfd_secret": (447, 447),
    "shmget": (29, 194),
    "msgget": (68, 186),
    "semget": (64, 190),
    "mq_open": (240, 180),
}
"""Numbers on x86-64 and on aarch64."""

DENIED_ON_X86_64 = {"iopl": 172, "ioperm": 173, "uselib": 134, "modify_ldt": 154}

CHECKED = {"clone": (56, 220), "clone3": (435, 435), "socket": (41, 198), "ioctl": (16, 29)}
"""Calls that are denied with some arguments."""

NEW_NAMESPACES = 0x7E020000
"""CLONE_NEWNS, NEWCGROUP, NEWUTS, NEWIPC, NEWUSER, NEWPID and NEWNET."""
AF_UNIX = 1
TERMINAL_INPUT = (0x5412, 0x541C)
"""TIOCSTI and TIOCLINUX, which type into a terminal."""
X32 = 0x40000000
"""First number of x86-64's second call table."""

LOAD, EQUAL, ANY_BIT, AT_LEAST, RETURN = 0x20, 0x15, 0x45, 0x35, 0x06
ALLOW, KILL = 0x7FFF0000, 0x80000000
NUMBER, ARCHITECTURE, FIRST_ARGUMENT, SECOND_ARGUMENT = 0, 4, 16, 24
"""Offsets in the kernel's `struct seccomp_data`. Both architectures are little-endian: the low half comes first."""


@dataclass(frozen=True)
class Instruction:
    """One instruction of the kernel's classic BPF. The jumps count the instructions to pass over."""

    code: int
    value: int
    if_true: int = 0
    if_false: int = 0

    def packed(self) -> bytes:
        """Return the kernel's `struct sock_filter`."""
        return struct.pack("=HBBI", self.code, self.if_true, self.if_false, self.value)


def filter_program(machine: str = "") -> bytes:
    """Return the program for a machine, as bubblewrap's --seccomp reads it.

    Raises:
        KeyError: there is no filter for this machine.
    """
    machine = machine or platform.machine()
    column = (X86_64, AARCH64).index(machine) if machine in AUDIT_ARCHITECTURES else -1
    if column < 0:
        raise KeyError(machine)
    denied = [numbers[column] for numbers in DENIED.values()]
    denied += DENIED_ON_X86_64.values() if machine == X86_64 else []
    program = [
        Instruction(LOAD, ARCHITECTURE),
        Instruction(EQUAL, AUDIT_ARCHITECTURES[machine], if_true=1),
        Instruction(RETURN, KILL),  # 32-bit calls have other numbers
        Instruction(LOAD, NUMBER),
        *([Instruction(AT_LEAST, X32, if_false=1), _fail(errno.EPERM)] if machine == X86_64 else []),
        *(step for number in denied for step in (Instruction(EQUAL, number, if_false=1), _fail(errno.EPERM))),
        *_checked({name: numbers[column] for name, numbers in CHECKED.items()}),
        Instruction(RETURN, ALLOW),
    ]
    return b"".join(step.packed() for step in program)


def _checked(numbers: dict[str, int]) -> list[Instruction]:
    """Deny some calls by their arguments. clone3 hides its flags in memory: glibc falls back to clone."""
    deny = _fail(errno.EPERM)
    return [
        *(Instruction(EQUAL, numbers["clone3"], if_false=1), _fail(errno.ENOSYS)),
        *(Instruction(EQUAL, numbers["clone"], if_false=4), Instruction(LOAD, FIRST_ARGUMENT)),
        *(Instruction(ANY_BIT, NEW_NAMESPACES, if_false=1), deny, Instruction(LOAD, NUMBER)),
        *(Instruction(EQUAL, numbers["socket"], if_false=4), Instruction(LOAD, FIRST_ARGUMENT)),
        *(Instruction(EQUAL, AF_UNIX, if_true=1), deny, Instruction(LOAD, NUMBER)),
        *(Instruction(EQUAL, numbers["ioctl"], if_false=5), Instruction(LOAD, SECOND_ARGUMENT)),
        *(Instruction(EQUAL, TERMINAL_INPUT[0], if_true=1), Instruction(EQUAL, TERMINAL_INPUT[1], if_false=1)),
        *(deny, Instruction(LOAD, NUMBER)),
    ]


def _fail(number: int) -> Instruction:
    """Let the call fail with an error number."""
    return Instruction(RETURN, 0x00050000 | number)
