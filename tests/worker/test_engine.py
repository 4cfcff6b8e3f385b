"""The engine: how batches fill, and a backend that brings a decoder of its own."""

from __future__ import annotations

import io
import os
import threading
import time
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from PIL import Image

from wuwan_worker.decoding import decode, memory
from wuwan_worker.decoding.decode import Decoded, Refused
from wuwan_worker.decoding.memory import Budget
from wuwan_worker.decoding.patience import Limits
from wuwan_worker.engine import Engine
from wuwan_worker.jobs import FairQueue, Job, Options
from wuwan_worker.ranking import Ranking
from wuwan_worker.shared.bundle import InputSpec
from wuwan_worker.shared.labels import Label
from wuwan_worker.shared.protocol import ErrorCode, Failed, Failure, Labelled

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterator, Sequence
    from concurrent.futures import Future

    from numpy.typing import NDArray

    from wuwan_worker.shared.protocol import Result

SPEC = InputSpec(
    name="images", size=8, resize=8, interpolation="bilinear", mean=(0, 0, 0), std=(1, 1, 1)
)
OPTIONS = Options(top_k=1, min_score=0.0, exact=False, level="")
MARK = 7  # the colour of what the batch decoder has decoded


class Batches:
    """A decoder of batches that keeps what it was given; it cannot read what has an odd id."""

    least, most = 4, 6

    def __init__(self) -> None:
        self.sizes: list[int] = []
        self.broken = False
        self.leaves_all = False

    def decode(
        self, jobs: Sequence[Job], on_cpu: Callable[[Job], Future[Decoded | Refused]]
    ) -> list[Decoded | Refused]:
        self.sizes.append(len(jobs))
        if self.leaves_all:
            return [future.result(20) for future in [on_cpu(job) for job in jobs]]
        if self.broken:
            raise RuntimeError("the GPU has fallen off the bus")
        good = Decoded(np.full((8, 8, 3), MARK, np.uint8), 1, 1)
        bad = Refused(ErrorCode.TRUNCATED, "odd")
        return [bad if job.id % 2 else good for job in jobs]


class Backend:
    """Says whose pixels it got: the score of the one label is 1 for the batch decoder's."""

    device, batch_size, streams, parked = "test", 4, 1, False

    def __init__(self, decoder: Batches | None) -> None:
        self.decoder = decoder
        self.sizes: list[int] = []

    def infer(
        self, batch: NDArray[np.uint8], levels: Collection[str]
    ) -> dict[str, NDArray[np.float32]]:
        self.sizes.append(len(batch))
        mine = (batch[:, 0, 0, 0] == MARK).astype(np.float32)[:, None]
        return dict.fromkeys(levels, mine)

    def park(self) -> None: ...

    def gpu_memory(self) -> int:
        return 0


class Run:
    """An engine, and what it has answered by id."""

    def __init__(self, limits: Limits | None = None) -> None:
        self.queue = FairQueue()
        self.hanging: list[tuple[int, bool]] = []
        self.decoder = Batches()
        self.failed: list[BaseException] = []
        self.items: dict[int, Result] = {}
        self._all = threading.Condition()
        self.engine = Engine(
            self.queue,
            spec=SPEC,
            rankings={"": Ranking([Label("红", "1")])},
            decode_threads=1,
            answer=self._answer,
            failed=self._fail,
            hanging=self._hangs,
            limits=limits,
        )

    def _answer(self, _client: int, results: list[Result]) -> None:
        with self._all:
            for result in results:
                assert result.id not in self.items
                self.items[result.id] = result
            self._all.notify()

    def _fail(self, error: BaseException) -> None:
        with self._all:
            self.failed.append(error)
            self._all.notify()

    def _hangs(self, count: int, stuck: bool) -> None:
        with self._all:
            self.hanging.append((count, stuck))
            self._all.notify()

    def wait_to_hang(self, count: int, *, stuck: bool = False) -> None:
        with self._all:
            assert self._all.wait_for(lambda: self.hanging[-1:] == [(count, stuck)], 20)

    def wait(self, count: int) -> None:
        with self._all:
            assert self._all.wait_for(lambda: self.failed or len(self.items) >= count, 20)

    def score(self, number: int) -> float:
        result = self.items[number]
        assert isinstance(result, Labelled)
        return result.labels[0].score


@pytest.fixture
def run() -> Iterator[Run]:
    """An engine whose threads end with the test."""
    made = Run()
    yield made
    made.engine.close(5)


