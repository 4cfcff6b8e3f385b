"""A file that is whole or not there: its lock, its name, its mode, and what of it stays."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import resource
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import pytest

from wuwan_runner.errors import LockedError, UsageError
from wuwan_runner.outputs.atomic import AtomicFile
from wuwan_runner.outputs.base import OutputError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


def _any(_descriptor: int) -> bool:
    return True


def _nothing(_path: str) -> None:
    pass


@contextlib.contextmanager
def _file(target: Path, *, fresh: bool = True) -> Iterator[AtomicFile]:
    with contextlib.closing(AtomicFile(str(target), ours=_any, fresh=fresh)) as file:
        yield file


@pytest.fixture
def target(tmp_path: Path) -> Path:
    """The name of a file in a directory of its own."""
    return tmp_path / "out"


@pytest.fixture
def partial(tmp_path: Path) -> Path:
    """And what it is called until it is complete."""
    return tmp_path / "out.partial"


def test_it_appears_when_it_is_complete(target: Path, partial: Path) -> None:
    """Until `commit` the old content is there, and after it nothing else is."""
    target.write_bytes(b"old")
    with _file(target) as file:
        assert file.is_empty()
        file.append(b"one\n")
        file.append(b"two\0\n")
        assert not file.is_empty()
        assert target.read_bytes() == b"old"
        assert partial.read_bytes() == b"one\ntwo\0\n"
        file.commit(_nothing)
    assert target.read_bytes() == b"one\ntwo\0\n"
    assert os.listdir(target.parent) == ["out"]


def test_what_was_not_committed_stays_beside_it(target: Path, partial: Path) -> None:
    """Closing gives up the lock alone, and removing removes nothing else."""
    with _file(target) as file:
        file.append(b"one\n")
    assert not target.exists()
    assert partial.read_bytes() == b"one\n"
    with _file(target, fresh=False) as file:
        target.write_bytes(b"old")
        file.remove()
        file.remove()  # whoever was faster
    assert os.listdir(target.parent) == ["out"]


def test_a_fresh_one_drops_what_is_left(target: Path, partial: Path) -> None:
    """And one that is not fresh keeps it until it is told how much."""
    partial.write_bytes(b"left\n")
    with _file(target, fresh=False) as file:
        assert partial.read_bytes() == b"left\n"
        assert not file.is_empty()
    with _file(target):
        assert partial.read_bytes() == b""


@pytest.mark.parametrize(("size", "kept"), [(0, b""), (4, b"one\n"), (8, b"one\ntwo\n")])
def test_what_is_good_of_an_earlier_run_stays(
    target: Path, partial: Path, size: int, kept: bytes
) -> None:
    """It is cut there, and written on from there, wherever its reader was."""
    partial.write_bytes(b"one\ntwo\nthr")
    with _file(target, fresh=False) as file:
        with file.reader() as reader:
            assert reader.readline() == b"one\n"
        file.keep(size)
        file.append(b"new\n")
        file.commit(_nothing)
    assert target.read_bytes() == kept + b"new\n"


def test_it_has_one_writer(target: Path, partial: Path) -> None:
    """The second is told, and changes nothing; when the first is gone another one may write."""
    with _file(target) as first:
        first.append(b"one\n")
        with pytest.raises(LockedError, match=r"another run is writing .*/out$"):
            AtomicFile(str(target), ours=_any, fresh=True)
        assert partial.read_bytes() == b"one\n"
    with _file(target):
        pass


def test_the_lock_ends_with_its_holder(target: Path) -> None:
    """A killed process leaves a file, and no lock."""
    code = (
        "import sys, time\n"
        "from wuwan_runner.outputs.atomic import AtomicFile\n"
        "file = AtomicFile(sys.argv[1], ours=lambda _: True, fresh=True)\n"
        "file.append(b'one\\n')\n"
        "print('up', flush=True)\n"
        "time.sleep(60)"
    )
    command = [sys.executable, "-c", code, str(target)]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"up\n"
        with pytest.raises(LockedError):
            AtomicFile(str(target), ours=_any, fresh=False)
        process.kill()
        process.wait(30)
        with _file(target, fresh=False) as file, file.reader() as reader:
            assert reader.read() == b"one\n"


@pytest.mark.parametrize("end", ["commit", "remove"])
def test_the_holder_before_us_ends_while_we_lock(
    target: Path, partial: Path, monkeypatch: pytest.MonkeyPatch, end: str
) -> None:
    """What we have locked then has another name or none: we lock what is there now instead."""
    before = os.listdir("/proc/self/fd")
    first = AtomicFile(str(target), ours=_any, fresh=True)
    first.append(b"one\n")
    real = fcntl.flock

    def flock(descriptor: int, operation: int) -> None:
        monkeypatch.undo()
        if end == "commit":
            first.commit(_nothing)
        else:
            first.remove()
        first.close()
        real(descriptor, operation)

    monkeypatch.setattr(fcntl, "flock", flock)
    with _file(target) as second:
        second.append(b"two\n")
        assert partial.read_bytes() == b"two\n"
        assert target.exists() == (end == "commit")
        if end == "commit":
            assert target.read_bytes() == b"one\n"
    assert os.listdir("/proc/self/fd") == before


def test_what_is_not_ours_is_not_touched(target: Path, partial: Path) -> None:
    """Whatever it is called; and nothing stays locked or open."""
    partial.write_bytes(b"a novel")
    before = os.listdir("/proc/self/fd")
    for fresh in (True, False):
        with pytest.raises(UsageError, match="nothing that an interrupted run has left"):
            AtomicFile(str(target), ours=lambda _: False, fresh=fresh)
    assert partial.read_bytes() == b"a novel"
    assert os.listdir("/proc/self/fd") == before
    with _file(target):
        pass


def test_a_link_stays_a_link(target: Path, tmp_path: Path) -> None:
    """What it points to is replaced, and locked under its own name."""
    target.write_bytes(b"old")
    (tmp_path / "link").symlink_to(target)
    with _file(tmp_path / "link") as file:
        assert (file.target, file.partial) == (str(target), f"{target}.partial")
        with pytest.raises(LockedError):
            AtomicFile(str(target), ours=_any, fresh=True)
        file.append(b"new")
        file.commit(_nothing)
    assert (tmp_path / "link").is_symlink()
    assert target.read_bytes() == b"new"


def test_a_partial_file_that_is_a_link(target: Path, partial: Path, tmp_path: Path) -> None:
    """It may point to anything, so it is not followed."""
    (tmp_path / "precious").write_bytes(b"old")
    partial.symlink_to(tmp_path / "precious")
    with pytest.raises(OutputError, match=r"cannot write to .*/out: Too many levels"):
        AtomicFile(str(target), ours=_any, fresh=True)
    assert (tmp_path / "precious").read_bytes() == b"old"


@pytest.mark.parametrize("mode", [0o600, 0o640, 0o444])
def test_the_mode_is_that_of_the_old_file(target: Path, partial: Path, mode: int) -> None:
    """From the beginning: nobody may read half of a file that he may not read the whole of."""
    target.touch()
    target.chmod(mode)
    with _file(target) as file:
        assert partial.stat().st_mode & 0o7777 == mode
        file.append(b"new")
        file.commit(_nothing)
    assert target.stat().st_mode & 0o7777 == mode


def test_a_new_file_has_the_mode_that_new_files_have(target: Path) -> None:
    """What the user's umask says."""
    old = os.umask(0o027)
    try:
        with _file(target) as file:
            file.commit(_nothing)
    finally:
        os.umask(old)
    assert target.stat().st_mode & 0o7777 == 0o640


