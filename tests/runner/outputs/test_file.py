"""Records to a file: what an earlier run has left is taken over, or kept, or dropped."""

from __future__ import annotations

import contextlib
import errno
import os
from typing import TYPE_CHECKING

import pytest

from wuwan_runner.errors import UsageError
from wuwan_runner.outputs.base import OutputError
from wuwan_runner.outputs.file import FileSink
from wuwan_runner.outputs.jsonl import encoded
from wuwan_runner.records import ItemFailure, ItemWarning, Record
from wuwan_worker.shared.protocol import ErrorCode, WarningCode

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from wuwan_runner.outputs.base import Sink

A, B, C = (Record(path=f"{name}.jpg", model="m", width=1, height=1) for name in "abc")
FAILED = Record(path="f.jpg", model="m", error=ItemFailure(ErrorCode.UNREADABLE, "x"))
WARNED = Record(
    path="w.jpg", model="m", width=1, height=1, warning=ItemWarning(WarningCode.TRUNCATED, "x")
)


def _bytes(*records: Record) -> bytes:
    return b"".join(encoded(records))


@pytest.fixture
def target(tmp_path: Path) -> Path:
    """The name of a file in a directory of its own."""
    return tmp_path / "out.jsonl"


@pytest.fixture
def partial(tmp_path: Path) -> Path:
    """And what it is called until it is complete."""
    return tmp_path / "out.jsonl.partial"


@contextlib.contextmanager
def _resumed(target: Path, *, strict: bool = False, models: tuple[str, ...] = ()) -> Iterator[Sink]:
    sink = FileSink(target, resume=True, strict=strict, models=models)
    with contextlib.closing(sink):
        yield sink


def test_a_whole_run(target: Path, partial: Path) -> None:
    """Records are in FILE.partial at once, and in FILE in the end."""
    with contextlib.closing(FileSink(target)) as sink:
        assert not sink.take_over("a.jpg")
        sink.write([A])
        assert partial.read_bytes() == _bytes(A)
        sink.write([B, C])
        assert (sink.written, sink.replaces()) == (3, "")
        sink.commit()
    assert target.read_bytes() == _bytes(A, B, C)
    assert not partial.exists()


def test_a_run_without_records(target: Path) -> None:
    """An empty file is a result, too."""
    with contextlib.closing(FileSink(target)) as sink:
        sink.commit()
    assert target.read_bytes() == b""


def test_without_resume_nothing_is_taken_over(target: Path, partial: Path) -> None:
    """What is left is dropped when the run begins."""
    partial.write_bytes(_bytes(A))
    with contextlib.closing(FileSink(target)) as sink:
        assert partial.read_bytes() == b""
        assert not sink.take_over("a.jpg")


def test_records_of_an_earlier_run_are_taken_over(target: Path, partial: Path) -> None:
    """In order and counted, errors and warnings, too; the new ones come behind them."""
    partial.write_bytes(_bytes(A, FAILED, WARNED) + _bytes(B)[:20])
    with _resumed(target) as sink:
        taken = [sink.take_over(path) for path in ("a.jpg", "f.jpg", "w.jpg", "b.jpg", "c.jpg")]
        assert taken == [True, True, True, False, False]
        assert (sink.written, sink.failed_before, sink.warned_before) == (3, 1, 1)
        assert partial.read_bytes() == _bytes(A, FAILED, WARNED)  # the torn line is gone
        sink.write([B, C])
        assert sink.written == 5
        sink.commit()
    assert target.read_bytes() == _bytes(A, FAILED, WARNED, B, C)


def test_another_input_ends_what_is_taken_over(target: Path, partial: Path) -> None:
    """What follows is dropped, though it may be of inputs that come later."""
    partial.write_bytes(_bytes(A, B, C))
    with _resumed(target) as sink:
        assert [sink.take_over(path) for path in ("a.jpg", "c.jpg", "b.jpg")] == [
            True,
            False,
            False,
        ]
        sink.write([C])
        sink.commit()
    assert target.read_bytes() == _bytes(A, C)


@pytest.mark.parametrize("write", [True, False])
def test_fewer_inputs_than_the_earlier_run_had(target: Path, partial: Path, write: bool) -> None:
    """Records that no input asked for are dropped by the next write, or else in the end."""
    partial.write_bytes(_bytes(A, B, C))
    with _resumed(target) as sink:
        assert sink.take_over("a.jpg")
        if write:
            sink.write([])
            assert partial.read_bytes() == _bytes(A)
        sink.commit()
    assert target.read_bytes() == _bytes(A)


