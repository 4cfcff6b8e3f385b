"""A worker being started in the background, while its clients queue at its socket."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

from wuwan_runner.errors import WorkerUnavailableError
from wuwan_runner.worker import WorkerExit

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable

    from wuwan_runner.launchers.base import Launcher
    from wuwan_runner.worker import StartRequest, WorkerHandle

_JOIN = 15.0  # seconds to wait for a start that is being cancelled


class PendingWorker:
    """Owns the thread that starts one worker, and what is known of that worker afterwards.

    The listening socket is closed here as soon as the worker holds it, or cannot: so a client in
    its queue sees either the worker's Welcome or the end of the connection.
    """

    def __init__(
        self,
        launcher: Launcher,
        request: StartRequest,
        listener: socket.socket,
        prepare: Callable[[], None],
    ) -> None:
        """`prepare` is called in the thread of the start, before it."""
        self.warm = False
        self.error: WorkerUnavailableError | None = None
        self._launcher = launcher
        self._request = request
        self._listener = listener
        self._prepare = prepare
        self._started: WorkerHandle | None = None
        self._thread = threading.Thread(target=self._start, name="launch", daemon=True)
        self._thread.start()

    def _start(self) -> None:
        try:
            self._prepare()
            self._started = self._launcher.start(self._request, self._listener)
        except WorkerUnavailableError as error:
            self.error = error
        except Exception as error:  # must reach the run, which is in another thread
            self.error = WorkerUnavailableError(
                f"starting a worker failed: {type(error).__name__}: {error}"
            )
        finally:
            self._listener.close()

    def report(self) -> WorkerExit:
        """How the worker ended, with its last log lines; empty if that is not known."""
        self._thread.join(_JOIN)
        return self._started.report() if self._started else WorkerExit()

    def kill(self) -> None:
        """Stop the start, or end the worker.

        Raises WorkerUnavailableError if it cannot be ended.
        """
        self._request.cancelled.set()
        self._thread.join(_JOIN)
        if self._started is not None:
            started, self._started = self._started, None
            started.kill()

    def release(self) -> None:
        """Leave the worker to itself; a start that is still under way is called off."""
        self._request.cancelled.set()
        self._thread.join(_JOIN)
        if self._started is not None:
            self._started.release()
            self._started = None
