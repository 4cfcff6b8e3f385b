"""Files in a byte stream, where no descriptor travels: a *blob* is a u64 length and the bytes."""

from __future__ import annotations

import os
import struct
from typing import BinaryIO

from wuwan_worker.shared.protocol import ProtocolError

HEADER = struct.Struct("!Q")
# The worker refuses larger files; a blob this long comes from a broken client.
MAX_SIZE = 1024 * 1024 * 1024
_CHUNK = 1024 * 1024


def exactly(source: BinaryIO, size: int) -> bytes:
    """So many bytes. Raises EOFError if the stream ends first."""
    data = source.read(size)
    if len(data) < size:
        raise EOFError
    return data


def read(source: BinaryIO) -> int | None:
    """The next blob, as a memory file's descriptor that the caller closes; None at the end.

    Raises:
        EOFError: if the blob is cut.
        ProtocolError: if it is too long.
    """
    header = source.read(HEADER.size)
    if not header:
        return None
    if len(header) < HEADER.size:
        raise EOFError
    (left,) = HEADER.unpack(header)
    if left > MAX_SIZE:
        raise ProtocolError(f"a blob of {left} bytes is over the limit of {MAX_SIZE}")
    descriptor = os.memfd_create("wuwan-image", os.MFD_CLOEXEC)
    try:
        while left:
            chunk = memoryview(exactly(source, min(left, _CHUNK)))
            left -= len(chunk)
            while chunk:
                chunk = chunk[os.write(descriptor, chunk) :]
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor
