"""Landlock, in processes of their own: what is given up stays so."""

from __future__ import annotations

import ctypes
import errno
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import wuwan_worker
from wuwan_worker.shared import landlock

PACKAGES = Path(wuwan_worker.__file__).parents[1]
_PREAMBLE = """
import ctypes, os, sys, threading
from pathlib import Path
from wuwan_worker.shared import landlock
ctypes.CDLL(None).prctl(38, 1, 0, 0, 0)  # PR_SET_NO_NEW_PRIVS
root = Path(sys.argv[1])
def refused(attempt):
    try:
        attempt()
    except PermissionError:
        return True
    return False
"""


def _abi() -> int:
    try:
        return landlock.abi()
    except OSError:
        return 0


needs_landlock = pytest.mark.skipif(not _abi(), reason="this kernel has no Landlock")


def run(script: str, root: Path) -> None:
    """Run that script in a process which may restrict itself."""
    command = [sys.executable, "-c", _PREAMBLE + script, str(root)]
    environment = os.environ | {"PYTHONPATH": str(PACKAGES)}
    done = subprocess.run(
        command, env=environment, capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr


@needs_landlock
def test_reading_goes_on_and_writing_does_not(tmp_path: Path) -> None:
    """Files are read, one that was open for writing still is; nothing is opened for that anew."""
    (tmp_path / "file").write_bytes(b"kept")
    run(
        """
before = open(root / "before", "wb", buffering=0)
assert landlock.restrict() == landlock.abi()
assert (root / "file").read_bytes() == b"kept"
assert os.listdir(root)
before.write(b"more")
assert refused(lambda: open(root / "file", "r+b"))
assert refused(lambda: open(root / "new", "wb"))
assert refused((root / "file").unlink)
assert refused((root / "directory").mkdir)
assert refused(lambda: os.execv("/bin/sh", ["sh", "-c", "exit 9"]))
""",
        tmp_path,
    )
    assert (tmp_path / "file").read_bytes() == b"kept"
    assert (tmp_path / "before").read_bytes() == b"more"


@needs_landlock
def test_threads_that_are_started_later_have_no_more(tmp_path: Path) -> None:
    """What a thread gives up those that it starts do not have either, nor can they get it back."""
    run(
        """
landlock.restrict()
found = []
thread = threading.Thread(target=lambda: found.append(refused((root / "new").touch)))
thread.start()
thread.join()
assert found == [True]
landlock.restrict([root])
assert refused((root / "new").touch)
""",
        tmp_path,
    )


@needs_landlock
def test_what_is_excepted(tmp_path: Path) -> None:
    """A device, or a directory's files, can be written to, none made; absent ones do no harm."""
    (tmp_path / "file").write_bytes(b"")
    run(
        """
landlock.restrict([Path("/dev/null"), root / "absent", root])
open("/dev/null", "w").close()
(root / "file").write_bytes(b"written")
assert refused((root / "new").touch)
assert refused((root / "file").unlink)
""",
        tmp_path,
    )
    assert (tmp_path / "file").read_bytes() == b"written"


@pytest.mark.parametrize("code", [errno.ENOSYS, errno.EPERM, errno.EOPNOTSUPP])
def test_a_kernel_without_it(monkeypatch: pytest.MonkeyPatch, code: int) -> None:
    """The reason is the kernel's, and nothing is half done."""

    class Syscall:
        restype: Any = None

        def __call__(self, *_: Any) -> int:
            ctypes.set_errno(code)
            return -1

    class Kernel:
        def __init__(self, *_: object, **__: object) -> None:
            self.syscall = Syscall()

    monkeypatch.setattr(ctypes, "CDLL", Kernel)
    with pytest.raises(OSError, match=os.strerror(code)) as caught:
        landlock.restrict()
    assert caught.value.errno == code


def test_what_holds_in_words() -> None:
    """Each version has what the ones before have, and more."""
    assert landlock.holds(1) == "no file written, made, removed, run"
    assert "TCP" not in landlock.holds(3)
    assert "TCP" in landlock.holds(4)
    assert landlock.holds(99) == landlock.holds(6)
