"""Compiled networks on disk: to load one takes a quarter of the time that compiling takes.

The container image brings them along, compiled when it was built; a local worker keeps them in the
user's cache directory. Whether a file fits this machine is OpenVINO's own check: it refuses what
another version or another instruction set has written. That a file is whole is checked here, since
it goes to native code that trusts it.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
import os
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable

from wuwan_worker import places

VARIABLE = "WUWAN_COMPILED"
# For a network of hundreds of megabytes the copy on disk would cost more than it saves.
MAX_BYTES = 64 * 2**20
KEPT = 8  # files; older ones belong to bundles and versions that are gone

log = logging.getLogger(__name__)


def directory() -> Path:
    """Where the files are: as the environment says, or in the user's cache directory."""
    if named := os.environ.get(VARIABLE):
        return Path(named)
    return places.cache() / "compiled"


def suits(files: Iterable[Path]) -> bool:
    """Whether a network of these files would be kept: for others do not even try.

    To make what could be kept takes a copy of all weights.
    """
    return sum(file.stat().st_size for file in files) <= MAX_BYTES


def read(key: str) -> bytes | None:
    """What was written under `key`, if it is there and whole."""
    try:
        content = _path(key).read_bytes()
    except OSError:
        return None
    digest, data = content[:32], content[32:]
    return data if hashlib.sha256(data).digest() == digest else None


def write(key: str, data: bytes) -> None:
    """Keep `data` under `key`. Where that is not possible the next start compiles again."""
    if len(data) > MAX_BYTES:
        return
    temporary = None
    try:
        path = _path(key)
        places.make(path.parent)
        temporary = path.with_suffix(f".{os.urandom(4).hex()}")
        temporary.write_bytes(hashlib.sha256(data).digest() + data)
        temporary.replace(path)
        _prune(path.parent)
    except OSError as error:
        log.info("the compiled network is not kept: %s", error)
        if temporary is not None:
            with contextlib.suppress(OSError):
                temporary.unlink()


def _path(key: str) -> Path:
    return directory() / f"{hashlib.sha256(key.encode()).hexdigest()[:32]}.blob"


def _prune(root: Path) -> None:
    files = sorted(root.iterdir(), key=lambda path: path.stat().st_mtime, reverse=True)
    for path in files[KEPT:]:
        path.unlink(missing_ok=True)
