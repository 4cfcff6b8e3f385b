"""Which idle workers make room for a new one."""

from __future__ import annotations

import pytest

from wuwan_runner.pool import eviction
from wuwan_runner.wire.address import Address
from wuwan_runner.wire.control import Seen
from wuwan_worker.shared.protocol import Status

GIB = 2**30


def worker(name: str, idle_for: float | None, gpu_memory: int = 0) -> Seen:
    """A worker that has answered a survey."""
    status = Status(
        name=name,
        model="imagenet-zh",
        runner="docker",
        device="",
        state="ready" if idle_for is not None else "busy",
        pid=1,
        clients=0 if idle_for is not None else 1,
        images_done=0,
        queued=0,
        idle_for=idle_for,
        ttl=30.0,
        ttl_left=None,
        memory=0,
        gpu_memory=gpu_memory,
        uptime=0.0,
    )
    return Seen(Address("key", name), status)


def names(seen: list[Seen]) -> list[str]:
    """The workers' names."""
    return [entry.status.name for entry in seen if entry.status]


def test_there_is_room() -> None:
    """With fewer warm workers than may be cached, nobody has to go."""
    seen = [worker("a", 9.0), worker("b", 1.0)]
    assert eviction.victims(seen, max_cached=3, gpu=None) == []


@pytest.mark.parametrize(
    ("max_cached", "gone"), [(3, ["b"]), (2, ["b", "c"]), (1, ["b", "c", "a"])]
)
def test_the_longest_idle_goes_first(max_cached: int, gone: list[str]) -> None:
    """Least recently used first, and no more than needed for the newcomer."""
    seen = [worker("a", 1.0), worker("b", 9.0), worker("c", 5.0)]
    assert names(eviction.victims(seen, max_cached=max_cached, gpu=None)) == gone


def test_who_works_stays() -> None:
    """A worker with a client or an image is never chosen, nor one that gave no answer."""
    silent = Seen(Address("key", "silent"), None, "no answer")
    seen = [worker("busy", None), silent, worker("idle", 0.0)]
    assert names(eviction.victims(seen, max_cached=1, gpu=None)) == ["idle"]


def test_memory_pressure() -> None:
    """Above 80 % of the GPU's memory idle workers that hold some go, until it is at most 80 %."""
    seen = [worker("old", 9.0, 4 * GIB), worker("cpu", 5.0), worker("new", 1.0, 4 * GIB)]
    total = 40 * GIB
    assert names(eviction.victims(seen, max_cached=9, gpu=(32 * GIB, total))) == []
    assert names(eviction.victims(seen, max_cached=9, gpu=(33 * GIB, total))) == ["old"]
    assert names(eviction.victims(seen, max_cached=9, gpu=(37 * GIB, total))) == ["old", "new"]


def test_pressure_counts_who_goes_anyway() -> None:
    """Memory of a worker that goes for lack of room is not freed twice."""
    seen = [worker("old", 9.0, 4 * GIB), worker("new", 1.0, 4 * GIB)]
    chosen = eviction.victims(seen, max_cached=2, gpu=(35 * GIB, 40 * GIB))
    assert names(chosen) == ["old"]
