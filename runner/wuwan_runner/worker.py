"""One worker, from the request for it to what is known of its end."""

from __future__ import annotations

import dataclasses
import os
import threading
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Callable

    from wuwan_runner.options import Timeouts, WorkerSpec


@dataclass(frozen=True, slots=True)
class Ending:
    """What is known of a worker's end; empty if nothing is, or it has not ended."""

    reason: str = ""
    log: str = ""
    in_order: bool = False
    """By its own decision: the end of its TTL, or of its draining."""
    by_hand: bool = False
    """By a signal that somebody sent, or by its container's removal."""

    def __str__(self) -> str:
        return f"{self.reason}\n{self.log}".strip()

    def with_log(self, lines: str) -> Ending:
        """The same, and the worker's last log lines."""
        return dataclasses.replace(self, log=lines)


class Started(Protocol):
    """A worker that this process has started."""

    name: str

    def report(self) -> Ending:
        """How it ended, with its last log lines; empty if it lives."""
        ...

    def kill(self) -> None:
        """End it now, with everything that belongs to it."""
        ...

    def release(self) -> None:
        """Let it live on without us; free what this process holds for it."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Order:
    """One worker that is to be started."""

    spec: WorkerSpec
    token: str = ""
    """What clients will show, where the worker cannot tell users apart."""
    shared: bool = True
    """Whether later runs will know it."""
    slot: int = 0
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
