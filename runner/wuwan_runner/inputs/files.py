"""Inputs that are files of this machine."""

from __future__ import annotations

import errno
import os
import stat
from dataclasses import dataclass

from wuwan_runner.inputs.base import Opened, OpenError
from wuwan_runner.records import ItemFailure
from wuwan_worker.shared.protocol import ErrorCode


@dataclass(frozen=True, slots=True)
class Found:
    """A path to tag, or one that is known to fail; an `Input`."""

    path: str
    failure: ItemFailure | None = None

    def open(self) -> Opened:
        """See `Input.open`."""
        if self.failure is not None:
            raise OpenError(self.failure)
        return open_file(self.path)


def open_file(path: str) -> Opened:
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
        shortage = isinstance(error, OSError) and error.errno in (errno.EMFILE, errno.ENFILE)
        raise OpenError(failure_of(error), shortage=shortage) from None
    try:
        status = os.fstat(descriptor)
        _require_regular(status)
    except BaseException:
        os.close(descriptor)
        raise
    return Opened(descriptor, status)


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


def failure_of(error: OSError | ValueError) -> ItemFailure:
    """Why a file cannot be looked at, for its record."""
    # ValueError: a path with a NUL byte, from a list
    reason = error.strerror if isinstance(error, OSError) else str(error)
    return ItemFailure(ErrorCode.UNREADABLE, reason or str(error))
