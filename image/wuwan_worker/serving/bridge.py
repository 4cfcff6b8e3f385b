"""`python -m wuwan_worker.serving.bridge NAME`: a worker's socket, over standard input and output.

For clients that cannot pass descriptors to the worker, because the daemon runs on another machine:
they run this inside the container (`docker exec -i`). Frames come as in `protocol`, and each
descriptor that a frame declares follows it as a *blob* (`blobs`). The bridge puts a blob into a
memory file and passes its descriptor on, so the worker sees no difference. What the worker sends is
copied through.

It ends when either side does: a client that is killed closes our standard input.
"""

from __future__ import annotations

import contextlib
import os
import select
import socket
import sys
import threading
import time
from typing import TYPE_CHECKING, BinaryIO

from wuwan_worker.shared import blobs, protocol

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

_CONNECT_TIMEOUT = 60.0  # seconds; the worker may be starting just now
_AGAIN = 0.02


def inward(source: BinaryIO, worker: socket.socket) -> None:
    """Pass frames from the client on until the client ends."""
    while True:
        header = source.read(protocol.HEADER.size)
        if not header:
            return
        if len(header) < protocol.HEADER.size:
            raise EOFError
        magic, count, size = protocol.HEADER.unpack(header)
        if magic != protocol.MAGIC or size > protocol.MAX_PAYLOAD:
            raise protocol.ProtocolError("not a frame")
        frame = memoryview(header + blobs.exactly(source, size))
        descriptors: list[int] = []
        try:
            for _ in range(count):
                if (descriptor := blobs.read(source)) is None:
                    raise EOFError
                descriptors.append(descriptor)
            sent = socket.send_fds(worker, [frame], descriptors) if descriptors else 0
        finally:
            protocol.close_all(descriptors)
        if sent < len(frame):
            worker.sendall(frame[sent:])


def outward(worker: socket.socket, write: Callable[[memoryview], int]) -> None:
    """Copy what the worker sends until it ends."""
    while data := worker.recv(protocol.RECEIVE_SIZE):
        view = memoryview(data)
        while view:
            view = view[write(view) :]


def connect(name: str, source: int) -> socket.socket:
    """A connection to the worker, which may not listen yet. Waits no longer than `source` lasts."""
    deadline = time.monotonic() + _CONNECT_TIMEOUT
    hung_up = select.poll()
    hung_up.register(source, 0)
    while True:
        worker = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            worker.connect(f"\0{name}")
        except OSError:
            worker.close()
            if time.monotonic() > deadline or hung_up.poll(0):
                raise
            time.sleep(_AGAIN)
        else:
            return worker


def main(arguments: Sequence[str]) -> int:
    """Bridge until one side ends; the exit code."""
    (name,) = arguments
    try:
        worker = connect(name, sys.stdin.fileno())
    except OSError as error:
        sys.stderr.write(f"no worker at {name}: {error}\n")
        return 1

    def copy_out() -> None:
        with contextlib.suppress(OSError):
            outward(worker, lambda data: os.write(1, data))
        os._exit(0)  # the other thread may be waiting for a client that has nothing to say

    threading.Thread(target=copy_out, name="outward", daemon=True).start()
    try:
        inward(sys.stdin.buffer, worker)
    except (EOFError, OSError, protocol.ProtocolError) as error:
        sys.stderr.write(f"the client is gone: {error or type(error).__name__}\n")
        return 1
    return 0


if __name__ == "__main__":
    os._exit(main(sys.argv[1:]))
