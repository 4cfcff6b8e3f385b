"""A filter for system calls: for what Landlock leaves open.

Landlock does not know chmod and its like, which work on a descriptor that is open for reading; nor
UDP, nor sockets with a path, behind which a session bus or a Docker daemon starts programs for
whoever asks; nor, before its version 6, signals. The worker needs none of these once it has its
listening socket.

The filter refuses what it knows and lets all else pass: native libraries may call whatever they
like. It holds for all threads. seccomp(2) is the source; numbers are the kernel's tables'.
"""

from __future__ import annotations

import ctypes
import errno
import os
import struct
from pathlib import Path
from typing import NamedTuple

_SET_MODE_FILTER, _TSYNC = 1, 1
_ALLOW, _REFUSE = 0x7FFF0000, 0x00050000  # | errno
# struct seccomp_data: nr, arch, instruction pointer, six arguments of 64 bits, little-endian here.
_NUMBER, _ARCH, _FIRST_ARGUMENT = 0, 4, 16
_LOAD, _EQUAL, _AT_LEAST, _ANY_BIT, _RETURN = 0x20, 0x15, 0x35, 0x45, 0x06
_X32 = 0x40000000  # x86-64's second set of numbers
_CLONE_THREAD = 0x00010000
_CLONE3 = 435

_INSTRUCTION = struct.Struct("=HBBI")

# Of all architectures.
_COMMON = {
    "pidfd_send_signal": 424, "io_uring_setup": 425, "pidfd_open": 434, "pidfd_getfd": 438,
    "fchmodat2": 452, "setxattrat": 463, "removexattrat": 466, "file_setattr": 469,
}  # fmt: skip


class _Machine(NamedTuple):
    """An architecture's numbers."""

    audit: int  # AUDIT_ARCH_…, linux/audit.h
    seccomp: int
    clone: int
    own: tuple[int, ...]  # their first argument is a process: only this one may be meant
    own_or_zero: tuple[int, ...]
    refused: dict[str, int]


_MACHINES = {
    "x86_64": _Machine(
        audit=0xC000003E,
        seccomp=317,
        clone=56,
        own=(62, 129, 234, 297),  # kill, rt_sigqueueinfo, tgkill, rt_tgsigqueueinfo
        own_or_zero=(302,),  # prlimit64
        refused={
            "socket": 41, "connect": 42, "bind": 49, "listen": 50, "socketpair": 53,
            "fork": 57, "vfork": 58, "execve": 59, "execveat": 322, "tkill": 200,
            "truncate": 76, "chmod": 90, "fchmod": 91, "fchmodat": 268,
            "chown": 92, "fchown": 93, "lchown": 94, "fchownat": 260,
            "utime": 132, "utimes": 235, "futimesat": 261, "utimensat": 280,
            "setxattr": 188, "lsetxattr": 189, "fsetxattr": 190,
            "removexattr": 197, "lremovexattr": 198, "fremovexattr": 199,
            "shmget": 29, "shmat": 30, "semget": 64, "msgget": 68, "mq_open": 240,
            "ptrace": 101, "process_vm_readv": 310, "process_vm_writev": 311,
            "add_key": 248, "request_key": 249, "keyctl": 250,
            "mount": 165, "unshare": 272, "setns": 308,
            "bpf": 321, "perf_event_open": 298, "userfaultfd": 323,
        },
    ),
    "aarch64": _Machine(
        audit=0xC00000B7,
        seccomp=277,
        clone=220,
        own=(129, 131, 138, 240),  # kill, tgkill, rt_sigqueueinfo, rt_tgsigqueueinfo
        own_or_zero=(261,),
        refused={
            "socket": 198, "connect": 203, "bind": 200, "listen": 201, "socketpair": 199,
            "execve": 221, "execveat": 281, "tkill": 130,
            "truncate": 45, "fchmod": 52, "fchmodat": 53, "fchownat": 54, "fchown": 55,
            "utimensat": 88, "setxattr": 5, "lsetxattr": 6, "fsetxattr": 7,
            "removexattr": 14, "lremovexattr": 15, "fremovexattr": 16,
            "shmget": 194, "shmat": 196, "semget": 190, "msgget": 186, "mq_open": 180,
            "ptrace": 117, "process_vm_readv": 270, "process_vm_writev": 271,
            "add_key": 217, "request_key": 218, "keyctl": 219,
            "mount": 40, "unshare": 97, "setns": 268,
            "bpf": 280, "perf_event_open": 241, "userfaultfd": 282,
        },
    ),
}  # fmt: skip

