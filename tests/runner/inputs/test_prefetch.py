"""Inputs are opened ahead in threads: within bounds, and one that hangs holds up nobody."""

from __future__ import annotations

import itertools
import os
import select
import threading
import time
from typing import TYPE_CHECKING

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from wuwan_runner.inputs import prefetch
from wuwan_runner.inputs.base import Opened, OpenError
from wuwan_runner.inputs.prefetch import Fetched, NoThreadError, Prefetch, StalledError
from wuwan_runner.records import ItemFailure
from wuwan_worker.shared.protocol import ErrorCode

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

DEADLINE = 8.0  # seconds for what takes milliseconds


class Memory:
    """An input whose content is its path; it may be told to wait, or to fail."""

    def __init__(self, path: str, *, until: threading.Event | None = None, bad: str = "") -> None:
        self.path = path
        self.times = 0
        self._until = until
        self._bad = bad

    def open(self) -> Opened:
        """See `Input.open`."""
        self.times += 1
        if self._until is not None:
            assert self._until.wait(DEADLINE)
        if self._bad == "internal":
            raise RuntimeError("a plug-in's fault")
        if self._bad:
            raise OpenError(ItemFailure(ErrorCode.UNREADABLE, self._bad))
        descriptor = os.memfd_create(self.path)
        os.write(descriptor, self.path.encode())
        return Opened(descriptor, os.fstat(descriptor))


def content(fetched: Fetched) -> str:
    """What was opened, which is closed; or why it was not."""
    if isinstance(fetched.result, ItemFailure):
        return f"{fetched.result.code}: {fetched.result.message}"
    try:
        return os.pread(fetched.result.descriptor, 100, 0).decode()
    finally:
        os.close(fetched.result.descriptor)


def wait(inputs: Prefetch, demand: int = 64, limit: int = 1_000_000) -> None:
    """Until there is something to take, or it is time to look; as a run does."""
    inputs.allow(demand, limit)
    timeout = min(max(0.0, inputs.deadline - time.monotonic()), DEADLINE)
    select.select([inputs], [], [], timeout)


def taken(inputs: Prefetch, count: int) -> list[Fetched]:
    """So many of them, in the order in which they come."""
    found, deadline = list[Fetched](), time.monotonic() + DEADLINE
    while len(found) < count:
        assert time.monotonic() < deadline, found
        if not (more := inputs.take()):
            wait(inputs)
        found += more
    assert len(found) == count
    return found


def everything(inputs: Prefetch) -> list[Fetched]:
    """All there is."""
    found, deadline = list[Fetched](), time.monotonic() + DEADLINE
    while not inputs.exhausted:
        assert time.monotonic() < deadline, found
        if not (more := inputs.take()):
            wait(inputs)
        found += more
    return found


def opened(source: Iterable[Memory], *, timeout: float = DEADLINE) -> Prefetch:
    """Without bounds that matter."""
    inputs = Prefetch(iter(source), timeout=timeout)
    inputs.allow(64, 1_000_000)
    return inputs


def test_all_come_with_their_numbers() -> None:
    """Opened, with the status of what was opened, and the end is told."""
    inputs = opened(Memory(f"{number}") for number in range(200))
    found = everything(inputs)
    assert sorted(one.item.number for one in found) == list(range(200))
    for one in found:
        assert isinstance(one.result, Opened)
        assert one.result.stat.st_size == len(one.item.path)
        assert content(one) == one.item.path == str(one.item.number)
    assert inputs.count == 200
    inputs.close()


def test_nothing_at_all() -> None:
    """An empty source ends, and says so by its descriptor."""
    inputs = opened([])
    wait(inputs)
    assert everything(inputs) == []
    assert inputs.exhausted
    inputs.close()


def test_nothing_is_asked_for_before_it_is_allowed() -> None:
    """No thread, no input."""
    asked: list[int] = []

    def source() -> Iterator[Memory]:
        asked.append(1)
        yield Memory("a")

    before = threading.active_count()
    inputs = Prefetch(source(), timeout=1.0)
    assert inputs.take() == []
    assert (asked, threading.active_count()) == ([], before)
    inputs.close()


