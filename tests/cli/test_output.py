"""Where records go: `--output`, closed pipes, full disks, signals."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@contextlib.contextmanager
def running(*arguments: object) -> Iterator[subprocess.Popen[bytes]]:
    """A run that reads its list from a pipe, so that the test says when it ends."""
    process = subprocess.Popen(
        [sys.executable, "-m", "wuwan_cli", "tag", "--runner=local", *map(str, arguments)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    try:
        with process:
            yield process
            process.kill()
    finally:
        process.kill()


OLD = '{"v":1,"path":"old.jpg","error":{"code":"unreadable","message":"old"},"model":"m"}\n'
# More than a worker takes at a time: then records come although the list has no end yet.
MANY = 200


def feed(process: subprocess.Popen[bytes], photo: Path, count: int) -> None:
    """Put paths into the list."""
    assert process.stdin is not None
    process.stdin.write(f"{photo}\n".encode() * count)
    process.stdin.flush()


def ended(process: subprocess.Popen[bytes]) -> tuple[int, bytes]:
    """The return code, and what is on stderr."""
    assert process.stderr is not None
    errors = process.stderr.read()
    return process.wait(timeout=30), errors


def wait_for_records(path: Path, deadline: float = 30.0) -> None:
    """Wait until the file has at least one record."""
    end = time.monotonic() + deadline
    while not (path.exists() and path.stat().st_size):
        assert time.monotonic() < end
        time.sleep(0.02)


def test_the_file_appears_when_it_is_complete(wuwan: Any, photos: Path, tmp_path: Path) -> None:
    """It replaces the old one, keeps its mode, and a link to it stays a link."""
    target, link = tmp_path / "real.jsonl", tmp_path / "link.jsonl"
    target.write_text(OLD)
    target.chmod(0o640)
    link.symlink_to(target)
    done = wuwan("tag", "--runner=local", photos, "-o", link)
    assert (done.returncode, done.stdout) == (0, b""), done.stderr
    assert len([json.loads(line) for line in target.read_text().splitlines()]) == 4
    assert target.stat().st_mode & 0o777 == 0o640
    assert link.is_symlink()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["link.jsonl", "real.jsonl"]


def test_a_failed_run_leaves_the_old_file(wuwan: Any, photos: Path, tmp_path: Path) -> None:
    """No worker can be had: the old content stays, and no partial file."""
    target = tmp_path / "out.jsonl"
    target.write_text(OLD)
    done = wuwan("tag", "--runner=local", "--model=nope", photos, "-o", target)
    assert done.returncode == 4
    assert target.read_text() == OLD
    assert list(tmp_path.iterdir()) == [target]


@pytest.mark.parametrize("name", ["-", "/dev/stdout"])
def test_standard_output_by_name(wuwan: Any, photos: Path, name: str) -> None:
    """`-o -` is what no `-o` is."""
    done = wuwan("tag", "--runner=local", photos, "-o", name)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count(b"\n") == 4


def test_a_fifo_is_written_directly(wuwan: Any, photos: Path, tmp_path: Path) -> None:
    """Nothing is renamed over it."""
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    content: list[bytes] = []
    reader = threading.Thread(target=lambda: content.append(fifo.read_bytes()))
    reader.start()
    done = wuwan("tag", "--runner=local", photos, "-o", fifo)
    reader.join(30)
    assert done.returncode == 0, done.stderr
    assert content[0].count(b"\n") == 4
    assert fifo.is_fifo()


def test_a_full_disk_is_one_clear_line(wuwan: Any, photos: Path) -> None:
    """Exit code 1, whether the disk is full behind `-o` or behind standard output."""
    done = wuwan("tag", "--runner=local", photos, "-o", "/dev/full")
    assert done.returncode == 1
    assert done.stderr.startswith(b"wuwan: cannot write to /dev/full: No space left on device\n")
    with open("/dev/full", "wb") as full:
        settings = {"capture_output": False, "stdout": full, "stderr": subprocess.PIPE}
        done = wuwan("tag", "--runner=local", photos, **settings)
    assert done.returncode == 1
    assert b"cannot write to standard output: No space left on device" in done.stderr


def test_standard_output_closed(wuwan: Any, photos: Path) -> None:
    """An error, and no socket or file of ours takes the place of standard output."""
    done = wuwan("tag", "--runner=local", photos, preexec_fn=lambda: os.close(1))
    assert done.returncode == 1
    assert b"cannot write to standard output" in done.stderr


def test_a_closed_pipe_ends_quietly(photos: Path) -> None:
    """The reader leaves after one line (head): exit code 0 and not a word."""
    with running("-", "--batch-size=1") as process:
        assert process.stdout is not None
        assert process.stdin is not None
        feed(process, photos / "rocket.jpg", MANY)
        assert process.stdout.readline()
        process.stdout.close()
        process.stdin.close()
        assert ended(process) == (0, b"")


def test_two_runs_cannot_write_the_same_file(wuwan: Any, photos: Path, tmp_path: Path) -> None:
    """The second exits with 5 at once; the first is not disturbed."""
    target = tmp_path / "out.jsonl"
    with running("-", "-o", target, "-q") as process:
        assert process.stdin is not None
        feed(process, photos / "rocket.jpg", MANY)
        wait_for_records(tmp_path / "out.jsonl.partial")
        done = wuwan("tag", "--runner=local", photos, "-o", target)
        assert done.returncode == 5
        assert done.stderr.startswith(b"wuwan: another run is writing ")
        process.stdin.close()
        assert ended(process) == (0, b"")
    assert target.read_bytes().count(b"\n") == MANY


def test_what_a_killed_run_left_is_taken_over(wuwan: Any, photos: Path, tmp_path: Path) -> None:
    """A partial file without a holder is no lock."""
    target, partial = tmp_path / "out.jsonl", tmp_path / "out.jsonl.partial"
    partial.write_text(OLD * 1000 + OLD[:20])
    done = wuwan("tag", "--runner=local", photos, "-o", target)
    assert done.returncode == 0, done.stderr
    assert target.read_bytes().count(b"\n") == 4
    assert not partial.exists()


def test_records_of_another_model_are_not_gone_on_with(
    wuwan: Any, photos: Path, tmp_path: Path
) -> None:
    """A file with the labels of two models is of no use; it is left as it was."""
    target, partial = tmp_path / "out.jsonl", tmp_path / "out.jsonl.partial"
    done = wuwan("tag", "--runner=local", photos)
    first = done.stdout.splitlines(keepends=True)[0].replace(b'"imagenet-zh"', b'"another"')
    partial.write_bytes(first)
    done = wuwan("tag", "--runner=local", photos, "-o", target, "--resume")
    assert done.returncode == 2
    assert b"holds records of the model another" in done.stderr
    assert partial.read_bytes() == first


def test_an_output_without_a_name(wuwan: Any, photos: Path) -> None:
    """As from a variable that is not set; before anything is tagged."""
    done = wuwan("tag", "--runner=local", photos, "-o", "")
    assert (done.returncode, done.stdout) == (2, b"")
    assert b"--output is empty" in done.stderr


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_keeps_what_is_finished(photos: Path, tmp_path: Path, number: int) -> None:
    """We die of the signal itself; FILE is untouched, FILE.partial has whole records."""
    target, partial = tmp_path / "out.jsonl", tmp_path / "out.jsonl.partial"
    target.write_text(OLD)
    with running("-", "-o", target) as process:
        feed(process, photos / "rocket.jpg", MANY)
        wait_for_records(partial)
        process.send_signal(number)
        code, errors = ended(process)
    assert code == -number
    assert target.read_text() == OLD
    lines = partial.read_text().splitlines()
    assert [json.loads(line)["v"] for line in lines] == [1] * len(lines)
    records = "1 record" if len(lines) == 1 else f"{len(lines)} records"
    assert f"{records} kept in {partial}".encode() in errors
    assert b"Traceback" not in errors


def test_a_signal_while_the_worker_starts(photos: Path) -> None:
    """Nothing is written, and nothing hangs."""
    with running(photos) as process:
        time.sleep(0.4)
        process.send_signal(signal.SIGINT)
        code, errors = ended(process)
    assert code in (-signal.SIGINT, 0)  # 0: a fast machine was done before
    assert b"Traceback" not in errors


def test_an_ignored_signal_stays_ignored(photos: Path) -> None:
    """As under nohup, and for background jobs of scripts."""
    ignoring = (
        "import signal, subprocess, sys; signal.signal(signal.SIGINT, signal.SIG_IGN); "
        "sys.exit(subprocess.call([sys.executable, '-m', 'wuwan_cli', *sys.argv[1:]]))"
    )
    command = [sys.executable, "-c", ignoring, "tag", "--runner=local", "-q", "-"]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, start_new_session=True
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        feed(process, photos / "rocket.jpg", MANY)
        assert process.stdout.readline()
        os.killpg(process.pid, signal.SIGINT)
        process.stdin.close()
        assert process.stdout.read().count(b"\n") == MANY - 1
        assert process.wait(timeout=30) == 0
