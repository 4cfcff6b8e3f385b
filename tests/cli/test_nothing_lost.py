"""Whatever directories hold has a record or is counted, and old records outlive a missing disk."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tests.odd_disk import odd_disk
from wuwan_runner import Survey, Tagger, TagOptions

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = os.geteuid() == 0
OLD = b'{"v":1,"path":"old.jpg","labels":[],"width":1,"height":1,"model":"m"}\n'


@pytest.fixture
def root(tmp_path: Path, photos: Path) -> Path:
    """A directory with two photos."""
    root = tmp_path / "photos"
    root.mkdir()
    for name in ("a.jpg", "z.jpg"):
        shutil.copy(photos / "rocket.jpg", root / name)
    return root


def _codes(output: bytes) -> dict[str, str | None]:
    """By file name, in order: the error code, None for a labelled photo."""
    records = [json.loads(line) for line in output.splitlines()]
    assert all(record.get("labels") or record["error"]["message"] for record in records)
    return {Path(one["path"]).name: one.get("error", {}).get("code") for one in records}


# ---------------------------------------------------------------- a record for each


@pytest.fixture
def locked(tmp_path: Path) -> Iterator[Path]:
    """A directory that nobody may enter, with an album in it."""
    locked = tmp_path / "locked"
    (locked / "album").mkdir(parents=True)
    (locked / "album/x.jpg").touch()
    locked.chmod(0)
    yield locked
    locked.chmod(0o700)


def _without_privileges() -> None:
    """Root obeys modes from the next program on: it loses CAP_DAC_OVERRIDE and _READ_SEARCH."""
    import ctypes

    for capability in (1, 2):
        ctypes.CDLL(None).prctl(24, capability, 0, 0, 0)  # PR_CAPBSET_DROP


def test_albums_that_cannot_be_entered(wuwan: Any, root: Path, locked: Path) -> None:
    """Behind a locked directory, links to nothing, loops of links: one error record each."""
    (root / "behind").symlink_to(locked / "album")
    (root / "gone").symlink_to("/nowhere/album")
    (root / "loop").symlink_to("loop")
    (root / "notes.txt").symlink_to("/nowhere/notes.txt")
    (root / "up").symlink_to(root)  # what is seen already is no error
    done = wuwan(*("tag", "--runner=local", root), preexec_fn=_without_privileges if ROOT else None)
    assert done.returncode == 3, done.stderr
    expected = {"behind": "unreadable", "gone": "unreadable", "loop": "unreadable"}
    assert _codes(done.stdout) == {"a.jpg": None, **expected, "z.jpg": None}
    assert b"passed over: 1 .txt" in done.stderr


def test_one_bad_entry_on_a_real_disk(wuwan: Any, tmp_path: Path, photos: Path) -> None:
    """A file system without types, and inodes that cannot be read: the siblings are tagged."""
    photo = (photos / "rocket.jpg").read_bytes()
    files = {"a.jpg": photo, "bad.jpg": None, "c.jpg": photo, "bad": None, "notes.txt": None}
    with odd_disk(tmp_path / "disk", files) as mounted:
        if not mounted:
            pytest.skip("no FUSE disk may be mounted here")
        done = wuwan("tag", "--runner=local", tmp_path / "disk")
    assert done.returncode == 3, done.stderr
    assert _codes(done.stdout) == {
        "a.jpg": None,
        "bad": "unreadable",
        "bad.jpg": "unreadable",
        "c.jpg": None,
    }


@pytest.mark.skipif(not ROOT, reason="only root mounts disks")
def test_a_file_that_cannot_be_opened_to_its_end(wuwan: Any, photos: Path, tmp_path: Path) -> None:
    """A disk that is gone makes `open()` wait for ever: one record, and the others are tagged."""
    photo = (photos / "rocket.jpg").read_bytes()
    files: dict[str, bytes | None] = dict.fromkeys(("a.jpg", "b.jpg", "c.jpg", "d.jpg"), photo)
    with odd_disk(tmp_path / "disk", files, hung={"b.jpg"}) as mounted:
        if not mounted:
            pytest.skip("no FUSE disk may be mounted here")
        done = wuwan("tag", "--runner=local", tmp_path / "disk", "--timeout", 3)
    assert done.returncode == 3, done.stderr
    assert _codes(done.stdout) == {"a.jpg": None, "b.jpg": "timeout", "c.jpg": None, "d.jpg": None}
    assert b"it could not be opened within 3 s" in done.stdout


@pytest.mark.skipif(not ROOT, reason="only root mounts disks")
def test_a_signal_while_a_file_is_being_opened(photos: Path, tmp_path: Path) -> None:
    """The run ends at the first one, though a thread of it is in the kernel's hands."""
    files: dict[str, bytes | None] = {"a.jpg": (photos / "rocket.jpg").read_bytes()}
    asked = threading.Event()
    with odd_disk(tmp_path / "disk", files, hung={"a.jpg"}, asked=asked) as mounted:
        if not mounted:
            pytest.skip("no FUSE disk may be mounted here")
        command = [sys.executable, "-m", "wuwan_cli", "tag", "--runner=local", tmp_path / "disk"]
        with subprocess.Popen(command, stdout=subprocess.PIPE) as run:
            assert asked.wait(30)
            run.send_signal(signal.SIGINT)
            assert run.wait(10) == -signal.SIGINT