def test_a_full_disk_leaves_what_was_whole(target: Path, partial: Path) -> None:
    """No half of what did not fit; and with space again it goes on behind that."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    with _file(target) as file:
        file.append(b"x" * 1000)
        resource.setrlimit(resource.RLIMIT_FSIZE, (1500, hard))
        try:
            with pytest.raises(OutputError, match=r"cannot write to .*/out: File too large"):
                file.append(b"y" * 1000)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        assert partial.read_bytes() == b"x" * 1000
        file.append(b"z" * 1000)
        file.commit(_nothing)
    assert target.read_bytes() == b"x" * 1000 + b"z" * 1000


def test_what_may_not_be_replaced_is_not(target: Path, partial: Path) -> None:
    """The last look is at FILE, and when it says no all is as it was."""
    asked: list[str] = []

    def check(path: str) -> None:
        asked.append(path)
        raise UsageError("this is a photo")

    target.write_bytes(b"a photo")
    with _file(target) as file:
        file.append(b"new")
        with pytest.raises(UsageError, match="this is a photo"):
            file.commit(check)
    assert asked == [str(target)]
    assert (target.read_bytes(), partial.read_bytes()) == (b"a photo", b"new")


def test_it_is_on_the_disk_before_it_has_its_name(
    target: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The content, the last look, the rename, the directory: a crash between them loses nothing."""
    order: list[str] = []
    sync, rename = os.fsync, os.rename

    def fsync(descriptor: int) -> None:
        order.append(f"sync {os.readlink(f'/proc/self/fd/{descriptor}')}")
        sync(descriptor)

    def renamed(old: str, new: str) -> None:
        order.append("rename")
        rename(old, new)

    monkeypatch.setattr(os, "fsync", fsync)
    monkeypatch.setattr(os, "rename", renamed)
    with _file(target) as file:
        file.commit(lambda _: order.append("check"))
    assert order == [f"sync {target}.partial", "check", "rename", f"sync {target.parent}"]


@pytest.mark.parametrize(("number", "good"), [(errno.EINVAL, True), (errno.EIO, False)])
def test_a_directory_that_cannot_be_synced(
    target: Path, monkeypatch: pytest.MonkeyPatch, number: int, good: bool
) -> None:
    """A file system that does not have that is no error; a disk that fails is one."""
    sync = os.fsync

    def fsync(descriptor: int) -> None:
        if os.path.isdir(f"/proc/self/fd/{descriptor}"):
            raise OSError(number, os.strerror(number))
        sync(descriptor)

    monkeypatch.setattr(os, "fsync", fsync)
    expected: Any = contextlib.nullcontext() if good else pytest.raises(OutputError)
    with _file(target) as file, expected:
        file.commit(_nothing)
    assert target.exists()


def test_after_the_rename_the_name_is_free(target: Path, partial: Path) -> None:
    """What is called FILE.partial by then belongs to another run, and is not removed."""
    with _file(target) as first:
        assert not first.committed
        first.commit(_nothing)
        assert first.committed
        with _file(target) as second:
            second.append(b"two\n")
            first.remove()
            assert partial.read_bytes() == b"two\n"


def test_what_is_replaced_has_a_name(target: Path) -> None:
    """Only where there is a content to lose."""
    with _file(target) as file:
        assert file.replaces() == ""
        target.touch()
        assert file.replaces() == ""
        target.write_bytes(b"old")
        assert file.replaces() == str(target)


def test_a_directory_that_is_not_there(tmp_path: Path) -> None:
    """The error says what was named, and why."""
    with pytest.raises(OutputError, match=r"cannot write to .*/nowhere/out: No such file"):
        AtomicFile(str(tmp_path / "nowhere/out"), ours=_any, fresh=True)
