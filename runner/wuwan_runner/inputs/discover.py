"""From what the user names to the images, lazily and in a stable order."""

from __future__ import annotations

import fnmatch
import os
import re
import stat
from typing import TYPE_CHECKING, NamedTuple

from wuwan_runner.inputs.files import Found, failure_of
from wuwan_runner.inputs.survey import Survey, may_be_directory

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from wuwan_runner.options import Selection
    from wuwan_runner.records import ItemFailure

# The extensions of the formats that the worker decodes. Explicitly named files are always taken.
EXTENSIONS = frozenset(
    ".jpg .jpeg .jpe .jfif .mpo .png .apng .webp .gif .bmp .dib .tif .tiff "
    ".heic .heif .hif .avif".split()
)
_DIGITS = re.compile(r"(\d+)")


def natural_key(name: str) -> tuple[tuple[int, int, str], ...]:
    """Sorts IMG_2 before IMG_10; equal numbers with other digits (2, 02) stay apart."""
    parts = _DIGITS.split(name)
    key = [(0, int(part), part) if part.isdecimal() else (1, 0, part.casefold()) for part in parts]
    return (*key, (2, 0, name))


def _never() -> bool:
    return False


class _Entry(NamedTuple):
    """A name in a directory, and what it stands for."""

    name: str  # empty for the directory itself, which could not be read to its end
    is_directory: bool = False
    is_link: bool = False
    failure: ItemFailure | None = None  # why that cannot be told


def discover(
    paths: Iterable[str],
    selection: Selection,
    survey: Survey | None = None,
    over: Callable[[], bool] = _never,
) -> Iterator[Found]:
    """The images under `paths`, in the order of `paths`, directories in natural order.

    A directory is read when its turn comes, so a huge tree costs one directory's names at a time.
    Symbolic links are followed, but to a directory only once, and never to one above itself.

    What cannot be looked at (a link to nothing, to itself or behind a locked directory; a file
    system's error) is a failure of its own if it would have been taken, or may be a directory: an
    album is not to go missing without a word. Something else's extension, as that of a dangling
    `notes.txt`, says that it is neither.

    `survey` is told what is passed over in directories, unless `include` chose among their files,
    and which paths gave no input: directories in which nothing was found, and what is not there
    and may have been a directory.

    `over` is asked at each step, and ends the walk.
    """
    survey = Survey() if survey is None else survey
    for path in paths:
        try:
            status = os.stat(path)
        except (OSError, ValueError) as error:
            failure = failure_of(error)
            if may_be_directory(path):
                survey.miss(f"{path}: {failure.message}")
            yield Found(path, failure)
            continue
        if stat.S_ISDIR(status.st_mode):
            yield from _walk_root(path, selection, (status.st_dev, status.st_ino), survey, over)
        else:
            yield Found(path)


def _walk_root(
    root: str,
    selection: Selection,
    identity: tuple[int, int],
    survey: Survey,
    over: Callable[[], bool],
) -> Iterator[Found]:
    before = survey.passed_over
    failure, empty = None, True
    for found in _walk(root, selection, identity, survey, over):
        if found.path == root:
            failure = found.failure
        else:
            empty = False
        yield found
    if failure is not None and empty:
        survey.miss(f"{root}: {failure.message}")
    elif empty:
        count = survey.passed_over - before
        among = f" among {count:,} file{'' if count == 1 else 's'}" if count else ""
        survey.miss(f"{root}: no images{among}")


def _walk(
    root: str,
    selection: Selection,
    identity: tuple[int, int],
    survey: Survey,
    over: Callable[[], bool],
) -> Iterator[Found]:
    # A stack of our own: trees may be deeper than Python's.
    stack = [(root, identity, _listing(root))]
    above = {identity}
    linked: set[tuple[int, int]] = set()  # directories that links have led to
    while stack and not over():
        directory, identity, entries = stack[-1]
        entry = next(entries, None)
        if entry is None:
            stack.pop()
            above.discard(identity)
            continue
        name = entry.name
        if not name:
            yield Found(directory, entry.failure)
            continue
        path = os.path.join(directory, name)  # pathlib would cost more than the open
        if (name.startswith(".") and not selection.hidden) or _matches(
            path, name, root, selection.exclude
        ):
            continue
        if not entry.is_directory:
            unknown = entry.failure and selection.recursive and may_be_directory(name)
            if unknown or _taken(path, name, root, selection):
                yield Found(path, entry.failure)
            elif not selection.include:
                survey.pass_over(name)
        elif selection.recursive:
            try:
                status = os.stat(path)
            except OSError as error:
                yield Found(path, failure_of(error))
                continue
            identity = (status.st_dev, status.st_ino)
            # Directories with links to each other would have as many paths as there are orders.
            if identity not in above and not (entry.is_link and identity in linked):
                above.add(identity)
                if entry.is_link:
                    linked.add(identity)
                stack.append((path, identity, _listing(path)))


def _listing(directory: str) -> Iterator[_Entry]:
    """Entries in natural order; last a failure without a name if there may be more of them."""
    found: list[_Entry] = []
    failure = None
    try:
        with os.scandir(directory) as entries:
            for entry in entries:
                found.append(_look_at(entry))  # noqa: PERF401  # those before a failure count
    except OSError as error:
        failure = failure_of(error)
    found.sort(key=lambda entry: natural_key(entry.name))
    yield from found
    if failure is not None:
        yield _Entry("", failure=failure)


def _look_at(entry: os.DirEntry[str]) -> _Entry:
    """Ask the file system where the directory does not say: one bad entry is one failure."""
    try:
        is_link, is_directory = entry.is_symlink(), entry.is_dir()
        if is_link and not is_directory:
            entry.stat()  # `is_dir` is silent about links to nothing; else this is known already
    except OSError as error:
        return _Entry(entry.name, failure=failure_of(error))
    return _Entry(entry.name, is_directory, is_link)


def _taken(path: str, name: str, root: str, selection: Selection) -> bool:
    if selection.include:
        return _matches(path, name, root, selection.include)
    return os.path.splitext(name)[1].lower() in EXTENSIONS


def _matches(path: str, name: str, root: str, patterns: tuple[str, ...]) -> bool:
    """A pattern matches the name or the path below the named directory, as `fnmatch` does:
    `*` takes slashes, too."""
    if not patterns:
        return False
    relative = path[len(root) :].lstrip("/")
    return any(
        fnmatch.fnmatch(name, pattern) or fnmatch.fnmatch(relative, pattern.rstrip("/"))
        for pattern in patterns
    )
