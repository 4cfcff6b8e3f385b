"""What `--output` must not name: inputs, photos, anything but records; what cannot be replaced."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from wuwan_runner.wire import address

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

ROOT = os.geteuid() == 0
NOBODY = 65534
RECORD = b'{"v":1,"path":"a.jpg","labels":[],"width":1,"height":1,"model":"m"}\n'


@pytest.fixture
def place(tmp_path: Path, photos: Path) -> Path:
    """A directory with three photos and a list."""
    for name in "abc":
        shutil.copy(photos / "coffee.png", tmp_path / f"{name}.png")
    shutil.copy(photos / "rocket.jpg", tmp_path / "rocket.jpg")
    (tmp_path / "list").write_text(f"{tmp_path}/a.png\n")
    return tmp_path


def _contents(place: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in place.iterdir() if path.is_file()}


def _refused(wuwan: Any, place: Path, *arguments: object, code: int = 2, **options: Any) -> str:
    """What is said when nothing was changed, and no worker was started."""
    before = _contents(place)
    done = wuwan("tag", "--runner=local", *arguments, cwd=place, **options)
    assert done.returncode == code, done.stderr
    assert not done.stdout
    assert _contents(place) == before
    assert not address.listed()
    return str(done.stderr.decode())


def test_the_shell_expands_a_pattern(wuwan: Any, place: Path) -> None:
    """`-o *.png` is `-o a.png b.png c.png`."""
    assert "a.png" in _refused(wuwan, place, "-o", "a.png", "b.png", "c.png")


@pytest.mark.parametrize("link", ["", "symbolic", "hard"])
@pytest.mark.parametrize("name", ["rocket.jpg", "photo", "photo.jsonl"])
def test_an_input(wuwan: Any, place: Path, name: str, link: str) -> None:
    """Whatever it is called, and by whichever name it is reached."""
    if name != "rocket.jpg":
        shutil.copy(place / "rocket.jpg", place / name)
    target = name
    if link == "symbolic":
        target = "out.jsonl"
        (place / target).symlink_to(name)
    elif link == "hard":
        target = "out.jsonl"
        os.link(place / name, place / target)
    _refused(wuwan, place, name, "-o", target)
    _refused(wuwan, place, ".", "-o", target)


@pytest.mark.parametrize("content", [b"", RECORD])
def test_an_input_that_could_be_an_output(wuwan: Any, place: Path, content: bytes) -> None:
    """Even one that holds records, or nothing; the partial file, too."""
    (place / "x.jsonl").write_bytes(content)
    (place / "y.jsonl.partial").write_bytes(content)
    assert "is an input" in _refused(wuwan, place, "x.jsonl", "-o", "x.jsonl")
    assert "is an input" in _refused(wuwan, place, "y.jsonl.partial", "-o", "y.jsonl")


@pytest.mark.parametrize(
    "content",
    [b"\xff\xd8\xff\xe0", b"notes\n", b"{}\n", b"\n", b'{"v":1,"path":"a', b"[1]\n", b"\0" * 9999],
)
def test_something_else_than_records(wuwan: Any, place: Path, content: bytes) -> None:
    """It is refused with what to do, as FILE and as FILE.partial."""
    (place / "out.jsonl").write_bytes(content)
    said = _refused(wuwan, place, "a.png", "-o", "out.jsonl")
    assert "holds something else than records" in said
    assert "hint: choose another name, or remove it" in said
    if not content.startswith(b'{"v":'):  # else it is what a run leaves that is killed
        (place / "out.jsonl").rename(place / "new.jsonl.partial")
        for options in ((), ("--resume",)):
            said = _refused(wuwan, place, "a.png", "-o", "new.jsonl", *options)
            assert "nothing that an interrupted run has left" in said


@pytest.mark.parametrize("spaces", ["", " "])
def test_records_are_replaced(wuwan: Any, place: Path, spaces: str) -> None:
    """An empty file, and records, also if another program has written them anew."""
    (place / "empty.jsonl").touch()
    (place / "full.jsonl").write_bytes(RECORD.replace(b",", b"," + spaces.encode()))
    for name in ("empty.jsonl", "full.jsonl"):
        done = wuwan("tag", "--runner=local", "a.png", "-o", name, cwd=place)
        assert done.returncode == 0, done.stderr
        assert json.loads((place / name).read_bytes())["path"] == "a.png"


@pytest.mark.parametrize("name", ["x.csv", "x.db", "x.SQLite", "x.xlsx", "x.parquet", "x.jpeg"])
def test_another_format(wuwan: Any, place: Path, name: str) -> None:
    """A name that promises something else than JSON Lines."""
    said = _refused(wuwan, place, "a.png", "-o", name)
    assert "records are JSON Lines" in said


def test_the_list(wuwan: Any, place: Path) -> None:
    """A list of paths is no output, whether it has a name or comes on standard input."""
    _refused(wuwan, place, "--files-from", "list", "-o", "list")
    (place / "empty").touch()
    assert "the list" in _refused(wuwan, place, "--files-from", "empty", "-o", "empty")
    with open(place / "empty") as empty:
        assert "the list" in _refused(wuwan, place, "-", "-o", "empty", stdin=empty)


def test_standard_output_is_an_input(wuwan: Any, place: Path) -> None:
    """`>> a.jpg` would put records behind the photo's data."""
    with open(place / "rocket.jpg", "ab") as photo:
        said = _refused(
            *(wuwan, place, "rocket.jpg"),
            capture_output=False,
            stdout=photo,
            stderr=subprocess.PIPE,
        )
    assert "is an input" in said


