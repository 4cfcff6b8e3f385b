"""Fault 16: a directory as people's directories are, and as attackers make them.

Bombs, cut and disguised files, FIFOs, sockets, devices, files that cannot be read, that vanish,
that are links to themselves, whose names are no text: one coded record each, and no hang.
"""

from __future__ import annotations

import base64
import fcntl
import os
import shutil
import socket
import stat
import struct
import subprocess
import sys
import zlib
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from wuwan_runner.inputs.base import OpenError
from wuwan_runner.inputs.files import open_file

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

RUNNERS = ["local", pytest.param("docker", marks=pytest.mark.docker)]
ROOT = os.geteuid() == 0
NOBODY = 65534


def _png(width: int, height: int, data: bytes) -> bytes:
    """A greyscale PNG with one bit a pixel."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return (
            struct.pack(">I", len(content))
            + kind
            + content
            + struct.pack(">I", zlib.crc32(kind + content))
        )

    header = struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"IDAT", zlib.compress(data, 1))
        + chunk(b"IEND", b"")
    )


def _tiny_png() -> bytes:
    return _png(8, 8, bytes(16))


@pytest.fixture
def hostile(tmp_path: Path, photos: Path) -> Iterator[tuple[Path, dict[str, str | None]]]:
    """The directory, and by file name the error code that each must get; None for a good one."""
    root = tmp_path / "photos"
    root.mkdir()
    jpeg, png = (photos / "rocket.jpg").read_bytes(), photos / "coffee.png"
    codes: dict[str, str | None] = {}

    def put(name: str, code: str | None, content: bytes | None = None) -> Path:
        codes[name] = code
        if content is not None:
            (root / name).write_bytes(content)
        return root / name

    put("01-good.jpg", None, jpeg)
    put("02-huge.png", "too_large", _png(20_000, 20_000, bytes(20_000 * 2501)))
    put("03-cut.jpg", "truncated", jpeg[: len(jpeg) // 4])
    put("04-cut-in-the-header.jpg", "truncated", jpeg[:30])
    put("05-eps.jpg", "unsupported", b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n")
    put("06-empty.jpg", "not_an_image", b"")
    put("07-text.jpg", "not_an_image", "只是文字".encode())
    os.mkfifo(put("08-fifo.jpg", "unreadable"))
    listening = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    directory = os.open(root, os.O_RDONLY)
    # By way of the descriptor, since a socket's path has 107 bytes at most.
    listening.bind(f"/proc/self/fd/{directory}/{put('09-socket.jpg', 'unreadable').name}")
    os.close(directory)
    device = put("10-device.jpg", "unreadable")
    if ROOT:
        os.mknod(device, stat.S_IFCHR | 0o666, os.makedev(1, 5))  # /dev/zero never ends
    else:
        device.symlink_to("/dev/zero")
    put("11-locked.jpg", None if ROOT else "unreadable", jpeg).chmod(0)
    put("12-loop.jpg", "unreadable").symlink_to("12-loop.jpg")
    put("13-dangling.jpg", "unreadable").symlink_to("nowhere.jpg")
    put("14-directory.jpg-not", None).mkdir()
    del codes["14-directory.jpg-not"]
    (root / "14-directory.jpg-not/back").symlink_to(root)  # a loop of directories
    put(os.fsdecode("15-名字\xff\xfe".encode("latin-1", "ignore") + b"-\xe7\x8c.png"), None)
    shutil.copy(png, root / list(codes)[-1])
    put("16-new\nline.png", None, png.read_bytes())
    put("17-long-" + "长" * 80 + ".png", None, png.read_bytes())
    put("18-garbage.jpg", "truncated", jpeg[:200] + bytes(range(256)) * 100)
    put("19-good.png", None, png.read_bytes())
    with closing(listening):
        yield root, codes
    (root / "11-locked.jpg").chmod(0o600)


def _check(records: list[dict[str, Any]], root: Path, codes: dict[str, str | None]) -> None:
    found = {}
    for record in records:
        raw = record.get("path_b64")
        path = base64.b64decode(raw) if raw else record["path"].encode()
        name = os.fsdecode(os.path.basename(path))
        assert name not in found, "two records"
        found[name] = record.get("error", {}).get("code")
        if "error" in record:
            assert record["error"]["message"]
        else:
            assert record["labels"]
    assert found == codes
    assert list(found) == sorted(found, key=lambda name: int(name[:2])), "not in order"


@pytest.mark.parametrize("runner", RUNNERS)
def test_one_record_each(
    tools: Any,
    wuwan: Any,
    request: pytest.FixtureRequest,
    hostile: tuple[Path, dict[str, str | None]],
    runner: str,
) -> None:
    root, codes = hostile
    arguments = ["tag", root, "--runner", runner, "--ttl", 1]
    if runner == "docker":
        arguments += ["--image", request.getfixturevalue("docker_image")]
    done = wuwan(*arguments, timeout=60)
    assert done.returncode == 3, done.stderr
    _check(tools.parsed(done.stdout), root, codes)
    assert b"was lost" not in done.stderr  # no worker died of any of them


@pytest.mark.docker
def test_one_record_each_over_exec(
    tools: Any, wuwan: Any, docker_image: str, hostile: tuple[Path, dict[str, str | None]]
) -> None:
    root, codes = hostile
    done = wuwan(
        *("tag", root, "--runner", "docker", "--image", docker_image, "--ttl", 1),
        *("--channel", "exec"),
        timeout=60,
    )
    assert done.returncode == 3, done.stderr
    _check(tools.parsed(done.stdout), root, codes)


def test_names_from_a_list(tools: Any, wuwan: Any, hostile: tuple[Path, Any], photos: Path) -> None:
    """Named one by one, whatever they are; a NUL cannot be in a name, but in a list of lines."""
    root, _ = hostile
    names = [root / "01-good.jpg", root / "08-fifo.jpg", root / "10-device.jpg", "/dev/zero"]
    names += [f"{root}/nul\0byte.jpg", "/" + "x" * 5000, root, photos / "rocket.jpg"]
    lines = "\n".join(map(str, names)).encode()
    done = wuwan(
        *("tag", "--files-from", "-", "--runner", "local", "--ttl", 1, "--exclude", "*"),
        input=lines,
        timeout=60,
    )
    assert done.returncode == 3, done.stderr
    codes = [record.get("error", {}).get("code") for record in tools.parsed(done.stdout)]
    assert codes == [None, *["unreadable"] * 5, None]


def test_files_that_vanish(tools: Any, tmp_path: Path) -> None:
    """Listed, and gone when their turn comes: the run waits meanwhile for its reader."""
    root = tmp_path / "photos"
    root.mkdir()
    content, count = _tiny_png(), 600
    for number in range(count):
        (root / f"{number:04}.png").write_bytes(content)
    run = tools.start("tag", root, "--runner", "local", "--ttl", 1)
    fcntl.fcntl(run.process.stdout.fileno(), fcntl.F_SETPIPE_SZ, 4096)
    first = run.lines(1)
    for number in range(count - 20, count):
        (root / f"{number:04}.png").unlink()
    code, rest, messages = run.finish()
    assert code == 3, messages
    records = tools.parsed(first + rest)
    assert [Path(record["path"]).stem for record in records] == [f"{n:04}" for n in range(count)]
    failed = [record for record in records if "error" in record]
    assert {record["error"]["code"] for record in failed} == {"unreadable"}
    assert [Path(record["path"]).stem for record in failed] == [
        f"{number:04}" for number in range(count - 20, count)
    ]


def _readable_by_nobody(path: Path) -> bool:
    return all(parent.stat().st_mode & 0o001 for parent in [path, *path.parents][:-1])


def _as_nobody(action: Callable[[], bytes]) -> bytes:
    """What `action` returns in a child without privileges."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        status = 1
        try:
            os.setgroups([])
            os.setresgid(NOBODY, NOBODY, NOBODY)
            os.setresuid(NOBODY, NOBODY, NOBODY)
            os.write(writer, action())
            status = 0
        finally:
            os._exit(status)
    os.close(writer)
    with os.fdopen(reader, "rb") as pipe:
        result = pipe.read()
    assert os.waitpid(child, 0)[1] == 0
    return result


