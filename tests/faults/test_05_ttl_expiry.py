"""Fault 5: a request comes at the moment at which its worker ends (llama-swap 946).

It must be served, by the old worker or by a new one: never an error, never a hang.
"""

from __future__ import annotations

import time
from typing import Any

import pytest

from wuwan_runner import Tagger, TagOptions
from wuwan_runner.options import WorkerSpec

TTL = 1.0
# Seconds before and after the end of the TTL at which the next request comes.
OFFSETS = (-0.05, -0.03, -0.02, -0.01, -0.005, 0.0, 0.005, 0.01, 0.03, 0.05)


def _around_the_end(tools: Any, options: TagOptions, offsets: tuple[float, ...]) -> None:
    album = tools.album(1)
    for offset in (-TTL, *offsets):
        # The TTL counts from the client's leaving, which is when the last run has ended.
        time.sleep(TTL + offset)
        started = time.monotonic()
        with Tagger(options) as tagger:
            records = [record.to_dict() for record in tagger.tag([album.root])]
        assert time.monotonic() - started < 20
        album.check(records, tools.expected)


def test_local(tools: Any) -> None:
    _around_the_end(tools, TagOptions(runner="local", ttl=TTL), OFFSETS)


@pytest.mark.docker
@pytest.mark.parametrize("channel", ["socket", "exec"])
def test_docker(tools: Any, docker_image: str, channel: str) -> None:
    options = TagOptions(
        spec=WorkerSpec(image=docker_image), runner="docker", ttl=TTL, channel=channel
    )
    if channel == "socket":
        _around_the_end(tools, options, OFFSETS[::2])
    else:
        # Reaching the container takes a few tenths of a second: the end falls in between.
        _around_the_end(tools, options, (-0.4, -0.3, -0.2, -0.1, 0.0))
