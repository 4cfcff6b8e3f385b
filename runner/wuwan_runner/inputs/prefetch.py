"""Inputs opened ahead of their turn, in threads, so that one that hangs holds up nobody.

A file system may let `open()` wait for ever (a network disk that is gone), and a process cannot
take that back. So neither what comes next nor a file is asked for in the thread that talks to
workers. There is one thread as long as opening is fast. Another one is started when there is more
to open and all of them wait, and an open that takes too long is given up: its input has an error,
its thread is written off.

Whoever takes inputs from here waits on a descriptor, which is readable while there are any.
"""

from __future__ import annotations

import contextlib
import math
import os
import threading
import time
from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING

from wuwan_runner.errors import WuwanError
from wuwan_runner.inputs.base import Item, OpenError
from wuwan_runner.records import ItemFailure
from wuwan_worker.shared.protocol import ErrorCode

if TYPE_CHECKING:
    from collections.abc import Iterator

    from wuwan_runner.inputs.base import Input, Opened

MAX_THREADS = 16
# Each of them is a thread that the kernel does not give back.
MAX_STUCK = 64
# Seconds after which an open is no longer fast, and another thread is worth its cost.
SLOW = 0.005
_JOIN = 0.1  # seconds for threads that are not in the hands of the kernel, or of a slow source


class StalledError(WuwanError):
    """Where inputs are has stopped answering."""


@dataclass(frozen=True, slots=True)
class Fetched:
    """An item that is open, or why it cannot be opened."""

    item: Item
    result: Opened | ItemFailure


