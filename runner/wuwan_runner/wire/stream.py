"""Frames over any byte stream: the contents of files where descriptors do not travel.

Towards the worker each descriptor of a frame is followed by a blob (`shared.blobs`), which
`wuwan_worker.serving.bridge` makes a descriptor again; what comes back is copied.
"""

from __future__ import annotations

import contextlib
import os
from typing import TYPE_CHECKING, Protocol

from wuwan_worker.shared import blobs, protocol
from wuwan_worker.shared.protocol import FrameDecoder, pack

if TYPE_CHECKING:
    import socket

_CHUNK = 1024 * 1024


class ByteStream(Protocol):
    """Both directions of a connection to a bridge."""

    def read(self) -> bytes:
        """What has come, at least a byte; nothing at its end. Raises OSError."""
        ...

    def write(self, data: bytes) -> None:
        """Send all of it. Raises OSError."""
        ...

    def finish(self) -> None:
        """Nothing more will be written. Raises OSError."""
        ...


def inward(client: socket.socket, stream: ByteStream) -> None:
    """Client to worker, until either ends: frames, and the contents of their descriptors."""
    decoder = FrameDecoder(protocol.WORKER)
    try:
        while True:
            data, descriptors = protocol.receive(client)
            if not data:
                break
            for frame in decoder.feed(data, descriptors):
                try:
                    payload = pack(frame.message)
                    stream.write(
                        protocol.HEADER.pack(protocol.MAGIC, len(frame.descriptors), len(payload))
                        + payload
                    )
                    for descriptor in frame.descriptors:
                        _write_blob(descriptor, stream)
                finally:
                    frame.close()
    except (OSError, protocol.ProtocolError):
        pass
    finally:
        decoder.close()
        with contextlib.suppress(OSError):
            stream.finish()


def outward(stream: ByteStream, client: socket.socket) -> None:
    """Worker to client, until either ends."""
    with contextlib.suppress(OSError):
        while data := stream.read():
            client.sendall(data)


def _write_blob(descriptor: int, stream: ByteStream) -> None:
    size = os.fstat(descriptor).st_size
    stream.write(blobs.HEADER.pack(size))
    offset = 0
    while offset < size:
        chunk = os.pread(descriptor, min(_CHUNK, size - offset), offset)
        if not chunk:  # cut while it is read: the length is promised, the decoder will tell
            chunk = bytes(min(_CHUNK, size - offset))
        stream.write(chunk)
        offset += len(chunk)
