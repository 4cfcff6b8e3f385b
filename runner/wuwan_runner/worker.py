"""One worker, from the request for it to what is known of its end."""

from __future__ import annotations

import dataclasses
import os
import threading
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Callable

    from wuwan_runner.errors import WorkerUnavailableError
    from wuwan_runner.gpus.placement import Placement
    from wuwan_runner.options import Timeouts
    from wuwan_runner.resolved import ResolvedSpec


@dataclass(frozen=True, slots=True)
class WorkerExit:
    """What is known of a worker's end; empty if nothing is, or it has not ended."""

    reason: str = ""
    log: str = ""
    in_order: bool = False
    """By its own decision: the end of its TTL, or of its draining."""
    by_hand: bool = False
    """By a signal that somebody sent, or by its container's removal."""

    def __str__(self) -> str:
        return f"{self.reason}\n{self.log}".strip()

    def with_log(self, lines: str) -> WorkerExit:
        """The same, and the worker's last log lines."""
        return dataclasses.replace(self, log=lines)


class WorkerHandle(Protocol):
    """What this process holds of a worker that it has started."""

    def report(self) -> WorkerExit:
        """How it ended, with its last log lines; empty if it lives, or that is not known."""
        ...

    def kill(self) -> None:
        """End it now, with everything that belongs to it.

        Raises:
            WorkerUnavailableError: if it cannot be ended.
        """
        ...

    def release(self) -> None:
        """Let it live on without us; free what this process holds for it."""
        ...


class StartedWorker(WorkerHandle, Protocol):
    """The same while it may still be starting: `PendingWorker`, or an `ExecTransport`."""

    @property
    def warm(self) -> bool:
        """Whether the worker was there before this run."""
        ...

    @property
    def error(self) -> WorkerUnavailableError | None:
        """Why it could not be started."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class StartRequest:
    """One worker that is to be started."""

    wanted: ResolvedSpec
    key: str
    """What names workers of its kind; see `Launcher.key`."""
    placement: Callable[[], Placement]
    """Where workers of its kind go; asked for when it starts, since that may ask a daemon."""
    token: str = ""
    """What clients will show, where the worker cannot tell users apart."""
    shared: bool = True
    """Whether later runs will know it."""
    index: int = 0
    """Which of several workers of that spec it is."""
    ttl: float
    """Seconds."""
    timeouts: Timeouts
    notify: Callable[[str], None]
    """Told, in one line, where it runs if that is not obvious."""
    cancelled: threading.Event = field(default_factory=threading.Event)
    """Set when nobody waits for it any more."""


def new_name(model: str) -> str:
    """A name for a worker, for people and for `docker ps`."""
    safe = "".join(char if char.isalnum() and char.isascii() else "-" for char in model)
    return f"wuwan-{safe.strip('-')[-40:]}-{os.urandom(3).hex()}"
