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
# Asked of the source at once, if it is fast.
_BURST = 16
_SHORTAGE = 5.0  # seconds to wait for a descriptor to be free
_AGAIN = 0.01
_JOIN = 0.1  # seconds for threads that are not in the hands of the kernel, or of a slow source


class StalledError(WuwanError):
    """Where inputs are has stopped answering."""


class NoThreadError(WuwanError):
    """This machine, or this container, gives no thread more."""


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
        self._listed: deque[Item] = deque()  # what the source has given, to be opened
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
        """Readable when `take` has something to give, or the source has ended."""
        return self._wake

    @property
    def count(self) -> int:
        """How many inputs there have been so far."""
        return self._count

    @property
    def exhausted(self) -> bool:
        """Whether all inputs have been taken, and nothing is to be opened once more."""
        with self._changed:
            busy = self._again or self._listed or self._opening or self._ready
            return self._ended and not busy

    @property
    def error(self) -> BaseException | None:
        """What the source has raised: it has ended before its end."""
        return self._error

    @property
    def deadline(self) -> float:
        """When `take` should be called though nothing is ready; monotonic clock, maybe infinity."""
        with self._changed:
            now = time.monotonic()
            limits = [since + self._timeout for _, since in self._opening.values()]
            if self._short_of_threads():
                limits.append(
                    max((since for _, since in self._opening.values()), default=now) + SLOW
                )
            elif self._waiting() + self._idle < len(self._threads):
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
            free = self._waiting() < len(self._threads)
            return (free and self._has_work()) or any(
                since > recent for _, since in self._opening.values()
            )

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

    def take(self) -> list[Fetched]:
        """The items whose opening has ended since; empty while there is none.

        Raises:
            StalledError: if too many opens hang.
        """
        with self._changed:
            self._give_up_slow()
            taken = list(self._ready)
            self._ready.clear()
            # They are the owner's now, who says with `allow` when there is room for others.
            opened = sum(not isinstance(fetched.result, ItemFailure) for fetched in taken)
            self._demand = max(0, self._demand - opened)
            self._set_to_work()
            if self._signalled:
                os.eventfd_read(self._wake)
                self._signalled = False
            return taken

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

    def _may_open(self) -> bool:
        """Whether there is room for one more that is open, or about to be."""
        return len(self._ready) + len(self._opening) + len(self._again) < self._demand

    def _may_read(self) -> bool:
        idle = self._reading is None and not self._ended
        return idle and self._may_open() and self._count < self._limit

    def _has_work(self) -> bool:
        return bool(self._again) or (bool(self._listed) and self._may_open()) or self._may_read()

    def _short_of_threads(self) -> bool:
        """Whether all threads wait for something, and one more would have something to do."""
        waiting = self._waiting() == len(self._threads)
        return waiting and len(self._threads) < MAX_THREADS and self._has_work()

    def _waiting(self) -> int:
        """How many threads wait for a file or the source."""
        return len(self._opening) + (self._reading is not None)

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
            try:
                thread.start()  # it waits for the lock that is held here
            except RuntimeError as error:
                if not self._threads:
                    raise NoThreadError(
                        f"no thread can be started: {error}",
                        hint="a limit is reached: see `ulimit -u`, or the container's pids limit",
                    ) from None
            else:
                self._threads[id(thread)] = thread

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

    def _begin(self, item: Item, thread: int) -> Item:
        now = time.monotonic()
        self._opening[thread] = item, now
        if now + SLOW < self._told:  # the owner would not look in time
            self._signal()
        return item

    # ------------------------------------------------------------ in the threads

    def _work(self) -> None:
        me = id(threading.current_thread())
        item = self._next(me)
        while item is not None:
            item = self._next(me, Fetched(item, self._open(item)))

    def _open(self, item: Item) -> Opened | ItemFailure:
        deadline = time.monotonic() + min(_SHORTAGE, self._timeout / 2)
        while True:
            try:
                return item.input.open()
            except OpenError as error:
                # Not the file's fault: others are closed as soon as they are sent.
                if not error.shortage or time.monotonic() > deadline or self._closed:
                    return error.failure
            except Exception as error:  # of an input's own making: one record, and not the run
                reason = f"{type(error).__name__}: {error}"
                return ItemFailure(ErrorCode.UNREADABLE, reason)
            time.sleep(_AGAIN)

    def _next(self, me: int, done: Fetched | None = None) -> Item | None:
        """Hand over what is done; what to open next, which counts as being opened.

        None at the end: of the run, or of this thread's usefulness.
        """
        with self._changed:
            if done is not None:
                if self._opening.pop(me, None) is None:  # given up meanwhile
                    self._stuck -= 1
                    _close(done.result)
                    return None
                if self._closed:
                    _close(done.result)
                    return None
                self._put(done)
            while not self._closed:
                if self._again:
                    return self._begin(self._again.popleft(), me)
                if self._listed and self._may_open():
                    return self._begin(self._listed.popleft(), me)
                if self._may_read():
                    self._reading = time.monotonic()
                    if self._reading + SLOW < self._told:  # it may give some, and then block
                        self._signal()
                    self._changed.release()
                    try:
                        error, ended = self._read()
                    finally:
                        self._changed.acquire()
                    self._reading = None
                    if ended:
                        self._ended, self._error = True, error
                        self._signal()
                    continue
                self._idle += 1
                self._changed.wait()
                self._idle -= 1
            return None

    def _read(self) -> tuple[BaseException | None, bool]:
        """Ask the source, without the lock, for some at once; its error, and whether it has ended.

        Those that are there can be opened by other threads while the source makes this one wait.
        """
        try:
            for _ in range(min(_BURST, self._limit - self._count)):
                if self._closed:
                    break
                found = next(self._source, None)
                if found is None:
                    return None, True
                self._listed.append(Item(self._count, found))
                self._count += 1
                if self._reading is None or time.monotonic() > self._reading + SLOW:
                    break  # it is slow: what it has given is not to wait for the next one
        except BaseException as error:  # must reach the owner, whose thread this is not
            return error, True
        return None, False


def _close(result: Opened | ItemFailure) -> None:
    if not isinstance(result, ItemFailure):
        with contextlib.suppress(OSError):
            os.close(result.descriptor)
