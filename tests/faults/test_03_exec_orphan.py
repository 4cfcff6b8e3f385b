"""Fault 3: the client of a `docker exec` dies and what it ran goes on forever (moby 9994)."""

from __future__ import annotations

import signal
import time
from typing import Any

import pytest

pytestmark = pytest.mark.docker
TTL = 3


def _bridges(tools: Any) -> list[str]:
    """The bridge processes inside the containers of this test."""
    found: list[str] = []
    for name in tools.inventory.containers():
        processes = tools.docker("top", name, "-eo", "pid,args", check=False)
        found += [line for line in processes.splitlines() if "wuwan_worker.bridge" in line]
    return found


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_bridge_ends_with_its_client(tools: Any, fault_image_with: Any, number: int) -> None:
    image = fault_image_with(WUWAN_FAULT_DECODE="0.2")
    album = tools.album(60)
    arguments = ("--runner", "docker", "--image", image, "--channel", "exec", "--ttl", TTL)
    run = tools.start("tag", album.root, *arguments, "--batch-size", 1)
    run.lines(1)
    assert len(_bridges(tools)) == 1
    # A second client keeps the container up: the bridge must not just vanish with it.
    other = tools.start("tag", tools.album(30).root, *arguments, "--batch-size", 1)
    other.lines(1)
    assert len(_bridges(tools)) == 2
    run.send(number)
    run.finish()
    tools.eventually(lambda: len(_bridges(tools)) == 1, 5, "the bridge of the dead client is gone")
    assert len(tools.inventory.containers()) == 1
    code, _, messages = other.finish()
    assert code == 0, messages
    ended = time.monotonic()
    tools.eventually(lambda: not _bridges(tools), 5, "no bridge is left")
    tools.eventually(
        lambda: not tools.inventory.all(), TTL + 5 - (time.monotonic() - ended), "all is gone"
    )
