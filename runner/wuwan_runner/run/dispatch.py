"""One run: images go out to workers, answers come back, records leave in input order.

A single thread does it all, waiting on the workers' sockets and on the inputs that others open for
it. What is under way is bounded: each worker has at most its credits, and no input is taken up that
is too far ahead of the first one without a record. So memory is flat, and a consumer that stops
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
import resource
import select
import selectors
import time
from collections import deque
from functools import cached_property
from typing import TYPE_CHECKING, assert_never

from wuwan_runner.errors import NoSharedFilesError, UsageError, WorkerUnavailableError
from wuwan_runner.inputs.base import Item
from wuwan_runner.inputs.prefetch import SLOW, Prefetch
from wuwan_runner.records import ItemFailure, Record, from_result
from wuwan_runner.run import blame
from wuwan_runner.run.blame import Cause, Loss, Standing, Verdict
from wuwan_runner.run.known_picture import KnownPicture
from wuwan_runner.run.outcome import Outcome
from wuwan_runner.run.window import Window
from wuwan_runner.wire.connection import Connection, ConnectionLostError
from wuwan_runner.worker import WorkerExit
from wuwan_worker.shared import protocol
from wuwan_worker.shared.protocol import (
    Cancelled,
    Done,
    End,
    ErrorCode,
    Fatal,
    FatalCode,
    Labelled,
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

    from wuwan_runner.inputs.base import Input
    from wuwan_runner.inputs.prefetch import Fetched
    from wuwan_runner.options import TagOptions
    from wuwan_runner.pool.base import WorkerPool
    from wuwan_worker.shared.results import Extras

# Images that are open and not sent, for all workers together: at most, and at most this part of
# the descriptors that this process may still have (1,024 by default, and some are needed for else).
MAX_OPEN = 64
_SHARE = 0.25
# A warm worker may end between our connecting and its accepting; each time another is found or
# started. More often than this in a row is no coincidence.
MAX_RACES = 100
_NOT_SHARED = (
    "the worker ends with this run: users cannot be told apart where it is, and there is no secret "
    "that other runs know (`wuwan doctor`: state directory)"
)
_PROOF = -1  # no input has this number
_TRAILER = 5.0  # seconds to wait for Done, when every image is answered already
_MAX_WAIT = 3600.0  # seconds; deadlines may be anything, what epoll takes has a limit (2^31 ms)


class Dispatch:
    """The state of one run."""

    def __init__(
        self,
        source: Iterator[Input],
        pool_factory: Callable[[bool], WorkerPool],
        options: TagOptions,
    ) -> None:
        """
        Args:
            source: the inputs; iterated in another thread.
            pool_factory: asked when the first image is there; and once more, with True, if
                descriptors turn out not to reach the workers.
            options: of the run.
        """
        self._pool_factory = pool_factory
        self._options = options
        self._model = os.path.basename(options.spec.model)  # the worker knows better
        self._window = Window()
        self._prefetch = Prefetch(source, timeout=options.timeouts.open)
        self._selector = selectors.DefaultSelector()
        self._selector.register(self._prefetch, selectors.EVENT_READ)
        self._connections: list[Connection] = []
        self._opened: deque[tuple[Item, int]] = deque()  # with the descriptor; not sent
        self._quarantine: deque[Item] = deque()
        self._examined: Item | None = None  # of those, the one that is being opened, or is open
        self._isolated: int | None = None  # its descriptor, until it is sent
        self._index_offset = 0
        self._over_exec = False
        self._most_open = _most_open()
        self._standing = Standing()
        self._proof = Item(_PROOF, KnownPicture())
        self._careful = False  # a worker was lost with images
        self._holding = False  # images are held back until a batch is full, for a moment:
        self._held_since: float | None = None
        self._races = 0
        self._racing_since = 0.0

    def run(self) -> Generator[list[Outcome], None, None]:
        """Outcomes in input order, as many at a time as are ready.

        Raises:
            WorkerUnavailableError: if no worker can be had, or none that lives.
            StalledError: if inputs cannot be opened any more.
            Exception: what the source has raised, after all before it.
        """
        try:
            while True:
                self._fetch()
                if batch := self._window.take():
                    yield batch
                elif self._prefetch.exhausted and self._window.emitted == self._prefetch.count:
                    break
                else:
                    self._ensure_workers()
                    self._holding = self._may_hold()
                    for connection in list(self._connections):
                        self._fill(connection)
                    self._ask_for_inputs()
                    self._wait()
            if self._prefetch.error is not None:
                raise self._prefetch.error
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

    def _fetch(self) -> None:
        """Take what has been opened."""
        for fetched in self._prefetch.take():
            self._fetched(fetched)

    def _fetched(self, fetched: Fetched) -> None:
        item, result = fetched.item, fetched.result
        if isinstance(result, ItemFailure):
            if item is self._examined:
                self._examined = None
            self._fail(item, result)
            return
        item.stat = result.stat
        if item is self._examined:
            self._isolated = result.descriptor
        else:
            self._opened.append((item, result.descriptor))

    def _fail(self, item: Item, failure: ItemFailure) -> None:
        record = Record(path=item.path, model=self._model, error=failure)
        self._window.put(item.number, Outcome(record, item.stat))

    # ------------------------------------------------------------ workers

    @cached_property
    def _pool(self) -> WorkerPool:
        return self._pool_factory(False)

    def _ensure_workers(self) -> None:
        """Have as many workers as there is work for."""
        if self._opened:
            indices = {c.index for c in self._connections if not c.private}
            # One batch needs one worker; more are started once there is more to do.
            busy = self._connections and self._prefetch.count > self._options.batch_size
            for number in range(self._pool.count if busy else 1):
                if number + self._index_offset not in indices:
                    self._add(self._acquire(number + self._index_offset))
        if self._in_quarantine and not any(c.private for c in self._connections):
            self._add(self._pool.acquire_private())

    @property
    def _in_quarantine(self) -> bool:
        return bool(self._quarantine) or self._examined is not None

    @property
    def _short_of_workers(self) -> bool:
        """Whether nobody is there for some work: a worker may be lost while it is given some."""
        shared = any(not connection.private for connection in self._connections)
        private = any(connection.private for connection in self._connections)
        return bool(self._opened and not shared) or (self._in_quarantine and not private)

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
            while (room := connection.room) > 0 and self._opened:
                # Full batches while there are enough images, or will be at once; nobody waits for
                # company longer than that.
                if min(room, len(self._opened)) < size:
                    waits = room < size and connection.outstanding
                    if waits or self._holding:
                        return
                self._held_since = None
                count = min(size, room, len(self._opened))
                connection.send_images([self._opened.popleft() for _ in range(count)])
        except ConnectionLostError as error:
            # What it said before it went comes first: it may have drained in good order.
            self._read(connection)
            if connection in self._connections:
                self._lost(connection, str(error), Cause.ENDED)

    def _may_hold(self) -> bool:
        """Whether to wait until a batch is full: only as long as it is likely to be so at once."""
        if not self._opened or not self._prefetch.expects_more:
            self._held_since = None
            return False
        now = time.monotonic()
        self._held_since = now if self._held_since is None else self._held_since
        return now < self._held_since + SLOW

    def _ask_for_inputs(self) -> None:
        """Have more opened, if there is room for them."""
        self._window.fit(sum(c.welcome.credits for c in self._connections if c.welcome))
        self._prefetch.allow(max(0, self._most_open - len(self._opened)), self._window.limit)

    def _fill_private(self, connection: Connection) -> None:
        if connection.room > 0 and self._in_quarantine:
            if not self._standing.trust:
                connection.send_images([(self._proof, self._proof.input.open().descriptor)])
            elif self._examined is not None and self._isolated is not None:
                item, descriptor = self._examined, self._isolated
                self._examined = self._isolated = None
                connection.send_images([(item, descriptor)])
            elif self._examined is None and self._quarantine:
                self._examined = self._quarantine.popleft()
                self._prefetch.again(self._examined)
        if connection.ready and not self._in_quarantine and not connection.outstanding:
            self._remove(connection)

    def _wait(self) -> None:
        """Wait for an input, for a worker's answer, or for the first deadline."""
        if self._window.ready or self._short_of_workers:
            return
        deadlines = [connection.deadline for connection in self._connections]
        deadline = min([*deadlines, self._prefetch.deadline])
        if self._holding:
            deadline = min(deadline, time.monotonic() + SLOW)
        timeout = min(max(0.0, deadline - time.monotonic()), _MAX_WAIT)
        for key, _ in self._selector.select(timeout):
            if isinstance(key.data, Connection):
                self._read(key.data)
        now = time.monotonic()
        for connection in list(self._connections):
            if connection.deadline <= now:
                self._hung(connection)

    def _read(self, connection: Connection) -> None:
        try:
            messages = connection.receive()
        except ConnectionLostError as error:
            self._lost(connection, str(error), Cause.ENDED)
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
                self._lost(connection, f"unexpected {type(message).__name__}", Cause.NONSENSE)
            case _:
                assert_never(message)

    def _answered(self, connection: Connection, results: list[Result]) -> None:
        for result in results:
            # Nothing is ever taken back.
            if result.id not in connection.outstanding or isinstance(result, Cancelled):
                self._lost(connection, "an answer to nothing that was asked", Cause.NONSENSE)
                return
            item, _ = connection.outstanding.pop(result.id)
            connection.answered += 1
            record = from_result(item.path, self._model, result, strict=self._options.strict)
            if record.error is None:
                self._standing.labelled()
            if item is not self._proof:
                self._window.put(item.number, Outcome(record, item.stat, _extras(result)))
            elif record.error is not None:
                raise WorkerUnavailableError(
                    f"the worker cannot label any picture: {record.error.message}",
                    hint="`wuwan doctor` checks what a worker needs",
                )

    # ------------------------------------------------------------ what can go wrong

    def _drained(self, connection: Connection) -> None:
        """The worker ends in good order; what it has not answered goes elsewhere."""
        self._elsewhere(connection, self._unanswered(connection))
        self._remove(connection)

    def _elsewhere(self, connection: Connection, items: list[Item]) -> None:
        if connection.private:
            self._quarantine.extend(items)
            return
        for item in items:
            self._prefetch.again(item)

    def _unanswered(self, connection: Connection) -> list[Item]:
        """What has to go elsewhere; the proof is no input, and made anew when it is wanted."""
        items = [item for item, _ in connection.outstanding.values()]
        return [item for item in items if item is not self._proof]

    def _refused(self, connection: Connection, fatal: Fatal) -> None:
        if fatal.code == FatalCode.DESCRIPTORS:
            self._no_descriptors(connection, fatal.message)
            return
        if fatal.code == FatalCode.BACKEND:
            self._lost(connection, fatal.message, Cause.TOLD)
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
        self._drained(connection)
        self._use_exec(reason)

    def _use_exec(self, reason: str) -> None:
        if self._options.channel != "auto" or self._pool.launcher.name != "docker":
            raise WorkerUnavailableError(
                f"images cannot be passed to the worker: {reason}", hint="wuwan doctor"
            )
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
        self._lost(connection, f"no answer for {quiet:.0f} s", Cause.SILENT)

    def _lost(self, connection: Connection, reason: str, cause: Cause) -> None:
        """A worker is gone, or of no use: see to its images. `reason`: what was seen of it."""
        started = connection.started
        self._remove(connection, release=False)
        ending = WorkerExit()
        if started is not None:
            if cause is not Cause.SILENT and not isinstance(started.error, NoSharedFilesError):
                ending = started.report()
            started.release()
        items = self._unanswered(connection)
        loss = Loss(
            cause=cause,
            exit=ending,
            start_error=started.error if started is not None else None,
            started_here=started is not None and not started.warm,
            welcomed=connection.welcome is not None,
            ready=connection.ready,
            private=connection.private,
            answered=connection.answered,
            outstanding=len(connection.outstanding),
            images=len(items),
        )
        # What the worker itself has said is the best to know.
        report = f"{reason}\n{ending.log}".strip() if cause is Cause.TOLD else str(ending)
        self._settle(connection, items, loss, report or reason)

    def _settle(self, connection: Connection, items: list[Item], loss: Loss, report: str) -> None:
        """Do what `blame` says of a lost worker, whose images these are."""
        verdict = blame.decide(loss)
        match verdict:
            case Verdict.USE_EXEC:
                self._use_exec(str(loss.start_error))
                self._elsewhere(connection, items)
                return
            case Verdict.START_FAILED if loss.start_error is not None:
                raise loss.start_error
            case Verdict.LOOK_AGAIN:
                self._elsewhere(connection, items)
                self._count_race("" if loss.start_error is not None else report)
                return
            case Verdict.NOT_UP:
                raise WorkerUnavailableError(
                    f"the worker ended before it was up: {report}",
                    hint="`wuwan doctor` checks what it needs",
                )
            case Verdict.NOT_LOADED:
                raise WorkerUnavailableError(
                    f"the worker ended while it loaded the model: {report}",
                    hint="it may need more memory: see --memory",
                )
        self._careful = self._careful or bool(items)
        if loss.cause is not Cause.SILENT:  # then it was said before it was killed
            name = connection.welcome.name if connection.welcome else "the worker"
            self._pool.notify(f"{name} was lost ({_first_line(report)})")
        if verdict is Verdict.CULPRIT:
            (culprit,) = items
            self._fail(culprit, _failure(loss.cause, report))
            self._standing.blamed()
            return
        self._standing.lost()
        if self._standing.losses > self._options.max_restarts:
            raise WorkerUnavailableError(
                f"{self._standing.losses} workers were lost without one image labelled; the last: "
                f"{report}",
                hint="`wuwan doctor` checks what a worker needs",
            )
        for item in items:
            item.attempts += verdict is Verdict.SUSPECT
            if connection.private:
                self._quarantine.appendleft(item)  # now it will be the first
            elif item.attempts >= blame.QUARANTINE_AFTER:
                self._quarantine.append(item)
            else:
                self._prefetch.again(item)

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
                readable = select.poll()  # of this one alone: another's words are not waited for
                readable.register(connection.sock, select.POLLIN)
                while (left := deadline - time.monotonic()) > 0:
                    if not readable.poll(left * 1000):
                        break
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
        with contextlib.ExitStack() as ends:  # each of them, whatever happens to another
            ends.callback(self._selector.close)
            for connection in self._connections.copy():
                ends.callback(self._remove, connection)
            ends.callback(protocol.close_all, [descriptor for _, descriptor in self._opened])
            if self._isolated is not None:
                ends.callback(protocol.close_all, [self._isolated])
            ends.callback(self._prefetch.close)
        self._opened.clear()
        self._isolated = None


def _most_open() -> int:
    limit, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        free = limit - len(os.listdir("/proc/self/fd"))
    except OSError:  # no /proc
        free = limit // 2
    return max(1, min(MAX_OPEN, int(free * _SHARE)))


def _extras(result: Result) -> Extras | None:
    return result.extras if isinstance(result, Labelled) else None


def _failure(cause: Cause, report: str) -> ItemFailure:
    """For the record of an image that is to blame."""
    if cause is Cause.SILENT:
        return ItemFailure(ErrorCode.TIMEOUT, f"the worker hung on this image: {report}")
    message = f"the worker died on this image: {_first_line(report)}"
    return ItemFailure(ErrorCode.WORKER_CRASHED, message)


def _first_line(text: str) -> str:
    return text.split("\n", 1)[0]
