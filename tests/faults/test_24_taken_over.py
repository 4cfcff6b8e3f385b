"""Fault 24: an image takes over the decoder that reads it (libwebp's CVE-2023-4863, for one).

The worker is the real one, and what was taken over is one of its decode threads. What it was
handed it can read; it writes nothing, starts nothing, reaches nobody, and the worker goes on.
"""

from __future__ import annotations

import socket
import subprocess
import sys
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

import pytest

from tests.faults.support import address_of
from wuwan_runner.options import WorkerSpec
from wuwan_runner.wire import control
from wuwan_worker.shared import landlock, seccomp

if TYPE_CHECKING:
    from pathlib import Path

ATTEMPTS = 70  # at least


def _needed() -> None:
    if not seccomp.offered():
        pytest.skip("this kernel has no system call filters")
    try:
        landlock.abi()
    except OSError as error:
        pytest.skip(f"this kernel has no Landlock: {error}")


@pytest.fixture
def files(tmp_path: Path) -> Path:
    """The user's files, which anybody may write to."""
    root = tmp_path / "files"
    root.mkdir()
    root.chmod(0o777)
    (root / "file").write_bytes(b"kept")
    (root / "file").chmod(0o666)
    (root / "program").write_text(f"#!/bin/sh\ntouch {root}/ran\n")
    (root / "program").chmod(0o777)
    return root


def _state(*paths: Path) -> list[tuple[Any, ...]]:
    """All that could have been done to those files but reading them."""
    found = []
    for path in paths:
        status = path.stat()
        known = (status.st_mode, status.st_uid, status.st_mtime_ns, status.st_ctime_ns)
        found.append((path.name, *known, path.read_bytes() if path.is_file() else b""))
    return found


def test_taken_over(tools: Any, wuwan: Any, faulty_local: Any, files: Path, tmp_path: Path) -> None:
    """Every attempt is refused, nothing is changed, and photos before and after have labels."""
    _needed()
    # Whoever has the descriptor of a photo that anybody may write to could open it anew.
    album = tools.album(12, {5: "attack", 6: "attack"})
    photos = [album.root / "005-fault.jpg", album.root / "006-fault.jpg"]
    for photo in photos:
        photo.chmod(0o666)
    name = str(tmp_path / "listens")
    with ExitStack() as stack:
        heard = []
        for family, kind, where in (
            (socket.AF_INET, socket.SOCK_STREAM, ("127.0.0.1", 0)),
            (socket.AF_UNIX, socket.SOCK_STREAM, name),
            (socket.AF_UNIX, socket.SOCK_STREAM, f"\0{name}"),
        ):
            heard.append(stack.enter_context(socket.socket(family, kind)))
            heard[-1].bind(where)
            heard[-1].listen()
        port = heard[0].getsockname()[1]
        heard.append(stack.enter_context(socket.socket(socket.AF_INET, socket.SOCK_DGRAM)))
        heard[-1].bind(("127.0.0.1", port))
        waits = [sys.executable, "-c", "import sys; sys.stdin.read()"]
        victim = stack.enter_context(subprocess.Popen(waits, stdin=subprocess.PIPE))
        faulty_local(
            WUWAN_ATTACK_VICTIM=str(victim.pid),
            WUWAN_ATTACK_PORT=str(port),
            WUWAN_ATTACK_SOCKET=name,
            WUWAN_ATTACK_FILES=str(files),
        )
        watched = [*photos, album.root, files, files / "file", files / "program"]
        before = _state(*watched)
        for _ in range(2):
            done = wuwan("tag", album.root, "--runner", "local", "--ttl", 60)
            assert done.returncode == 3, done.stderr.decode()
            records = tools.parsed(done.stdout)
            album.check(records, tools.expected)
            codes = [record["error"]["code"] for record in records if "error" in record]
            assert codes == ["not_an_image"] * 2
            assert b"was lost" not in done.stderr
        assert _state(*watched) == before
        assert not (files / "ran").exists()
        assert victim.poll() is None
        for sock in heard:
            sock.setblocking(False)
            with pytest.raises(BlockingIOError):
                sock.accept() if sock.type == socket.SOCK_STREAM else sock.recv(1)
        with control.attach(address_of("local", WorkerSpec()), 10.0) as worker:
            lines = worker.logs()
        victim.kill()
    said = [line.partition("attack: ")[2] for line in lines if "attack: " in line]
    tries = [line for line in said if "refused: " in line or line.endswith("DONE")]
    assert len(tries) >= ATTEMPTS
    assert [line for line in tries if line.endswith("DONE")] == []
    # Refused for being forbidden, not for being nonsense.
    others = [line for line in tries if "Permission denied" not in line]
    others = [line for line in others if "Operation not permitted" not in line]
    assert {line.partition(":")[0].partition(" in ")[0] for line in others} <= {
        "write descriptor",  # EBADF: it is open for reading
        "ftruncate descriptor",
        "tempfile",  # Python's: no directory will do
        "hard link",  # EXDEV, if that directory is on another disk
    }
    assert said.count("threads unrestricted: []") == 4
    assert said.count("dumpable: 0, core dumps: (0, 0)") == 4
    assert {line.rpartition(" ")[2][:7] for line in said if "over in" in line} == {"decode-"}
    assert [line for line in lines if "sandbox: Landlock ABI" in line]
    assert wuwan("stop", "--all").returncode == 0
