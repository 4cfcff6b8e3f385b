"""Fault 17: one file makes the decoder crash, or run for ever (any image library, sooner or later).

The worker process is lost each time. The one image that does it is found, and all others, also
those that were in the same batch, get their labels.
"""

from __future__ import annotations

import os
import signal
import time
from typing import TYPE_CHECKING, Any

import pytest

from tests.faults.support import Client, address_of, worker_at
from wuwan_runner import WorkerSpec
from wuwan_runner.wire import address
from wuwan_worker.shared import protocol

if TYPE_CHECKING:
    from pathlib import Path

RUNNERS = ["local", pytest.param("docker", marks=pytest.mark.docker)]
TIMEOUT = 2  # seconds of silence, and one more for each image under way


@pytest.fixture
def faulty(request: pytest.FixtureRequest, faulty_local: Any, runner: str) -> tuple[str | int, ...]:
    """The arguments for a runner whose workers obey."""
    if runner == "docker":
        image = request.getfixturevalue("fault_image")
        return ("--runner", "docker", "--image", image, "--ttl", 2)
    faulty_local()
    return ("--runner", "local", "--ttl", 2)


@pytest.mark.parametrize("runner", RUNNERS)
def test_crash(tools: Any, wuwan: Any, faulty: tuple[Any, ...]) -> None:
    album = tools.album(20, {5: "segfault"})
    done = wuwan("tag", album.root, *faulty)
    assert done.returncode == 3, done.stderr.decode()
    records = tools.parsed(done.stdout)
    album.check(records, tools.expected)
    assert records[5]["error"]["code"] == "worker_crashed"
    assert "died on this image" in records[5]["error"]["message"]
    assert b"Traceback" not in done.stderr


def test_several_culprits(tools: Any, wuwan: Any, faulty_local: Any) -> None:
    """The worker of those in quarantine ends with the run; only the shared one stays."""
    faulty_local()
    album = tools.album(16, {0: "segfault", 7: "exit", 8: "raise", 12: "segfault"})
    done = wuwan("tag", album.root, "--runner", "local", "--ttl", 60)
    assert done.returncode == 3, done.stderr.decode()
    records = tools.parsed(done.stdout)
    album.check(records, tools.expected)
    codes = [record["error"]["code"] for record in records if "error" in record]
    assert codes == ["worker_crashed"] * 4
    tools.eventually(
        lambda: not [place for place in address.listed() if place.index.startswith("private")],
        10,
        "the private worker is gone",
    )
    assert wuwan("stop", "--all").returncode == 0


@pytest.mark.timeout(240)  # 50 workers, one after the other
@pytest.mark.parametrize(
    ("count", "culprits", "workers"),
    [
        pytest.param(231, range(30), 1, id="first"),
        pytest.param(44, range(0, 44, 2), 2, id="every-other"),
        pytest.param(22, range(22), 1, id="all"),
        pytest.param(1, range(1), 1, id="alone"),
    ],
)
def test_more_culprits_than_restarts(
    tools: Any, wuwan: Any, faulty_local: Any, count: int, culprits: range, workers: int
) -> None:
    """Each of them is found, and all others get their labels, however many there are."""
    faulty_local()
    album = tools.album(count, dict.fromkeys(culprits, "segfault"))
    arguments = ("--runner", "local", "--ttl", 2, "--workers", workers)
    done = wuwan("tag", album.root, *arguments, timeout=200)
    assert done.returncode == 3, done.stderr.decode()
    records = tools.parsed(done.stdout)
    album.check(records, tools.expected)
    assert [number for number, record in enumerate(records) if "error" in record] == [*culprits]
    assert {records[number]["error"]["code"] for number in culprits} == {"worker_crashed"}
    # Two with all of a batch, and for each culprit one, or two if it was not the first; and some
    # that had to label the proof before.
    assert done.stderr.count(b" was lost ") <= 2 * len(culprits) + 2 * workers + 4