@pytest.fixture
def jobs(memory_file: Callable[[bytes], int]) -> Callable[[int], list[Job]]:
    """Photos, white."""
    buffer = io.BytesIO()
    Image.new("RGB", (8, 8), "white").save(buffer, "PNG")

    def make(count: int) -> list[Job]:
        # The engine closes its descriptors, the fixture its own.
        opened = [os.dup(memory_file(buffer.getvalue())) for _ in range(count)]
        return [Job(0, number, descriptor, OPTIONS) for number, descriptor in enumerate(opened)]

    return make


def test_batches_fill_while_there_is_more(
    run: Run, jobs: Callable[[int], list[Job]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Inference is faster than decoding here, and yet does not take images one by one."""

    def slow(descriptor: int, spec: InputSpec, **options: Any) -> Decoded:
        time.sleep(0.001)
        return decode_one(descriptor, spec, **options)

    decode_one = decode.decode
    monkeypatch.setattr(decode, "decode", slow)
    backend = Backend(None)
    run.queue.put(0, jobs(40))
    run.engine.start(backend)
    run.engine.start_decoding()
    run.wait(40)
    assert sum(backend.sizes) == 40
    assert backend.sizes.count(4) >= 8


def test_a_decoder_that_hangs_holds_up_nobody(
    run: Run, jobs: Callable[[int], list[Job]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is decoded is answered, though more is queued behind the image that hangs."""
    may_go = threading.Event()
    calls = iter(range(3))

    def hangs(descriptor: int, spec: InputSpec, **options: Any) -> Decoded:
        if next(calls) == 1:
            assert may_go.wait(20)
        return decode_one(descriptor, spec, **options)

    decode_one = decode.decode
    monkeypatch.setattr(decode, "decode", hangs)
    run.queue.put(0, jobs(3))
    run.engine.start(Backend(None))
    run.engine.start_decoding()
    run.wait(1)
    assert list(run.items) == [0]
    may_go.set()
    run.wait(3)


def test_few_images_are_decoded_on_the_cpu(run: Run, jobs: Callable[[int], list[Job]]) -> None:
    """The batch decoder waits until it is worth it."""
    run.engine.start_decoding()
    run.engine.start(Backend(run.decoder))
    run.queue.put(0, jobs(2))
    run.wait(2)
    assert [run.score(0), run.score(1)] == [0.0, 0.0]
    assert run.decoder.sizes == []


def test_many_images_are_shared(
    run: Run, jobs: Callable[[int], list[Job]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """While the CPU has one, the batch decoder takes what is queued, and each is answered once."""
    held, may_go = threading.Event(), threading.Event()

    def slow(descriptor: int, spec: InputSpec, **options: Any) -> Decoded:
        held.set()
        assert may_go.wait(20)
        return decode_one(descriptor, spec, **options)

    decode_one = decode.decode
    monkeypatch.setattr(decode, "decode", slow)
    run.queue.put(0, jobs(13))
    run.engine.start_decoding()
    assert held.wait(20)
    run.engine.start(Backend(run.decoder))
    run.wait(12)
    assert run.decoder.sizes == [6, 6]
    may_go.set()
    run.wait(13)
    assert run.score(0) == 0.0
    for number in range(1, 13):
        if number % 2:
            assert run.items[number] == Failed(id=number, error=Failure(ErrorCode.TRUNCATED, "odd"))
        else:
            assert run.score(number) == 1.0


def test_a_batch_decoder_that_fails_ends_the_worker(
    run: Run, jobs: Callable[[int], list[Job]]
) -> None:
    """As any decoder that raises what is no error of an image."""
    run.decoder.broken = True
    run.queue.put(0, jobs(20))
    run.engine.start(Backend(run.decoder))
    run.wait(20)
    assert "off the bus" in str(run.failed[0])


# ---------------------------------------------------------------- decoders that do not come back

HASTY = Limits(base=0.3, per_megapixel=0.0)


@pytest.fixture
def hasty() -> Iterator[Run]:
    """As `run`; its images may take 0.3 s."""
    made = Run(HASTY)
    yield made
    made.engine.close(5)


class Hanging:
    """A decoder that hangs on some images until it is told to go on."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *calls: int) -> None:
        self.may_go = threading.Event()
        self.descriptors: list[int] = []
        self.error: Exception | None = None
        self._calls = calls
        self._count = iter(range(1000))
        self._decode = decode.decode
        monkeypatch.setattr(decode, "decode", self)

    def __call__(self, descriptor: int, spec: InputSpec, **options: Any) -> Decoded:
        if next(self._count) in self._calls:
            self.descriptors.append(descriptor)
            assert self.may_go.wait(20)
            if self.error is not None:
                raise self.error
        return self._decode(descriptor, spec, **options)


def _timed_out(result: Result) -> bool:
    return isinstance(result, Failed) and result.error.code == ErrorCode.TIMEOUT


def test_an_image_that_takes_too_long_is_given_up(
    hasty: Run, jobs: Callable[[int], list[Job]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is answered, another thread goes on; what the first one brings at last counts nowhere."""
    hangs = Hanging(monkeypatch, 1)
    hasty.queue.put(0, jobs(4))
    hasty.engine.start(Backend(None))
    hasty.engine.start_decoding()
    hasty.wait(4)
    assert [number for number in range(4) if _timed_out(hasty.items[number])] == [1]
    hasty.wait_to_hang(1)
    (descriptor,) = hangs.descriptors
    os.fstat(descriptor)  # it still reads from it
    hangs.may_go.set()
    hasty.wait_to_hang(0)
    with pytest.raises(OSError, match="Bad file"):
        os.fstat(descriptor)
    # It has left; who replaced it goes on, and no answer came twice (`_answer` looks).
    hasty.queue.put(0, [Job(0, 9, job.descriptor, OPTIONS) for job in jobs(1)])
    hasty.wait(5)
    assert isinstance(hasty.items[9], Labelled)
    hasty.engine.close(5)
    assert not any(thread.is_alive() for thread in hasty.engine._threads)


def test_a_thread_that_was_given_up_may_fail(
    hasty: Run, jobs: Callable[[int], list[Job]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its image has its answer, so that ends no worker."""
    hangs = Hanging(monkeypatch, 0)
    hasty.queue.put(0, jobs(2))
    hasty.engine.start(Backend(None))
    hasty.engine.start_decoding()
    hasty.wait(2)
    hangs.error = RuntimeError("at last")
    hangs.may_go.set()
    hasty.wait_to_hang(0)
    assert not hasty.failed


def test_memory_of_an_image_that_was_given_up_is_held_until_its_thread_ends(
    hasty: Run, jobs: Callable[[int], list[Job]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who waits for it is noticed, and is not overdue meanwhile."""
    each = memory._EACH + 100_000
    budget = Budget(each + each // 2)
    monkeypatch.setattr(memory, "budget", lambda: budget)
    may_go, calls = threading.Event(), iter(range(10))

    def hangs(*arguments: Any, **options: Any) -> Decoded:
        if next(calls) == 0:
            assert may_go.wait(20)
        return prepared(*arguments, **options)

    prepared = decode.prepared
    monkeypatch.setattr(decode, "prepared", hangs)
    hasty.queue.put(0, jobs(2))
    hasty.engine.start(Backend(None))
    hasty.engine.start_decoding()
    hasty.wait_to_hang(1, stuck=True)
    assert list(hasty.items) == [0]
    assert _timed_out(hasty.items[0])
    may_go.set()
    hasty.wait(2)
    assert isinstance(hasty.items[1], Labelled)
    hasty.wait_to_hang(0)


def test_what_hangs_in_a_batch_holds_up_its_batch_for_its_time(
    hasty: Run, jobs: Callable[[int], list[Job]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a decoder of batches leaves to the CPU has its time, too, one core or not."""
    hangs = Hanging(monkeypatch, 0, 2)
    hasty.decoder.leaves_all = True
    backend = Backend(hasty.decoder)
    hasty.queue.put(0, jobs(6))
    hasty.engine._overdue.start()
    hasty.engine.start(backend)
    hasty.wait(6)
    assert sorted(map(_timed_out, hasty.items.values())) == [False] * 4 + [True] * 2
    hasty.wait_to_hang(2)
    for descriptor in hangs.descriptors:
        os.fstat(descriptor)  # its own, not the one of the job
    hangs.may_go.set()
    hasty.wait_to_hang(0)
    assert not hasty.failed


def test_what_fails_beside_a_batch_ends_the_worker(
    hasty: Run, jobs: Callable[[int], list[Job]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As anywhere, if it is no error of an image."""
    hangs = Hanging(monkeypatch, 0)
    hangs.error = RuntimeError("a bug")
    hangs.may_go.set()
    hasty.decoder.leaves_all = True
    hasty.queue.put(0, jobs(6))
    hasty.engine.start(Backend(hasty.decoder))
    hasty.wait(6)
    assert str(hasty.failed[0]) == "a bug"
