"""Several runs that write to one place, as `xargs -P8` starts them: no line is torn."""

from __future__ import annotations

import contextlib
import json
import os
import select
import subprocess
import sys
import threading
import time
from collections import Counter
from typing import TYPE_CHECKING, Any

import pytest

from wuwan_runner.outputs.lines import write_lines

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

# Lines of each run, and labels of each: a line with all of them has about 100 KB.
RUNS = [(320, 5)] * 6 + [(40, 1000)] * 2
FEWER = [(40, 5)] * 3 + [(10, 1000)] * 2
Runs = list[tuple[int, int]]


def _tag(photo: Path, lists: Path, stdout: int, runs: Runs) -> list[subprocess.Popen[bytes]]:
    """Runs at the same time with that standard output."""
    lists.mkdir()
    processes = []
    for number, (count, top_k) in enumerate(runs):
        listed = lists / str(number)
        listed.write_text(f"{photo}\n" * count)
        command = ["-m", "wuwan_cli", "tag", "--runner=local", "-q", f"--top-k={top_k}"]
        arguments = [*command, f"--files-from={listed}"]
        processes.append(subprocess.Popen([sys.executable, *arguments], stdout=stdout))
    return processes


def _check(content: bytes, runs: Runs) -> None:
    """As many whole records of each kind as there must be, and nothing else."""
    lengths: Counter[int] = Counter()
    for line in content.splitlines():
        try:
            lengths[len(json.loads(line)["labels"])] += 1
        except ValueError:
            lengths[-1] += 1  # torn
    expected: Counter[int] = Counter()
    for count, top_k in runs:
        expected[top_k] += count
    assert lengths == expected
    assert max(map(len, content.splitlines())) > 10 * select.PIPE_BUF


@pytest.fixture
def photo(photos: Path, wuwan: Any) -> Path:
    """A photo, and a worker that is up."""
    assert wuwan("warm", "--runner=local").returncode == 0
    return photos / "rocket.jpg"


@contextlib.contextmanager
def _slowly(reader: int) -> Iterator[bytearray]:
    """Reads in the background, never as fast as eight runs write."""
    content = bytearray()

    def read() -> None:
        while chunk := os.read(reader, 1 << 16):
            content.extend(chunk)
            time.sleep(0.001)

    thread = threading.Thread(target=read)
    thread.start()
    try:
        yield content
    finally:
        thread.join(60)
        os.close(reader)


@pytest.mark.parametrize(
    ("kind", "runs"), [("pipe", RUNS), ("non-blocking pipe", FEWER), ("fifo", FEWER)]
)
def test_runs_share_a_pipe(photo: Path, tmp_path: Path, kind: str, runs: Runs) -> None:
    """Lines are whole, those that are longer than what a pipe takes in one piece among them."""
    if kind == "fifo":
        os.mkfifo(tmp_path / "fifo")
        reader = os.open(tmp_path / "fifo", os.O_RDONLY | os.O_NONBLOCK)
        os.set_blocking(reader, True)
        writer = os.open(tmp_path / "fifo", os.O_WRONLY)
    else:
        reader, writer = os.pipe()
    os.set_blocking(writer, kind != "non-blocking pipe")
    with _slowly(reader) as content:
        processes = _tag(photo, tmp_path / "lists", writer, runs)
        os.close(writer)
        assert {process.wait(timeout=90) for process in processes} == {0}
    _check(bytes(content), runs)


@pytest.mark.parametrize("flags", [os.O_APPEND, 0])
def test_runs_share_a_file(photo: Path, tmp_path: Path, flags: int) -> None:
    """`>> all.jsonl` and `> all.jsonl`, for all of them together."""
    target = tmp_path / "all.jsonl"
    descriptor = os.open(target, os.O_WRONLY | os.O_CREAT | flags)
    processes = _tag(photo, tmp_path / "lists", descriptor, FEWER)
    os.close(descriptor)
    assert {process.wait(timeout=90) for process in processes} == {0}
    _check(target.read_bytes(), FEWER)


def test_runs_append_to_a_file_that_each_has_opened(photo: Path, tmp_path: Path) -> None:
    """`>> all.jsonl` for each of them."""
    target = tmp_path / "all.jsonl"
    processes = []
    for number, run in enumerate(FEWER):
        descriptor = os.open(target, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        processes += _tag(photo, tmp_path / f"list-{number}", descriptor, [run])
        os.close(descriptor)
    assert {process.wait(timeout=90) for process in processes} == {0}
    _check(target.read_bytes(), FEWER)


def test_another_programs_short_lines_stay_whole(tmp_path: Path) -> None:
    """It knows nothing of our lock, but the kernel keeps short pieces together."""
    reader, writer = os.pipe()
    foreign = "import os\nfor _ in range(2000): os.write(1, b'x' * 99 + b'\\n')"
    with _slowly(reader) as content:
        process = subprocess.Popen([sys.executable, "-c", foreign], stdout=writer)
        for _ in range(500):
            write_lines(writer, [b"y" * 300 + b"\n"] * 20)
        assert process.wait(timeout=60) == 0
        os.close(writer)
    lines = bytes(content).splitlines()
    assert lines.count(b"x" * 99) == 2000
    assert lines.count(b"y" * 300) == 10_000
    assert len(lines) == 12_000


def test_a_killed_run_frees_the_others(tmp_path: Path) -> None:
    """The lock ends with its holder, who may hang in a write to a reader that reads nothing."""
    reader, writer = os.pipe()
    hung = (
        "from wuwan_runner.outputs.lines import write_lines\n"
        "write_lines(1, [b'x' * 200_000 + b'\\n'])"
    )
    with subprocess.Popen([sys.executable, "-c", hung], stdout=writer) as process:
        assert len(os.read(reader, 10)) == 10
        process.kill()
    with _slowly(reader) as content:
        write_lines(writer, [b"\n", b"whole\n"])
        os.close(writer)
    assert bytes(content).endswith(b"x\nwhole\n")
