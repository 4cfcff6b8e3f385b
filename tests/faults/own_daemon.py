"""A Docker daemon of a test's own.

It has its own directories, socket and containerd namespace, no bridge and no iptables rule, so the
machine's daemon notices nothing.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Iterator

START_TIMEOUT = 40.0  # seconds
STOP_TIMEOUT = 40.0  # it gives its containers 15


def _free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        port: int = sock.getsockname()[1]
    return port


class Daemon:
    """A dockerd, with more options if it needs them."""

    def __init__(self, *options: str) -> None:
        self._options = options
        # Short: a socket's path has 107 bytes.
        self.root = Path(tempfile.mkdtemp(prefix="wuwan-dockerd-"))
        self.root.chmod(0o711)  # remapped users have to get through
        self.root.chmod(0o711)  # root in its containers may be another user, and must get in
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
                    *self._options,
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


@contextlib.contextmanager
def running(*options: str) -> Iterator[Daemon]:
    """The daemon, up; skips the test where there can be none."""
    if os.geteuid() != 0:
        pytest.skip("a daemon of the test's own needs root")
    if shutil.which("dockerd") is None:
        pytest.skip("a daemon of the test's own needs dockerd on PATH")
    own = Daemon(*options)
    try:
        own.start()
        yield own
    finally:
        own.remove()
