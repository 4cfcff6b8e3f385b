"""Finds warm workers and starts new ones, for one run."""

from __future__ import annotations

import time

from wuwan_runner.errors import WorkerUnavailableError
from wuwan_runner.pool import eviction
from wuwan_runner.pool.base import WorkerPool
from wuwan_runner.pool.startup import PendingWorker
from wuwan_runner.wire import address, proof
from wuwan_runner.wire.address import Address
from wuwan_runner.wire.connection import Connection, ConnectionLostError

_CONNECT = 5.0  # seconds; only a full queue makes connecting wait
_AGAIN = 0.002


class SocketPool(WorkerPool):
    """Workers that share this machine's sockets."""

    def acquire(self, index: int) -> Connection:
        """A connection to the worker with that index, which is started if there is none.

        Binding the index's name is what decides between several clients that want to start it: one
        binds, the others find the name taken and connect to it.

        Raises:
            WorkerUnavailableError: if the name can be neither bound nor connected to.
            ConnectionLostError: see `WorkerPool.acquire`.
        """
        # Where anybody may be the listener there is no warm worker to be trusted.
        known = address.told_apart()
        target = Address(self.key, str(index)) if known else address.private(self.key)
        deadline = time.monotonic() + self._options.timeouts.start
        while time.monotonic() < deadline:
            if (sock := address.connect(target, _CONNECT)) is not None:
                connection = Connection(sock, index, False, self._options.timeouts, None)
                return self._greeted(connection, proof.token(target.name))
            if (started := self._start(target, index, private=False)) is not None:
                return started
            time.sleep(_AGAIN)
        raise WorkerUnavailableError(
            f"the worker name {target.name[1:]} is taken by something that does not answer",
            hint="another user of this machine may hold it: look for it in /proc/net/unix",
        )

    def acquire_private(self) -> Connection:
        """A new worker that no other client will find; it ends with its connection."""
        target = address.private(self.key)
        connection = self._start(target, 0, private=True)
        if connection is None:
            raise WorkerUnavailableError(f"cannot listen on the socket {target.name[1:]}")
        return connection

    def _start(self, target: Address, index: int, *, private: bool) -> Connection | None:
        listener = address.listen(target)
        if listener is None:
            return None
        sock = address.connect(target, _CONNECT, bound=True)
        if sock is None:
            listener.close()
            return None
        # Before the token: it is made of what is kept.
        shared = self.launcher.contained and proof.keep()
        token = proof.token(target.name)
        started = PendingWorker(
            self.launcher,
            self._request(index, private=private, token=token, shared=shared),
            listener,
            prepare=lambda: eviction.make_room(target, self._options.max_cached, self.notify),
        )
        connection = Connection(sock, index, private, self._options.timeouts, started)
        return self._greeted(connection, token)

    def _greeted(self, connection: Connection, token: str) -> Connection:
        connection.token = token
        try:
            connection.greet(self._options)
        except ConnectionLostError:
            # A start that has failed already says why when its end is read.
            if connection.started is None:
                connection.close()
                raise
        return connection
