"""Fault 6: a container that starts and never becomes a worker (cog: Start fails before Stop).

It must be removed, its last words shown, and the next run must not stumble over it.
"""

from __future__ import annotations

import time
from typing import Any

import pytest

from tests.starting import request_for
from wuwan_runner import Tagger, TagOptions
from wuwan_runner.containers import container, daemon, exec_channel
from wuwan_runner.errors import WorkerUnavailableError
from wuwan_runner.launchers.docker import DockerLauncher
from wuwan_runner.options import Timeouts, WorkerSpec

pytestmark = pytest.mark.docker
CHANNELS = pytest.mark.parametrize("channel", ["socket", "exec"])
LAST_WORDS = "libgomp: cannot allocate thread"


def _shell(script: str) -> list[str]:
    return ["sh", "-c", script]


@CHANNELS
def test_exits_at_once(
    tools: Any, wuwan: Any, fault_image: str, fault_image_with: Any, channel: str
) -> None:
    broken = fault_image_with(_shell(f"echo {LAST_WORDS!r} >&2; exit 7"))
    album = tools.album(3)
    arguments = ("tag", album.root, "--runner", "docker", "--channel", channel, "--ttl", 2)
    started = time.monotonic()
    done = wuwan(*arguments, "--image", broken)
    messages = done.stderr.decode()
    assert done.returncode == 4, messages
    assert time.monotonic() - started < 20
    assert done.stdout == b""
    assert LAST_WORDS in messages or "exit code 7" in messages
    assert "hint:" in messages
    assert not tools.inventory.all()
    # The next run is clean, with the broken image as with a good one.
    assert wuwan(*arguments, "--image", broken).returncode == 4
    done = wuwan(*arguments, "--image", fault_image)
    assert done.returncode == 0, done.stderr.decode()
    album.check(tools.parsed(done.stdout), tools.expected)


def test_creator_died_before_it_could_start(
    tools: Any, wuwan: Any, docker_image: str, created: Any
) -> None:
    """Over the exec channel the container's name is the lock: a dead run must not keep it."""
    spec = WorkerSpec(image=docker_image)
    launcher = DockerLauncher()
    request = request_for(launcher, spec, ttl=2.0)
    name = f"{tools.inventory.namespace}-{request.key}-0"
    with daemon.connected(30) as client:
        listen = ["--listen", exec_channel.LISTEN_NAME]
        container.create(client, request, name, listen)
    assert tools.inventory.containers() == [name]
    album = tools.album(3)
    done = wuwan(
        *("tag", album.root, "--runner", "docker", "--channel", "exec"),
        *("--ttl", 2, "--image", docker_image),
    )
    assert done.returncode == 0, done.stderr.decode()
    album.check(tools.parsed(done.stdout), tools.expected)
    assert created.names() == [name]


@CHANNELS
@pytest.mark.parametrize("what", ["never-a-worker", "loads-forever"])
def test_never_becomes_ready(
    tools: Any, wuwan: Any, fault_image: str, fault_image_with: Any, channel: str, what: str
) -> None:
    broken = {
        "never-a-worker": fault_image_with(_shell(f"echo {LAST_WORDS!r} >&2; sleep infinity")),
        "loads-forever": fault_image_with(WUWAN_FAULT_LOAD="sleep:300"),
    }[what]
    album = tools.album(3)
    options = TagOptions(
        spec=WorkerSpec(image=broken),
        runner="docker",
        channel=channel,
        ttl=2,
        timeouts=Timeouts(start=2.5, batch=1.0, per_image=0.1),
        max_restarts=1,
    )
    started = time.monotonic()
    with Tagger(options) as tagger, pytest.raises(WorkerUnavailableError) as caught:
        list(tagger.tag([album.root]))
    assert time.monotonic() - started < 25
    if what == "never-a-worker" and channel == "socket":
        assert LAST_WORDS in str(caught.value)
    assert caught.value.hint
    tools.eventually(lambda: not tools.inventory.containers(), 5, "the container is removed")
    done = wuwan(
        *("tag", album.root, "--runner", "docker", "--channel", channel),
        *("--ttl", 2, "--image", fault_image),
    )
    assert done.returncode == 0, done.stderr.decode()
    album.check(tools.parsed(done.stdout), tools.expected)
