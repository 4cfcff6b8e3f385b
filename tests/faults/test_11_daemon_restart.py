"""Fault 11: the Docker daemon is restarted in the middle of a batch (moby 46308).

The daemon here is the test's own: its own directories, socket and containerd namespace, no bridge
and no iptables rule, so the machine's daemon notices nothing. It also listens on TCP, as a daemon
on another machine does.
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

pytestmark = [pytest.mark.docker, pytest.mark.timeout(180)]

START_TIMEOUT = 40.0  # seconds
STOP_TIMEOUT = 40.0  # it gives its containers 15
SLOW = "0.1"  # seconds for each image, so that the run is still going when the daemon ends


def _free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        port: int = sock.getsockname()[1]
    return port


class Daemon:
    """A dockerd of the test's own."""

    def __init__(self) -> None:
        # Short: a socket's path has 107 bytes.
        self.root = Path(tempfile.mkdtemp(prefix="wuwan-dockerd-"))
        self.unix = f"unix://{self.root}/s"
        self.tcp = f"tcp://127.0.0.1:{_free_port()}"
        self._process: subprocess.Popen[bytes] | None = None
        self._token = secrets.token_hex(4)

    def start(self) -> None:
        """Start it, and wait until it answers. After a SIGKILL a first attempt may fail."""
        deadline = time.monotonic() + START_TIMEOUT
        while time.monotonic() < deadline:
            self._start()
            assert self._process is not None
            while self._process.poll() is None and time.monotonic() < deadline:
                with contextlib.suppress(subprocess.TimeoutExpired):
                    if self.command("info", timeout=5).returncode == 0:
                        return
                time.sleep(0.1)
        raise AssertionError(f"no daemon: {self.log()}")

    def _start(self) -> None:
        (self.root / "pid").unlink(missing_ok=True)
        # Not the directory's name: it may end in an underscore, which containerd refuses.
        name = f"wuwan-test-{self._token}"
        with (self.root / "log").open("ab") as log:
            self._process = subprocess.Popen(
                [
                    "dockerd",
                    f"--data-root={self.root}/data",
                    f"--exec-root={self.root}/exec",
                    f"--pidfile={self.root}/pid",
                    f"--host={self.unix}",
                    f"--host={self.tcp}",
                    "--tls=false",
                    "--bridge=none",
                    "--iptables=false",
                    "--ip-forward=false",
                    "--ip-masq=false",
                    f"--containerd-namespace={name}",
                    f"--containerd-plugins-namespace={name}-plugins",
                ],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                # It outlives the test that starts it: nothing of that test's environment.
                env={"PATH": os.environ["PATH"]},
            )

    def stop(self, number: int = signal.SIGTERM) -> None:
        """End it by a signal."""
        if self._process is not None:
            self._process.send_signal(number)
            self._process.wait(STOP_TIMEOUT)
            self._process = None

    def command(self, *arguments: str, timeout: float = 30) -> subprocess.CompletedProcess[bytes]:
        """`docker ARGUMENTS…` on this daemon."""
        return subprocess.run(
            ["docker", "--host", self.unix, *arguments],
            capture_output=True,
            timeout=timeout,
            check=False,
        )

    def containers(self) -> list[str]:
        """Names of all containers."""
        done = self.command("ps", "-a", "--format={{.Names}}")
        assert done.returncode == 0, done.stderr
        return done.stdout.decode().split()

    def load(self, image: str) -> None:
        """Bring an image over from the machine's daemon."""
        with subprocess.Popen(["docker", "save", image], stdout=subprocess.PIPE) as save:
            done = subprocess.run(
                ["docker", "--host", self.unix, "load"],
                stdin=save.stdout,
                capture_output=True,
                timeout=120,
                check=False,
            )
        assert (save.returncode, done.returncode) == (0, 0), done.stderr

    def log(self) -> str:
        """The end of what it said."""
        return (self.root / "log").read_bytes()[-2000:].decode(errors="replace")

    def remove(self) -> None:
        """End it in good order, with all that it has made."""
        try:
            if self._process is None or self._process.poll() is not None:
                self.start()  # so that what a SIGKILL has left is cleaned up
            for name in self.containers():
                self.command("rm", "-f", name)
            self.stop()
        finally:
            if self._process is not None:
                self._process.kill()
                self._process.wait(10)
            for directory in ("data", "exec"):
                subprocess.run(
                    ["umount", "-l", str(self.root / directory)],
                    capture_output=True,
                    timeout=10,
                    check=False,
                )
            shutil.rmtree(self.root, ignore_errors=True)


@pytest.fixture(scope="module")
def daemon() -> Iterator[Daemon]:
    """The daemon, up."""
    if os.geteuid() != 0:
        pytest.skip("a daemon of the test's own needs root")
    if shutil.which("dockerd") is None:
        pytest.skip("a daemon of the test's own needs dockerd on PATH")
    own = Daemon()
    try:
        own.start()
        yield own
    finally:
        own.remove()


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
