"""How long one image may take: a limit that its decoding tells as soon as it knows more.

A file of a few kilobytes can keep a decoder busy for hours, and none of the libraries can be told
when to stop. So whoever decodes says where it is, and `overdue` looks at the clock.

Measured on a core of a busy server, in seconds a megapixel (noise at the best quality, full scale):
TIFF of 64-bit floats 0.34, HEIC with alpha 0.23, AVIF 0.20, WebP 0.07, all others under 0.06, of
which JPEG 0.02. The limit is three times the slowest, for old machines and cores that are shared.
"""

from __future__ import annotations

import math
import time
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What a picture may take, seconds; waiting for memory or for its turn does not count."""

    base: float = 5.0  # anything: libraries load, a header is read
    per_megapixel: float = 1.0
    per_megabyte: float = 1.0  # to read the file, before: a network disk may be as slow as that


class Patience:
    """One image's clock. Its decoder's thread tells it, another one looks at it.

    What is written is one attribute at a time, in an order in which none of the states between
    looks overdue.
    """

    def __init__(self, limits: Limits, now: Callable[[], float] = time.monotonic) -> None:
        self.limit = limits.base  # seconds, of what is being done now
        self._limits = limits
        self._now = now
        self._began = now()
        self._waiting_since: float | None = None
        self._excused = 0.0

    def reading(self, count: int) -> None:
        """The file is being read, of `count` bytes."""
        self.limit = max(self.limit, self._limits.base + self._limits.per_megabyte * count / 1e6)

    def decoding(self) -> None:
        """It was read, and is looked at from here on."""
        self._began = self._now()
        self.limit = self._limits.base

    def of_pixels(self, count: int) -> None:
        """It has so many. Of several pictures in a file the largest counts, and the time of all."""
        self.limit = max(self.limit, self._limits.base + self._limits.per_megapixel * count / 1e6)

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """What is done inside is to wait for others, and does not count."""
        begin = self._waiting_since = self._now()
        try:
            yield
        finally:
            self._began += self._now() - begin
            self._waiting_since = None

    def excuse(self, seconds: float) -> None:
        """Nothing went on for so long; for who looks at the clock."""
        self._excused += seconds

    @property
    def left(self) -> float:
        """Seconds until it is overdue; infinite while it waits for others."""
        if self._waiting_since is not None:
            return math.inf
        return self._began + self.limit + self._excused - self._now()

    @property
    def waited(self) -> float:
        """Seconds that it has been waiting for others; 0 if it does not."""
        since = self._waiting_since
        return 0.0 if since is None else self._now() - since
