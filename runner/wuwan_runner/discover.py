"""From what the user names to the images, lazily and in a stable order."""

from __future__ import annotations

import fnmatch
import os
import re
import stat
from dataclasses import dataclass
from typing import TYPE_CHECKING

from wuwan_runner import bounds
from wuwan_runner.records import ItemFailure
from wuwan_worker.protocol import ErrorCode

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

# The extensions of the formats that the worker decodes. Explicitly named files are always taken.
EXTENSIONS = frozenset(
    ".jpg .jpeg .jpe .jfif .mpo .png .apng .webp .gif .bmp .dib .tif .tiff "
    ".heic .heif .hif .avif".split()
)
_DIGITS = re.compile(r"(\d+)")


@dataclass(frozen=True, slots=True, kw_only=True)
class Selection:
    """Which files of a directory are taken."""

    recursive: bool = True
    hidden: bool = False  # files and directories whose name begins with a dot
    include: tuple[str, ...] = ()  # patterns; if any, they replace the test of the extension
    exclude: tuple[str, ...] = ()  # patterns for files and directories

    def __post_init__(self) -> None:
        """Raises OptionError."""
        bounds.of_kind("selection.recursive", self.recursive, bool, "True or False")
        bounds.of_kind("selection.hidden", self.hidden, bool, "True or False")
        bounds.patterns("selection.include", self.include)
        bounds.patterns("selection.exclude", self.exclude)


@dataclass(frozen=True, slots=True)
class Found:
    """An input: a path to tag, or one that is known to fail."""

    path: str
    failure: ItemFailure | None = None


def natural_key(name: str) -> tuple[tuple[int, int, str], ...]:
    """Sorts IMG_2 before IMG_10; equal numbers with other digits (2, 02) stay apart."""
    parts = _DIGITS.split(name)
    key = [(0, int(part), part) if part.isdecimal() else (1, 0, part.casefold()) for part in parts]
    return (*key, (2, 0, name))


def discover(paths: Iterable[str | None], selection: Selection) -> Iterator[Found | None]:
    """The images under `paths`, in the order of `paths`, directories in natural order.

    None among the paths stands for "nothing at the moment", and is passed on.

    A directory is read when its turn comes, so a huge tree costs one directory's names at a time.
    Symbolic links are followed, but to a directory only once, and never to one above itself.
    """
    for path in paths:
        if path is None:
            yield None
            continue
        try:
            status = os.stat(path)
        except (OSError, ValueError) as error:
            yield Found(path, _failure(error))
            continue
        if stat.S_ISDIR(status.st_mode):
            yield from _walk(path, selection, (status.st_dev, status.st_ino))
        else:
            yield Found(path)


def _walk(root: str, selection: Selection, identity: tuple[int, int]) -> Iterator[Found]:
    # A stack of our own: trees may be deeper than Python's.
    stack = [(root, identity, _listing(root))]
    above = {identity}
    linked: set[tuple[int, int]] = set()  # directories that links have led to
    while stack:
        directory, identity, names = stack[-1]
        try:
            name, is_directory, is_link = next(names)
        except StopIteration:
            stack.pop()
            above.discard(identity)
            continue
        except OSError as error:
            yield Found(directory, _failure(error))
            continue
        path = os.path.join(directory, name)  # pathlib would cost more than the open
        if (name.startswith(".") and not selection.hidden) or _matches(
            path, name, root, selection.exclude
        ):
            continue
        if not is_directory:
            if _taken(path, name, root, selection):
                yield Found(path)
        elif selection.recursive:
            try:
                status = os.stat(path)
            except OSError as error:
                yield Found(path, _failure(error))
                continue
            identity = (status.st_dev, status.st_ino)
            # Directories with links to each other would have as many paths as there are orders.
            if identity not in above and not (is_link and identity in linked):
                above.add(identity)
                if is_link:
                    linked.add(identity)
                stack.append((path, identity, _listing(path)))


def _listing(directory: str) -> Iterator[tuple[str, bool, bool]]:
    """Names in natural order, whether each is a directory, and a link.

    Raises:
        OSError: when it is begun.
    """
    with os.scandir(directory) as entries:
        found = [(entry.name, _is_directory(entry), entry.is_symlink()) for entry in entries]
    found.sort(key=lambda entry: natural_key(entry[0]))
    yield from found


def _is_directory(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a loop of links, say: opening it will tell
        return False


def _taken(path: str, name: str, root: str, selection: Selection) -> bool:
    if selection.include:
        return _matches(path, name, root, selection.include)
    return os.path.splitext(name)[1].lower() in EXTENSIONS


def _matches(path: str, name: str, root: str, patterns: tuple[str, ...]) -> bool:
    """A pattern matches the name or the path below the named directory, as .gitignore's do."""
    if not patterns:
        return False
    relative = path[len(root) :].lstrip("/")
    return any(
        fnmatch.fnmatch(name, pattern) or fnmatch.fnmatch(relative, pattern.rstrip("/"))
        for pattern in patterns
    )


class OpenError(Exception):
    """A path cannot be passed to a worker."""

    def __init__(self, failure: ItemFailure) -> None:
        super().__init__(failure.message)
        self.failure = failure


def open_image(path: str) -> int:
    """Open a regular file for reading; the caller closes the descriptor.

    The type is looked at before the file is opened, because opening a FIFO waits and opening a
    device may do anything, and once more after, because it may have been swapped in between.

    Raises:
        OpenError: with the failure for the record.
    """
    try:
        _require_regular(os.stat(path))
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY)
    except (OSError, ValueError) as error:
        raise OpenError(_failure(error)) from None
    try:
        _require_regular(os.fstat(descriptor))
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


def _require_regular(status: os.stat_result) -> None:
    if stat.S_ISREG(status.st_mode):
        return
    kinds = {
        stat.S_IFDIR: "a directory",
        stat.S_IFIFO: "a FIFO",
        stat.S_IFSOCK: "a socket",
        stat.S_IFCHR: "a device",
        stat.S_IFBLK: "a device",
    }
    kind = kinds.get(stat.S_IFMT(status.st_mode), "of an unknown kind")
    raise OpenError(ItemFailure(ErrorCode.UNREADABLE, f"not a regular file but {kind}"))


def _failure(error: OSError | ValueError) -> ItemFailure:
    # ValueError: a path with a NUL byte, from a list
    reason = error.strerror if isinstance(error, OSError) else str(error)
    return ItemFailure(ErrorCode.UNREADABLE, reason or str(error))