@pytest.mark.parametrize("runner", RUNNERS)
def test_endless_decode(tools: Any, wuwan: Any, faulty: tuple[Any, ...]) -> None:
    album = tools.album(12, {3: "sleep:600"})
    done = wuwan("tag", album.root, *faulty, "--timeout", TIMEOUT)
    assert done.returncode == 3, done.stderr.decode()
    records = tools.parsed(done.stdout)
    album.check(records, tools.expected)
    assert records[3]["error"]["code"] == "timeout"


def test_the_worker_itself_gives_up_what_takes_too_long(
    tools: Any, wuwan: Any, faulty_local: Any
) -> None:
    """One bomb among others: its worker says so, is not lost, and answers the others meanwhile."""
    faulty_local(WUWAN_FAULT_PATIENCE="1")
    album = tools.album(12, {3: "sleep:600"})
    done = wuwan("tag", album.root, "--runner", "local", "--ttl", 60, "--timeout", 60)
    assert done.returncode == 3, done.stderr.decode()
    records = tools.parsed(done.stdout)
    album.check(records, tools.expected)
    assert records[3]["error"] == {
        "code": "timeout",
        "message": "it was not decoded within 1.0 s",
    }
    assert b"was lost" not in done.stderr
    # Idle, it gives back what the decoder holds, though its TTL is not over.
    tools.eventually(lambda: not tools.inventory.all(), 20, "the worker is gone")


@pytest.mark.timeout(240)
def test_workers_that_lose_decoders_are_replaced(tools: Any, wuwan: Any, faulty_local: Any) -> None:
    """After three the worker drains, and another one takes over; nobody is blamed for it."""
    faulty_local(WUWAN_FAULT_PATIENCE="1")
    bombs = [0, 1, 2, 10, 11, 12, 13, 30]
    album = tools.album(40, dict.fromkeys(bombs, "sleep:600"))
    done = wuwan("tag", album.root, "--runner", "local", "--ttl", 60, "--timeout", 60, timeout=200)
    assert done.returncode == 3, done.stderr.decode()
    records = tools.parsed(done.stdout)
    album.check(records, tools.expected)
    failed = {number: record["error"]["code"] for number, record in enumerate(records)
              if "error" in record}  # fmt: skip
    assert failed == dict.fromkeys(bombs, "timeout")
    assert b"was lost" not in done.stderr
    assert b"Traceback" not in done.stderr


def test_time_in_which_the_worker_stood_still_does_not_count(
    tmp_path: Path, faulty_local: Any
) -> None:
    """It was paused in the middle of a decode: the image has its own answer, and no `timeout`."""
    faulty_local(WUWAN_FAULT_PATIENCE="1.5")
    slow = tmp_path / "slow.jpg"
    slow.write_bytes(b"FAULT:sleep:1\n")
    target = address_of("local", WorkerSpec())
    with worker_at(target, "local"), Client(target) as client:
        pid = client.hello().pid
        client.send_images([1], [str(slow)])
        client.sock.sendall(protocol.encode(protocol.StatusRequest()))
        client.take(protocol.Status)  # so it has come
        os.kill(pid, signal.SIGSTOP)
        time.sleep(4)
        os.kill(pid, signal.SIGCONT)
        (answer,) = client.answers(1)
        assert isinstance(answer, protocol.Failed)
        assert answer.error.code == protocol.ErrorCode.NOT_AN_IMAGE


def test_decoder_that_stops_the_whole_worker(tools: Any, wuwan: Any, faulty_local: Any) -> None:
    """Native code that keeps the interpreter's lock: the worker's I/O thread hangs with it."""
    faulty_local()
    assert wuwan("warm", "--runner", "local").returncode == 0
    album = tools.album(2, {1: "freeze:600"})
    done = wuwan("tag", album.root, "--runner", "local", "--ttl", 2, "--timeout", TIMEOUT)
    assert done.returncode == 3, done.stderr.decode()
    records = tools.parsed(done.stdout)
    album.check(records, tools.expected)
    assert records[1]["error"]["code"] == "timeout"
