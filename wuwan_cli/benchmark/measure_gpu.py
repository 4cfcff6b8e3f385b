"""What a worker holds of a GPU, at rest, at work and parked, and how long it takes to wake."""

from __future__ import annotations

import statistics
import threading
import time
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from wuwan_cli.benchmark import measure
from wuwan_runner.errors import WuwanError
from wuwan_runner.options import Timeouts
from wuwan_runner.pool import registry
from wuwan_worker.shared.protocol import State

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from wuwan_worker.shared.protocol import Status

_INTERVAL = 0.2  # seconds between two looks
_PARKS_WITHIN = 60.0  # seconds; a worker's own limit is a few


@dataclass(frozen=True, slots=True)
class GpuFigures:
    """Bytes that the workers' backends hold, without what CUDA itself takes."""

    rest: int
    busy: int
    parked: int
    wake: float  # seconds that a parked worker's first record takes longer than a warm one's


@dataclass(slots=True)
class Peak:
    """The most that was held at any look."""

    bytes: int = 0
    _over: threading.Event = field(default_factory=threading.Event)

    def watch(self) -> None:
        """Look until it is over."""
        while not self._over.wait(_INTERVAL):
            self.bytes = max(self.bytes, held())

    def stop(self) -> None:
        """It is over."""
        self._over.set()


def held() -> int:
    """Bytes that this namespace's workers hold now; 0 on CPUs."""
    return sum(status.gpu_memory for status in _statuses())


@contextmanager
def watched() -> Iterator[Peak]:
    """The most that is held meanwhile; nobody looks where no GPU is used."""
    peak = Peak(held())
    thread = threading.Thread(target=peak.watch) if peak.bytes else None
    if thread is not None:
        thread.start()
    try:
        yield peak
    finally:
        peak.stop()
        if thread is not None:
            thread.join()


def figures(one: Sequence[str], busy: int, repeats: int) -> GpuFigures:
    """Let the worker park and wake it, `repeats` times.

    Args:
        one: arguments of `wuwan tag` for one photo.
        busy: see `watched`.
        repeats: how often.

    Raises:
        WuwanError: if it does not park.
    """
    warm = statistics.median(measure.tag(one).first for _ in range(repeats))
    rest = held()
    parked, woken = [], []
    for _ in range(repeats):
        deadline = time.monotonic() + _PARKS_WITHIN
        while {status.state for status in _statuses()} != {State.PARKED}:
            if time.monotonic() > deadline:
                raise WuwanError(f"no worker parks within {_PARKS_WITHIN:.0f} s")
            time.sleep(_INTERVAL)
        parked.append(held())
        woken.append(measure.tag(one).first)
    return GpuFigures(rest, busy, max(parked), statistics.median(woken) - warm)


def _statuses() -> list[Status]:
    return [member.status for member in registry.members(Timeouts()) if member.status]