@pytest.mark.skipif(not ROOT, reason="only root can become another user")
def test_file_without_permission(tools: Any, tmp_path: Path, photos: Path) -> None:
    locked = tmp_path / "locked.jpg"
    shutil.copy(photos / "rocket.jpg", locked)
    locked.chmod(0)
    for parent in (tmp_path, tmp_path.parent, tmp_path.parent.parent):
        parent.chmod(0o755)

    def opened() -> bytes:
        try:
            os.close(open_file(str(locked)).descriptor)
        except OpenError as error:
            return f"{error.failure.code}: {error.failure.message}".encode()
        return b"opened"

    assert _as_nobody(opened) == b"unreadable: Permission denied"
    if not _readable_by_nobody(Path(sys.executable).resolve()):
        return  # this interpreter is root's alone: the program cannot run as anybody else
    done = subprocess.run(
        [sys.executable, "-m", "wuwan_cli", "tag", locked, "--runner", "local"],
        user=NOBODY,
        group=NOBODY,
        extra_groups=[],
        capture_output=True,
        timeout=60,
        check=False,
        cwd="/",
    )
    assert done.returncode == 3, done.stderr
    assert tools.parsed(done.stdout)[0]["error"] == {
        "code": "unreadable",
        "message": "Permission denied",
    }
