"""One worker serves many clients at once: one copy of the model, fair, and everyone is right."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from wuwan_runner import Tagger, TagOptions, WorkerSpec
from wuwan_runner.wire import address, control
from wuwan_worker.shared import bundle

CLIENTS = 64
RUNNERS = ["local", pytest.param("docker", marks=pytest.mark.docker)]


def options(runner: str, image: str, **more: Any) -> TagOptions:
    """Options for a worker of that runner."""
    spec = WorkerSpec(image=image) if runner == "docker" else WorkerSpec()
    return TagOptions(spec=spec, runner=runner, **more)


@pytest.fixture
def image(request: pytest.FixtureRequest) -> str:
    """The container image, where the test's runner needs it."""
    wanted = request.node.callspec.params["runner"] == "docker"
    return str(request.getfixturevalue("docker_image")) if wanted else ""


def best(record: dict[str, Any]) -> str:
    """The top label."""
    return str(record["labels"][0]["label"])


@pytest.mark.timeout(240)
@pytest.mark.parametrize("runner", RUNNERS)
def test_sixty_four_processes(
    runner: str,
    image: str,
    photos: Path,
    tmp_path: Path,
    wuwan: Callable[..., subprocess.CompletedProcess[bytes]],
) -> None:
    """64 `wuwan tag` of different directories share one worker, and all records are right."""
    files = sorted(photos.iterdir())
    expected = {}
    for file in files:
        done = wuwan("tag", file, "--quiet", "--runner", "local", "--ttl", "1")
        expected[file.name] = best(json.loads(done.stdout))
    directories = []
    for number in range(CLIENTS):
        directory = tmp_path / f"{number:02d}"
        directory.mkdir()
        for turn in range(3):
            source = files[(number + turn) % len(files)]
            (directory / f"{turn}-{source.name}").symlink_to(source)
        directories.append(directory)
    command = [sys.executable, "-m", "wuwan_cli", "tag", "--quiet", "--runner", runner]
    if image:
        command += ["--image", image]
    processes = [
        subprocess.Popen([*command, str(directory)], stdout=subprocess.PIPE)
        for directory in directories
    ]
    most = 0
    while any(process.poll() is None for process in processes):
        most = max(most, len([place for place in address.listed() if place.index == "0"]))
        time.sleep(0.05)
    for directory, process in zip(directories, processes, strict=True):
        output, _ = process.communicate(timeout=10)
        assert process.returncode == 0
        records = [json.loads(line) for line in output.splitlines()]
        assert [Path(r["path"]) for r in records] == sorted(directory.iterdir())
        for record in records:
            assert best(record) == expected[Path(record["path"]).name[2:]]
    # The local runs before had a worker of their own, which may still be there at the start.
    keys = {place.key for place in address.listed()}
    assert most == 1 or (runner == "docker" and most == 2)
    assert len(keys) == 1
    (seen,) = control.survey(5.0)
    assert seen.status is not None
    assert seen.status.images_done >= 3 * CLIENTS


@pytest.mark.parametrize("runner", RUNNERS)
def test_a_small_client_beside_a_huge_one(runner: str, image: str, photos: Path) -> None:
    """A client with one photo waits for a few batches, not for the client with 10,000."""
    huge = [str(photos / "rocket.jpg")] * 10_000
    settings = options(runner, image)
    progress = [0]
    over = threading.Event()

    def tag_all() -> None:
        with Tagger(settings) as tagger:
            for _ in tagger.tag(huge):
                progress[0] += 1
                if over.is_set():
                    return

    thread = threading.Thread(target=tag_all)
    thread.start()
    try:
        deadline = time.monotonic() + 60
        while progress[0] < 100 and time.monotonic() < deadline:
            time.sleep(0.01)
        assert progress[0] >= 100
        waits = []
        for _ in range(5):
            before = progress[0]
            with Tagger(settings) as tagger:
                (record,) = tagger.tag([str(photos / "chelsea.png")])
            assert record.error is None
            waits.append(progress[0] - before)
        # A batch is 4 images; the huge client may have 32 under way.
        assert sorted(waits)[2] <= 32
        assert progress[0] < len(huge)
    finally:
        over.set()
        thread.join(30)
    assert not thread.is_alive()


def copied_bundle(place: Path) -> str:
    """A model of another kind: the same one in another directory."""
    shutil.copytree(bundle.find("imagenet-zh"), place)
    return str(place)


def test_at_most_three_are_cached(photos: Path, tmp_path: Path) -> None:
    """Starting a worker of a fourth kind ends the one that has been idle longest."""
    models = [copied_bundle(tmp_path / f"model{number}") for number in range(4)]
    up: list[set[str]] = []
    for model in models:
        settings = TagOptions(spec=WorkerSpec(model=model), runner="local")
        with Tagger(settings) as tagger:
            (record,) = tagger.tag([str(photos / "chelsea.png")])
        assert record.error is None
        time.sleep(0.05)
        up.append({place.key for place in address.listed()})
    deadline = time.monotonic() + 5
    while len(address.listed()) > 3 and time.monotonic() < deadline:
        time.sleep(0.05)
    left = {place.key for place in address.listed()}
    assert [len(keys) for keys in up[:3]] == [1, 2, 3]
    assert len(left) == 3
    assert not up[0] <= left  # the first one, idle longest, is the one that is gone
