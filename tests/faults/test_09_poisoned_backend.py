"""Fault 9: the GPU is lost, and every call after the first failure fails too (TGI 965).

Such a process never recovers: it must be discarded, its images go elsewhere, and no other client
may be given to it.
"""

from __future__ import annotations

import time
from typing import Any

import pytest

from wuwan_runner import Tagger, TagOptions
from wuwan_runner.errors import WorkerUnavailableError

CAUSE = "an illegal memory access"


@pytest.mark.docker
@pytest.mark.parametrize("channel", ["socket", "exec"])
def test_container_is_discarded(
    tools: Any, wuwan: Any, fault_image_with: Any, created: Any, channel: str
) -> None:
    image = fault_image_with(WUWAN_FAULT_INFER_AFTER="8")
    album = tools.album(12)
    arguments = ("tag", album.root, "--runner", "docker", "--image", image, "--ttl", 20)
    arguments += ("--channel", channel, "--batch-size", 1)
    # 12 images one at a time need more than 8 calls, unless several meet in a batch.
    codes = []
    for _ in range(3):
        done = wuwan(*arguments)
        codes.append(done.returncode)
        assert done.returncode == 0, done.stderr.decode()
        album.check(tools.parsed(done.stdout), tools.expected)
        # The poisoned one goes; at most its successor waits for the next run. The daemon may take
        # a moment longer than the run to remove it.
        deadline = time.monotonic() + 10
        while len(tools.inventory.containers()) > 1 and time.monotonic() < deadline:
            time.sleep(0.1)
        assert len(tools.inventory.containers()) <= 1
    names = created.names()
    assert len(names) >= 2
    if channel == "socket":
        assert len(set(names)) == len(names)


def test_local_worker_is_discarded(tools: Any, wuwan: Any, faulty_local: Any) -> None:
    faulty_local(WUWAN_FAULT_INFER_AFTER="5")
    album = tools.album(30)
    done = wuwan("tag", album.root, "--runner", "local", "--ttl", 2)
    messages = done.stderr.decode()
    assert done.returncode == 0, messages
    album.check(tools.parsed(done.stdout), tools.expected)
    assert CAUSE in messages
    assert len(tools.inventory.processes()) <= 1


def test_run_that_makes_no_progress_ends(tools: Any, faulty_local: Any) -> None:
    """If every worker is poisoned from the start, a budget of restarts ends the run."""
    faulty_local(WUWAN_FAULT_INFER_AFTER="0")
    options = TagOptions(runner="local", ttl=1, max_restarts=3)
    with Tagger(options) as tagger, pytest.raises(WorkerUnavailableError, match=CAUSE) as caught:
        list(tagger.tag([tools.album(8).root]))
    assert caught.value.hint


def test_no_image_is_blamed_for_the_backend(tools: Any, wuwan: Any, faulty_local: Any) -> None:
    """If every worker dies on every image, it ends the run soon, and no image has a record."""
    faulty_local(WUWAN_FAULT_INFER_AFTER="0")
    album = tools.album(300)
    done = wuwan("tag", album.root, "--runner", "local", "--ttl", 1)
    assert done.returncode == 4, done.stderr.decode()
    assert done.stdout == b""
    assert done.stderr.count(b" was lost ") <= 21
    assert CAUSE in done.stderr.decode()
