"""Workers in containers of a daemon that shares no file system with us (`exec_channel`)."""

from __future__ import annotations

import contextlib
import os
import socket

from wuwan_runner.containers.exec_channel import Attachment, ExecTransport
from wuwan_runner.pool.base import WorkerPool
from wuwan_runner.wire.address import namespace
from wuwan_runner.wire.connection import Connection, ConnectionLostError


class ExecPool(WorkerPool):
    """See `WorkerPool`."""

    def acquire(self, index: int) -> Connection:
        """See `WorkerPool.acquire`."""
        return self._connection(index, f"{namespace()}-{self.key}-{index}", private=False)

    def acquire_private(self) -> Connection:
        """See `WorkerPool.acquire_private`."""
        name = f"{namespace()}-{self.key}-private-{os.urandom(4).hex()}"
        return self._connection(0, name, private=True)

    def _connection(self, index: int, name: str, *, private: bool) -> Connection:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        timeouts = self._options.timeouts
        request = self._request(index, private=private)
        transport = ExecTransport(theirs, Attachment(name, timeouts, request), timeouts)
        connection = Connection(ours, index, private, timeouts, transport)
        # A start that has failed already says why when its end is read.
        with contextlib.suppress(ConnectionLostError):
            connection.greet(self._options)
        return connection
