"""Fault 17: one file makes the decoder crash, or run for ever (any image library, sooner or later).

The worker process is lost each time. The one image that does it is found, and all others, also
those that were in the same batch, get their labels.
"""

from __future__ import annotations

from typing import Any

import pytest

from wuwan_runner import address

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
    """The worker that the suspects went through ends with the run; only the shared one stays."""
    faulty_local()
    album = tools.album(16, {0: "segfault", 7: "exit", 8: "raise", 12: "segfault"})
    done = wuwan("tag", album.root, "--runner", "local", "--ttl", 60)
    assert done.returncode == 3, done.stderr.decode()
    records = tools.parsed(done.stdout)
    album.check(records, tools.expected)
    codes = [record["error"]["code"] for record in records if "error" in record]
    assert codes == ["worker_crashed"] * 4
    tools.eventually(
        lambda: not [place for place in address.listed() if place.slot.startswith("private")],
        10,
        "the private worker is gone",
    )
    assert wuwan("stop", "--all").returncode == 0


@pytest.mark.parametrize("runner", RUNNERS)
def test_endless_decode(tools: Any, wuwan: Any, faulty: tuple[Any, ...]) -> None:
    album = tools.album(12, {3: "sleep:600"})
    done = wuwan("tag", album.root, *faulty, "--timeout", TIMEOUT)
    assert done.returncode == 3, done.stderr.decode()
    records = tools.parsed(done.stdout)
    album.check(records, tools.expected)
    assert records[3]["error"]["code"] == "timeout"


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


def test_many_culprits_before_the_first_good_photo(
    tools: Any, wuwan: Any, faulty_local: Any
) -> None:
    """Each culprit found is progress: 30 of them do not end a run that has photos to label."""
    faulty_local()
    album = tools.album(45, dict.fromkeys(range(30), "segfault"))
    done = wuwan("tag", album.root, "--runner", "local", "--ttl", 2, timeout=110)
    assert done.returncode == 3, done.stderr.decode()
    records = tools.parsed(done.stdout)
    album.check(records, tools.expected)
    codes = [record["error"]["code"] for record in records if "error" in record]
    assert codes == ["worker_crashed"] * 30


@pytest.mark.parametrize("workers", [1, 2])
def test_culprits_among_good_photos(
    tools: Any, wuwan: Any, faulty_local: Any, workers: int
) -> None:
    """Every other file kills its worker: each good photo has its labels all the same."""
    faulty_local()
    album = tools.album(24, dict.fromkeys(range(0, 24, 2), "exit"))
    done = wuwan("tag", album.root, "--runner", "local", "--ttl", 2, "--workers", workers)
    assert done.returncode == 3, done.stderr.decode()
    album.check(tools.parsed(done.stdout), tools.expected)


def test_workers_that_die_of_everything_end_the_run(
    tools: Any, wuwan: Any, faulty_local: Any
) -> None:
    """No image is blamed for what the worker is to blame for, and the run ends in bounded time."""
    faulty_local(WUWAN_FAULT_INFER_AFTER="0")
    album = tools.album(200)
    done = wuwan("tag", album.root, "--runner", "local", "--ttl", 1, timeout=110)
    assert done.returncode == 4, done.stderr.decode()
    assert b"workers were lost without one image labelled" in done.stderr
    assert not done.stdout
