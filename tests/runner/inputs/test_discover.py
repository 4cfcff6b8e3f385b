"""From what the user names to open images: order, selection, and files that are none."""

from __future__ import annotations

import contextlib
import errno
import os
import random
import shutil
import socket
import tempfile
import unicodedata
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wuwan_runner.inputs import discover
from wuwan_runner.inputs.base import OpenError
from wuwan_runner.inputs.discover import natural_key
from wuwan_runner.inputs.files import Found, open_file
from wuwan_runner.options import Selection
from wuwan_worker.shared.protocol import ErrorCode

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


def _make(root: Path, *names: str) -> None:
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()


def _names(root: Path, **selection: object) -> list[str]:
    """What is found in `root`, relative to it."""
    found = list(discover.discover([str(root)], Selection(**selection)))  # type: ignore[arg-type]
    assert all(one.failure is None for one in found), found
    return [os.path.relpath(one.path, root) for one in found]


def _as_nobody(check: Callable[[], bool]) -> bool:
    """Whether `check` holds for a user without privileges."""
    if os.getuid() != 0:
        return check()
    child = os.fork()
    if child == 0:
        code = 1
        try:
            os.setresuid(65534, 65534, 65534)
            code = 0 if check() else 2
        finally:
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


@pytest.fixture
def public() -> Iterator[Path]:
    """A directory that every user may enter."""
    root = Path(tempfile.mkdtemp())
    root.chmod(0o755)
    yield root
    for path in root.rglob("*"):
        if path.is_dir():
            path.chmod(0o700)
    shutil.rmtree(root)


# ---------------------------------------------------------------- order


def test_natural_order(tmp_path: Path) -> None:
    """Numbers count as numbers, letters without their case."""
    names = ["IMG_1.jpg", "img_2.jpg", "IMG_02.jpg", "IMG_10.jpg", "a.jpg", "B.jpg", "10.jpg"]
    _make(tmp_path, *names)
    expected = ["10.jpg", "a.jpg", "B.jpg", "IMG_1.jpg", "IMG_02.jpg", "img_2.jpg", "IMG_10.jpg"]
    assert _names(tmp_path) == expected


def test_directories_come_where_their_name_does(tmp_path: Path) -> None:
    """A directory's files stand together, in the place of its name."""
    _make(tmp_path, "2/b.jpg", "2/a.jpg", "10.jpg", "1.jpg", "3/x/y.jpg")
    assert _names(tmp_path) == ["1.jpg", "2/a.jpg", "2/b.jpg", "3/x/y.jpg", "10.jpg"]


def test_the_order_of_the_arguments_is_kept(tmp_path: Path) -> None:
    """Paths come as they were named, twice if named twice."""
    _make(tmp_path, "b.jpg", "a/1.jpg")
    paths = [str(tmp_path / name) for name in ("b.jpg", "a", "b.jpg")]
    found = [one.path for one in discover.discover(paths, Selection())]
    assert found == [paths[0], f"{paths[1]}/1.jpg", paths[2]]


@given(st.lists(st.text(max_size=8), max_size=12, unique=True))
def test_the_order_is_total(names: list[str]) -> None:
    """Any names have one order, wherever they started."""
    expected = sorted(names, key=natural_key)
    shuffled = names.copy()
    random.Random(0).shuffle(shuffled)
    assert sorted(shuffled, key=natural_key) == expected


def test_digits_of_other_scripts(tmp_path: Path) -> None:
    """Digits of other scripts are digits, and superscripts are no reason to fail."""
    _make(tmp_path, "图10.jpg", "图٢.jpg", "图².jpg")
    assert _names(tmp_path)[:2] == ["图٢.jpg", "图10.jpg"]


# ---------------------------------------------------------------- selection


@pytest.mark.parametrize("extension", sorted(discover.EXTENSIONS))
def test_extensions(tmp_path: Path, extension: str) -> None:
    """The extensions of all formats are taken, in any case."""
    _make(tmp_path, f"a{extension}", f"b{extension.upper()}", f"c{extension}.txt", extension[1:])
    assert _names(tmp_path) == [f"a{extension}", f"b{extension.upper()}"]


def test_other_files_are_left_out(tmp_path: Path) -> None:
    """A directory's notes and raw files are not tried."""
    _make(tmp_path, "a.jpg", "readme.txt", "raw.nef", "jpg", "b.jpg~", "b.jpg.part")
    assert _names(tmp_path) == ["a.jpg"]