# ---------------------------------------------------------------- what was passed over


def test_what_was_passed_over_is_said(wuwan: Any, root: Path) -> None:
    """By kind, in the summary; not with --quiet, and not where patterns chose."""
    for name in ("1.CR3", "2.cr3", "3.svg", "README"):
        (root / name).touch()
    done = wuwan("tag", "--runner=local", root)
    assert done.returncode == 0, done.stderr
    assert b"; passed over: 2 .cr3, 1 .svg, 1 other\n" in done.stderr
    done = wuwan("tag", "--runner=local", root, "-q")
    assert (done.returncode, done.stderr) == (0, b"")
    done = wuwan("tag", "--runner=local", root, "--include", "*.jpg")
    assert b"passed over" not in done.stderr


def test_only_other_files(wuwan: Any, tmp_path: Path) -> None:
    """A folder of nothing but RAW files is not just "no images found"."""
    for number in range(12):
        (tmp_path / f"{number}.CR3").touch()
    done = wuwan("tag", "--runner=local", tmp_path)
    assert (done.returncode, done.stdout) == (0, b"")
    assert b"(no images found); passed over: 12 .cr3\n" in done.stderr
    assert f"nothing to tag: {tmp_path}: no images among 12 files\n".encode() in done.stderr


def test_the_output_itself_is_not_passed_over(wuwan: Any, root: Path) -> None:
    """Where it is written beside the photos."""
    for _ in range(2):
        done = wuwan("tag", "--runner=local", ".", "-o", "labels.jsonl", cwd=root)
        assert done.returncode == 0, done.stderr
        assert b"passed over" not in done.stderr


def test_the_python_interface(root: Path, tmp_path: Path) -> None:
    """A survey is filled while records come."""
    (root / "1.cr3").touch()
    (tmp_path / "empty").mkdir()
    survey = Survey()
    with Tagger(TagOptions(runner="local")) as tagger:
        records = list(tagger.tag([root, tmp_path / "empty"], survey))
    assert len(records) == 2
    assert survey.kinds == {".cr3": 1}
    assert survey.absent == [f"{tmp_path}/empty: no images"]


# ---------------------------------------------------------------- a disk that is not there


@pytest.fixture
def target(tmp_path: Path) -> Path:
    """A file with records of an earlier run."""
    target = tmp_path / "labels.jsonl"
    target.write_bytes(OLD)
    return target


