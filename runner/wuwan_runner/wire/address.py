"""Where workers are found: abstract Unix sockets, named for what the worker is.

An abstract name lives in the kernel exactly as long as a process holds the socket. So there is
nothing to clean up after a crash, no stale file to mistake for a worker, and binding a name is an
atomic lock: of two clients that want to start the same worker, one binds, and the other finds the
socket there and queues at it, although the worker is not up yet.
"""

from __future__ import annotations

import hashlib
import json
import os
import socket
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from wuwan_worker import __version__
from wuwan_worker.shared import peers, protocol

if TYPE_CHECKING:
    from collections.abc import Mapping

BACKLOG = 512
# Clients share workers within a namespace; another one keeps a test run's workers to itself.
NAMESPACE_VARIABLE = "WUWAN_NAMESPACE"


def namespace() -> str:
    """The namespace of this process: "wuwan" unless the environment names another."""
    return os.environ.get(NAMESPACE_VARIABLE, "") or "wuwan"


@dataclass(frozen=True, slots=True)
class Address:
    """The name of one worker's socket."""

    key: str  # what the worker is
    index: str  # "0", "1", … of several alike; random for a private one

    @property
    def name(self) -> str:
        """The abstract socket's name, with its leading NUL."""
        return f"\0{namespace()}/{os.getuid()}/{self.key}/{self.index}"


def key(runner: str, details: Mapping[str, str]) -> str:
    """A short name for "a worker of this version, runner, model and device"."""
    content = {"wuwan": __version__, "protocol": protocol.VERSION, "runner": runner, **details}
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:12]


def private(of_key: str) -> Address:
    """An address that nobody else will look for."""
    return Address(of_key, f"private-{os.urandom(6).hex()}")


def listen(address: Address) -> socket.socket | None:
    """The listening socket of that name, or None where somebody holds it already."""
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        sock.bind(address.name)
        sock.listen(BACKLOG)
    except OSError:
        sock.close()
        return None
    return sock


def told_apart() -> bool:
    """Whether this user can be told from others; not if the user namespace does not map it."""
    return not peers.ambiguous(os.getuid())


def connect(address: Address, timeout: float, *, bound: bool = False) -> socket.socket | None:
    """A connection to that worker, or None where there is none (of ours).

    Anybody on the machine may bind a name, so the listener's user is checked: images are handed
    to nobody else. Not so if this process has `bound` the name, and holds it.
    """
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    sock.settimeout(timeout)
    try:
        sock.connect(address.name)
        ours = bound or (peers.uid(sock) == os.getuid() and told_apart())
    except OSError:
        ours = False
    if not ours:
        sock.close()
        return None
    return sock


def listed() -> list[Address]:
    """The addresses of this user's workers on this machine, by proc(5) net/unix."""
    prefix = f"@{namespace()}/{os.getuid()}/"
    found: set[Address] = set()
    for line in Path("/proc/net/unix").read_text(errors="replace").splitlines():
        name = line.rpartition(" ")[2]
        parts = name.removeprefix(prefix).split("/")
        if name.startswith(prefix) and len(parts) == 2:
            found.add(Address(*parts))
    return sorted(found, key=lambda address: (address.key, address.index))


def warm(prefix: str) -> str:
    """The key that begins so of shared workers here; "" if there is none, or more than one."""
    keys = {place.key for place in listed() if place.key.startswith(prefix) and place.index == "0"}
    return keys.pop() if len(keys) == 1 else ""
