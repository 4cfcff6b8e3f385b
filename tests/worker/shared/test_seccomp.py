"""The filter for system calls, in processes of their own."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

import wuwan_worker
from wuwan_worker.shared import seccomp

PACKAGES = Path(wuwan_worker.__file__).parents[1]
_PREAMBLE = """
import ctypes, os, signal, socket, sys, threading
from wuwan_worker.shared import seccomp
def restricted(**options):
    ctypes.CDLL(None).prctl(38, 1, 0, 0, 0)  # PR_SET_NO_NEW_PRIVS
    seccomp.restrict(**options)
def refused(attempt):
    try:
        attempt()
    except PermissionError:
        return True
    return False
"""
pytestmark = pytest.mark.skipif(not seccomp.offered(), reason="no filters here")


def run(script: str, *arguments: object) -> None:
    """Run that script in a process which may restrict itself."""
    command = [sys.executable, "-c", _PREAMBLE + script, *map(str, arguments)]
    environment = os.environ | {"PYTHONPATH": str(PACKAGES)}
    done = subprocess.run(
        command, env=environment, capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr


def test_what_is_refused_and_what_is_not(tmp_path: Path) -> None:
    """What a descriptor for reading would allow is refused; threads, signals to oneself go on."""
    photo = tmp_path / "photo"
    photo.write_bytes(b"kept")
    before = photo.stat()
    run(
        """
descriptor = os.open(sys.argv[1], os.O_RDONLY)
listener = socket.socket(socket.AF_UNIX)
listener.bind("\\0" + sys.argv[2])
listener.listen()
client = socket.socket(socket.AF_UNIX)
client.connect("\\0" + sys.argv[2])
restricted()
for attempt in (
    lambda: os.fchmod(descriptor, 0),
    lambda: os.utime(descriptor, (0, 0)),
    lambda: os.fchown(descriptor, 1, 1),
    lambda: os.setxattr(descriptor, "user.x", b"x"),
    lambda: socket.socket(socket.AF_INET, socket.SOCK_DGRAM),
    lambda: socket.socketpair(),
    lambda: os.fork(),
    lambda: os.posix_spawn("/bin/true", ["true"], {}),
    lambda: os.kill(os.getppid(), 0),
    lambda: os.pidfd_open(os.getppid()),
):
    assert refused(attempt), attempt
os.kill(os.getpid(), 0)
thread = threading.Thread(target=lambda: os.pread(descriptor, 4, 0))
thread.start()
thread.join()
accepted, _ = listener.accept()
socket.send_fds(client, [b"x"], [descriptor])
_, received, _, _ = socket.recv_fds(accepted, 1, 1)
assert os.pread(received[0], 4, 0) == b"kept"
""",
        photo,
        f"wuwan-test-seccomp-{os.getpid()}",
    )
    after = photo.stat()
    assert (after.st_mode, after.st_ctime_ns) == (before.st_mode, before.st_ctime_ns)


def test_threads_that_are_there_already() -> None:
    """It holds for them, too."""
    run(
        """
go, found = threading.Event(), []
def work():
    go.wait(10)
    found.append(refused(lambda: socket.socket()))
thread = threading.Thread(target=work)
thread.start()
restricted()
go.set()
thread.join()
assert found == [True]
"""
    )


def test_sockets_where_they_are_needed() -> None:
    """CUDA's driver has some of its own; all else is refused as before."""
    run(
        """
restricted(sockets=True)
a, b = socket.socketpair()
assert refused(os.fork)
"""
    )


def test_an_architecture_that_is_not_known(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its numbers would mean something else, so nothing is tried."""
    known = os.uname()
    other = os.uname_result((known.sysname, known.nodename, known.release, known.version, "s390x"))
    monkeypatch.setattr(os, "uname", lambda: other)
    assert not seccomp.offered()
    with pytest.raises(OSError, match="s390x"):
        seccomp.restrict()
