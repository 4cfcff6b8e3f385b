"""Fault 4: several clients start the same worker at once (docker-py 3312, llama-swap 220).

Names collide, two models are loaded where one was wanted, or a client finds a container that is
being removed.
"""

from __future__ import annotations

import random
import subprocess
import threading
import time
from typing import Any

import pytest

REMOVALS = 6
CHANNELS = pytest.mark.parametrize("channel", ["socket", "exec"])


def _on_a_barrier(tools: Any, albums: list[Any], *arguments: object) -> None:
    """Runs that have come up and wait for their list of paths get it at the same moment."""
    runs = [
        tools.start("tag", "--files-from", "-", *arguments, stdin=subprocess.PIPE) for _ in albums
    ]
    time.sleep(1.0 + 0.2 * len(runs))
    assert all(run.running for run in runs)
    assert not tools.inventory.containers()
    lists = [("\n".join(album.paths) + "\n").encode() for album in albums]
    for run, paths in zip(runs, lists, strict=True):
        run.process.stdin.write(paths)
        run.process.stdin.close()
        run.process.stdin = None
    for run, album in zip(runs, albums, strict=True):
        code, output, messages = run.finish(90)
        assert code == 0, messages
        album.check(tools.parsed(output), tools.expected)


@pytest.mark.docker
@pytest.mark.parametrize(("channel", "count"), [("socket", 2), ("socket", 8), ("exec", 8)])
def test_one_container_for_all(
    tools: Any, docker_image: str, created: Any, channel: str, count: int
) -> None:
    albums = [tools.album(6) for _ in range(count)]
    _on_a_barrier(
        *(tools, albums, "--runner", "docker", "--image", docker_image),
        *("--channel", channel, "--ttl", 5),
    )
    assert len(created.names()) == 1


def test_one_local_process_for_all(tools: Any, wuwan: Any, parsed: Any) -> None:
    albums = [tools.album(6) for _ in range(8)]
    _on_a_barrier(tools, albums, "--runner", "local", "--ttl", 5)
    assert len(tools.inventory.processes()) == 1


@pytest.mark.docker
@CHANNELS
@pytest.mark.parametrize("way", ["stop", "rm"])
def test_removed_while_it_is_started_again(
    tools: Any, wuwan: Any, docker_image: str, channel: str, way: str
) -> None:
    """Clients that come while the worker is drained, killed or being removed are served."""
    over = threading.Event()
    removed: list[str] = []

    def remove() -> None:
        # Not for ever: on a busy machine a start may take longer than what is between two of them.
        while len(removed) < REMOVALS and not over.wait(random.uniform(0.3, 1.5)):
            for name in tools.inventory.containers():
                if way == "rm":
                    tools.docker("rm", "-f", name, check=False)
                elif channel == "exec":
                    # `wuwan stop` finds those only if the daemon is elsewhere; it does the same.
                    tools.docker("kill", "--signal", "TERM", name, check=False)
                else:
                    wuwan("stop", "--all", timeout=60)
                removed.append(name)

    thread = threading.Thread(target=remove)
    thread.start()
    try:
        rounds, deadline = 0, time.monotonic() + 60
        # Two rounds may be over before the first removal.
        while rounds < 2 or not (removed or time.monotonic() > deadline):
            rounds += 1
            albums = [tools.album(8), tools.album(8)]
            runs = [
                tools.start(
                    *("tag", album.root, "--runner", "docker", "--image", docker_image),
                    *("--channel", channel, "--ttl", 5),
                )
                for album in albums
            ]
            for run, album in zip(runs, albums, strict=True):
                code, output, messages = run.finish(60)
                assert code == 0, messages
                album.check(tools.parsed(output), tools.expected)
    finally:
        over.set()
        thread.join(60)
    assert removed
