"""Who is at the other end of a socket.

The kernel says it in the terms of the user namespace of whoever asks, and there all users that are
not mapped look alike (user_namespaces(7)). Where a container has a namespace of its own, its owner
may be one of them: the worker then cannot tell its owner from anybody else on the machine.
"""

from __future__ import annotations

import functools
import socket
import struct
from pathlib import Path

# The environment's, for a worker that inherits its socket: what clients have to show.
TOKEN_VARIABLE = "WUWAN_TOKEN"  # noqa: S105  # a name
_CREDENTIALS = struct.Struct("3i")  # struct ucred: pid, uid, gid (unix(7))
_OVERFLOW = 65534  # the kernel's default
_ALL = ["0", "0", "4294967295"]  # the map of a namespace that has all users


def uid(sock: socket.socket) -> int:
    """The user at the other end, as seen from this process's user namespace."""
    raw = sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
    return int(_CREDENTIALS.unpack(raw)[1])


def ambiguous(user: int) -> bool:
    """Whether other users look like this one here."""
    return user == _overflow() and not _maps_all()


@functools.cache
def _overflow() -> int:
    try:
        return int(Path("/proc/sys/kernel/overflowuid").read_text())
    except (OSError, ValueError):  # a sandbox hides it
        return _OVERFLOW


def _maps_all() -> bool:
    try:
        return Path("/proc/self/uid_map").read_text().split() == _ALL
    except OSError:
        return False
