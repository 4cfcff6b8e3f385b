"""What `--output` may name: a new file, or one that holds records; looked at before any work.

The shell makes `-o a.png b.png` of `-o *.png`. What is replaced in the end cannot be had back, so
it has to be ours by its content; and that it can be replaced is better known before the night.
"""

from __future__ import annotations

import errno
import os
import stat
from typing import TYPE_CHECKING

from wuwan_runner.errors import UsageError
from wuwan_runner.inputs.discover import EXTENSIONS
from wuwan_runner.outputs.atomic import PARTIAL
from wuwan_runner.outputs.base import OutputError, TargetError
from wuwan_runner.outputs.jsonl import BEGINNING, is_record

if TYPE_CHECKING:
    from collections.abc import Callable

# Endings of formats that records are not in. Whoever names one expects it.
_OTHER_FORMATS = EXTENSIONS | frozenset(
    ".csv .tsv .db .sqlite .sqlite3 .xls .xlsx .ods .parquet .arrow .xml .yaml .yml .html .pdf "
    ".gz .zst .xz .bz2 .zip .tar".split()
)
_LONGEST = 1 << 24  # bytes of a first line; one with all of 10,000 labels has 2 MB


def check(target: str, named: Callable[[os.stat_result], str | None]) -> None:
    """Whether that regular file, which need not be there, may and can be replaced.

    Args:
        target: what `--output` names.
        named: tells the name of an input that is that file.

    Raises:
        OutputError: if it cannot be replaced.
        UsageError: if it is an input, or not a file of records.
    """
    ending = os.path.splitext(target)[1].lower()
    if ending in _OTHER_FORMATS:
        raise TargetError(
            f"{target}: records are JSON Lines, and cannot be written as {ending}",
            hint="name it .jsonl; the README shows how records get into other formats",
        )
    path = os.path.realpath(target)
    for place in (path, path + PARTIAL):
        try:
            status = os.stat(place)
        except OSError:
            continue
        if name := named(status):
            raise TargetError(
                f"{target} would overwrite {name}, which is an input",
                hint="choose another name",
            )
    require_records(path)
    reason = _obstacle(path)
    if reason:
        raise OutputError(
            f"cannot write to {target}: {reason}",
            hint="choose another place, or write to standard output",
        )


def require_records(path: str) -> None:
    """Raises UsageError if there is a file that has something else in it than records."""
    try:
        with open(path, "rb") as file:
            line = file.readline(_LONGEST)
    except FileNotFoundError:
        return
    except OSError as error:
        raise UsageError(
            f"{path} is there, and cannot be read: {error.strerror}", hint="choose another name"
        ) from None
    if line and not is_record(line):
        raise UsageError(
            f"{path} is there, and holds something else than records",
            hint="choose another name, or remove it",
        )


def is_partial(descriptor: int) -> bool:
    """Whether that file is one that a run may have left: records, of which the first may be cut."""
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        return False
    beginning = os.pread(descriptor, len(BEGINNING), 0)
    return BEGINNING.startswith(beginning)


def _obstacle(path: str) -> str:
    """Why a rename to `path` would fail in the end, although a file beside it can be made."""
    directory = os.path.dirname(path)
    try:
        above = os.stat(directory)
    except OSError:
        return ""  # the partial file cannot be made, which says why
    if not os.access(directory, os.W_OK | os.X_OK):
        return f"no files can be made in {directory}"
    for place in (path, path + PARTIAL):
        try:
            status = os.stat(place)
        except OSError:
            continue
        owners = (0, above.st_uid, status.st_uid)
        if above.st_mode & stat.S_ISVTX and os.geteuid() not in owners:
            return f"{place} belongs to somebody else, in a directory where that counts (sticky)"
        if _mount(place) != _mount(directory):
            return f"{place} is a mount point, which cannot be replaced; mount its directory"
        if _is_fixed(place):
            return f"{place} may not be changed (lsattr shows it as immutable or append-only)"
    return ""


def _mount(path: str) -> bytes:
    """The id of the mount that `path` is on; a bind mount within one disk is not told by st_dev."""
    descriptor = os.open(path, os.O_PATH | os.O_CLOEXEC)
    try:
        with open(f"/proc/self/fdinfo/{descriptor}", "rb") as lines:
            return next((line for line in lines if line.startswith(b"mnt_id:")), b"")
    except OSError:  # no /proc
        return b""
    finally:
        os.close(descriptor)


def _is_fixed(path: str) -> bool:
    """Whether the file is immutable or append-only; not being allowed to write it is neither."""
    try:
        os.close(os.open(path, os.O_WRONLY | os.O_CLOEXEC | os.O_NONBLOCK))
    except OSError as error:
        return error.errno == errno.EPERM
    return False
