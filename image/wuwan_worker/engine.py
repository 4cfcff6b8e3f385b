"""Decode, batch, infer, rank: the threads between a queue of descriptors and answers.

    queue ──► decode threads ──► open batch ──► infer threads ──► answers
    (fair)    one a core         (bounded)      one a stream

A backend on a GPU may bring a decoder of its own, which takes many images at once as soon as many
are queued: one thread more, beside those of the CPU.

Decoders fill the rows of the batch that is open, whichever client an image is from; an infer
thread takes it when it is full, or when nothing more is queued. So a single image never waits for
company.

A decode thread that takes too long for its image is written off (`overdue`), and replaced: the
image is answered as `timeout`, and when the thread comes back it ends, and what it brings is
dropped.
"""

from __future__ import annotations

import logging
import threading
import time
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Literal

import numpy as np

from wuwan_worker.beside import Beside
from wuwan_worker.decoding import decode
from wuwan_worker.decoding.decode import Refused
from wuwan_worker.decoding.patience import Limits
from wuwan_worker.overdue import Overdue, refusal
from wuwan_worker.shared.protocol import Damage, Failed, Failure, Labelled, close_all

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from numpy.typing import NDArray

    from wuwan_worker.backends import Backend, BatchDecoder
    from wuwan_worker.decoding.decode import Decoded, Flaw
    from wuwan_worker.jobs import FairQueue, Job
    from wuwan_worker.overdue import Attempt
    from wuwan_worker.ranking import Ranking
    from wuwan_worker.shared.bundle import InputSpec
    from wuwan_worker.shared.protocol import Result

log = logging.getLogger(__name__)

MAX_BATCH_DELAY = 0.02  # seconds that an image may wait for others that are queued


@dataclass(slots=True)
class _Row:
    job: Job
    width: int
    height: int
    flaw: Flaw | None


class _Batch:
    """A buffer that decoders fill and one inference takes."""

    def __init__(self, capacity: int, size: int) -> None:
        self.pixels: NDArray[np.uint8] = np.empty((capacity, size, size, 3), np.uint8)
        self.rows: list[_Row] = []
        self.due = 0.0  # monotonic clock; when it need not wait for more any longer

    def add(self, row: _Row, pixels: NDArray[np.uint8]) -> None:
        if not self.rows:
            self.due = time.monotonic() + MAX_BATCH_DELAY
        self.pixels[len(self.rows)] = pixels
        self.rows.append(row)

    @property
    def full(self) -> bool:
        return len(self.rows) == len(self.pixels)


