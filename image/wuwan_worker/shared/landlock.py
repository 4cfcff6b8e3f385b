"""Landlock: what a process may still do to files, the network and others, given up for good.

landlock(7) is the source, and linux/landlock.h for the numbers. Nothing is installed and no right
is needed. Only what is *done* is restricted: reading files and mapping libraries goes on, and so
does whatever a descriptor that is open already was opened for.

A process that gives something up does so for the calling thread and the threads and processes that
it starts later, so this comes before any thread.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import struct
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

# The same on all architectures: they came after the tables were unified.
_CREATE_RULESET, _ADD_RULE, _RESTRICT_SELF = 444, 445, 446
_ASK_VERSION = 1
_RULE_PATH_BENEATH = 1
_RULESET = struct.Struct("=QQQ")  # handled_access_fs, handled_access_net, scoped
_PATH_BENEATH = struct.Struct("=Qi")  # allowed_access, parent_fd; packed

_EXECUTE, _WRITE_FILE = 1 << 0, 1 << 1
_REMOVE_AND_MAKE = sum(1 << bit for bit in range(4, 13))
_REFER = 1 << 13  # into another directory
_TRUNCATE = 1 << 14
_IOCTL_DEV = 1 << 15
_TCP = 1 << 0 | 1 << 1  # bind, connect
_SCOPES = 1 << 0 | 1 << 1  # abstract Unix sockets, signals


class _Offer(NamedTuple):
    """What a version adds."""

    since: int
    words: str
    files: int = 0  # handled_access_fs
    network: int = 0  # handled_access_net
    scoped: int = 0


_OFFERS = (
    _Offer(1, "no file written, made, removed, run", _EXECUTE | _WRITE_FILE | _REMOVE_AND_MAKE),
    _Offer(2, "", _REFER),
    _Offer(3, "cut short", _TRUNCATE),
    _Offer(4, "no TCP", network=_TCP),
    _Offer(5, "no device controlled", _IOCTL_DEV),
    _Offer(6, "no signal and no abstract socket to others", scoped=_SCOPES),
)


def abi() -> int:
    """The version of Landlock that the kernel offers.

    Raises:
        OSError: with ENOSYS if the kernel has none, EOPNOTSUPP if it is switched off, EPERM if a
            container's seccomp profile hides it.
    """
    return _call(_CREATE_RULESET, None, 0, _ASK_VERSION)


def holds(version: int) -> str:
    """What is given up with that version, for people."""
    return ", ".join(offer.words for offer in _OFFERS if offer.since <= version and offer.words)


def restrict(writable: Iterable[Path] = ()) -> int:
    """Give up, in this thread and its descendants, all that the kernel's version can take.

    prctl(PR_SET_NO_NEW_PRIVS) has to come before.

    Args:
        writable: files, mostly devices, and directories whose files may be written to and
            controlled all the same; never made or removed. What is not there is passed over.

    Returns:
        The version.

    Raises:
        OSError: as `abi`; then nothing is restricted.
    """
    version = abi()
    offers = [offer for offer in _OFFERS if offer.since <= version]
    files = sum(offer.files for offer in offers)
    network, scoped = sum(offer.network for offer in offers), sum(offer.scoped for offer in offers)
    # An older kernel knows a shorter struct, and takes this one if the rest is zero.
    attributes = _RULESET.pack(files, network, scoped)
    ruleset = _call(_CREATE_RULESET, attributes, len(attributes), 0)
    try:
        for path in writable:
            with contextlib.suppress(FileNotFoundError):
                _allow(ruleset, path, files & (_WRITE_FILE | _TRUNCATE | _IOCTL_DEV))
        _call(_RESTRICT_SELF, ruleset, 0)
    finally:
        os.close(ruleset)
    return version


def _allow(ruleset: int, path: Path, access: int) -> None:
    descriptor = os.open(path, os.O_PATH | os.O_CLOEXEC)
    try:
        rule = _PATH_BENEATH.pack(access, descriptor)
        _call(_ADD_RULE, ruleset, _RULE_PATH_BENEATH, rule, 0)
    finally:
        os.close(descriptor)


def _call(number: int, *arguments: int | bytes | None) -> int:
    syscall = ctypes.CDLL(None, use_errno=True).syscall
    syscall.restype = ctypes.c_long
    wide = (ctypes.c_long(one) if isinstance(one, int) else one for one in arguments)
    result: int = syscall(ctypes.c_long(number), *wide)
    if result < 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))
    return result