def test_hidden(tmp_path: Path) -> None:
    """Hidden files and directories are left out unless they are wanted."""
    _make(tmp_path, ".a.jpg", ".cache/b.jpg", "c.jpg")
    assert _names(tmp_path) == ["c.jpg"]
    assert sorted(_names(tmp_path, hidden=True)) == [".a.jpg", ".cache/b.jpg", "c.jpg"]


def test_what_is_named_is_taken(tmp_path: Path) -> None:
    """A file that is named is taken, whatever it is called; a hidden directory, too."""
    _make(tmp_path, ".hidden", "notes.txt", ".d/a.jpg")
    paths = [str(tmp_path / name) for name in (".hidden", "notes.txt")]
    selection = Selection(include=("*.png",), exclude=("*.txt",))
    assert list(discover.discover(paths, selection)) == [Found(path) for path in paths]
    assert _names(tmp_path / ".d") == ["a.jpg"]


def test_not_recursive(tmp_path: Path) -> None:
    """Only the directory itself."""
    _make(tmp_path, "a.jpg", "d/b.jpg")
    assert _names(tmp_path, recursive=False) == ["a.jpg"]


@pytest.mark.parametrize(
    ("include", "expected"),
    [
        (("*.txt",), ["b.txt"]),
        (("*.jpg",), ["a.jpg", "d/a.jpg"]),
        (("d/*",), ["d/a.jpg", "d/c"]),
        (("c", "b.*"), ["b.txt", "d/c"]),
        (("nothing",), []),
    ],
)
def test_include(tmp_path: Path, include: tuple[str, ...], expected: list[str]) -> None:
    """Patterns of names or paths take the place of the extensions."""
    _make(tmp_path, "a.jpg", "b.txt", "d/a.jpg", "d/c")
    assert _names(tmp_path, include=include) == expected


@pytest.mark.parametrize(
    ("exclude", "expected"),
    [
        (("a.*",), ["b.jpg", "d/e/b.jpg"]),
        (("d",), ["a.jpg", "b.jpg"]),
        (("d/",), ["a.jpg", "b.jpg"]),
        (("d/e",), ["a.jpg", "b.jpg", "d/a.jpg"]),
        (("*",), []),
    ],
)
@pytest.mark.parametrize("slash", ["", "/"])
def test_exclude(tmp_path: Path, exclude: tuple[str, ...], expected: list[str], slash: str) -> None:
    """Patterns leave out files and whole directories, however the root was written."""
    _make(tmp_path, "a.jpg", "b.jpg", "d/a.jpg", "d/e/b.jpg")
    found = discover.discover([f"{tmp_path}{slash}"], Selection(exclude=exclude))
    assert [os.path.relpath(one.path, tmp_path) for one in found] == expected


def test_an_excluded_directory_is_not_read(public: Path) -> None:
    """What is left out is no error, even if it could not have been read."""
    _make(public, "a.jpg")
    (public / "lost+found").mkdir(mode=0o000)

    def check() -> bool:
        found = list(discover.discover([str(public)], Selection(exclude=("lost+found",))))
        return found == [Found(str(public / "a.jpg"))]

    assert _as_nobody(check)


# ---------------------------------------------------------------- links and odd files


def test_links_are_followed(tmp_path: Path) -> None:
    """A link to a file or a directory is what it leads to."""
    _make(tmp_path, "real/a.jpg", "tree/x")
    (tmp_path / "tree/b.jpg").symlink_to(tmp_path / "real/a.jpg")
    (tmp_path / "tree/d").symlink_to(tmp_path / "real")
    assert _names(tmp_path / "tree") == ["b.jpg", "d/a.jpg"]


def test_a_loop_of_directories_ends(tmp_path: Path) -> None:
    """A link to a directory above is passed over, and each image is found once."""
    _make(tmp_path, "d/e/a.jpg")
    (tmp_path / "d/e/self").symlink_to(".")
    (tmp_path / "d/e/up").symlink_to(tmp_path)
    (tmp_path / "d/other").symlink_to("e")
    assert _names(tmp_path) == ["d/e/a.jpg", "d/other/a.jpg"]


