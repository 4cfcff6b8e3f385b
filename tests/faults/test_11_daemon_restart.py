"""Fault 11: the Docker daemon is restarted in the middle of a batch (moby 46308).

The daemon here is the test's own. It also listens on TCP, as a daemon on another machine does.
"""

from __future__ import annotations

import contextlib
import json
import signal
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tests.faults.own_daemon import Daemon, running

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

pytestmark = [pytest.mark.docker, pytest.mark.timeout(180)]

SLOW = "0.1"  # seconds for each image, so that the run is still going when the daemon ends


@pytest.fixture(scope="module")
def daemon() -> Iterator[Daemon]:
    """The daemon, up."""
    with running() as own:
        yield own


@pytest.fixture(scope="module")
def image(daemon: Daemon, fault_image_with: Callable[..., str]) -> str:
    """The image that the daemon has."""
    name = fault_image_with(WUWAN_FAULT_DECODE=SLOW)
    daemon.load(name)
    return name


@pytest.fixture
def host(
    request: pytest.FixtureRequest, daemon: Daemon, monkeypatch: pytest.MonkeyPatch, tools: Any
) -> Iterator[str]:
    """DOCKER_HOST, by way of the transport that the test names; nothing is left there after."""
    transport = getattr(request, "param", "unix")
    monkeypatch.setenv("DOCKER_HOST", daemon.unix if transport == "unix" else daemon.tcp)
    yield transport
    with contextlib.suppress(AssertionError):
        tools.eventually(lambda: not daemon.containers(), 20)
    left = daemon.containers()
    for name in left:
        daemon.command("rm", "-f", name)
    assert not left


def _running(tools: Any, arguments: tuple[Any, ...], partial: Path) -> Any:
    """A run with at least three records in its file."""
    run = tools.start(*arguments)
    tools.eventually(
        lambda: partial.exists() and partial.read_bytes().count(b"\n") >= 3, 60, "three records"
    )
    return run


@pytest.mark.parametrize(
    ("host", "number"),
    [
        pytest.param("unix", signal.SIGTERM, id="restart-unix"),
        pytest.param("tcp", signal.SIGTERM, id="restart-tcp"),
        pytest.param("unix", signal.SIGKILL, id="crash-unix"),
    ],
    indirect=["host"],
)
def test_restart_mid_batch(
    tools: Any, wuwan: Any, daemon: Daemon, host: str, image: str, tmp_path: Path, number: int
) -> None:
    """The run recovers, or ends with exit 4 and a sentence; taken up again, it completes."""
    target, partial = tmp_path / "tags.jsonl", tmp_path / "tags.jsonl.partial"
    album = tools.album(60)
    arguments = ("tag", album.root, "-o", target, "--image", image, "--runner", "docker")
    arguments += ("--ttl", 3, "--batch-size", 4)
    run = _running(tools, arguments, partial)
    daemon.stop(number)
    daemon.start()
    code, _, messages = run.finish(90)
    assert code in (0, 4), messages
    assert "Traceback" not in messages
    if code == 4:
        # It may have met the daemon when it was down, or while it went down or came up.
        assert "hint: " in messages or "Docker refused" in messages
        assert "--resume goes on from there" in messages
        assert not target.exists()
        kept = tools.parsed(partial.read_bytes())
        assert len(kept) >= 3
        done = wuwan(*arguments, "--resume")
        assert done.returncode == 0, done.stderr
        assert tools.parsed(target.read_bytes())[: len(kept)] == kept
    album.check(tools.parsed(target.read_bytes()), tools.expected)


def test_daemon_that_is_down(tools: Any, wuwan: Any, daemon: Daemon, host: str, image: str) -> None:
    arguments = ("tag", tools.album(4).root, "--image", image, "--runner", "docker")
    daemon.stop()
    started = time.monotonic()
    try:
        done = wuwan(*arguments)
    finally:
        daemon.start()
    assert time.monotonic() - started < 30
    assert done.returncode == 4
    assert b"no Docker daemon answers at unix://" in done.stderr
    assert b"hint: start it" in done.stderr
    assert done.stdout == b""
    done = wuwan(*arguments, "--ttl", 1)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("host", ["tcp"], indirect=True)
def test_remote_daemon(
    tools: Any, wuwan: Any, daemon: Daemon, host: str, image: str, namespace: str
) -> None:
    """DOCKER_HOST=tcp://…: the exec channel is chosen by itself; the verbs find the worker."""
    album = tools.album(8)
    arguments = ("tag", album.root, "--image", image, "--runner", "docker", "--ttl", 60)
    for _ in range(2):
        done = wuwan(*arguments)
        assert done.returncode == 0, done.stderr
        album.check(tools.parsed(done.stdout), tools.expected)
    (container,) = daemon.containers()  # the second run found it warm
    inspected = json.loads(daemon.command("inspect", container).stdout)[0]
    assert inspected["Config"]["Labels"]["io.wuwan.listens"] == "inside"
    assert inspected["Mounts"] == []
    listed = [json.loads(line) for line in wuwan("ps", "--json").stdout.splitlines()]
    assert [(worker["name"], worker["images_done"]) for worker in listed] == [(container, 16)]
    assert container.encode() in wuwan("ps").stdout
    logs = wuwan("logs", container)
    assert logs.returncode == 0
    assert b"ready" in logs.stdout
    stopped = wuwan("stop", container)
    assert stopped.returncode == 0, stopped.stderr
    assert stopped.stdout.decode() == f"{container} stopped\n"
    tools.eventually(lambda: not daemon.containers(), 10, "the container is gone")
    assert wuwan("ps").stdout == b"no worker is up\n"