def test_closed_standard_input(wuwan: Any, place: Path) -> None:
    """`<&-` is no empty list: a usage error, with and without --output."""
    (place / "keep.jsonl").write_bytes(RECORD)
    for arguments in (("-",), ("--files-from", "-"), ("-", "-o", "keep.jsonl")):
        said = _refused(wuwan, place, *arguments, preexec_fn=lambda: os.close(0))
        assert "standard input is closed" in said


def test_a_file_below_dev(wuwan: Any, photos: Path) -> None:
    """In /dev/shm there are files like any other: replaced as a whole, not in part."""
    shared = Path("/dev/shm")
    if not os.access(shared, os.W_OK):
        pytest.skip("no /dev/shm here")
    target = shared / f"wuwan-test-{os.getpid()}.jsonl"
    try:
        target.write_bytes(RECORD * 1000)
        done = wuwan("tag", "--runner=local", photos, "-o", target)
        assert done.returncode == 0, done.stderr
        assert target.read_bytes().count(b"\n") == 4
    finally:
        target.unlink(missing_ok=True)


def test_a_file_that_is_changed_meanwhile(place: Path) -> None:
    """A photo that is put where the output shall be during the run stays; so do the records."""
    command = [sys.executable, "-m", "wuwan_cli", "tag", "--runner=local", "-", "-o", "out.jsonl"]
    with subprocess.Popen(
        command, cwd=place, stdin=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        assert process.stdin is not None
        assert process.stderr is not None
        process.stdin.write(b"a.png\n" * 200)
        process.stdin.flush()
        partial = place / "out.jsonl.partial"
        deadline = time.monotonic() + 30
        while not (partial.exists() and partial.stat().st_size):
            assert time.monotonic() < deadline
            time.sleep(0.02)
        shutil.copy(place / "rocket.jpg", place / "out.jsonl")
        process.stdin.close()
        said = process.stderr.read()
        assert process.wait(timeout=30) == 2
    assert b"200 records kept in " in said
    assert partial.read_bytes().count(b"\n") == 200
    assert (place / "out.jsonl").read_bytes() == (place / "rocket.jpg").read_bytes()


# ---------------------------------------------------------------- what cannot be replaced


@contextlib.contextmanager
def _mounted(*arguments: object) -> Iterator[None]:
    """A mount; skips where none is permitted. The last argument is its place."""
    command = ["mount", *map(str, arguments)]
    if not ROOT or subprocess.run(command, capture_output=True, timeout=10, check=False).returncode:
        pytest.skip("nothing may be mounted here")
    try:
        yield
    finally:
        subprocess.run(["umount", str(arguments[-1])], timeout=10, check=True)


@pytest.mark.parametrize("name", ["out.jsonl", "out.jsonl.partial"])
def test_a_mount_point(wuwan: Any, place: Path, name: str) -> None:
    """A file that is mounted, as `docker run -v` does it, cannot be renamed to."""
    (place / "elsewhere").touch()
    (place / name).touch()
    with _mounted("--bind", place / "elsewhere", place / name):
        said = _refused(wuwan, place, "a.png", "-o", "out.jsonl", code=1)
        assert "is a mount point" in said
        (place / "link.jsonl").symlink_to("out.jsonl")
        _refused(wuwan, place, "a.png", "-o", "link.jsonl", code=1)


def test_a_read_only_disk(wuwan: Any, place: Path) -> None:
    """Found before there is any work."""
    disk = place / "disk"
    disk.mkdir()
    with _mounted("-t", "tmpfs", "-o", "ro", "wuwan-test", disk):
        said = _refused(wuwan, place, "a.png", "-o", disk / "out.jsonl", code=1)
        assert "Read-only file system" in said or "no files can be made" in said


def test_a_directory_that_is_not_there(wuwan: Any, place: Path) -> None:
    """The same; the message is the system's."""
    said = _refused(wuwan, place, "a.png", "-o", "nowhere/out.jsonl", code=1)
    assert "No such file or directory" in said


def _without_privileges() -> None:
    """Root obeys modes from the next program on: it loses CAP_DAC_OVERRIDE and _READ_SEARCH."""
    import ctypes

    for capability in (1, 2):
        ctypes.CDLL(None).prctl(24, capability, 0, 0, 0)  # PR_CAPBSET_DROP


@pytest.mark.parametrize("left", [(), ("out.jsonl",), ("out.jsonl", "out.jsonl.partial")])
def test_a_directory_without_permission(wuwan: Any, place: Path, left: tuple[str, ...]) -> None:
    """Also if FILE and FILE.partial are there and may be written themselves."""
    locked = place / "locked"
    locked.mkdir()
    for name in left:
        (locked / name).touch()
    locked.chmod(0o500)
    try:
        said = _refused(
            *(wuwan, place, "a.png", "-o", locked / "out.jsonl"),
            code=1,
            preexec_fn=_without_privileges if ROOT else None,
        )
    finally:
        locked.chmod(0o700)
    assert "no files can be made in" in said


def test_a_file_without_permission(wuwan: Any, place: Path) -> None:
    """What cannot be read may be anything."""
    (place / "secret").write_bytes(RECORD)
    (place / "secret").chmod(0)
    before = (place / "secret").stat()
    done = wuwan(
        *("tag", "--runner=local", "a.png", "-o", "secret"),
        cwd=place,
        preexec_fn=_without_privileges if ROOT else None,
    )
    assert done.returncode == 2
    assert b"cannot be read: Permission denied" in done.stderr
    assert (place / "secret").stat().st_mtime_ns == before.st_mtime_ns


def test_an_immutable_file(wuwan: Any, place: Path) -> None:
    """`chattr +i` or `+a`: it is there for ever."""
    target = place / "out.jsonl"
    target.write_bytes(RECORD)
    for flag in "ia":
        command = ["chattr", f"+{flag}", str(target)]
        if (
            shutil.which("chattr") is None
            or subprocess.run(command, capture_output=True, timeout=10, check=False).returncode
        ):
            pytest.skip("chattr is not possible here")
        try:
            said = _refused(wuwan, place, "a.png", "-o", "out.jsonl", code=1)
        finally:
            subprocess.run(["chattr", f"-{flag}", str(target)], timeout=10, check=True)
        assert "lsattr" in said


def _as_nobody(check: Callable[[], None]) -> str:
    """What `check` raises for a user without privileges."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            os.setgroups([])
            os.setresgid(NOBODY, NOBODY, NOBODY)
            os.setresuid(NOBODY, NOBODY, NOBODY)
            check()
        except Exception as error:
            os.write(writer, f"{type(error).__name__}: {error}".encode())
        finally:
            os._exit(0)
    os.close(writer)
    with os.fdopen(reader) as pipe:
        said = pipe.read()
    os.waitpid(child, 0)
    return said


@pytest.mark.skipif(not ROOT, reason="only root can become another user")
def test_a_sticky_directory(tmp_path: Path) -> None:
    """In a directory as /tmp somebody else's file cannot be replaced, though it may be written."""
    from wuwan_runner.outputs import target

    public = tmp_path / "public"
    public.mkdir()
    public.chmod(0o1777)
    for parent in (tmp_path, tmp_path.parent, tmp_path.parent.parent):
        parent.chmod(0o755)
    (public / "out.jsonl").touch()
    (public / "out.jsonl").chmod(0o666)

    def check(name: str) -> str:
        return _as_nobody(lambda: target.check(str(public / name), lambda _: None))

    assert "sticky" in check("out.jsonl")
    assert check("new.jsonl") == ""
    os.chown(public / "out.jsonl", NOBODY, NOBODY)
    assert check("out.jsonl") == ""


def test_a_directory_that_cannot_be_listed(wuwan: Any, place: Path) -> None:
    """A drop box: files may be made in it, and that is enough."""
    box = place / "box"
    box.mkdir()
    box.chmod(0o300)
    try:
        done = wuwan(
            *("tag", "--runner=local", "a.png", "-o", box / "out.jsonl"),
            cwd=place,
            preexec_fn=_without_privileges if ROOT else None,
        )
        assert done.returncode == 0, done.stderr
    finally:
        box.chmod(0o700)
    assert (box / "out.jsonl").read_bytes().count(b"\n") == 1


def test_a_fifo_may_be_called_anything(wuwan: Any, place: Path) -> None:
    """Nothing is replaced by writing to it, and what reads it may make a table of it."""
    os.mkfifo(place / "x.csv")
    content: list[bytes] = []
    reader = threading.Thread(target=lambda: content.append((place / "x.csv").read_bytes()))
    reader.start()
    done = wuwan("tag", "--runner=local", "a.png", "-o", "x.csv", cwd=place)
    reader.join(30)
    assert done.returncode == 0, done.stderr
    assert content[0].count(b"\n") == 1