def _failures(root: Path, **selection: object) -> dict[str, str]:
    """The messages of what fails in `root`, by name; all failures are of one code."""
    found = list(discover.discover([str(root)], Selection(**selection)))  # type: ignore[arg-type]
    failed = [(one.path, one.failure) for one in found if one is not None and one.failure]
    assert {failure.code for _, failure in failed} <= {ErrorCode.UNREADABLE}
    return {os.path.relpath(path, root): failure.message for path, failure in failed}


def test_a_loop_of_links_is_one_failure(tmp_path: Path) -> None:
    """Links that lead to each other are failures, whether they look like an image or an album."""
    (tmp_path / "a.jpg").symlink_to("b.jpg")
    (tmp_path / "b.jpg").symlink_to("a.jpg")
    (tmp_path / "c").symlink_to("c")
    message = "Too many levels of symbolic links"
    assert _failures(tmp_path) == {"a.jpg": message, "b.jpg": message, "c": message}
    with pytest.raises(OpenError, match="symbolic link"):
        open_file(str(tmp_path / "a.jpg"))
    (found,) = discover.discover([str(tmp_path / "c")], Selection())
    assert found is not None
    assert found.failure is not None
    assert found.failure.code == ErrorCode.UNREADABLE


ALBUMS = ["album", "2024.08", "2024.08.15", "St. Moritz", "v1.2", "假期", "a.b.", "all.holidays"]


@pytest.mark.parametrize("name", ["a.jpg", *ALBUMS])
def test_a_link_to_nothing(tmp_path: Path, name: str) -> None:
    """A dangling link that is an image by its name, or may have been an album, is a failure."""
    (tmp_path / name).symlink_to("nothing")
    assert _failures(tmp_path) == {name: "No such file or directory"}
    assert _failures(tmp_path, exclude=(name,)) == {}
    with pytest.raises(OpenError, match="No such file"):
        open_file(str(tmp_path / name))


@pytest.mark.parametrize("name", ["notes.txt", "a.CR3", "clip.mp4", "old.7z", ".album"])
def test_a_link_to_nothing_that_was_no_album(tmp_path: Path, name: str) -> None:
    """Another file's extension, or a hidden name: it would not have been taken."""
    (tmp_path / name).symlink_to("nothing")
    assert _failures(tmp_path) == {}


def test_a_link_to_nothing_where_no_album_is_wanted(tmp_path: Path) -> None:
    """Without recursion only what is an image by its name would have been taken."""
    for name in ("album", "a.jpg"):
        (tmp_path / name).symlink_to("nothing")
    assert list(_failures(tmp_path, recursive=False)) == ["a.jpg"]
    assert list(_failures(tmp_path, include=("b*",))) == ["album"]


def test_a_link_into_a_locked_directory(public: Path) -> None:
    """An album behind a directory that cannot be entered is one failure, and so is a photo."""
    _make(public, "locked/album/x.jpg", "locked/b.jpg", "photos/a.jpg", "photos/z.jpg")
    (public / "photos/album").symlink_to(public / "locked/album")
    (public / "photos/b.jpg").symlink_to(public / "locked/b.jpg")
    (public / "locked").chmod(0o000)

    def check() -> bool:
        found = list(discover.discover([str(public / "photos")], Selection()))
        failed = {"album": "Permission denied", "b.jpg": "Permission denied"}
        return len(found) == 4 and _failures(public / "photos") == failed

    assert _as_nobody(check)


class BadEntry:
    """A name of a file system that gives no types, and whose inode cannot be read."""

    def __init__(self, name: str) -> None:
        self.name = name

    def is_symlink(self) -> bool:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    is_dir = stat = is_symlink


def _scandir(
    monkeypatch: pytest.MonkeyPatch, bad: tuple[str, ...] = (), *, ends: bool = False
) -> None:
    real = os.scandir

    @contextlib.contextmanager
    def scandir(path: str) -> Iterator[Iterator[object]]:
        def listed() -> Iterator[object]:
            yield from [BadEntry(name) for name in bad]
            yield from entries
            if ends:
                raise OSError(errno.EIO, os.strerror(errno.EIO))

        with real(path) as entries:
            yield listed()

    monkeypatch.setattr(os, "scandir", scandir)