@pytest.mark.parametrize("kind", ["missing", "empty", "only other files", "a link to nothing"])
def test_a_missing_directory_keeps_the_output(
    wuwan: Any, root: Path, target: Path, tmp_path: Path, kind: str
) -> None:
    """Exit code 6 and what to do; what was found meanwhile is kept, and can be gone on with."""
    disk = tmp_path / "disk"
    if kind in ("empty", "only other files"):
        disk.mkdir()
    if kind == "only other files":
        (disk / "lost+found.txt").touch()
    if kind == "a link to nothing":
        disk.symlink_to("nowhere")
    done = wuwan("tag", "--runner=local", root, disk, "-o", target)
    assert done.returncode == 6, done.stderr
    assert target.read_bytes() == OLD
    said = done.stderr.decode()
    assert f"nothing to tag: {disk}: " in said
    assert "is a disk not mounted? --allow-empty" in said
    partial = tmp_path / "labels.jsonl.partial"
    kept = partial.read_bytes().count(b"\n")
    assert kept == (2 if disk.is_dir() else 3)
    assert f"{kept} records kept in {partial}; --resume goes on from there" in said
    done = wuwan("tag", "--runner=local", root, disk, "-o", target, "--resume", "--allow-empty")
    assert done.returncode == (0 if disk.is_dir() else 3), done.stderr
    assert target.read_bytes().count(b"\n") == kept
    assert not partial.exists()


def test_quiet_is_no_reason_to_be_silent(wuwan: Any, target: Path, tmp_path: Path) -> None:
    """As cron runs it: the one directory is not mounted."""
    (tmp_path / "disk").mkdir()
    done = wuwan("tag", "--runner=local", "-q", tmp_path / "disk", "-o", target)
    assert done.returncode == 6
    assert done.stderr.startswith(f"wuwan: nothing to tag: {tmp_path}/disk: no images; ".encode())
    assert target.read_bytes() == OLD
    assert not (tmp_path / "labels.jsonl.partial").exists()


@pytest.mark.parametrize("before", [None, b""])
def test_where_there_is_nothing_to_lose(
    wuwan: Any, root: Path, tmp_path: Path, before: bytes | None
) -> None:
    """The run goes ahead, and says so."""
    target = tmp_path / "new.jsonl"
    if before is not None:
        target.write_bytes(before)
    (tmp_path / "disk").mkdir()
    done = wuwan("tag", "--runner=local", root, tmp_path / "disk", "-o", target)
    assert done.returncode == 0, done.stderr
    assert target.read_bytes().count(b"\n") == 2
    assert f"wuwan: nothing to tag: {tmp_path}/disk: no images\n".encode() in done.stderr


def test_allow_empty(wuwan: Any, target: Path, tmp_path: Path) -> None:
    """What is asked for is done."""
    (tmp_path / "disk").mkdir()
    done = wuwan("tag", "--runner=local", tmp_path / "disk", "-o", target, "--allow-empty")
    assert done.returncode == 0, done.stderr
    assert target.read_bytes() == b""


def test_a_missing_file_is_a_record(wuwan: Any, root: Path, target: Path) -> None:
    """A file that was named is no directory: the output is replaced, exit code 3."""
    done = wuwan("tag", "--runner=local", root, root / "gone.jpg", "-o", target)
    assert done.returncode == 3, done.stderr
    assert target.read_bytes().count(b"\n") == 3


def test_an_empty_list_keeps_the_output(wuwan: Any, target: Path, tmp_path: Path) -> None:
    """Nothing on standard input or in --files-from, as when `find` has failed."""
    (tmp_path / "list").write_text("\n\n")
    for arguments in (("-",), ("--files-from", tmp_path / "list"), ("--files-from", "-")):
        done = wuwan(*("tag", "--runner=local", *arguments, "-o", target), stdin=subprocess.DEVNULL)
        assert done.returncode == 6, done.stderr
        assert b"the list on " in done.stderr or b"the list in " in done.stderr
        assert target.read_bytes() == OLD


def test_an_empty_directory_in_a_list(wuwan: Any, root: Path, target: Path, tmp_path: Path) -> None:
    """A directory that a list names is named, too."""
    (tmp_path / "disk").mkdir()
    listed = f"{root}\n{tmp_path}/disk\n".encode()
    done = wuwan("tag", "--runner=local", "-", "-o", target, input=listed)
    assert done.returncode == 6, done.stderr
    assert target.read_bytes() == OLD