@settings(max_examples=25, deadline=None)
@given(demand=st.integers(0, 40), limit=st.integers(0, 40))
def test_bounds(demand: int, limit: int) -> None:
    """No more than are wanted are open, none from the limit on is taken up, and all others come."""
    endless = (Memory(f"{number}") for number in itertools.count())
    inputs = Prefetch(endless, timeout=DEADLINE)
    inputs.allow(demand, limit)
    numbers, deadline = set[int](), time.monotonic() + DEADLINE
    try:
        while len(numbers) < (limit if demand else 0):
            assert time.monotonic() < deadline
            wait(inputs, demand, limit)
            more = inputs.take()
            assert len(more) <= demand
            for one in more:
                content(one)
            numbers |= {one.item.number for one in more}
        assert inputs.count <= limit
        assert numbers == set(range(limit if demand else 0))
    finally:
        inputs.close()


def test_a_failure_is_the_inputs_alone() -> None:
    """Whatever goes wrong in opening one; the others come."""
    inputs = opened(
        [Memory("a"), Memory("b", bad="gone"), Memory("c", bad="internal"), Memory("d")]
    )
    found = {one.item.path: content(one) for one in everything(inputs)}
    assert found == {
        "a": "a",
        "b": "unreadable: gone",
        "c": "unreadable: RuntimeError: a plug-in's fault",
        "d": "d",
    }
    inputs.close()


def test_what_hangs_costs_one_record_and_stops_nobody() -> None:
    """The others are there at once, the one that hangs has an error at its deadline."""
    never = threading.Event()
    inputs = opened(
        [Memory("a"), Memory("hangs", until=never), *(Memory(f"{n}") for n in range(50))],
        timeout=0.5,
    )
    begin = time.monotonic()
    others = taken(inputs, 51)
    assert time.monotonic() - begin < 0.4
    assert "hangs" not in [content(one) for one in others]
    (late,) = everything(inputs)
    assert (late.item.path, content(late)) == (
        "hangs",
        "timeout: it could not be opened within 0.5 s",
    )
    assert time.monotonic() - begin >= 0.5
    before = len(os.listdir("/proc/self/fd"))
    inputs.close()
    never.set()  # the kernel comes back after all: what it gives is closed
    deadline = time.monotonic() + DEADLINE
    while any(thread.name == "prefetch" for thread in threading.enumerate()):
        assert time.monotonic() < deadline
        time.sleep(0.01)
    assert len(os.listdir("/proc/self/fd")) < before


def test_slow_ones_are_opened_side_by_side() -> None:
    """A disk far away may take a while for each, and more than one at a time."""
    together = threading.Barrier(prefetch.MAX_THREADS)

    class Slow(Memory):
        def open(self) -> Opened:
            together.wait(DEADLINE)
            return super().open()

    inputs = opened(Slow(f"{number}") for number in range(prefetch.MAX_THREADS))
    assert len([content(one) for one in everything(inputs)]) == prefetch.MAX_THREADS
    inputs.close()


def test_fast_ones_need_one_thread() -> None:
    """More would only take each other's turns."""
    names = set()

    class Noting(Memory):
        def open(self) -> Opened:
            names.add(threading.current_thread().ident)
            return super().open()

    inputs = opened(Noting(f"{number}") for number in range(500))
    for one in everything(inputs):
        content(one)
    assert len(names) < prefetch.MAX_THREADS / 2  # a busy machine may make one look slow
    inputs.close()


def test_when_nothing_opens_any_more_the_run_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    """Threads that the kernel does not give back are not made without end."""
    monkeypatch.setattr(prefetch, "MAX_STUCK", 5)
    never = threading.Event()
    inputs = opened((Memory(f"{number}", until=never) for number in range(100)), timeout=0.05)
    with pytest.raises(StalledError, match="could not be opened within") as caught:
        everything(inputs)
    assert caught.value.hint
    inputs.close()
    never.set()


def test_once_more() -> None:
    """An item is opened again for another worker, even where nothing new is allowed."""
    inputs = opened([Memory("a")])
    (first,) = everything(inputs)
    content(first)
    inputs.allow(0, 0)
    inputs.again(first.item)
    assert not inputs.exhausted
    (second,) = taken(inputs, 1)
    assert second.item is first.item
    assert content(second) == "a"
    assert inputs.exhausted
    inputs.close()


