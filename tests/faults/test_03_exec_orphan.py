"""Fault 3: the client of a `docker exec` dies and what it ran goes on forever (moby 9994)."""

from __future__ import annotations

import signal
import time
from typing import Any

import pytest

pytestmark = pytest.mark.docker
TTL = 2


def _bridges(tools: Any) -> list[str]:
    """The bridge processes inside the containers of this test."""
    found: list[str] = []
    for name in tools.inventory.containers():
        processes = tools.docker("top", name, "-eo", "pid,args", check=False)
        found += [line for line in processes.splitlines() if "wuwan_worker.serving.bridge" in line]
    return found


def test_bridge_ends_with_its_client(tools: Any, fault_image_with: Any) -> None:
    image = fault_image_with(WUWAN_FAULT_DECODE="0.2")
    arguments = ("--runner", "docker", "--image", image, "--channel", "exec", "--ttl", TTL)
    killed, terminated, other = (
        tools.start("tag", tools.album(count).root, *arguments, "--batch-size", 1)
        for count in (60, 60, 20)
    )
    for run in (killed, terminated, other):
        run.lines(1)
    assert len(_bridges(tools)) == 3
    # The third client keeps the container up: the bridges must not just vanish with it.
    for run, number, left in ((killed, signal.SIGKILL, 2), (terminated, signal.SIGTERM, 1)):
        run.send(number)
        run.finish()
        tools.eventually(lambda left=left: len(_bridges(tools)) == left, 5, "the bridge is gone")
    assert len(tools.inventory.containers()) == 1
    code, _, messages = other.finish()
    assert code == 0, messages
    ended = time.monotonic()
    tools.eventually(lambda: not _bridges(tools), 5, "no bridge is left")
    tools.eventually(
        lambda: not tools.inventory.all(), TTL + 5 - (time.monotonic() - ended), "all is gone"
    )
