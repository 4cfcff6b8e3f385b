"""A file system of a few lines, for what no real disk does on demand: names without types, inodes
that cannot be read, and files whose opening never ends. It speaks the kernel's FUSE protocol
(linux/fuse.h) itself.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
import struct
import subprocess
import threading
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator
    from pathlib import Path

_IN = struct.Struct("<IIQQIIII")  # length, opcode, unique, node, uid, gid, pid, padding
_OUT = struct.Struct("<IiQ")  # length, error, unique
_ROOT = 1
_LOOKUP, _FORGET, _GETATTR, _OPEN, _READ, _STATFS, _RELEASE = 1, 2, 3, 14, 15, 17, 18
_INTERRUPT = 36
_INIT, _OPENDIR, _READDIR, _RELEASEDIR, _BATCH_FORGET = 26, 27, 28, 29, 42


class _Disk:
    def __init__(
        self, files: dict[str, bytes | None], hung: Collection[str], asked: threading.Event | None
    ) -> None:
        self._hung = hung
        self._asked = asked
        self._names = list(files)
        self._contents = list(files.values())

    def answer(self, opcode: int, node: int, body: bytes) -> bytes | int | None:
        """The reply's body, an error number, or None where no reply is wanted."""
        if opcode in (_FORGET, _BATCH_FORGET):
            return None
        if opcode == _INIT:
            major, minor, ahead = struct.unpack_from("<III", body)
            return struct.pack(
                "<IIIIHHIIHHI28x", major, minor, ahead, 0, 16, 12, 65536, 1, 16, 0, 0
            )
        if opcode == _LOOKUP:
            name = body.rstrip(b"\0").decode()
            if name not in self._names:
                return errno.ENOENT
            child = self._names.index(name) + 2
            attributes = self._attributes(child)
            if isinstance(attributes, int):
                return attributes
            return struct.pack("<QQQQII", child, 0, 0, 0, 0, 0) + attributes
        if opcode == _GETATTR:
            attributes = self._attributes(node)
            if isinstance(attributes, int):
                return attributes
            return struct.pack("<QII", 0, 0, 0) + attributes
        if opcode == _OPEN and self._names[node - 2] in self._hung:
            if self._asked is not None:
                self._asked.set()
            return None  # whoever opens it waits
        if opcode in (_OPEN, _OPENDIR):
            return struct.pack("<QII", 0, 0, 0)
        if opcode == _READDIR:
            (offset,) = struct.unpack_from("<8xQ", body)
            return b"".join(map(self._entry, range(offset, len(self._names))))
        if opcode == _READ:
            offset, size = struct.unpack_from("<8xQI", body)
            return (self._contents[node - 2] or b"")[offset : offset + size]
        if opcode in (_RELEASE, _RELEASEDIR):
            return b""
        return bytes(80) if opcode == _STATFS else errno.ENOSYS

    def _attributes(self, node: int) -> bytes | int:
        mode, size = stat.S_IFDIR | 0o755, 0
        if node != _ROOT:
            content = self._contents[node - 2]
            if content is None:
                return errno.EIO
            mode, size = stat.S_IFREG | 0o644, len(content)
        return struct.pack("<QQQ36xII20x", node, size, 0, mode, 1)

    def _entry(self, number: int) -> bytes:
        name = self._names[number].encode()
        padding = bytes(-len(name) % 8)
        return struct.pack("<QQII", number + 2, number + 1, len(name), 0) + name + padding


@contextlib.contextmanager
def odd_disk(
    place: Path,
    files: dict[str, bytes | None],
    hung: Collection[str] = (),
    asked: threading.Event | None = None,
) -> Iterator[bool]:
    """Mount a disk with those files, None for one that cannot be read; False if that is forbidden.

    A directory's names come without their types, so each is asked for, and what is None is EIO.
    Opening one of `hung` ends with the process that does it, and not before; `asked` is set then.
    """
    place.mkdir()
    try:
        descriptor = os.open("/dev/fuse", os.O_RDWR)
    except OSError:
        yield False
        return
    options = f"fd={descriptor},rootmode=40000,user_id=0,group_id=0,allow_other"
    command = ["mount", "-i", "-t", "fuse", "-o", options, "odd-disk", str(place)]
    mounted = not subprocess.run(command, pass_fds=[descriptor], timeout=10, check=False).returncode
    disk = _Disk(files, hung, asked)

    def serve() -> None:
        with contextlib.suppress(OSError):  # ENODEV: it was unmounted
            while request := os.read(descriptor, 1 << 17):
                _, opcode, unique, node, *_ = _IN.unpack_from(request)
                if opcode == _INTERRUPT:  # somebody who waits is killed: let go of the kernel
                    (unique,) = struct.unpack_from("<Q", request, _IN.size)
                    reply: bytes | int | None = errno.EINTR
                else:
                    reply = disk.answer(opcode, node, request[_IN.size :])
                if reply is not None:
                    error, body = (-reply, b"") if isinstance(reply, int) else (0, reply)
                    os.write(descriptor, _OUT.pack(_OUT.size + len(body), error, unique) + body)

    server = threading.Thread(target=serve, daemon=True)
    if mounted:
        server.start()
    try:
        yield mounted
    finally:
        if mounted:
            subprocess.run(["umount", "-l", str(place)], timeout=10, check=True)
            server.join(10)
        os.close(descriptor)