def test_records_that_do_not_go_together(target: Path, partial: Path) -> None:
    """They are refused by the name of the file that has them, which stays as it is."""
    for record, said in ((WARNED, "records with warnings"), (A, "records of the model m")):
        content = _bytes(record, B)
        partial.write_bytes(content)
        with _resumed(target, strict=True, models=("n",)) as sink:
            with pytest.raises(UsageError, match=f"out.jsonl.partial holds {said}"):
                sink.take_over(record.path)
            assert sink.abandon() == ""
        assert partial.read_bytes() == content


def test_a_run_that_ends_early_keeps_its_records(target: Path, partial: Path) -> None:
    """It says where they are; FILE stays as it was, and they can be gone on with."""
    target.write_bytes(_bytes(C))
    with contextlib.closing(FileSink(target)) as sink:
        assert sink.replaces() == str(target)
        sink.write([A])
        assert sink.abandon() == f"1 record kept in {partial}; --resume goes on from there"
    assert target.read_bytes() == _bytes(C)
    with _resumed(target) as sink:
        assert sink.take_over("a.jpg")
        assert sink.abandon().startswith("1 record kept in ")


def test_a_run_that_ends_before_its_first_record_leaves_nothing(
    target: Path, partial: Path
) -> None:
    """No empty file, be it resumed or not."""
    for resume in (False, True):
        with contextlib.closing(FileSink(target, resume=resume)) as sink:
            assert partial.exists()
            assert sink.abandon() == ""
        assert not partial.exists()


def test_a_resumed_run_that_ends_before_its_first_input_loses_nothing(
    target: Path, partial: Path
) -> None:
    """No worker could be had, say: the records of the earlier run are still there."""
    partial.write_bytes(_bytes(A))
    with _resumed(target) as sink:
        assert sink.abandon() == ""
    assert partial.read_bytes() == _bytes(A)


def test_a_resumed_run_with_nothing_to_take_over_leaves_nothing(
    target: Path, partial: Path
) -> None:
    """The first input was another one, so what was left is of no use."""
    partial.write_bytes(_bytes(A))
    with _resumed(target) as sink:
        assert not sink.take_over("b.jpg")
        assert sink.abandon() == ""
    assert not partial.exists()


def test_something_else_in_the_place_of_the_file(target: Path, partial: Path) -> None:
    """A photo that was put there meanwhile is not replaced; the records stay beside it."""
    with contextlib.closing(FileSink(target)) as sink:
        sink.write([A])
        target.write_bytes(b"\xff\xd8\xff\xe0")
        with pytest.raises(UsageError, match="holds something else than records"):
            sink.commit()
    assert target.read_bytes() == b"\xff\xd8\xff\xe0"
    assert partial.read_bytes() == _bytes(A)


def test_a_disk_that_fails_after_the_rename(target: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The error is said, and that the records are there: not that they are in FILE.partial."""
    sync = os.fsync

    def fsync(descriptor: int) -> None:
        if os.path.isdir(f"/proc/self/fd/{descriptor}"):
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        sync(descriptor)

    monkeypatch.setattr(os, "fsync", fsync)
    with contextlib.closing(FileSink(target)) as sink:
        sink.write([A])
        with pytest.raises(OutputError, match="Input/output error"):
            sink.commit()
        assert sink.abandon() == "1 record written"
    assert target.read_bytes() == _bytes(A)


@pytest.mark.parametrize("resume", [True, False])
def test_a_partial_file_of_somebody_else(target: Path, partial: Path, resume: bool) -> None:
    """What no run has left is not taken over, not emptied, and not removed."""
    partial.write_bytes(b"a novel")
    with pytest.raises(UsageError, match="nothing that an interrupted run has left"):
        FileSink(target, resume=resume)
    assert partial.read_bytes() == b"a novel"


def test_nothing_stays_open(target: Path, partial: Path) -> None:
    """Neither after a run nor after one that ended while it took over."""
    before = os.listdir("/proc/self/fd")
    partial.write_bytes(_bytes(A, B))
    with _resumed(target) as sink:
        assert sink.take_over("a.jpg")
    with contextlib.closing(FileSink(target)) as sink:
        sink.commit()
    assert os.listdir("/proc/self/fd") == before


def test_whoever_comes_after_its_end_changes_nothing(tmp_path: Path) -> None:
    """`take_over` is called in another thread, which may be late: the number is another file's."""
    target = tmp_path / "out.jsonl"
    with contextlib.closing(FileSink(target)) as sink:
        sink.write([Record(path="a.jpg", model="m"), Record(path="b.jpg", model="m")])
    late = FileSink(target, resume=True)
    assert late.take_over("a.jpg")
    late.close()
    other = tmp_path / "other"
    other.write_text("of somebody else")
    with other.open("r+"):  # it may have got the same number
        assert not late.take_over("c.jpg")
    assert other.read_text() == "of somebody else"
