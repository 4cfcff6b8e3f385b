"""Whole lines, whoever else writes to the same place.

Several runs may share an output, as those that `xargs -P` starts. A file takes one write in one
piece. A pipe does so up to PIPE_BUF bytes only, and not at all where it is non-blocking and the
write is longer. So a pipe gets whole lines in pieces of that size, which no other program's tear,
and it is locked meanwhile: lines may be longer than that (1,000 labels are 64 KB).

The lock is the process's (POSIX), not the open file's (flock, OFD): runs that have inherited one
pipe share the latter, and would exclude each other from nothing. It ends with the process.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import select
import stat
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence


def write_lines(descriptor: int, lines: Sequence[bytes]) -> int:
    """Write lines, each with its end; how many bytes that were.

    Raises:
        OSError: as `os.write`, but for BlockingIOError.
    """
    mode = os.fstat(descriptor).st_mode
    if stat.S_ISFIFO(mode) or stat.S_ISSOCK(mode):
        with _locked(descriptor):
            return sum(write(descriptor, piece) for piece in _pieces(lines))
    return write(descriptor, b"".join(lines))


def write(descriptor: int, data: bytes) -> int:
    """Write all of it; how many bytes that were."""
    rest = memoryview(data)
    while rest:
        try:
            rest = rest[os.write(descriptor, rest) :]
        except BlockingIOError:  # whoever shares the pipe made it non-blocking
            waiting = select.poll()
            waiting.register(descriptor, select.POLLOUT)
            waiting.poll()
    return len(data)


def _pieces(lines: Iterable[bytes]) -> Iterator[bytes]:
    """The lines in pieces of PIPE_BUF bytes at most, and those that are longer by themselves."""
    piece: list[bytes] = []
    size = 0
    for line in lines:
        if piece and size + len(line) > select.PIPE_BUF:
            yield b"".join(piece)
            piece, size = [], 0
        piece.append(line)
        size += len(line)
    if piece:
        yield b"".join(piece)


@contextlib.contextmanager
def _locked(descriptor: int) -> Iterator[None]:
    try:
        fcntl.lockf(descriptor, fcntl.LOCK_EX)
    except OSError:  # a sandbox without locks: all but the longest lines are whole all the same
        yield
        return
    try:
        yield
    finally:
        fcntl.lockf(descriptor, fcntl.LOCK_UN)