HOLDS_ON_GPU = "no process started, no mode, owner, time or attribute of a file changed"
HOLDS = f"no socket opened, {HOLDS_ON_GPU}"


def offered() -> bool:
    """Whether kernel and architecture are such that `restrict` works."""
    known = os.uname().machine in _MACHINES
    return known and Path("/proc/sys/kernel/seccomp/actions_avail").exists()


def restrict(*, sockets: bool = False) -> None:
    """Have the kernel refuse those calls, in all threads, with EPERM.

    prctl(PR_SET_NO_NEW_PRIVS) has to come before.

    Args:
        sockets: whether sockets may be made and connected all the same.

    Raises:
        OSError: if the kernel has no such filters or does not take one, or the architecture's
            numbers are not known here.
    """
    machine = _MACHINES.get(os.uname().machine)
    if machine is None:
        raise OSError(errno.ENOSYS, f"no table of system calls for {os.uname().machine}")
    program = b"".join(_program(machine, os.getpid(), sockets))
    held = ctypes.create_string_buffer(program, len(program))
    count = len(program) // _INSTRUCTION.size
    # struct sock_fprog: an unsigned short, and a pointer at its own alignment.
    filter_ = struct.pack("@HP", count, ctypes.addressof(held))
    syscall = ctypes.CDLL(None, use_errno=True).syscall
    syscall.restype = ctypes.c_long
    result = syscall(
        ctypes.c_long(machine.seccomp),
        ctypes.c_long(_SET_MODE_FILTER),
        ctypes.c_long(_TSYNC),
        filter_,
    )
    if result != 0:  # a thread's number, if that one cannot follow
        code = ctypes.get_errno() or errno.EBUSY
        raise OSError(code, os.strerror(code))


def _program(machine: _Machine, pid: int, sockets: bool) -> list[bytes]:
    """Instructions of Linux's filter language; a jump's distance counts from the next one."""
    pack = _INSTRUCTION.pack
    allow, refuse = pack(_RETURN, 0, 0, _ALLOW), pack(_RETURN, 0, 0, _REFUSE | errno.EPERM)
    number, first = pack(_LOAD, 0, 0, _NUMBER), pack(_LOAD, 0, 0, _FIRST_ARGUMENT)
    program = [
        # Another architecture's calls (a 32-bit program's) have other numbers: none is allowed.
        pack(_LOAD, 0, 0, _ARCH),
        pack(_EQUAL, 1, 0, machine.audit),
        refuse,
        number,
    ]
    if machine.refused.get("fork"):
        program += [pack(_AT_LEAST, 0, 1, _X32), refuse]
    # Its flags are in memory, which a filter cannot read; the C library then uses clone.
    program += [pack(_EQUAL, 0, 1, _CLONE3), pack(_RETURN, 0, 0, _REFUSE | errno.ENOSYS)]
    # Threads, but no process that could outlive this one.
    program += [
        pack(_EQUAL, 0, 4, machine.clone),
        first,
        pack(_ANY_BIT, 1, 0, _CLONE_THREAD),
        refuse,
        allow,
    ]
    for call in machine.own:
        program += [pack(_EQUAL, 0, 4, call), first, pack(_EQUAL, 1, 0, pid), refuse, allow]
    for call in machine.own_or_zero:
        program += [
            pack(_EQUAL, 0, 5, call),
            first,
            pack(_EQUAL, 2, 0, pid),
            pack(_EQUAL, 1, 0, 0),
            refuse,
            allow,
        ]
    allowed = ("socket", "connect", "bind", "listen", "socketpair") if sockets else ()
    for name, call in (machine.refused | _COMMON).items():
        if name not in allowed:
            program += [pack(_EQUAL, 0, 1, call), refuse]
    return [*program, allow]
