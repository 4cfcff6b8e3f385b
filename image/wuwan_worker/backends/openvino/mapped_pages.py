"""Keeps the pages of a mapped weights file from counting beside what is made from them.

OpenVINO maps the file, and lays the weights out anew for the CPU. Both would be resident when it
has loaded: 1.2 GB for the 600 MB of `general-zh`, though the mapped half is never read again. The
kernel would take it back where memory is short; given back at once it is in nobody's way, and the
peak is half. What is read again after all comes from the page cache.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import threading
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator

_INTERVAL = 0.02  # seconds: at the speed of memory some hundred megabytes at most
_MADV_DONTNEED = 4  # madvise(2)
_MAPS = Path("/proc/self/maps")


def give_back(files: Collection[str]) -> int:
    """Let go of the pages of all mappings of these files that nobody can have written to.

    Args:
        files: absolute paths without links.

    Returns:
        How many mappings there were.
    """
    madvise = ctypes.CDLL(None).madvise
    madvise.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
    found = 0
    for line in os.fsdecode(_MAPS.read_bytes()).splitlines():
        span, rights, *_, path = line.split(maxsplit=5)
        if path in files and "w" not in rights:
            begin, end = (int(edge, 16) for edge in span.split("-"))
            madvise(begin, end - begin, _MADV_DONTNEED)
            found += 1
    return found


@contextlib.contextmanager
def given_back(files: Collection[Path]) -> Iterator[None]:
    """Do so again and again meanwhile, and at the end."""
    paths = {os.path.realpath(path) for path in files}
    over = threading.Event()

    def work() -> None:
        while not over.wait(_INTERVAL):
            give_back(paths)

    thread = threading.Thread(target=work, name="mapped-pages")
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()
        give_back(paths)
