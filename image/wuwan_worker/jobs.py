"""What clients want labelled, in one queue where a small client never waits behind a huge one."""

from __future__ import annotations

import threading
from collections import OrderedDict, deque
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable


@dataclass(frozen=True, slots=True)
class Options:
    """How an image is to be labelled."""

    top_k: int
    min_score: float
    exact: bool
    level: str


@dataclass(frozen=True, slots=True)
class Job:
    """One image of one client. Whoever takes the job closes the descriptor."""

    client: int
    id: int
    descriptor: int
    options: Options


class FairQueue:
    """First in, first out for each client; clients take turns, one job a turn.

    With n clients waiting, a client's next job is served within n jobs.
    """

    def __init__(self) -> None:
        self._queues: OrderedDict[int, deque[Job]] = OrderedDict()
        lock = threading.Lock()
        self._changed = threading.Condition(lock)
        # Apart: who waits for many must not take the call that wakes somebody for one.
        self._many = threading.Condition(lock)
        self._least = 1
        self._closed = False
        self._length = 0

    def __len__(self) -> int:
        return self._length

    def put(self, client: int, jobs: Iterable[Job]) -> None:
        """Append a client's jobs."""
        with self._changed:
            queue = self._queues.setdefault(client, deque())
            before = len(queue)
            queue.extend(jobs)
            self._length += len(queue) - before
            if not queue:
                del self._queues[client]
            self._changed.notify(len(queue) - before)
            if self._length >= self._least:
                self._many.notify()

    def get(self) -> Job | None:
        """The next job, waiting for one; None once the queue is closed and empty."""
        with self._changed:
            while not self._queues and not self._closed:
                self._changed.wait()
            return self._next()

    def get_many(self, least: int, most: int) -> list[Job]:
        """The next jobs, waiting until `least` are there; fewer once the queue is closed, or none.

        For one thread alone.
        """
        with self._changed:
            self._least = least
            while self._length < least and not self._closed:
                self._many.wait()
            jobs = [self._next() for _ in range(min(most, self._length))]
            return [job for job in jobs if job is not None]

    def _next(self) -> Job | None:
        if not self._queues:
            return None
        client, queue = next(iter(self._queues.items()))
        job = queue.popleft()
        self._length -= 1
        if queue:
            self._queues.move_to_end(client)
        else:
            del self._queues[client]
        return job

    def discard(self, client: int, ids: Collection[int] | None = None) -> list[Job]:
        """Remove and return what a client has waiting, or what of it has one of those ids."""
        with self._changed:
            queue = self._queues.get(client, deque())
            jobs = [job for job in queue if ids is None or job.id in ids]
            if len(jobs) == len(queue):
                self._queues.pop(client, None)
            elif jobs:
                # In its place: the client's turn stays where it is.
                self._queues[client] = deque(job for job in queue if job.id not in (ids or ()))
            self._length -= len(jobs)
            return jobs

    def close(self) -> None:
        """Let `get` return None when nothing is left."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
            self._many.notify_all()
