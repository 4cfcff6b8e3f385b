"""Where the workers of a run come from: what all ways to them have in common."""

from __future__ import annotations

from abc import ABC, abstractmethod
from functools import cached_property
from typing import TYPE_CHECKING

from wuwan_runner.gpus import placement
from wuwan_runner.options import TTL
from wuwan_runner.worker import StartRequest

if TYPE_CHECKING:
    from collections.abc import Callable

    from wuwan_runner.gpus.placement import Placement
    from wuwan_runner.launchers.base import Launcher
    from wuwan_runner.options import TagOptions
    from wuwan_runner.resolved import ResolvedSpec
    from wuwan_runner.wire.connection import Connection


class WorkerPool(ABC):
    """Gives connections to workers of one kind: `SocketPool`, or `ExecPool` far away."""

    def __init__(
        self,
        launcher: Launcher,
        wanted: ResolvedSpec,
        options: TagOptions,
        notify: Callable[[str], None],
    ) -> None:
        """
        Args:
            launcher: starts the workers.
            wanted: what they are.
            options: of the run.
            notify: told, in one line each, what a person may want to know.

        Raises:
            WorkerUnavailableError: see `Launcher.key`.
        """
        self.launcher = launcher
        self.notify = notify
        self.key = launcher.key(wanted, options.timeouts.docker, notify)
        self._wanted = wanted
        self._options = options

    @cached_property
    def placement(self) -> Placement:
        """Where the workers go: asked once a run, and only when one is started or counted.

        Raises:
            WorkerUnavailableError: see `Launcher.placement`.
        """
        return self.launcher.placement(self._wanted, self._options.timeouts)

    @cached_property
    def count(self) -> int:
        """How many workers this run uses."""
        spec, workers = self._wanted.spec, self._options.workers
        return workers or placement.workers(spec.gpus, lambda: self.placement)

    @abstractmethod
    def acquire(self, index: int) -> Connection:
        """A connection to the worker with that index, which is started if there is none.

        Raises:
            WorkerUnavailableError: if there is none to be had.
            ConnectionLostError: if the one that was there has ended just now; look again.
        """

    @abstractmethod
    def acquire_private(self) -> Connection:
        """A connection to a new worker that no other client will find; it ends with it."""

    def _request(
        self, index: int, *, private: bool, token: str = "", shared: bool = True
    ) -> StartRequest:
        return StartRequest(
            token=token,
            shared=shared,
            wanted=self._wanted,
            key=self.key,
            placement=lambda: self.placement,
            index=index,
            ttl=0.0 if private else TTL if self._options.ttl is None else self._options.ttl,
            timeouts=self._options.timeouts,
            notify=self.notify,
        )
