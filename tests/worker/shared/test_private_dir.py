"""Private directories: what another user has made, or could change, is not used."""

from __future__ import annotations

import os
import stat
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from wuwan_worker.backends.openvino import compile_cache
from wuwan_worker.shared import private_dir
from wuwan_worker.shared.private_dir import PrivateDir

if TYPE_CHECKING:
    from collections.abc import Callable

STRANGER = 12345
root = pytest.mark.skipif(os.getuid() != 0, reason="only root can give a file to somebody else")


def _mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_what_is_missing_is_made_for_us_alone(tmp_path: Path) -> None:
    """Every directory on the way, whatever the umask; and only if that is asked for."""
    place = PrivateDir(tmp_path, ("a",)) / "b"
    with pytest.raises(FileNotFoundError), place.opened():
        pass
    assert place.problem() == ""
    assert list(tmp_path.iterdir()) == []
    before = os.umask(0)
    try:
        with place.opened(make=True) as descriptor:
            private_dir.write("file", descriptor, b"content")
    finally:
        os.umask(before)
    assert [_mode(place.path.parent), _mode(place.path)] == [0o700, 0o700]
    assert _mode(place.path / "file") == 0o600
    with place.opened() as descriptor:
        assert private_dir.read("file", descriptor) == b"content"


def _link(place: Path) -> None:
    (place.parent / "elsewhere").mkdir()
    place.symlink_to("elsewhere")


def _file(place: Path) -> None:
    place.touch()


def _strangers(place: Path) -> None:
    place.mkdir(0o700)
    os.chown(place, STRANGER, STRANGER)


def _group_writable(place: Path) -> None:
    place.mkdir()
    place.chmod(0o770)


def _world_writable(place: Path) -> None:
    place.mkdir()
    place.chmod(0o1777)


SPOILERS = {
    "a link": _link,
    "a file": _file,
    "somebody else's": pytest.param(_strangers, marks=root),
    "group": _group_writable,
    "world": _world_writable,
}


@pytest.mark.parametrize("name", ["a", "b"])
@pytest.mark.parametrize("spoil", SPOILERS.values(), ids=SPOILERS)
def test_what_is_not_ours_alone_is_not_used(
    tmp_path: Path, spoil: Callable[[Path], None], name: str
) -> None:
    """Whichever of the names it is; and `problem` says what `opened` finds."""
    place = PrivateDir(tmp_path, ("a", "b", "c"))
    if name == "b":
        (tmp_path / "a").mkdir(0o700)
    spoiled = tmp_path.joinpath(*place.names[: place.names.index(name) + 1])
    spoil(spoiled)
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(OSError) as raised, place.opened(make=True):
        pass
    assert raised.value.filename == str(spoiled)
    assert place.problem() == f"{spoiled}: {raised.value.strerror}"
    assert sorted(tmp_path.rglob("*")) == before


def test_the_base_may_be_a_link(tmp_path: Path) -> None:
    """Where a user has put his own state directory is his choice."""
    (tmp_path / "disk").mkdir()
    (tmp_path / "state").symlink_to("disk")
    with PrivateDir(tmp_path / "state", ("wuwan",)).opened(make=True):
        pass
    assert (tmp_path / "disk" / "wuwan").is_dir()


def test_a_swapped_name_changes_nothing(tmp_path: Path) -> None:
    """Work goes on in the directory that was looked at."""
    place, elsewhere = PrivateDir(tmp_path, ("a",)), tmp_path / "elsewhere"
    elsewhere.mkdir()
    with place.opened(make=True) as descriptor:
        place.path.rename(tmp_path / "moved")
        place.path.symlink_to(elsewhere)
        private_dir.write("file", descriptor, b"")
    assert list(elsewhere.iterdir()) == []
    assert (tmp_path / "moved" / "file").exists()


@pytest.mark.parametrize("kind", ["symlink", "hard link", "pipe"])
def test_a_name_that_is_taken_is_not_written_through(tmp_path: Path, kind: str) -> None:
    """Nor is a link or a pipe read."""
    precious = tmp_path / "precious"
    precious.write_bytes(b"precious")
    place = PrivateDir(tmp_path, ("a",))
    with place.opened(make=True) as descriptor:
        if kind == "symlink":
            (place.path / "file").symlink_to(precious)
        elif kind == "hard link":
            (place.path / "file").hardlink_to(precious)
        else:
            os.mkfifo(place.path / "file")
        with pytest.raises(FileExistsError):
            private_dir.write("file", descriptor, b"ours")
        if kind != "hard link":
            with pytest.raises(OSError):
                private_dir.read("file", descriptor)
    assert precious.read_bytes() == b"precious"


@root
@pytest.mark.parametrize(
    "spoil", [lambda path: os.chown(path, STRANGER, 0), lambda path: path.chmod(0o666)]
)
def test_a_file_that_others_could_have_written_is_not_read(
    tmp_path: Path, spoil: Callable[[Path], None]
) -> None:
    """Compiled networks go to native code that trusts them."""
    place = PrivateDir(tmp_path, ("a",))
    with place.opened(make=True) as descriptor:
        private_dir.write("file", descriptor, b"content")
        spoil(place.path / "file")
        with pytest.raises(PermissionError):
            private_dir.read("file", descriptor)


@root
@pytest.mark.parametrize("spoil", [_link, _strangers, _group_writable])
def test_the_compile_cache_trusts_its_own_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, spoil: Callable[[Path], None]
) -> None:
    """What lies in a directory that is not, whole as it is, is neither read nor added to."""
    monkeypatch.delenv(compile_cache.VARIABLE, raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "made elsewhere"))
    compile_cache.write("key", b"data")
    (blob,) = (tmp_path / "made elsewhere" / "wuwan" / "compiled").iterdir()

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    (tmp_path / "cache" / "wuwan").mkdir(mode=0o700, parents=True)
    spoiled = tmp_path / "cache" / "wuwan" / "compiled"
    spoil(spoiled)
    blob.rename(spoiled / blob.name)
    assert compile_cache.read("key") is None
    compile_cache.write("other", b"data")
    assert [path.name for path in spoiled.iterdir()] == [blob.name]


@root
def test_where_a_directory_of_ours_would_not_stay_ours(tmp_path: Path) -> None:
    """Whoever may rename it could put another one in its place; the sticky bit forbids that."""
    for mode, good in ((0o755, True), (0o1777, True), (0o777, False), (0o770, False)):
        tmp_path.chmod(mode)
        assert (private_dir.exposed(tmp_path) == "") is good
    tmp_path.chmod(0o1777)
    os.chown(tmp_path, STRANGER, 0)
    assert "12345" in private_dir.exposed(tmp_path)
    assert "No such file" in private_dir.exposed(tmp_path / "missing")
