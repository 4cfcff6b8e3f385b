"""Processes of this user as workers: what is known of their end, and that they can be ended."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.runner.run.fake_worker import welcome
from wuwan_runner.launchers import local
from wuwan_runner.launchers.local import LocalHandle, LocalLauncher
from wuwan_runner.options import Timeouts
from wuwan_runner.worker import WorkerExit

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

DEADLINE = 10.0


@pytest.fixture
def process() -> Iterator[Callable[..., LocalHandle]]:
    """`process(SCRIPT, NAME)`: a shell in the place of a worker; none is left."""
    made: list[subprocess.Popen[bytes]] = []

    def make(script: str, name: str = "x") -> LocalHandle:
        log = os.memfd_create("wuwan-test-log")
        command = ["sh", "-c", script, "worker", f"--name={name}"]
        made.append(subprocess.Popen(command, stdout=log, stderr=log, start_new_session=True))
        return LocalHandle(name, made[-1], log)

    yield make
    for one in made:
        one.kill()
        one.wait(DEADLINE)
    local._reap()


@pytest.mark.parametrize(
    ("script", "expected"),
    [
        ("echo bye; exit 0", WorkerExit("exit code 0", "bye", in_order=True)),
        ("echo oh >&2; exit 3", WorkerExit("exit code 3", "oh")),
        ("kill -SEGV $$", WorkerExit("signal SIGSEGV")),
        ("kill -KILL $$", WorkerExit("signal SIGKILL")),
        ("kill -TERM $$", WorkerExit("signal SIGTERM", by_hand=True)),
        ("kill -INT $$", WorkerExit("signal SIGINT", by_hand=True)),
    ],
)
def test_how_it_ended(
    process: Callable[..., LocalHandle], script: str, expected: WorkerExit
) -> None:
    """Its exit code or its signal, and its last words; who sends SIGTERM by hand means it."""
    handle = process(script)
    assert handle.report() == expected
    handle.release()


def test_the_last_words_are_the_last(process: Callable[..., LocalHandle]) -> None:
    """Of a long log its end, cut wherever that is in the middle of a character."""
    handle = process("yes 狗狗 | head -n 3000; printf end; exit 1")
    lines = handle.report().log.splitlines()
    assert lines[-2:] == ["狗狗", "end"]
    assert 100 < len("\n".join(lines).encode()) < 5000
    handle.release()


def test_one_that_lives(process: Callable[..., LocalHandle]) -> None:
    """It has no end yet, and that is known after moments; then it is killed, and is gone."""
    handle = process("sleep 60")
    started = time.monotonic()
    assert handle.report() == WorkerExit()
    assert time.monotonic() - started < DEADLINE
    handle.kill()
    assert handle._process.returncode == -signal.SIGKILL


def test_one_that_is_released_leaves_no_zombie(process: Callable[..., LocalHandle]) -> None:
    """It lives on; when it has ended it is waited for as soon as another one is started or left."""
    first, second = process("read line <&-; sleep 60"), process("exit 0")
    first.release()
    assert first._process.poll() is None
    os.kill(first._process.pid, signal.SIGKILL)
    os.waitid(os.P_PID, first._process.pid, os.WEXITED | os.WNOWAIT)  # it is a zombie now
    assert Path(f"/proc/{first._process.pid}").exists()
    second._process.wait(DEADLINE)
    second.release()
    assert not Path(f"/proc/{first._process.pid}").exists()
    assert local._released == []


def test_released_twice(process: Callable[..., LocalHandle]) -> None:
    """Its log is closed once: the descriptor may be another file's by then."""
    handle = process("exit 0")
    log = handle._log
    handle.release()
    other = os.memfd_create("wuwan-test-other")
    try:
        assert other == log  # the lowest number that is free
        handle.release()
        os.fstat(other)
    finally:
        os.close(other)


def test_by_its_number(process: Callable[..., LocalHandle]) -> None:
    """A worker that another run has started is killed by its number, if that is still its own."""
    handle = process("kill -STOP $$", name="wuwan-a")
    pid = handle._process.pid
    # Popen returns when its pipe closes, and the kernel does that just before it has these.
    deadline = time.monotonic() + DEADLINE
    while not Path(f"/proc/{pid}/cmdline").read_bytes():
        assert time.monotonic() < deadline
    for name in ("wuwan-b", "wuwan"):
        LocalLauncher().kill(welcome(name=name, pid=pid), Timeouts())
        assert handle._process.poll() is None
    LocalLauncher().kill(welcome(name="wuwan-a", pid=pid), Timeouts())
    assert handle._process.wait(DEADLINE) == -signal.SIGKILL
    LocalLauncher().kill(welcome(name="wuwan-a", pid=pid), Timeouts())  # it is gone
    handle.release()
