"""The budget of bytes: how much there is, and who gets it when."""

from __future__ import annotations

import threading
import time
from typing import TYPE_CHECKING

import pytest

from wuwan_worker.decoding import memory
from wuwan_worker.decoding.decode import ItemError
from wuwan_worker.decoding.memory import Budget
from wuwan_worker.decoding.patience import Limits, Patience
from wuwan_worker.shared.protocol import ErrorCode

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

GB = 2**30
EACH = memory._EACH
PATIENCE = Patience(Limits())


def _machine(tmp_path: Path, cgroup: str, limits: dict[str, str], free: int = 64 * GB) -> int:
    """What is available on a machine with these files."""
    (tmp_path / "proc/self").mkdir(parents=True)
    (tmp_path / "proc/self/cgroup").write_text(cgroup)
    (tmp_path / "proc/meminfo").write_text(f"MemTotal: 9 kB\nMemAvailable: {free // 1024} kB\n")
    for name, content in limits.items():
        path = tmp_path / "cgroup" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)
    return memory.available(tmp_path / "cgroup", tmp_path / "proc")


@pytest.mark.parametrize(
    ("cgroup", "limits", "expected"),
    [
        ("0::/\n", {"memory.max": str(GB)}, int(GB * 0.85)),  # a container, version 2
        ("0::/\n", {"memory.max": "max"}, int(4 * GB * 0.85)),
        ("0::/user.slice/a.scope\n", {"user.slice/memory.max": str(2 * GB)}, int(2 * GB * 0.85)),
        (
            "0::/a/b\n",
            {"a/memory.max": str(2 * GB), "a/b/memory.max": str(3 * GB)},
            int(2 * GB * 0.85),
        ),
        (  # version 1: in a container the path is the host's, and the root is the container's
            "5:memory:/docker/abc\n4:cpu:/x\n",
            {"memory/memory.limit_in_bytes": str(GB)},
            int(GB * 0.85),
        ),
        ("5:memory:/\n", {"memory/memory.limit_in_bytes": str(2**63 - 4096)}, int(4 * GB * 0.85)),
        ("nonsense", {}, int(4 * GB * 0.85)),
        ("", {}, int(4 * GB * 0.85)),
    ],
)
def test_what_there_is(tmp_path: Path, cgroup: str, limits: dict[str, str], expected: int) -> None:
    """The least of all limits above the process, and never more than a container's default."""
    assert _machine(tmp_path, cgroup, limits) == expected


def test_a_machine_that_is_nearly_full(tmp_path: Path) -> None:
    """Half of what is free is left to others."""
    assert _machine(tmp_path, "0::/\n", {}, free=GB) == GB // 2


def test_what_can_never_fit_is_too_large() -> None:
    """It says so at once, whatever is free."""
    budget = Budget(100 * 10**6)
    with (
        budget.claim(PATIENCE) as claim,
        pytest.raises(ItemError, match="would take 1,0") as caught,
    ):
        claim.need((10_000, 10_000), 10)
    assert caught.value.code == ErrorCode.TOO_LARGE
    with (
        budget.claim(PATIENCE) as claim,
        pytest.raises(ItemError, match="the limit is 268 megapixels"),
    ):
        claim.need((20_000, 20_000), 0.001)


def _claimed(budget: Budget, count: int, done: Callable[[], None], go: threading.Event) -> None:
    with budget.claim(PATIENCE) as claim:
        claim.need((count - EACH, 1), 1)
        done()
        go.wait(20)


def _wait_for(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline, "it never came true"
        time.sleep(0.002)


def test_bytes_are_given_out_in_the_order_of_asking() -> None:
    """A large picture that waits is not overtaken by small ones, and all of it comes back."""
    budget = Budget(100 * 10**6)
    order: list[str] = []
    events = {name: threading.Event() for name in ("first", "large", "small")}
    sizes = {"first": 60 * 10**6, "large": 90 * 10**6, "small": 20 * 10**6}
    threads: list[threading.Thread] = []
    for waiting, (name, size) in enumerate(sizes.items()):
        thread = threading.Thread(
            target=_claimed, args=(budget, size, lambda name=name: order.append(name), events[name])
        )
        thread.start()
        threads.append(thread)
        _wait_for(lambda count=waiting: len(order) + len(budget._waiting) == count + 1)
    assert order == ["first"]  # the small one would fit, and waits behind the large one
    events["first"].set()
    _wait_for(lambda: len(order) == 2)
    events["large"].set()
    _wait_for(lambda: len(order) == 3)
    assert order == ["first", "large", "small"]
    for event in events.values():
        event.set()
    for thread in threads:
        thread.join(10)
    assert budget._free == budget.total


def test_an_error_gives_back_what_was_claimed() -> None:
    """And a picture that asks a second time has the first amount back before."""
    budget = Budget(100 * 10**6)
    with budget.claim(PATIENCE) as claim:
        claim.need((60 * 10**6, 1), 1)
        claim.need((70 * 10**6, 1), 1)
    assert budget._free == budget.total
    with budget.claim(PATIENCE) as claim:
        claim.need((60 * 10**6, 1), 1)
        with pytest.raises(ItemError):
            claim.need((700 * 10**6, 1), 1)
    assert budget._free == budget.total
