"""One run: images go out to workers, answers come back, records leave in input order.

A single thread does it all, waiting on the workers' sockets. What is under way is bounded: each
worker has at most its credits, and no input is taken up that is more than `WINDOW`, or twice the
credits, ahead of the first one without a record. So memory is flat, and a consumer that stops
reading stops the run.

When a worker is lost, its unanswered images go to another one. Images that have lost two workers
are put in quarantine: they go, one at a time, through a private worker, so that the one that kills
it is found without doubt and the others get their labels.

Nor is an image blamed for what the workers are to blame for: without any label for a while, a
private worker first has to label a picture that is known to be good.
"""

from __future__ import annotations

import contextlib
import os
import selectors
import time
from collections import deque
from functools import cached_property
from typing import TYPE_CHECKING, assert_never

from wuwan_runner.errors import (
    EndedByHandError,
    NoSharedFilesError,
    UsageError,
    WorkerUnavailableError,
)
from wuwan_runner.inputs.discover import OpenError, open_image
from wuwan_runner.records import ItemFailure, Record, from_result
from wuwan_runner.run import known_picture
from wuwan_runner.wire.connection import Connection, ConnectionLostError, Item
from wuwan_runner.worker import WorkerExit
from wuwan_worker.shared import protocol
from wuwan_worker.shared.protocol import (
    Cancelled,
    Done,
    End,
    ErrorCode,
    Fatal,
    FatalCode,
    Logs,
    Ready,
    Result,
    Results,
    Status,
    Stopping,
    ToClient,
    Welcome,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterator

    from wuwan_runner.inputs.discover import Found
    from wuwan_runner.options import TagOptions
    from wuwan_runner.pool.base import WorkerPool

WINDOW = 512
# Workers lost with an image before it is suspected of being the cause.
QUARANTINE_AFTER = 2
# Images that may be blamed for a worker's death on the strength of one label. Then it has to be
# seen again that workers label anything: if the GPU is lost, every image would be a culprit.
TRUST = 10
# A warm worker may end between our connecting and its accepting; each time another is found or
# started. More often than this in a row is no coincidence.
MAX_RACES = 100
# Seconds until a source that had nothing is asked again.
_POLL = 0.02
_NOT_SHARED = (
    "the worker ends with this run: users cannot be told apart where it is, and there is no secret "
    "that other runs know (`wuwan doctor`: state directory)"
)
_TRAILER = 5.0  # seconds to wait for Done, when every image is answered already
_MAX_WAIT = 3600.0  # seconds; deadlines may be anything, what epoll takes has a limit (2^31 ms)
_PROOF = -1  # no input has this number


class Dispatch:
    """The state of one run."""

    def __init__(
        self,
        found: Iterator[Found | None],
        pool_factory: Callable[[bool], WorkerPool],
        options: TagOptions,
    ) -> None:
        """
        Args:
            found: the inputs.
            pool_factory: asked when the first image is there; and once more, with True, if
                descriptors turn out not to reach the workers.
            options: of the run.
        """
        self._found = found
        self._pool_factory = pool_factory
        self._options = options
        self._model = os.path.basename(options.spec.model)  # the worker knows better
        self._selector = selectors.DefaultSelector()
        self._connections: list[Connection] = []
        self._exhausted = False
        self._starved = False  # the source has nothing at the moment
        self._next = 0  # the next input's number
        self._emitted = 0
        self._records: dict[int, Record] = {}
        self._opened: deque[tuple[Item, int]] = deque()  # opened, not sent
        self._again: deque[Item] = deque()  # to be sent once more
        self._quarantine: deque[Item] = deque()
        self._index_offset = 0
        self._over_exec = False
        self._losses = 0  # workers lost since an image was labelled, or found to be the cause
        self._trust = 0  # images that may be blamed before the next label
        self._proof = Item(_PROOF, "")  # an image that is known to be good
        self._careful = False  # a worker was lost with images
        self._races = 0
        self._racing_since = 0.0

    def run(self) -> Generator[list[Record], None, None]:
        """Records in input order, as many at a time as are ready.

        Raises:
            WorkerUnavailableError: if no worker can be had, or none that lives.
        """
        try:
            while True:
                # One more than a batch tells whether there is more to do than that.
                self._open_some(self._options.batch_size + 1)
                if batch := self._take_ready():
                    yield batch
                elif self._exhausted and self._emitted == self._next:
                    break
                else:
                    self._ensure_workers()
                    for connection in list(self._connections):
                        self._fill(connection)
                    self._wait()
            self._say_goodbye()
        finally:
            self._close()

    def warm(self) -> list[Welcome]:
        """Have all workers up with their models loaded, and leave them to their TTL.

        Raises:
            WorkerUnavailableError: as `run`.
        """
        try:
            count = self._pool.count
            while True:
                indices = {connection.index for connection in self._connections}
                for index in range(count):
                    if index + self._index_offset not in indices:
                        self._add(self._acquire(index + self._index_offset))
                if all(connection.ready for connection in self._connections):
                    return [c.welcome for c in self._connections if c.welcome is not None]
                self._wait()
        finally:
            self._close()

    # ------------------------------------------------------------ inputs and records

    def _open_some(self, count: int) -> None:
        """Have up to `count` images open, from those to be sent again and then from the inputs."""
        while len(self._opened) < count:
            if self._again:
                item = self._again.popleft()
            elif self._exhausted or self._next - self._emitted >= self._window:
                return
            else:
                try:
                    found = next(self._found)
                except StopIteration:
                    self._exhausted = True
                    return
                self._starved = found is None
                if found is None:
                    return
                item = Item(self._next, found.path)
                self._next += 1
                if found.failure is not None:
                    self._fail(item, found.failure)
                    continue
            try:
                self._opened.append((item, open_image(item.path)))
            except OpenError as error:
                self._fail(item, error.failure)

    @property
    def _window(self) -> int:
        """How many inputs may be taken up ahead of the first one without a record."""
        credits_ = sum(c.welcome.credits for c in self._connections if c.welcome is not None)
        return max(WINDOW, 2 * credits_)

    def _fail(self, item: Item, failure: ItemFailure) -> None:
        self._records[item.seq] = Record(path=item.path, model=self._model, error=failure)

    def _take_ready(self) -> list[Record]:
        batch = []
        while (record := self._records.pop(self._emitted, None)) is not None:
            batch.append(record)
            self._emitted += 1
        return batch

    # ------------------------------------------------------------ workers

    @cached_property
    def _pool(self) -> WorkerPool:
        return self._pool_factory(False)

    def _ensure_workers(self) -> None:
        """Have as many workers as there is work for."""
        if self._opened:
            indices = {c.index for c in self._connections if not c.private}
            # One batch needs one worker; more are started once there is more to do.
            busy = self._connections and self._next > self._options.batch_size
            for number in range(self._pool.count if busy else 1):
                if number + self._index_offset not in indices:
                    self._add(self._acquire(number + self._index_offset))
        if self._quarantine and not any(c.private for c in self._connections):
            self._add(self._pool.acquire_private())

    def _acquire(self, index: int) -> Connection:
        while True:
            try:
                return self._pool.acquire(index)
            except ConnectionLostError:
                self._count_race()

    def _add(self, connection: Connection) -> None:
        self._connections.append(connection)
        self._selector.register(connection.sock, selectors.EVENT_READ, connection)

    def _count_race(self, report: str = "") -> None:
        now = time.monotonic()
        self._races += 1
        self._racing_since = now if self._races == 1 else self._racing_since
        too_long = now - self._racing_since > self._options.timeouts.start
        if self._races > MAX_RACES or too_long:
            raise WorkerUnavailableError(
                f"workers end before they answer, again and again: {report}".removesuffix(": "),
                hint="use a longer --ttl; `wuwan doctor` may tell more",
            )

    def _fill(self, connection: Connection) -> None:
        """Give the worker what it may have."""
        try:
            if connection.private:
                self._fill_private(connection)
                return
            if self._careful and not connection.ready:
                # Sent while the model loads, an image that hangs the worker would have all the
                # time that loading may take.
                return
            size = self._options.batch_size
            while (room := connection.room) > 0:
                # Full batches while there are enough images; nobody waits for company.
                if room < size and connection.outstanding:
                    return
                self._open_some(min(size, room))
                if not self._opened:
                    return
                count = min(size, room, len(self._opened))
                connection.send_images([self._opened.popleft() for _ in range(count)])
        except ConnectionLostError as error:
            # What it said before it went comes first: it may have drained in good order.
            self._read(connection)
            if connection in self._connections:
                self._lost(connection, str(error), ErrorCode.WORKER_CRASHED)

    def _fill_private(self, connection: Connection) -> None:
        while connection.room > 0 and self._quarantine:
            if not self._trust:
                connection.send_images([(self._proof, known_picture.descriptor())])
                return
            item = self._quarantine.popleft()
            try:
                descriptor = open_image(item.path)
            except OpenError as error:
                self._fail(item, error.failure)
                continue
            connection.send_images([(item, descriptor)])
        if connection.ready and not self._quarantine and not connection.outstanding:
            self._remove(connection)

    def _wait(self) -> None:
        """Wait for a worker's answer, or for the first deadline."""
        if self._emitted in self._records or not (self._connections or self._starved):
            return
        deadlines = [connection.deadline for connection in self._connections]
        if self._starved:
            deadlines.append(time.monotonic() + _POLL)
        deadline = min(deadlines)
        timeout = min(max(0.0, deadline - time.monotonic()), _MAX_WAIT)
        for key, _ in self._selector.select(timeout):
            self._read(key.data)
        now = time.monotonic()
        for connection in list(self._connections):
            if connection.deadline <= now:
                self._hung(connection)

    def _read(self, connection: Connection) -> None:
        try:
            messages = connection.receive()
        except ConnectionLostError as error:
            self._lost(connection, str(error), ErrorCode.WORKER_CRASHED)
            return
        for message in messages:
            if connection not in self._connections:
                return
            self._handle(connection, message)

    def _handle(self, connection: Connection, message: ToClient) -> None:
        match message:
            case Welcome():
                self._races = 0
                connection.greeted(message)
                self._model = message.model
                if not message.shared and not connection.private:
                    self._pool.notify(_NOT_SHARED)
                if not message.readable:
                    reason = "the worker cannot read the files that it is handed"
                    self._no_descriptors(connection, reason)
            case Ready():
                connection.became_ready()
            case Results():
                self._answered(connection, message.items)
            case Done():
                self._drained(connection)
            case Fatal():
                self._refused(connection, message)
            case Status() | Logs() | Stopping():
                self._lost(connection, f"unexpected {type(message).__name__}", None)
            case _:
                assert_never(message)

    def _answered(self, connection: Connection, results: list[Result]) -> None:
        for result in results:
            # Nothing is ever taken back.
            if result.id not in connection.outstanding or isinstance(result, Cancelled):
                self._lost(connection, "an answer to nothing that was asked", None)
                return
            item, _ = connection.outstanding.pop(result.id)
            connection.answered += 1
            record = from_result(item.path, self._model, result, strict=self._options.strict)
            if record.error is None:
                self._losses = 0
                self._trust = TRUST
            if item is not self._proof:
                self._records[item.seq] = record
            elif record.error is not None:
                raise WorkerUnavailableError(
                    f"the worker cannot label any picture: {record.error.message}",
                    hint="`wuwan doctor` checks what a worker needs",
                )

    # ------------------------------------------------------------ what can go wrong

    def _drained(self, connection: Connection) -> None:
        """The worker ends in good order; what it has not answered goes elsewhere."""
        waiting = self._quarantine if connection.private else self._again
        waiting.extend(self._unanswered(connection))
        self._remove(connection)

    def _unanswered(self, connection: Connection) -> list[Item]:
        """What has to go elsewhere; the proof is no input, and made anew when it is wanted."""
        items = [item for item, _ in connection.outstanding.values()]
        return [item for item in items if item is not self._proof]

    def _refused(self, connection: Connection, fatal: Fatal) -> None:
        if fatal.code == FatalCode.DESCRIPTORS:
            self._no_descriptors(connection, fatal.message)
            return
        if fatal.code == FatalCode.BACKEND:
            self._lost(connection, fatal.message, ErrorCode.WORKER_CRASHED, told=True)
            return
        if fatal.code == FatalCode.FORBIDDEN and connection.started is None:
            # Of this user's, by its name's owner, but started where another secret is kept, or
            # none: it keeps its name.
            self._index_offset += self._pool.count
            self._remove(connection)
            self._pool.notify(f"a warm worker is left alone: {fatal.message}")
            self._count_race(fatal.message)
            return
        if fatal.code == FatalCode.LEVEL:
            raise UsageError(fatal.message)
        name = connection.welcome.name if connection.welcome else "the worker"
        raise WorkerUnavailableError(
            f"{name}: {fatal.message}", hint="`wuwan doctor` checks what it needs"
        )

    def _no_descriptors(self, connection: Connection, reason: str) -> None:
        """Go over to the exec channel: SELinux, gVisor or a virtual machine is in the way."""
        if self._options.channel != "auto" or self._pool.launcher.name != "docker":
            raise WorkerUnavailableError(
                f"images cannot be passed to the worker: {reason}", hint="wuwan doctor"
            )
        self._drained(connection)
        if not self._over_exec:
            self._over_exec = True
            self._pool.notify(f"{reason}: passing images through docker exec, which is slower")
            self._pool = self._pool_factory(True)

    def _hung(self, connection: Connection) -> None:
        name = connection.welcome.name if connection.welcome else "the worker"
        quiet = time.monotonic() - connection.last_activity
        self._pool.notify(f"{name} gave no answer for {quiet:.0f} s; it is being replaced")
        try:
            if connection.started is not None:
                connection.started.kill()
            elif connection.welcome is not None:
                self._pool.launcher.kill(connection.welcome, self._options.timeouts)
        except WorkerUnavailableError as error:
            # It keeps its name, so its successor needs another one.
            self._index_offset += self._pool.count
            self._pool.notify(f"{error} ({error.hint})")
        if connection.welcome is None:
            if connection.started is None:
                # Somebody else's; nothing is known of it but the name that it keeps.
                self._index_offset += self._pool.count
                self._remove(connection)
                self._count_race()
                return
            raise connection.started.error or WorkerUnavailableError(
                f"{name} did not come up within {self._options.timeouts.start:.0f} s",
                hint="`wuwan doctor` checks what it needs",
            )
        self._lost(connection, f"no answer for {quiet:.0f} s", ErrorCode.TIMEOUT)

    def _lost(
        self,
        connection: Connection,
        reason: str,
        code: ErrorCode | None,
        *,
        told: bool = False,
    ) -> None:
        """A worker is gone (or, without a code, of no use): see to its images.

        Args:
            connection: to that worker.
            reason: what is known of it.
            code: for the record of an image that is to blame.
            told: whether the worker itself has given the reason, which is the best to know.
        """
        started = connection.started
        if started is not None and isinstance(started.error, NoSharedFilesError):
            self._no_descriptors(connection, str(started.error))
            return
        self._remove(connection, release=False)
        ending = (
            started.report() if started is not None and code != ErrorCode.TIMEOUT else WorkerExit()
        )
        report = f"{reason}\n{ending.log}".strip() if told else str(ending)
        if started is not None:
            started.release()
            if isinstance(started.error, EndedByHandError):
                self._count_race()
                return
            if started.error is not None:
                raise started.error
        ended = not ending.reason or ending.in_order or ending.by_hand
        ended = ended and code != ErrorCode.TIMEOUT
        if connection.welcome is None:
            if started is None or started.warm or ended:
                # The end of its TTL, or somebody stops it; another one will be found or started.
                self._count_race(report or reason)
                return
            raise WorkerUnavailableError(
                f"the worker ended before it was up: {report or reason}",
                hint="`wuwan doctor` checks what it needs",
            )
        items = self._unanswered(connection)
        started_here = started is not None and not started.warm
        loading = (
            not connection.ready
            and not connection.outstanding
            and (connection.private or started_here)
        )
        if loading and not ended:
            raise WorkerUnavailableError(
                f"the worker ended while it loaded the model: {report or reason}",
                hint="it may need more memory: see --memory",
            )
        self._careful = self._careful or bool(items)
        name = connection.welcome.name
        if code != ErrorCode.TIMEOUT:
            self._pool.notify(f"{name} was lost ({_first_line(report) or reason})")
        # There is proof against an image that was a private worker's first, unless somebody ended
        # the worker. One that hangs needs no such proof: it is the only one that has no answer.
        first = not connection.answered or code == ErrorCode.TIMEOUT
        if connection.private and items and first and not ending.by_hand:
            (culprit,) = items
            message = f"the worker died on this image: {_first_line(report) or reason}"
            if code == ErrorCode.TIMEOUT:
                message = f"the worker hung on this image: {reason}"
            self._fail(culprit, ItemFailure(code or ErrorCode.WORKER_CRASHED, message))
            self._losses = 0  # that is progress
            self._trust -= 1
            return
        self._losses += 1
        if self._losses > self._options.max_restarts:
            raise WorkerUnavailableError(
                f"{self._losses} workers were lost without one image labelled; the last: "
                f"{report or reason}",
                hint="`wuwan doctor` checks what a worker needs",
            )
        for item in items:
            item.attempts += not ending.by_hand  # then it is not the image's fault
            if connection.private:
                self._quarantine.appendleft(item)  # now it will be the first
            elif item.attempts >= QUARANTINE_AFTER:
                self._quarantine.append(item)
            else:
                self._again.append(item)

    def _remove(self, connection: Connection, *, release: bool = True) -> None:
        self._connections.remove(connection)
        with contextlib.suppress(KeyError, ValueError):
            self._selector.unregister(connection.sock)
        connection.close()
        if release and connection.started is not None:
            connection.started.release()

    # ------------------------------------------------------------ the end

    def _say_goodbye(self) -> None:
        """Exchange the trailers: both sides must have counted the same."""
        for connection in list(self._connections):
            if connection.welcome is None:
                continue
            with contextlib.suppress(ConnectionLostError):  # every image is answered already
                connection.send(End(count=connection.answered))
                deadline = time.monotonic() + _TRAILER
                while time.monotonic() < deadline:
                    self._selector.select(deadline - time.monotonic())
                    done = [m for m in connection.receive() if isinstance(m, Done)]
                    if done:
                        if done[0].count != connection.answered:
                            raise WorkerUnavailableError(
                                f"the worker counts {done[0].count} answers, "
                                f"{connection.answered} came",
                                hint="this is a bug; please report it",
                            )
                        break

    def _close(self) -> None:
        protocol.close_all(descriptor for _, descriptor in self._opened)
        self._opened.clear()
        for connection in list(self._connections):
            self._remove(connection)
        self._selector.close()


def _first_line(text: str) -> str:
    return text.split("\n", 1)[0]
