"""A launcher whose workers are threads that greet: they speak our protocol, and label nothing."""

from __future__ import annotations

import contextlib
import socket
import threading
from typing import TYPE_CHECKING

from tests.runner.run.fake_worker import welcome
from wuwan_runner.gpus.placement import Placement
from wuwan_runner.wire import address
from wuwan_runner.worker import WorkerExit
from wuwan_worker.shared import protocol

if TYPE_CHECKING:
    from collections.abc import Callable

    from wuwan_runner.options import Timeouts
    from wuwan_runner.resolved import ResolvedSpec
    from wuwan_runner.worker import StartRequest
    from wuwan_worker.shared.protocol import Welcome

JOIN = 10.0


class FakeHandle:
    """A worker that accepts clients at its socket until it is told to end."""

    def __init__(self, listener: socket.socket) -> None:
        self.calls: list[str] = []
        self._listener = listener.dup()
        self._clients: list[socket.socket] = []
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    def report(self) -> WorkerExit:
        """See `WorkerHandle.report`."""
        self.calls.append("report")
        return WorkerExit("it has ended", "the last words")

    def kill(self) -> None:
        """See `WorkerHandle.kill`."""
        self.calls.append("kill")
        self.end()

    def release(self) -> None:
        """See `WorkerHandle.release`."""
        self.calls.append("release")

    def end(self) -> None:
        """As at the end of its TTL: the socket is closed, and with it its name is free."""
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._thread.join(JOIN)
        assert not self._thread.is_alive()
        for one in (self._listener, *self._clients):
            one.close()

    def _serve(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                self._clients.append(client)
                protocol.send_frame(client, welcome())


class FakeLauncher:
    """Counts what it starts; `before` is called in a start, and may fail."""

    name = "local"
    contained = False

    def __init__(self, before: Callable[[StartRequest], None] = lambda _: None) -> None:
        self.requests: list[StartRequest] = []
        self.workers: list[FakeHandle] = []
        self._before = before

    def key(
        self,
        wanted: ResolvedSpec,
        timeout: float = 0.0,
        notify: Callable[[str], None] | None = None,
    ) -> str:
        """See `Launcher.key`."""
        del timeout, notify
        return address.key(self.name, {"model": wanted.spec.model})

    def placement(self, wanted: ResolvedSpec, timeouts: Timeouts) -> Placement:
        """See `Launcher.placement`."""
        del wanted, timeouts
        return Placement()

    def start(self, request: StartRequest, listener: socket.socket) -> FakeHandle:
        """See `Launcher.start`."""
        self.requests.append(request)
        self._before(request)
        self.workers.append(FakeHandle(listener))
        return self.workers[-1]

    def kill(self, worker: Welcome, timeouts: Timeouts) -> None:
        """See `Launcher.kill`."""
        raise NotImplementedError