class Engine:
    """Owns the threads."""

    def __init__(
        self,
        queue: FairQueue,
        *,
        spec: InputSpec,
        rankings: Mapping[str, Ranking],
        decode_threads: int,
        answer: Callable[[int, list[Result]], None],
        failed: Callable[[BaseException], None],
        hanging: Callable[[int, bool], None] = lambda _count, _stuck: None,
        limits: Limits | None = None,
    ) -> None:
        """
        Args:
            queue: the jobs.
            spec: how an image becomes input.
            rankings: by level.
            decode_threads: how many.
            answer: called from the threads, with a client and its results.
            failed: told when the backend raises: the worker must then be discarded.
            hanging: told how many threads are written off, and whether others wait for what those
                hold; see `Overdue`.
            limits: of the time that an image may take.
        """
        self._spec = spec
        self._rankings = rankings
        self._answer = answer
        self._failed = failed
        self._queue = queue
        # Apart, and told only when there is something to do: who is woken for nothing takes a core
        # from who works.
        lock = threading.Lock()
        self._room = threading.Condition(lock)  # in the open batch, for decoders
        self._work = threading.Condition(lock)  # for infer threads
        self._open: _Batch | None = None
        self._free: list[_Batch] = []
        self._closing = False
        self._park_wanted = False
        self._decode_threads = decode_threads
        self._threads: list[threading.Thread] = []
        self._decoders_left = 0
        self._replaced = 0
        self._overdue = Overdue(limits or Limits(), hanging)
        self._beside = Beside(self._overdue, spec, decode_threads)

    def start(self, backend: Backend) -> None:
        """Begin to infer. Decoding of what is queued begins at `start_decoding`."""
        size = self._spec.size
        with self._room:
            # One batch being inferred for each stream, and one being filled.
            self._free = [_Batch(backend.batch_size, size) for _ in range(backend.streams + 1)]
            self._open = self._free.pop()
            self._room.notify_all()
        for number in range(backend.streams):
            self._spawn(f"infer-{number}", self._infer_loop, backend)
        if backend.decoder is not None:
            with self._work:
                self._decoders_left += 1
            self._spawn("decode-many", self._decode_many_loop, backend.decoder)

    def start_decoding(self) -> None:
        """Begin to decode; may come before the backend is there."""
        with self._work:
            self._decoders_left += self._decode_threads
        self._overdue.start()
        for number in range(self._decode_threads):
            self._spawn(f"decode-{number}", self._decode_loop)

    def park(self) -> None:
        """Have the backend give its GPU memory back, unless an image comes first."""
        with self._work:
            self._park_wanted = True
            self._work.notify()

    def _spawn(self, name: str, target: Callable[..., None], *args: object) -> None:
        thread = threading.Thread(target=target, args=args, name=name, daemon=True)
        thread.start()
        self._threads.append(thread)

    def close(self, timeout: float) -> None:
        """Finish what is queued, then end the threads; wait for each at most `timeout` seconds."""
        self._queue.close()
        for thread in self._threads:
            thread.join(timeout)
        self._overdue.close(timeout)

    def _decode_loop(self) -> None:
        while (job := self._queue.get()) is not None:
            attempt = self._overdue.begin(job, self._given_up)
            if not self._decoded([job], partial(self._decode_one, attempt), attempt):
                return
        self._decoder_ends()

    def _given_up(self, attempt: Attempt) -> None:
        """An image has taken too long: it has its answer, its thread a successor."""
        job, refused = attempt.job, refusal(attempt)
        log.warning("a decoder is written off: %s", refused.message)
        failure = Failure(refused.code, refused.message)
        self._answer(job.client, [Failed(id=job.id, error=failure)])
        self._replaced += 1
        try:
            self._spawn(f"decode-again-{self._replaced}", self._decode_loop)
        except RuntimeError as error:  # no thread is to be had: one decoder less, for ever
            self._failed(error)

    def _decode_many_loop(self, decoder: BatchDecoder) -> None:
        while jobs := self._queue.get_many(decoder.least, decoder.most):
            if not self._decoded(jobs, partial(decoder.decode, on_cpu=self._beside.submit)):
                return
        self._decoder_ends()

    def _decode_one(self, attempt: Attempt, _jobs: Sequence[Job]) -> list[Decoded | Refused]:
        job = attempt.job
        exact, patience = job.options.exact, attempt.patience
        return [decode.attempt(job.descriptor, self._spec, exact=exact, patience=patience)]

    def _decoded(
        self,
        jobs: Sequence[Job],
        decoder: Callable[[Sequence[Job]], list[Decoded | Refused]],
        attempt: Attempt | None = None,
    ) -> bool:
        """Decode, and put what there is into the open batch. False if the thread is to end."""
        try:
            images = decoder(jobs)
        except BaseException as error:
            if attempt is not None and not self._overdue.end(attempt):
                log.warning("a decoder that was written off has failed: %s", error)
                return False
            # A decoder that ends in silence would leave its images without an answer, and the
            # worker with one decoder less. So the worker goes; the client finds the culprit.
            log.exception("decoding failed")
            self._failed(error)
            return False
        finally:
            close_all(job.descriptor for job in jobs)
        if attempt is not None and not self._overdue.end(attempt):
            return False  # somebody else has its place, and its image an answer
        with self._room:
            for job, image in zip(jobs, images, strict=True):
                if isinstance(image, Refused):
                    failure = Failure(image.code, image.message)
                    self._answer(job.client, [Failed(id=job.id, error=failure)])
                    continue
                while self._open is None or self._open.full:
                    self._room.wait()
                self._open.add(_Row(job, image.width, image.height, image.flaw), image.pixels)
                # The first one, so that somebody waits for company on its behalf.
                if len(self._open.rows) == 1 or self._complete(self._open):
                    self._work.notify()
        return True

    def _decoder_ends(self) -> None:
        with self._work:
            self._decoders_left -= 1
            self._closing = self._decoders_left == 0
            self._work.notify_all()

    def _complete(self, batch: _Batch) -> bool:
        return batch.full or not len(self._queue)

    def _take(self) -> _Batch | Literal["park"] | None:
        """The open batch, full or as full as it soon gets; what else there is to do without one.

        While there is more to decode a batch may fill, since small ones cost more for each image,
        and decoders have the core meanwhile. One that is slow, or hangs, holds up nobody for long.
        """
        with self._work:
            while True:
                if self._open is None or not self._open.rows:
                    if self._closing:
                        return None
                    if self._park_wanted:
                        self._park_wanted = False
                        return "park"
                    self._work.wait()
                elif self._complete(self._open):
                    break
                elif (left := self._open.due - time.monotonic()) > 0:
                    self._work.wait(left)
                else:
                    break
            self._park_wanted = False
            batch, self._open = self._open, self._free.pop()
            self._room.notify_all()
            return batch

    def _give_back(self, batch: _Batch) -> None:
        batch.rows.clear()
        with self._work:
            self._free.append(batch)

    def _infer_loop(self, backend: Backend) -> None:
        while (batch := self._take()) is not None:
            try:
                if batch == "park":
                    backend.park()
                    continue
                rows = batch.rows
                levels = {row.job.options.level for row in rows}
                scores = backend.infer(batch.pixels[: len(rows)], levels)
                answers: dict[int, list[Result]] = {}
                for number, row in enumerate(rows):
                    probabilities = scores[row.job.options.level][number]
                    answers.setdefault(row.job.client, []).append(
                        self._labelled(row, probabilities)
                    )
            except BaseException as error:
                log.exception("the backend failed")
                self._failed(error)
                return
            self._give_back(batch)
            for client, results in answers.items():
                self._answer(client, results)

    def _labelled(self, row: _Row, scores: NDArray[np.float32]) -> Labelled:
        options, flaw = row.job.options, row.flaw
        ranking = self._rankings[options.level]
        return Labelled(
            id=row.job.id,
            width=row.width,
            height=row.height,
            labels=tuple(ranking.top(scores, options.top_k, options.min_score)),
            warning=None if flaw is None else Damage(flaw.code, flaw.message),
        )
