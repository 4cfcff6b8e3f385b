"""A file that appears only when it is complete, whatever it holds.

It is written as FILE.partial, which becomes FILE by a rename in the end. The lock is on the partial
file, so it dies with its holder, and what a killed run leaves is one file of a known name that the
next run takes over.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import stat
from typing import TYPE_CHECKING, BinaryIO

from wuwan_runner.errors import LockedError, UsageError
from wuwan_runner.outputs.base import explained
from wuwan_runner.outputs.lines import write

if TYPE_CHECKING:
    from collections.abc import Callable

PARTIAL = ".partial"
_CREATE = os.O_CREAT | os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW


class AtomicFile:
    """FILE.partial, held by this process alone until it is FILE."""

    def __init__(self, target: str, *, ours: Callable[[int], bool], fresh: bool) -> None:
        """Make FILE.partial or take over that of a dead run, and lock it.

        Args:
            target: FILE. A link stays a link: what it points to is replaced.
            ours: tells, given a descriptor, whether a file of that name is one that a run may have
                left. Whatever else it is, it is not touched.
            fresh: empty it; or else its content stays until `keep` says how much of it is good.

        Raises:
            LockedError: if another process holds it.
            OutputError: if it cannot be made.
            UsageError: if it is not one of ours.
        """
        self.target = os.path.realpath(target)
        self.partial = self.target + PARTIAL
        self.committed = False  # FILE.partial has become FILE
        self._good = 0  # bytes that stay, whatever happens
        with explained(target), contextlib.ExitStack() as on_failure:
            self._descriptor = self._lock(ours)
            on_failure.callback(os.close, self._descriptor)
            if fresh:
                os.ftruncate(self._descriptor, 0)
            with contextlib.suppress(OSError):  # FILE is new, or its mode cannot be had
                mode = stat.S_IMODE(os.stat(self.target).st_mode)
                os.fchmod(self._descriptor, mode)
            on_failure.pop_all()

    def _lock(self, ours: Callable[[int], bool]) -> int:
        while True:
            descriptor = os.open(self.partial, _CREATE, 0o666)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                # The holder before us may have renamed or removed the file that we have locked.
                if _same_file(descriptor, self.partial):
                    if not ours(descriptor):
                        raise UsageError(
                            f"{self.partial} is nothing that an interrupted run has left",
                            hint="remove it, or choose another --output",
                        )
                    return descriptor
            except BlockingIOError:
                os.close(descriptor)
                raise LockedError(
                    f"another run is writing {self.target}",
                    hint="wait for it, or choose another --output",
                ) from None
            except BaseException:
                os.close(descriptor)
                raise
            os.close(descriptor)

    def reader(self) -> BinaryIO:
        """What an earlier run has left, from its beginning; to be read before `keep`, and closed.

        Raises:
            OutputError: if no more files can be open.
        """
        with explained(self.target):
            return os.fdopen(os.dup(self._descriptor), "rb")

    def is_empty(self) -> bool:
        """Whether nothing has been written to FILE.partial, by this run or an earlier one."""
        return os.fstat(self._descriptor).st_size == 0

    def keep(self, size: int) -> None:
        """Of what an earlier run has left so many bytes are good: cut off the rest.

        Raises:
            OutputError: if that cannot be done.
        """
        self._good = size
        with explained(self.target):
            self._cut()

    def append(self, data: bytes) -> None:
        """Write all of it, or nothing.

        Raises:
            OutputError: if it cannot be written; what was written before stays.
        """
        try:
            with explained(self.target):
                written = write(self._descriptor, data)
        except BaseException:
            # On a full disk half a line may have been written.
            with contextlib.suppress(OSError):
                self._cut()
            raise
        self._good += written

    def _cut(self) -> None:
        os.ftruncate(self._descriptor, self._good)
        os.lseek(self._descriptor, self._good, os.SEEK_SET)

    def replaces(self) -> str:
        """The name of the file with a content that `commit` will replace, or ""."""
        with contextlib.suppress(OSError):
            return self.target if os.stat(self.target).st_size else ""
        return ""

    def commit(self, check: Callable[[str], None]) -> None:
        """All is written: FILE.partial becomes FILE, and a crash of the machine undoes neither.

        Args:
            check: called with the name of FILE when all but the rename is done; raises what has to
                be raised if FILE may not be replaced. Somebody may have put something else there
                since the run began.

        Raises:
            OutputError: if that cannot be done.
        """
        with explained(self.target):
            os.fsync(self._descriptor)
            check(self.target)
            os.rename(self.partial, self.target)
            self.committed = True
            _sync_directory(os.path.dirname(self.target))

    def remove(self) -> None:
        """Remove FILE.partial, as far as that can be done and it is not FILE already."""
        if not self.committed:  # else there may be one of another run by now
            with contextlib.suppress(OSError):
                os.unlink(self.partial)

    def close(self) -> None:
        """Give up the lock; what is in FILE.partial stays there."""
        os.close(self._descriptor)


def _same_file(descriptor: int, path: str) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), os.stat(path))
    except FileNotFoundError:
        return False


def _sync_directory(path: str) -> None:
    """Make a rename last, where the directory can be opened and its file system has that."""
    try:
        directory = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except PermissionError:  # files may be made in it, and not listed
        return
    try:
        os.fsync(directory)
    except OSError as error:
        if error.errno != errno.EINVAL:
            raise
    finally:
        os.close(directory)
