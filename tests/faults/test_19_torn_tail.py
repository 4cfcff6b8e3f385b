"""Fault 19: a killed run leaves half a line and a lock (any tool with lock files).

The lock is the kernel's, so it dies with its holder. --resume takes over whole records of its own
inputs, in order, and does the rest again.
"""

from __future__ import annotations

import fcntl
import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

COMMON = ("--runner", "local", "--ttl", "5")


@pytest.fixture
def target(tmp_path: Path) -> Path:
    """What -o names."""
    return tmp_path / "标签.jsonl"


def _partial(target: Path) -> Path:
    return target.with_name(target.name + ".partial")


@pytest.fixture
def finished(tools: Any, wuwan: Any) -> tuple[Any, bytes]:
    """An album, and the records of a run that nothing disturbed."""
    album = tools.album(12, {4: "no image"})
    done = wuwan("tag", album.root, *COMMON)
    assert done.returncode == 3, done.stderr
    return album, done.stdout


def _tails(lines: list[bytes]) -> dict[str, bytes]:
    """What may stand after five good lines."""
    record = json.loads(lines[5])
    foreign = json.dumps(record | {"path": "/another/input.jpg"}).encode() + b"\n"
    newer = json.dumps(record | {"v": 99}).encode() + b"\n"
    character = lines[5].index("犬".encode()[:1]) + 1
    return {
        "nothing": b"",
        "half a line": lines[5][: len(lines[5]) // 2],
        "half a character": lines[5][:character],
        "a line without its end": lines[5].rstrip(b"\n"),
        "zeros, after a power cut": bytes(4096),
        "garbage, then good lines": b"\xff\xfe{]\n" + b"".join(lines[5:]),
        "another input's record": foreign + b"".join(lines[6:]),
        "a record of another version": newer,
        "records of inputs that are gone": b"".join(lines[5:]) + foreign,
    }


def test_every_tail_is_redone(wuwan: Any, target: Path, finished: tuple[Any, bytes]) -> None:
    album, output = finished
    lines = output.splitlines(keepends=True)
    for name, tail in _tails(lines).items():
        _partial(target).write_bytes(b"".join(lines[:5]) + tail)
        done = wuwan("tag", album.root, *COMMON, "-o", target, "--resume")
        assert done.returncode == 3, (name, done.stderr)  # the error record counts, too
        assert target.read_bytes() == output, name
        assert not _partial(target).exists()
        target.unlink()


def test_without_resume_all_is_done_again(
    wuwan: Any, target: Path, finished: tuple[Any, bytes]
) -> None:
    album, output = finished
    _partial(target).write_bytes(output[:1000] + b"torn")
    done = wuwan("tag", album.root, *COMMON, "-o", target)
    assert done.returncode == 3, done.stderr
    assert target.read_bytes() == output


def test_lock_of_a_dead_process(
    wuwan: Any, target: Path, finished: tuple[Any, bytes], tools: Any
) -> None:
    """While the holder lives: exit 5, nothing is touched. After its SIGKILL: the lock is ours."""
    album, output = finished
    lines = output.splitlines(keepends=True)
    left = b"".join(lines[:3]) + lines[3][:20]
    _partial(target).write_bytes(left)
    holder = subprocess.Popen(
        [
            sys.executable,
            "-c",
            (
                "import fcntl, sys, time; file = open(sys.argv[1], 'r+b');"
                "fcntl.flock(file, fcntl.LOCK_EX); print('held', flush=True); time.sleep(600)"
            ),
            str(_partial(target)),
        ],
        stdout=subprocess.PIPE,
    )
    try:
        assert holder.stdout is not None
        assert holder.stdout.readline() == b"held\n"
        for resume in ([], ["--resume"]):
            done = wuwan("tag", album.root, *COMMON, "-o", target, *resume)
            assert done.returncode == 5, done.stderr
            assert b"another run is writing" in done.stderr
            assert _partial(target).read_bytes() == left
    finally:
        holder.send_signal(signal.SIGKILL)
        holder.communicate(timeout=10)
    done = wuwan("tag", album.root, *COMMON, "-o", target, "--resume")
    assert done.returncode == 3, done.stderr
    assert target.read_bytes() == output


def test_resumed_run_that_ends_before_its_first_input(
    tools: Any, target: Path, finished: tuple[Any, bytes]
) -> None:
    """It has taken nothing over yet, and must not throw away what is there."""
    _, output = finished
    _partial(target).write_bytes(output)
    run = tools.start(
        *("tag", "--files-from", "-", *COMMON, "-o", target, "--resume"), stdin=subprocess.PIPE
    )
    tools.eventually(lambda: _locked(_partial(target)), 20, "the run has the lock")
    run.send(signal.SIGINT)
    assert run.finish()[0] == -signal.SIGINT
    assert _partial(target).read_bytes() == output
    assert not target.exists()


def _locked(path: Path) -> bool:
    descriptor = os.open(path, os.O_RDWR)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(descriptor)
    return False
