"""Which sink a name means, and how it is told that a name means none."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
import threading
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from wuwan_runner import outputs
from wuwan_runner.errors import ExitCode, LockedError, OptionError, UsageError
from wuwan_runner.outputs.base import TargetError
from wuwan_runner.outputs.choose import is_stdout, opened, own_names
from wuwan_runner.outputs.file import FileSink
from wuwan_runner.outputs.jsonl import encoded
from wuwan_runner.outputs.stream import StreamSink
from wuwan_runner.records import ItemWarning, Record
from wuwan_worker.shared.protocol import WarningCode

if TYPE_CHECKING:
    from collections.abc import Callable

RECORD = Record(path="a.jpg", model="m", width=1, height=1)


@pytest.mark.parametrize("name", [None, "-", "/dev/stdout", "/dev/fd/1", "/proc/self/fd/1"])
def test_standard_output(name: str | None, capfd: pytest.CaptureFixture[str]) -> None:
    """All of its names mean it; it makes no file, and it stays open."""
    assert is_stdout(name)
    assert own_names(name) == frozenset()
    with opened(name) as sink:
        assert isinstance(sink, StreamSink)
        sink.write([RECORD])
    os.fstat(1)
    assert capfd.readouterr().out == f"{RECORD.to_json()}\n"


def test_a_file(tmp_path: Path) -> None:
    """It is locked while it is open, and not after that."""
    target = str(tmp_path / "out.jsonl")
    assert not is_stdout(target)
    assert own_names(target) == {"out.jsonl", "out.jsonl.partial"}
    with opened(target) as sink:
        assert isinstance(sink, FileSink)
        sink.write([RECORD])
        with pytest.raises(LockedError), opened(target):
            pass
        sink.commit()
    assert Path(target).read_bytes() == b"".join(encoded([RECORD]))
    with opened(target):
        pass


def test_a_fifo_and_a_device(tmp_path: Path) -> None:
    """They are written as they are, whatever they are called."""
    fifo = tmp_path / "x.csv"
    os.mkfifo(fifo)
    content: list[bytes] = []
    reader = threading.Thread(target=lambda: content.append(fifo.read_bytes()))
    reader.start()
    with opened(str(fifo)) as sink:
        assert isinstance(sink, StreamSink)
        sink.write([RECORD])
        sink.commit()
    reader.join(30)
    assert content == encoded([RECORD])
    assert fifo.is_fifo()
    with opened("/dev/null") as sink:
        assert isinstance(sink, StreamSink)


def test_a_file_named_by_its_descriptor(tmp_path: Path) -> None:
    """It cannot be renamed to, so it is written as it is."""
    with open(tmp_path / "x", "wb") as file, opened(f"/dev/fd/{file.fileno()}") as sink:
        assert isinstance(sink, StreamSink)
        sink.write([RECORD])
    assert (tmp_path / "x").read_bytes() == b"".join(encoded([RECORD]))


def _directory(target: Path) -> None:
    target.mkdir()


def _nothing(_target: Path) -> None:
    pass


WRONG: dict[str, tuple[str, Callable[[Path], None], str]] = {
    "nothing": ("", _nothing, "is empty"),
    "a directory": ("out.jsonl", _directory, "out.jsonl is a directory"),
    "another format": ("out.csv", _nothing, "out.csv: records are JSON Lines, and cannot be"),
    "an input": ("in.jsonl", Path.touch, "in.jsonl would overwrite the list, which is an input"),
}


@pytest.mark.parametrize("row", WRONG)
def test_a_name_that_is_no_output(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, row: str
) -> None:
    """The error calls the option as its reader does, a program or a person; no file is made."""
    name, make, problem = WRONG[row]
    monkeypatch.chdir(tmp_path)
    if name:
        make(tmp_path / name)
    before = os.listdir(tmp_path)
    with pytest.raises(TargetError) as caught, opened(name, lambda _: "the list"):
        pass
    error: OptionError = caught.value
    assert error.exit_code == ExitCode.USAGE
    assert str(error).startswith(f"output {problem}")
    assert error.called("--output").startswith(f"--output {problem}")
    assert os.listdir(tmp_path) == before


def test_standard_output_that_is_an_input(tmp_path: Path) -> None:
    """A file that the shell has opened may be one; a pipe or a terminal may not."""
    saved = os.dup(1)
    try:
        with open(tmp_path / "x", "wb") as file:
            os.dup2(file.fileno(), 1)
            with (
                pytest.raises(UsageError, match="standard output is x"),
                opened(None, lambda _: "x"),
            ):
                pass
        reader, writer = os.pipe()
        os.dup2(writer, 1)
        with opened(None, lambda _: "x"):
            pass
        os.close(reader)
        os.close(writer)
    finally:
        os.dup2(saved, 1)
        os.close(saved)


@pytest.mark.parametrize("name", [None, "-", "/dev/null"])
def test_only_a_file_can_be_resumed(name: str | None) -> None:
    """A stream has no records to go on with, so that is refused before any work."""
    with pytest.raises(UsageError, match="--resume needs"), opened(name, resume=True):
        pass


def test_the_terms_reach_the_file(tmp_path: Path) -> None:
    """`strict` and `models` decide what is taken over."""
    warning = ItemWarning(WarningCode.TRUNCATED, "x")
    warned = Record(path="a.jpg", model="m", width=1, height=1, warning=warning)
    (tmp_path / "out.jsonl.partial").write_bytes(b"".join(encoded([warned])))
    target = str(tmp_path / "out.jsonl")
    with opened(target, resume=True, strict=True) as sink, pytest.raises(UsageError, match="warn"):
        sink.take_over("a.jpg")
    with (
        opened(target, resume=True, models=("n",)) as sink,
        pytest.raises(UsageError, match=r"model m$"),
    ):
        sink.take_over("a.jpg")
    with opened(target, resume=True, models=("m",)) as sink:
        assert sink.take_over("a.jpg")


def test_a_program_that_uses_the_library(tmp_path: Path, photos: Path) -> None:
    """What the package's own text shows works, and is gone on with after an interruption."""
    program = textwrap.dedent(str(outputs.__doc__).partition("::\n")[2].rpartition("\n\n")[0])
    (tmp_path / "photos").symlink_to(photos)
    target, partial = tmp_path / "labels.jsonl", tmp_path / "labels.jsonl.partial"

    def run(code: str) -> int:
        command = [sys.executable, "-c", code]
        return subprocess.run(command, cwd=tmp_path, timeout=90, check=False).returncode

    assert run(program) == 0
    whole = target.read_bytes()
    assert whole.count(b"\n") == 4
    target.unlink()
    partial.write_bytes(whole[: whole.index(b"\n") + 20])
    assert run(program.replace("sink.commit()", "raise SystemExit(7)")) == 7
    assert partial.read_bytes() == whole
    assert run(program) == 0
    assert target.read_bytes() == whole
