"""Fault 14: every run leaves something behind, until the machine is full (moby volumes, cog).

Whatever way a run ends, afterwards there is no container, volume, process, socket or directory
more than before; and a program that uses `Tagger` for weeks has no descriptor, thread or child
more either.
"""

from __future__ import annotations

import gc
import os
import signal
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tests.faults.support import address_of, status_of, wait_until_ready
from wuwan_runner import Tagger, TagOptions, WorkerSpec, WorkerUnavailableError

if TYPE_CHECKING:
    from collections.abc import Callable

RUNNERS = ["local", pytest.param("docker", marks=pytest.mark.docker)]
CHANNELS = [
    "local",
    pytest.param("socket", marks=pytest.mark.docker),
    pytest.param("exec", marks=pytest.mark.docker),
]


def _volumes(tools: Any, way: str) -> list[str]:
    return sorted(tools.docker("volume", "ls", "-q").split()) if way != "local" else []


@pytest.mark.parametrize("way", CHANNELS)
def test_runs_leave_nothing(
    tools: Any, wuwan: Any, faulty_local: Any, request: pytest.FixtureRequest, way: str
) -> None:
    faulty_local()
    runner: tuple[object, ...] = ("--runner", "local")
    if way != "local":
        image = request.getfixturevalue("fault_image")
        runner = ("--runner", "docker", "--image", image, "--channel", way)
    volumes = _volumes(tools, way)
    good, bad = tools.album(6), tools.album(6, {2: "no order"})
    endless = tools.album(6, {5: "sleep:600"})

    assert wuwan("tag", good.root, *runner, "--ttl", 0).returncode == 0
    assert wuwan("tag", bad.root, *runner, "--ttl", 0).returncode == 3
    for when in (0.3, 0.8):  # while the worker starts, or soon after
        run = tools.start("tag", endless.root, *runner, "--ttl", 0)
        time.sleep(when)
        run.send(signal.SIGINT)
        run.finish()
    run = tools.start("tag", endless.root, *runner, "--ttl", 0, "--batch-size", 1)
    run.lines(3)
    run.send(signal.SIGTERM)
    assert run.finish()[0] == -signal.SIGTERM
    # A model that does not exist, and for Docker an image that does not.
    assert wuwan("tag", good.root, *runner, "--model", "nothing").returncode == 4
    if way != "local":
        wrong = ("--runner", "docker", "--image", "wuwan-test-no-such-image", "--channel", way)
        assert wuwan("tag", good.root, *wrong).returncode == 4
    # Nobody asks the workers to end: with a TTL of 0 they go with their client.
    tools.eventually(lambda: not tools.inventory.all(), 20, "everything is gone")
    assert _volumes(tools, way) == volumes


def _held() -> tuple[list[str], list[str], list[str]]:
    """What this process holds: descriptors, threads, children."""
    gc.collect()
    descriptors = []
    for entry in sorted(os.listdir("/proc/self/fd")):
        try:
            descriptors.append(os.readlink(f"/proc/self/fd/{entry}").partition(":")[0])
        except OSError:  # the one that lists the directory
            continue
    children = Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()
    return sorted(descriptors), sorted(thread.name for thread in threading.enumerate()), children


def _whole(options: TagOptions, paths: list[str]) -> None:
    with Tagger(options) as tagger:
        assert len(list(tagger.tag(paths))) == len(paths)


def _abandoned(options: TagOptions, paths: list[str]) -> None:
    with Tagger(options) as tagger:
        records = tagger.tag(paths)
        next(records)
        records.close()


def _failing(options: TagOptions, paths: list[str]) -> None:
    spec = WorkerSpec(model="nothing", image=options.spec.image)
    with (
        Tagger(TagOptions(spec=spec, runner=options.runner, channel=options.channel)) as tagger,
        pytest.raises(WorkerUnavailableError),
    ):
        list(tagger.tag(paths))


@pytest.mark.parametrize("way", CHANNELS)
def test_program_that_lives_on(tools: Any, request: pytest.FixtureRequest, way: str) -> None:
    image = "" if way == "local" else request.getfixturevalue("docker_image")
    options = TagOptions(
        spec=WorkerSpec(image=image),
        runner="local" if way == "local" else "docker",
        channel="auto" if way == "local" else way,
        ttl=0.0,
        batch_size=2,
    )
    paths = tools.album(6).paths
    missing = [*paths, "/nonexistent/image.jpg", "/dev/null"]

    def everything() -> None:
        _whole(options, missing)
        _abandoned(options, paths)
        _failing(options, paths)

    def at_rest() -> bool:
        _whole(options, ["/nonexistent"])  # starts nothing; gives ended children a chance
        return not tools.inventory.all()

    everything()
    tools.eventually(at_rest, 20)
    before = _held()
    everything()
    tools.eventually(at_rest, 20)
    after = _held()
    assert after[0] == before[0]
    assert after[1] == before[1]
    # A worker that has ended is waited for when the next one starts: at most one round of them.
    assert len(after[2]) <= 4


def _worker_descriptors(tools: Any, runner: str, name: str, pid: int) -> Callable[[], int]:
    # A worker cannot be looked into (PR_SET_DUMPABLE): what is in there belongs to root.
    if runner == "local":
        if not os.access(f"/proc/{pid}/fd", os.R_OK):
            pytest.skip("only root may list a worker's descriptors")
        return lambda: len(os.listdir(f"/proc/{pid}/fd"))
    script = f"import os; print(len(os.listdir('/proc/{pid}/fd')))"
    return lambda: int(tools.docker("exec", "-u0", name, "python", "-c", script))


def _settled(count: Callable[[], int]) -> int:
    """What is counted, once it has been the same for half a second."""
    deadline = time.monotonic() + 20
    found, since = count(), time.monotonic()
    while time.monotonic() - since < 0.5 and time.monotonic() < deadline:
        time.sleep(0.02)
        if (now := count()) != found:
            found, since = now, time.monotonic()
    return found


@pytest.mark.parametrize("runner", RUNNERS)
def test_warm_worker_holds_no_more(
    tools: Any, wuwan: Any, request: pytest.FixtureRequest, runner: str
) -> None:
    """Clients come and go, some of them by SIGKILL: the worker's descriptors are as before."""
    image = request.getfixturevalue("docker_image") if runner == "docker" else ""
    arguments = ("--runner", runner, *(("--image", image) if image else ()), "--ttl", 60)
    assert wuwan("warm", *arguments).returncode == 0
    target = address_of(runner, WorkerSpec(image=image))
    wait_until_ready(target)
    album = tools.album(80)
    assert wuwan("tag", album.root, *arguments).returncode == 0
    status = status_of(target)
    descriptors = _worker_descriptors(tools, runner, status.name, status.pid)
    before = _settled(descriptors)  # the last client's may still be there
    for _ in range(4):
        run = tools.start("tag", album.root, *arguments, "--batch-size", 4)
        run.lines(2)
        run.send(signal.SIGKILL)
        run.finish()
        assert wuwan("tag", album.root / "nothing", *album.paths[:3], *arguments).returncode == 3
    tools.eventually(lambda: status_of(target).idle_for is not None, 20, "the worker is idle")
    tools.eventually(lambda: descriptors() == before, 10, f"descriptors are {before} again")
    assert status_of(target).name == status.name
