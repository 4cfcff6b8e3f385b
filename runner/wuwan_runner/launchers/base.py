"""What starts a worker."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable

    from wuwan_runner.gpus.placement import Placement
    from wuwan_runner.options import Timeouts
    from wuwan_runner.resolved import ResolvedSpec
    from wuwan_runner.worker import StartRequest, WorkerHandle
    from wuwan_worker.shared.protocol import Welcome


class Launcher(Protocol):
    """Starts workers of one kind."""

    name: str
    """As in `--runner`."""
    contained: bool
    """Whether its workers may be in a user namespace of their own."""

    def key(
        self,
        wanted: ResolvedSpec,
        timeout: float = 0.0,
        notify: Callable[[str], None] | None = None,
    ) -> str:
        """Names the workers that serve a spec. Fast: milliseconds, and no heavy import.

        Args:
            wanted: the spec.
            timeout: seconds for a call of a daemon's client, where nothing faster will do; without
                them there is no time for that.
            notify: told, in one line, what a person may want to know.

        Raises:
            WorkerUnavailableError: if it cannot have the model, or the daemon that would know does
                not answer.
        """
        ...

    def placement(self, wanted: ResolvedSpec, timeouts: Timeouts) -> Placement:
        """Where workers for a spec would run, as far as that can be told before one is started.

        Raises:
            WorkerUnavailableError: if this launcher cannot start any: no Docker, no image, no such
                GPU.
        """
        ...

    def start(self, request: StartRequest, listener: socket.socket) -> WorkerHandle:
        """Start a worker that serves `listener`; returns once the worker holds it.

        Raises:
            WorkerUnavailableError: if it cannot be started; nothing is left then.
        """
        ...

    def kill(self, worker: Welcome, timeouts: Timeouts) -> None:
        """End a worker that somebody else started.

        Raises:
            WorkerUnavailableError: if that cannot be done; it says how to do it by hand.
        """
        ...
