"""How much memory pictures may take: one budget in bytes, shared by all decoders of a worker.

A limit of pixels is none of memory: a lossless WebP of 34 bytes takes 16 bytes for each of 268
million pixels. So each format says what a picture will take before it decodes it, waits for its
turn, and a picture that can never fit is refused.
"""

from __future__ import annotations

import functools
import os
import threading
from collections import deque
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from wuwan_worker.decoding.errors import ItemError
from wuwan_worker.shared.protocol import ErrorCode

if TYPE_CHECKING:
    from collections.abc import Iterator

    from wuwan_worker.decoding.patience import Patience

# The largest phone sensors give 200 megapixels; 20,000 x 20,000 is over this.
MAX_PIXELS = 2**28
# What a worker takes besides pictures: libraries, threads, a small model, a batch (measured:
# imagenet-zh 230 MB).
RESERVE = 320 * 2**20
# On a machine that others use, too, a worker leaves half of what is free to them.
_SHARE_OF_MACHINE = 0.5
# And no more than a container has by default: the same pictures are read in both.
_MOST = 4 * 2**30
# Of a container's limit: allocators keep a little, and an estimate is one.
_SHARE_OF_LIMIT = 0.85
_EACH = 4 * 2**20  # what any picture takes besides: rows in work, the network's square
LEAST = 96 * 2**20  # an ordinary photo goes through whatever the measurement says


class Budget:
    """Bytes, given out in the order of asking, so that a large picture gets its turn, too."""

    def __init__(self, total: int) -> None:
        self.total = total
        self._free = total
        self._waiting: deque[object] = deque()
        self._changed = threading.Condition()

    @contextmanager
    def claim(self, patience: Patience) -> Iterator[Claim]:
        """What one picture takes; given back at the end.

        Of a decoder that was given up the end is when it really ends: its memory is not free.
        """
        claim = Claim(self, patience)
        try:
            yield claim
        finally:
            self.give(claim.held)

    def take(self, count: int) -> None:
        """Wait for `count` bytes, at most `total`."""
        ticket = object()
        with self._changed:
            self._waiting.append(ticket)
            # Others give back what they hold: decoding ends, and where it does not the worker soon
            # does (`overdue`).
            self._changed.wait_for(lambda: self._waiting[0] is ticket and self._free >= count)
            self._waiting.popleft()
            self._free -= count
            self._changed.notify_all()

    def give(self, count: int) -> None:
        """Have `count` bytes back."""
        if count:
            with self._changed:
                self._free += count
                self._changed.notify_all()


class Claim:
    """One picture's part of the budget."""

    def __init__(self, budget: Budget, patience: Patience) -> None:
        self.held = 0
        self._budget = budget
        self._patience = patience

    def need(self, size: tuple[int, int], per_pixel: float, besides: int = 0) -> None:
        """Wait until the picture may be decoded; once for each picture.

        Args:
            size: width and height, pixels.
            per_pixel: bytes that its decoder and what follows take for each pixel, at the most.
            besides: bytes that do not depend on the pixels, such as the file's.

        Raises:
            ItemError: `too_large`, if that can never be.
        """
        width, height = size
        if width * height > MAX_PIXELS:
            raise ItemError(
                ErrorCode.TOO_LARGE,
                f"{width} x {height} pixels; the limit is {MAX_PIXELS // 10**6} megapixels",
            )
        count = int(width * height * per_pixel) + besides + _EACH
        if count > self._budget.total:
            raise ItemError(
                ErrorCode.TOO_LARGE,
                f"{width} x {height} pixels would take {count / 1e6:,.0f} MB in this format; this "
                f"worker has {self._budget.total / 1e6:,.0f} MB for pictures",
            )
        if self.held:  # a second one of the same file, with the first one's memory given back
            self._budget.give(self.held)
            self.held = 0
        with self._patience.waiting():
            self._budget.take(count)
        self.held = count
        self._patience.of_pixels(width * height)


@functools.cache
def budget() -> Budget:
    """This process's."""
    return Budget(max(LEAST, available() - RESERVE))


def available(root: Path = Path("/sys/fs/cgroup"), proc: Path = Path("/proc")) -> int:
    """Bytes that this process may take: of its cgroup's limit, or of what the machine has free."""
    machine = int(_meminfo(proc) * _SHARE_OF_MACHINE)
    limits = [limit for limit in _limits(root, proc) if limit > 0]
    return min(machine, *(int(limit * _SHARE_OF_LIMIT) for limit in [_MOST, *limits]))


def _meminfo(proc: Path) -> int:
    try:
        for line in (proc / "meminfo").read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    except (OSError, ValueError, IndexError):
        pass
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2


def _limits(root: Path, proc: Path) -> Iterator[int]:
    """The limits of this process's cgroup and all above it, version 2 and 1; bytes."""
    try:
        lines = (proc / "self/cgroup").read_text().splitlines()
    except OSError:
        return
    for line in lines:
        _, controllers, path = (*line.split(":", 2), "", "")[:3]
        if controllers == "" and path:
            base, name = root, "memory.max"
        elif "memory" in controllers.split(","):
            base, name = root / "memory", "memory.limit_in_bytes"
        else:
            continue
        # In a container the path may be the host's, of which only the root is to be seen.
        relative = Path(path.lstrip("/"))
        for directory in (relative, *relative.parents):
            try:
                yield int((base / directory / name).read_text())
            except (OSError, ValueError):  # not there, or "max"
                continue
