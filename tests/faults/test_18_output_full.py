"""Fault 18: nobody takes the records: the device is full, the pipe is closed (any Unix filter).

A full output is an error that is said once; a closed pipe is none. The worker is free for others at
once, and a file named by -o is whole or is not there.
"""

from __future__ import annotations

import os
import resource
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tests.faults.support import address_of, status_of
from wuwan_runner import WorkerSpec

if TYPE_CHECKING:
    from collections.abc import Iterator

RUNNERS = ["local", pytest.param("docker", marks=pytest.mark.docker)]


@pytest.fixture
def warm(request: pytest.FixtureRequest, wuwan: Any, runner: str) -> tuple[str, ...]:
    """The arguments for a worker that is up already."""
    arguments = ("--runner", runner, "--ttl", "60")
    if runner == "docker":
        arguments += ("--image", request.getfixturevalue("docker_image"))
    done = wuwan("warm", *arguments)
    assert done.returncode == 0, done.stderr
    return arguments


def _released(tools: Any, runner: str, warm: tuple[str, ...]) -> None:
    """The worker lives, without client and without work."""
    target = address_of(runner, WorkerSpec(image=warm[5] if runner == "docker" else ""))
    tools.eventually(lambda: status_of(target).idle_for is not None, 5, "the worker is released")


@pytest.mark.parametrize("runner", RUNNERS)
def test_full_device(tools: Any, wuwan: Any, runner: str, warm: tuple[str, ...]) -> None:
    album = tools.album(60)
    with open("/dev/full", "wb") as full:
        done = wuwan(
            "tag", album.root, *warm, stdout=full, stderr=subprocess.PIPE, capture_output=False
        )
    assert done.returncode == 1
    messages = done.stderr.decode()
    assert messages.count("No space left on device") == 1
    assert "Traceback" not in messages
    _released(tools, runner, warm)
    named = wuwan("tag", album.root, *warm, "-o", "/dev/full")
    assert named.returncode == 1
    assert b"/dev/full" in named.stderr
    _released(tools, runner, warm)


@pytest.mark.parametrize("runner", RUNNERS)
def test_reader_that_leaves(tools: Any, runner: str, warm: tuple[str, ...]) -> None:
    album = tools.album(300)
    command = [sys.executable, "-m", "wuwan_cli", "tag", str(album.root), *warm]
    script = '"$@" | head -n 1; echo "codes ${PIPESTATUS[*]}"'
    done = subprocess.run(
        ["/bin/bash", "-c", script, "bash", *command],
        capture_output=True,
        timeout=60,
        check=False,
    )
    line, end = done.stdout.splitlines()
    assert tools.parsed(line + b"\n")[0]["path"] == album.paths[0]
    assert end == b"codes 0 0"
    assert done.stderr == b""
    _released(tools, runner, warm)
    target = address_of(runner, WorkerSpec(image=warm[5] if runner == "docker" else ""))
    assert status_of(target).images_done < 300  # the run ended with its reader


@contextmanager
def _small_disk(directory: Path) -> Iterator[bool]:
    """A file system of 20 KB at that directory; False where none may be mounted."""
    directory.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=20k", "wuwan-test", str(directory)]
    mounted = (
        os.geteuid() == 0
        and subprocess.run(mount, capture_output=True, timeout=10, check=False).returncode == 0
    )
    try:
        yield mounted
    finally:
        if mounted:
            subprocess.run(
                ["umount", str(directory)],
                capture_output=True,
                timeout=10,
                check=True,
            )


def _limit_files() -> None:
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, resource.RLIM_INFINITY))


@pytest.mark.parametrize("runner", ["local"])
def test_full_disk(
    tools: Any, wuwan: Any, tmp_path: Path, runner: str, warm: tuple[str, ...]
) -> None:
    album = tools.album(80)
    with _small_disk(tmp_path / "disk") as mounted:
        target = tmp_path / "disk" / "tags.jsonl"
        limit = {} if mounted else {"preexec_fn": _limit_files}
        done = wuwan("tag", album.root, *warm, "-o", target, **limit)
        assert done.returncode == 1, done.stderr
        reason = b"No space left" if mounted else b"File too large"
        assert reason in done.stderr
        assert str(target).encode() in done.stderr
        assert b"Traceback" not in done.stderr
        assert not target.exists()
        kept = tools.parsed((tmp_path / "disk/tags.jsonl.partial").read_bytes())
        assert 0 < len(kept) < 80
        album.check_good(kept, tools.expected)
        _released(tools, runner, warm)
        # An older result is not lost to a run that fails.
        (tmp_path / "disk/tags.jsonl.partial").unlink()
        old = b'{"v":1,"path":"old.jpg","labels":[],"width":1,"height":1,"model":"m"}\n'
        target.write_bytes(old)
        assert wuwan("tag", album.root, *warm, "-o", target, **limit).returncode == 1
        assert target.read_bytes() == old
        if mounted:
            space = ["mount", "-o", "remount,size=1m", str(tmp_path / "disk")]
            subprocess.run(space, capture_output=True, timeout=10, check=True)
        done = wuwan("tag", album.root, *warm, "-o", target, "--resume")
        assert done.returncode == 0, done.stderr
        album.check(tools.parsed(target.read_bytes()), tools.expected)
        assert not (tmp_path / "disk/tags.jsonl.partial").exists()