class Prefetch:
    """Reads a source and opens what it gives, within bounds that its owner sets.

    All methods are for one thread, its owner's.
    """

    def __init__(self, source: Iterator[Input], *, timeout: float) -> None:
        """
        Args:
            source: the inputs; iterated in other threads, one at a time. It may block.
            timeout: seconds that opening one of them may take.
        """
        self._source = source
        self._timeout = timeout
        self._changed = threading.Condition()
        # All of these under that lock.
        self._count = 0  # inputs that the source has given
        self._ended = False  # the source has no more
        self._error: BaseException | None = None  # of the source
        self._reading: float | None = None  # since when a thread is asking the source
        self._demand = 0  # items that may be open, or about to be
        self._limit = 0  # the first number that may not be taken up yet
        self._again: deque[Item] = deque()
        self._opening: dict[int, tuple[Item, float]] = {}  # by thread; since when
        self._ready: deque[Fetched] = deque()
        self._idle = 0
        self._threads: dict[int, threading.Thread] = {}  # those that are not written off
        self._stuck = 0
        self._closed = False
        self._signalled = False
        self._told = 0.0  # when the owner will look
        self._wake = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)

    def fileno(self) -> int:
        """Readable while `take` has something to give, or to raise."""
        return self._wake

    @property
    def count(self) -> int:
        """How many inputs there have been so far."""
        return self._count

    @property
    def exhausted(self) -> bool:
        """Whether all inputs have been taken, and nothing is to be opened once more."""
        with self._changed:
            busy = self._again or self._opening or self._ready or self._error
            return self._ended and not busy

    @property
    def deadline(self) -> float:
        """When `take` should be called though nothing is ready; monotonic clock, maybe infinity."""
        with self._changed:
            now = time.monotonic()
            limits = [since + self._timeout for _, since in self._opening.values()]
            reading = self._reading is not None
            if self._short_of_threads():
                limits.append(
                    max((since for _, since in self._opening.values()), default=now) + SLOW
                )
            elif len(self._opening) + self._idle + reading < len(self._threads):
                limits.append(now + SLOW)  # one is on its way from here to there
            if self._reading is not None and now < self._reading + SLOW:
                limits.append(self._reading + SLOW)
            self._told = min(limits, default=math.inf)
            return self._told

    @property
    def expects_more(self) -> bool:
        """Whether something is likely to be ready at once."""
        with self._changed:
            recent = time.monotonic() - SLOW
            if self._reading is not None and self._reading > recent:
                return True
            return self._may_read() or any(since > recent for _, since in self._opening.values())

    def allow(self, demand: int, limit: int) -> None:
        """Set the bounds.

        Args:
            demand: how many items may be open, or about to be, besides those taken already.
            limit: new inputs with a number from here on stay where they are.
        """
        with self._changed:
            self._demand, self._limit = demand, limit
            self._set_to_work()

    def again(self, item: Item) -> None:
        """Open an item once more, whatever the bounds are; before any new one."""
        with self._changed:
            self._again.append(item)
            self._set_to_work()

    def take(self) -> Fetched | None:
        """The next item whose opening has ended; None while there is none.

        Raises:
            StalledError: if too many opens hang.
            Exception: what the source has raised, once all before it has been taken.
        """
        with self._changed:
            self._give_up_slow()
            self._set_to_work()
            if self._ready:
                return self._ready.popleft()
            if self._error is not None:
                raise self._error
            if self._signalled:
                os.eventfd_read(self._wake)
                self._signalled = False
            return None

    def close(self) -> None:
        """Open nothing more, and close what was not taken.

        A thread that is in the kernel's hands is left to it, and closes what it gets in the end.
        """
        with self._changed:
            self._closed = True
            self._changed.notify_all()
            while self._ready:
                _close(self._ready.popleft().result)
            threads = list(self._threads.values())
        deadline = time.monotonic() + _JOIN
        for thread in threads:
            thread.join(max(0.0, deadline - time.monotonic()))
        with self._changed:
            os.close(self._wake)
            self._wake = -1

    # ------------------------------------------------------------ with the lock held

    def _may_read(self) -> bool:
        free = len(self._ready) + len(self._opening) + len(self._again) < self._demand
        idle = self._reading is None and not self._ended
        return idle and free and self._count < self._limit

    def _has_work(self) -> bool:
        return bool(self._again) or self._may_read()

    def _short_of_threads(self) -> bool:
        """Whether all threads wait for something, and one more would have something to do."""
        waiting = len(self._opening) + (self._reading is not None) == len(self._threads)
        return waiting and len(self._threads) < MAX_THREADS and self._has_work()

    def _set_to_work(self) -> None:
        if self._closed or not self._has_work():
            return
        if self._idle:
            self._changed.notify()
            return
        # The first thread at once, another one when those that there are have been slow.
        slow = time.monotonic() - SLOW
        if self._short_of_threads() and all(since <= slow for _, since in self._opening.values()):
            thread = threading.Thread(target=self._work, name="prefetch", daemon=True)
            self._threads[id(thread)] = thread
            thread.start()

    def _give_up_slow(self) -> None:
        too_old = time.monotonic() - self._timeout
        for thread, (item, since) in list(self._opening.items()):
            if since <= too_old:
                del self._opening[thread], self._threads[thread]
                self._stuck += 1
                reason = f"it could not be opened within {self._timeout:g} s"
                self._put(Fetched(item, ItemFailure(ErrorCode.TIMEOUT, reason)))
        if self._stuck > MAX_STUCK:
            raise StalledError(
                f"{self._stuck} files could not be opened within {self._timeout:g} s each",
                hint="is the disk that they are on still there? `ls` on it may hang, too",
            )

    def _put(self, fetched: Fetched) -> None:
        self._ready.append(fetched)
        self._signal()

    def _signal(self) -> None:
        if not self._signalled and self._wake >= 0:
            self._signalled = True
            os.eventfd_write(self._wake, 1)

    def _begin(self, item: Item, thread: int) -> None:
        now = time.monotonic()
        self._opening[thread] = item, now
        if now + SLOW < self._told:  # the owner would not look in time
            self._signal()

    # ------------------------------------------------------------ in the threads

    def _work(self) -> None:
        me = id(threading.current_thread())
        while (item := self._next(me)) is not None:
            result: Opened | ItemFailure
            try:
                result = item.input.open()
            except OpenError as error:
                result = error.failure
            except Exception as error:  # of an input's own making: one record, and not the run
                reason = f"{type(error).__name__}: {error}"
                result = ItemFailure(ErrorCode.UNREADABLE, reason)
            with self._changed:
                if self._opening.pop(me, None) is None:  # given up meanwhile
                    self._stuck -= 1
                    _close(result)
                    return
                if self._closed:
                    _close(result)
                    return
                self._put(Fetched(item, result))

    def _next(self, me: int) -> Item | None:
        """What to open next, which counts as being opened; None at the end."""
        with self._changed:
            while True:
                if self._closed:
                    return None
                if self._again:
                    item = self._again.popleft()
                    self._begin(item, me)
                    return item
                if self._may_read():
                    break
                self._idle += 1
                self._changed.wait()
                self._idle -= 1
            self._reading = time.monotonic()
        found, error = None, None
        try:
            found = next(self._source, None)
        except BaseException as raised:  # must reach the owner, whose thread this is not
            error = raised
        with self._changed:
            self._reading = None
            if found is None:
                self._ended, self._error = True, error
                self._signal()
                # Nobody reads any more; others may wait for that.
                self._changed.notify_all()
            else:
                item = Item(self._count, found)
                self._count += 1
                self._begin(item, me)
                return item
        return self._next(me)


def _close(result: Opened | ItemFailure) -> None:
    if not isinstance(result, ItemFailure):
        with contextlib.suppress(OSError):
            os.close(result.descriptor)