def test_an_error_of_the_source_is_its_end() -> None:
    """What was there before it can be taken; then whoever owns it looks at the error."""

    def source() -> Iterator[Memory]:
        yield Memory("a")
        yield Memory("b")
        raise KeyError("a list that broke off")

    inputs = opened(source())
    assert sorted(content(one) for one in taken(inputs, 2)) == ["a", "b"]
    assert everything(inputs) == []
    assert isinstance(inputs.error, KeyError)
    inputs.close()


def test_a_source_that_waits_holds_up_nobody() -> None:
    """What it gave before is there, and leaving does not wait for it."""
    go_on = threading.Event()

    def source() -> Iterator[Memory]:
        yield Memory("a")
        assert go_on.wait(DEADLINE)
        yield Memory("b")

    inputs = opened(source())
    assert content(taken(inputs, 1)[0]) == "a"
    deadline = time.monotonic() + DEADLINE
    while inputs.expects_more:  # for a moment, since it was fast so far
        assert time.monotonic() < deadline
        time.sleep(0.001)
    assert inputs.take() == []
    assert not inputs.exhausted
    assert inputs.deadline == float("inf")  # it may take as long as it likes, without a look
    begin = time.monotonic()
    inputs.close()
    assert time.monotonic() - begin < 5
    go_on.set()


def test_what_blocks_after_it_gave_some_holds_up_none_of_them() -> None:
    """Whoever waits for what comes next is told of what has come, though no thread opens it yet."""
    go_on, some = threading.Event(), 5

    def source() -> Iterator[Memory]:
        yield Memory("first")
        assert go_on.wait(DEADLINE)
        yield from (Memory(f"{number}") for number in range(some))
        assert threading.Event().wait(0.5) is False
        yield Memory("last")

    inputs = opened(source())
    assert content(taken(inputs, 1)[0]) == "first"
    while inputs.deadline != float("inf"):  # nothing is expected any more
        wait(inputs)
        assert inputs.take() == []
    begin = time.monotonic()
    go_on.set()
    found = taken(inputs, some)
    assert time.monotonic() - begin < 0.4
    assert sorted(content(one) for one in found) == [str(number) for number in range(some)]
    assert [content(one) for one in everything(inputs)] == ["last"]
    inputs.close()


def test_no_descriptor_is_free_for_a_moment() -> None:
    """That is no fault of the file: it is opened once there is one."""

    class Short(Memory):
        def open(self) -> Opened:
            if self.times < 3:
                self.times += 1
                failure = ItemFailure(ErrorCode.UNREADABLE, "Too many open files")
                raise OpenError(failure, shortage=True)
            return super().open()

    inputs = opened([Short("a"), Memory("b", bad="gone")])
    assert sorted(content(one) for one in everything(inputs)) == ["a", "unreadable: gone"]
    inputs.close()


def test_no_thread_can_be_started(monkeypatch: pytest.MonkeyPatch) -> None:
    """The first one is needed; more are not, and one that works goes on alone."""
    start = threading.Thread.start
    most = 0

    def limited(thread: threading.Thread) -> None:
        if sum(one.name == "prefetch" for one in threading.enumerate()) >= most:
            raise RuntimeError("can't start new thread")
        start(thread)

    monkeypatch.setattr(threading.Thread, "start", limited)
    inputs = Prefetch(iter([Memory("a")]), timeout=1.0)
    with pytest.raises(NoThreadError):
        inputs.allow(64, 64)
    inputs.close()
    most = 1

    class Slow(Memory):
        def open(self) -> Opened:
            assert threading.Event().wait(3 * prefetch.SLOW) is False
            return super().open()

    inputs = opened(Slow(f"{number}") for number in range(5))
    assert len([content(one) for one in everything(inputs)]) == 5
    inputs.close()


def test_nothing_is_left_open() -> None:
    """What was not taken is closed, and the threads end."""
    before = len(os.listdir("/proc/self/fd"))
    inputs = opened(Memory(f"{number}") for number in range(1000))
    wait(inputs)
    for one in inputs.take():
        content(one)
    wait(inputs)
    inputs.close()
    deadline = time.monotonic() + DEADLINE
    while any(thread.name == "prefetch" for thread in threading.enumerate()):
        assert time.monotonic() < deadline
        time.sleep(0.01)
    assert len(os.listdir("/proc/self/fd")) == before