def test_a_bad_entry_does_not_cost_its_neighbours(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One failure for what may be an image or an album, in its place; all the others are found."""
    _make(tmp_path, "a.jpg", "d.jpg")
    _scandir(monkeypatch, ("b.jpg", "c", "notes.txt"))
    found = list(discover.discover([str(tmp_path)], Selection()))
    assert [os.path.basename(one.path) for one in found if one] == ["a.jpg", "b.jpg", "c", "d.jpg"]
    assert _failures(tmp_path) == {"b.jpg": "Input/output error", "c": "Input/output error"}


def test_a_listing_that_breaks_off(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What was read before is found, and the directory is a failure, since there may be more."""
    _make(tmp_path, "b/2.jpg", "b/1.jpg", "c.jpg")
    _scandir(monkeypatch, ends=True)
    found = list(discover.discover([str(tmp_path)], Selection()))
    names = [os.path.relpath(one.path, tmp_path) for one in found if one]
    assert names == ["b/1.jpg", "b/2.jpg", "b", "c.jpg", "."]
    assert set(_failures(tmp_path)) == {"b", "."}


def test_what_does_not_exist_is_a_failure() -> None:
    """A path that was named and is not there has its record."""
    (found,) = discover.discover(["/nonexistent/a.jpg"], Selection())
    assert found.path == "/nonexistent/a.jpg"
    assert found.failure is not None
    assert found.failure.code == ErrorCode.UNREADABLE
    assert found.failure.message == "No such file or directory"


def test_a_path_with_a_nul(tmp_path: Path) -> None:
    """A path that no file can have is a failure, and the next one is found."""
    _make(tmp_path, "a.jpg")
    bad, good = discover.discover(["a\0b.jpg", str(tmp_path / "a.jpg")], Selection())
    assert bad.failure is not None
    assert bad.failure.code == ErrorCode.UNREADABLE
    assert good.failure is None
    with pytest.raises(OpenError, match="null"):
        open_file("a\0b.jpg")


@pytest.mark.parametrize("path", ["", "x" * 5000, "/".join("x" * 3000)])
def test_impossible_paths(path: str) -> None:
    """Empty and overlong paths are failures."""
    (found,) = discover.discover([path], Selection())
    assert found.failure is not None
    with pytest.raises(OpenError):
        open_file(path)


def test_a_directory_that_cannot_be_read(public: Path) -> None:
    """An unreadable directory is one failure; its neighbours are found."""
    _make(public, "a.jpg", "b.jpg/x.jpg", "c.jpg")
    (public / "b.jpg").chmod(0o000)

    def check() -> bool:
        first, second, third = discover.discover([str(public)], Selection())
        return (
            (first, third) == (Found(str(public / "a.jpg")), Found(str(public / "c.jpg")))
            and second.failure is not None
            and second.failure.message == "Permission denied"
        )

    assert _as_nobody(check)


def test_a_file_that_cannot_be_read(public: Path) -> None:
    """An unreadable file fails when it is opened."""
    _make(public, "a.jpg")
    (public / "a.jpg").chmod(0o000)

    def check() -> bool:
        try:
            open_file(str(public / "a.jpg"))
        except OpenError as error:
            return str(error) == "Permission denied"
        return False

    assert _as_nobody(check)


def test_names_that_are_not_utf8(tmp_path: Path) -> None:
    """Any bytes are a name; the path that is found opens the file."""
    name = b"caf\xe9 \xff.jpg"
    Path(os.fsdecode(os.fsencode(tmp_path) + b"/" + name)).write_bytes(b"content")
    _make(tmp_path, "照片.jpg")
    found = [one.path for one in discover.discover([str(tmp_path)], Selection())]
    raw = {os.path.basename(os.fsencode(path)) for path in found}
    assert raw == {name, "照片.jpg".encode()}
    (path,) = [path for path in found if path.isascii() is False and "\udcff" in path]
    descriptor = open_file(path).descriptor
    assert os.pread(descriptor, 64, 0) == b"content"
    os.close(descriptor)


def test_names_of_equal_look_are_two_files(tmp_path: Path) -> None:
    """Names that differ in their composition only are both found, in a stable order."""
    names = [unicodedata.normalize(form, "é.jpg") for form in ("NFC", "NFD")]
    _make(tmp_path, *names)
    assert sorted(_names(tmp_path)) == sorted(names)
    assert _names(tmp_path) == _names(tmp_path)


# ---------------------------------------------------------------- laziness


def test_the_first_image_comes_before_the_tree_is_walked(tmp_path: Path) -> None:
    """A directory is read when its turn comes."""
    _make(tmp_path, "1/a.jpg", "2/b.jpg")
    found = discover.discover([str(tmp_path)], Selection())
    assert next(found).path.endswith("1/a.jpg")
    _make(tmp_path, "2/c.jpg")
    (tmp_path / "2/b.jpg").unlink()
    assert [os.path.basename(one.path) for one in found] == ["c.jpg"]


def test_paths_are_taken_one_at_a_time(tmp_path: Path) -> None:
    """A list without end can be tagged as it comes."""
    _make(tmp_path, "a.jpg")

    def endless() -> Iterator[str]:
        while True:
            yield str(tmp_path / "a.jpg")

    found = discover.discover(endless(), Selection())
    assert [next(found).path for _ in range(3)] == [str(tmp_path / "a.jpg")] * 3


def test_a_directory_that_vanishes(tmp_path: Path) -> None:
    """What goes away while the tree is walked is a failure, not the end."""
    _make(tmp_path, "1.jpg", "2/a.jpg", "3.jpg")
    found = discover.discover([str(tmp_path)], Selection())
    assert next(found).path.endswith("1.jpg")
    shutil.rmtree(tmp_path / "2")
    gone, last = found
    assert gone.path.endswith("/2")
    assert gone.failure is not None
    assert last == Found(str(tmp_path / "3.jpg"))


def test_a_deep_tree(tmp_path: Path) -> None:
    """Depth is limited by the file system, not by Python's stack."""
    place = str(tmp_path)
    while len(place) + 8 < 4000:
        place += "/d"
        os.mkdir(place)
    Path(place, "a.jpg").touch()
    try:
        (found,) = discover.discover([str(tmp_path)], Selection())
        assert found == Found(f"{place}/a.jpg")
    finally:
        while place != str(tmp_path):
            for name in os.listdir(place):
                if name != "d":
                    os.unlink(f"{place}/{name}")
            place = os.path.dirname(place)
            os.rmdir(f"{place}/d")


# ---------------------------------------------------------------- opening


def test_open_file_gives_a_descriptor_to_read(tmp_path: Path) -> None:
    """A regular file is opened to be read only, and no child inherits it."""
    (tmp_path / "a.jpg").write_bytes(b"content")
    descriptor = open_file(str(tmp_path / "a.jpg")).descriptor
    try:
        assert os.read(descriptor, 64) == b"content"
        assert not os.get_inheritable(descriptor)
        with pytest.raises(OSError, match="Bad file descriptor"):
            os.write(descriptor, b"x")
    finally:
        os.close(descriptor)


def test_open_file_refuses_what_is_no_regular_file(tmp_path: Path) -> None:
    """FIFOs, sockets, devices and directories are refused by name, without waiting for them."""
    before = len(os.listdir("/proc/self/fd"))
    os.mkfifo(tmp_path / "fifo.jpg")
    with socket.socket(socket.AF_UNIX) as sock:
        sock.bind(str(tmp_path / "socket.jpg"))
    for path, kind in [
        (tmp_path / "fifo.jpg", "a FIFO"),
        (tmp_path / "socket.jpg", "a socket"),
        ("/dev/zero", "a device"),
        (tmp_path, "a directory"),
    ]:
        with pytest.raises(OpenError) as caught:
            open_file(str(path))
        assert caught.value.failure.code == ErrorCode.UNREADABLE
        assert str(caught.value) == f"not a regular file but {kind}"
    assert _names(tmp_path) == ["fifo.jpg", "socket.jpg"]
    assert len(os.listdir("/proc/self/fd")) == before


def test_a_file_that_vanishes(tmp_path: Path) -> None:
    """What was found and is gone fails when it is opened."""
    _make(tmp_path, "a.jpg")
    (found,) = discover.discover([str(tmp_path)], Selection())
    os.unlink(found.path)
    with pytest.raises(OpenError, match="No such file") as caught:
        open_file(found.path)
    assert caught.value.failure.code == ErrorCode.UNREADABLE


def test_links_among_directories(tmp_path: Path) -> None:
    """Directories that all link to each other are not walked in every order there is."""
    places = [tmp_path / f"d{number:02d}" for number in range(12)]
    for place in places:
        place.mkdir()
        (place / "a.jpg").touch()
    for place in places:
        for other in places:
            (place / f"to-{other.name}").symlink_to(other)
    found = list(discover.discover([str(tmp_path)], Selection()))
    assert len(found) <= 2 * len(places)
    assert {os.path.realpath(entry.path) for entry in found if entry} == {
        str(place / "a.jpg") for place in places
    }
