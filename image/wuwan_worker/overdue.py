"""Who looks at the clock while images are decoded, and gives up those that take too long.

A decoder in C cannot be stopped. Its thread is *written off*: the image has its answer, another
thread takes the place, and what the thread holds (its memory, a core) is lost until it ends by
itself, or the worker does.
"""

from __future__ import annotations

import threading
import time
from typing import TYPE_CHECKING

from wuwan_worker.decoding.decode import Refused
from wuwan_worker.decoding.patience import Limits, Patience
from wuwan_worker.shared.protocol import ErrorCode

if TYPE_CHECKING:
    from collections.abc import Callable

    from wuwan_worker.jobs import Job

_LOOKS = 5  # in `base` seconds: each is a chance to notice that the whole process stood still


class Attempt:
    """One image that is being decoded."""

    def __init__(self, job: Job, limits: Limits, given_up: Callable[[Attempt], None]) -> None:
        self.job = job
        self.patience = Patience(limits)
        self.given_up = given_up
        self._seen = time.monotonic()

    def look(self, tick: float) -> bool:
        """Whether it is overdue; called at least each `tick` seconds.

        If it was not, then nothing went on: a container that was paused, a machine without a core
        for us. That is no image's fault.
        """
        now = time.monotonic()
        if (gap := now - self._seen) > 1.5 * tick:
            self.patience.excuse(gap - tick)
        self._seen = now
        return self.patience.left <= 0


class Overdue:
    """Owns the thread that looks, which sleeps while nothing is decoded."""

    def __init__(
        self,
        limits: Limits,
        hanging: Callable[[int, bool], None],
    ) -> None:
        """
        Args:
            limits: for each image.
            hanging: told, whenever that changes, how many threads are written off and have not
                ended, and whether others have waited for long for what those may hold.
        """
        self._limits = limits
        self._tick = limits.base / _LOOKS  # seconds
        self._hanging = hanging
        self._changed = threading.Condition()
        self._going: set[Attempt] = set()
        self._lost: set[Attempt] = set()
        self._asleep = False  # until something begins
        self._closed = False
        self._thread = threading.Thread(target=self._run, name="overdue", daemon=True)

    def start(self) -> None:
        """Begin to look."""
        self._thread.start()

    def close(self, timeout: float) -> None:
        """End the thread; wait for it at most `timeout` seconds."""
        with self._changed:
            self._closed = True
            self._changed.notify()
        if self._thread.is_alive():
            self._thread.join(timeout)

    def begin(self, job: Job, given_up: Callable[[Attempt], None]) -> Attempt:
        """An image is taken up; its clock runs.

        Args:
            job: the image.
            given_up: told once, if it is overdue; in the thread that looks, and without a lock.
        """
        attempt = Attempt(job, self._limits, given_up)
        with self._changed:
            self._going.add(attempt)
            # Else it looks in time: no limit is shorter than what it sleeps. To wake it for each
            # image would cost the decoder its core.
            if self._asleep:
                self._changed.notify()
        return attempt

    def end(self, attempt: Attempt) -> bool:
        """Its decoder has come back. False if it was given up: then nothing of it counts."""
        with self._changed:
            if attempt in self._going:
                self._going.remove(attempt)
                return True
            self._lost.remove(attempt)
            self._changed.notify()  # so that it is told
        return False

    def _run(self) -> None:
        told = (0, False)
        while True:
            with self._changed:
                if self._closed:
                    return
                late = [attempt for attempt in self._going if attempt.look(self._tick)]
                self._going.difference_update(late)
                self._lost.update(late)
                # Whatever they wait for, it would have come by now if somebody still gave it back.
                stuck = bool(self._lost) and any(
                    attempt.patience.waited > self._limits.base for attempt in self._going
                )
                found = (len(self._lost), stuck)
                if not late and found == told:
                    self._sleep()
                    continue
            for attempt in late:
                attempt.given_up(attempt)
            self._hanging(*found)
            told = found

    def _sleep(self) -> None:
        """Until the first one is due, or a while; called with the lock."""
        self._asleep = not self._going
        if self._asleep:
            self._changed.wait()
            self._asleep = False
            return
        left = min(attempt.patience.left for attempt in self._going)
        self._changed.wait(min(max(0.0, left), self._tick))


def refusal(attempt: Attempt) -> Refused:
    """What the image is told that was given up."""
    limit = attempt.patience.limit
    return Refused(ErrorCode.TIMEOUT, f"it was not decoded within {limit:.1f} s")
