"""Fault 7: the container reaches its memory limit and the kernel kills it (moby 15621)."""

from __future__ import annotations

import time
from typing import Any

import pytest

pytestmark = pytest.mark.docker


@pytest.mark.parametrize("channel", ["socket", "exec"])
def test_culprit_is_found_and_the_others_are_tagged(
    tools: Any, wuwan: Any, fault_image: str, channel: str
) -> None:
    album = tools.album(20, {9: "hungry"})
    done = wuwan(
        *("tag", album.root, "--runner", "docker", "--image", fault_image, "--ttl", 2),
        *("--memory", "256m", "--channel", channel),
    )
    messages = done.stderr.decode()
    assert done.returncode == 3, messages
    records = tools.parsed(done.stdout)
    album.check(records, tools.expected)
    assert records[9]["error"]["code"] == "worker_crashed"
    assert "likely out of memory" in records[9]["error"]["message"]
    assert "likely out of memory" in messages
    assert "--memory" in messages


@pytest.mark.parametrize("channel", ["socket", "exec"])
def test_limit_in_which_no_model_loads(
    tools: Any, wuwan: Any, docker_image: str, channel: str
) -> None:
    started = time.monotonic()
    done = wuwan(
        *("tag", tools.album(20).root, "--runner", "docker", "--image", docker_image),
        *("--memory", "48m", "--channel", channel, "--ttl", 2),
    )
    messages = done.stderr.decode()
    assert done.returncode == 4, messages
    assert "likely out of memory" in messages
    assert "--memory" in messages
    assert time.monotonic() - started < 20
    assert done.stdout == b""
