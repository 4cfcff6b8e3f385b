"""Compiled networks on disk: to load one takes a quarter of the time that compiling takes.

The container image brings them along, compiled when it was built; a local worker keeps them in the
user's cache directory. Whether a file fits this machine is OpenVINO's own check: it refuses what
another version or another instruction set has written. That a file is whole is checked here, since
it goes to native code that trusts it.

A worker may write no file, so it hands what it has compiled to its `keeper`, a process that may.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
import os
import re
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Iterable

from wuwan_worker.shared import dirs, private_dir
from wuwan_worker.shared.private_dir import PrivateDir

VARIABLE = "WUWAN_COMPILED"
# For a network of hundreds of megabytes the copy on disk would cost more than it saves.
MAX_BYTES = 64 * 2**20
KEPT = 8  # files; older ones belong to bundles and versions that are gone
_OURS = re.compile(r"[0-9a-f]{32}\.(blob|[0-9a-f]{8})")

log = logging.getLogger(__name__)


class Keeper(Protocol):
    """Who writes the file in place of this process."""

    def keep(self, key: str, network: bytes) -> None:
        """See `write`. Logs what goes wrong."""
        ...

    def settle(self) -> None:
        """Nothing will come."""
        ...


_keeper: Keeper | None = None


def hand_to(keeper: Keeper) -> None:
    """From now on what is to be kept goes to `keeper`; for the whole process."""
    global _keeper
    _keeper = keeper


def keep(key: str, data: bytes) -> None:
    """Have `data` written under `key`, here or by the keeper."""
    if _keeper is None:
        write(key, data)
    elif len(data) > MAX_BYTES:
        _keeper.settle()
    else:
        _keeper.keep(key, data)


def nothing_to_keep() -> None:
    """There is a file already, or there will not be one."""
    if _keeper is not None:
        _keeper.settle()


def directory() -> PrivateDir:
    """Where the files are: as the environment says, or in the user's cache directory."""
    if named := os.environ.get(VARIABLE):
        return PrivateDir(Path(named))
    return dirs.cache() / "compiled"


def suits(files: Iterable[Path]) -> bool:
    """Whether a network of these files would be kept: for others do not even try.

    To make what could be kept takes a copy of all weights.
    """
    return sum(file.stat().st_size for file in files) <= MAX_BYTES


def read(key: str) -> bytes | None:
    """What was written under `key`, if it is there and whole."""
    try:
        with directory().opened() as descriptor:
            content = private_dir.read(_name(key), descriptor)
    except OSError:
        return None
    digest, data = content[:32], content[32:]
    return data if hashlib.sha256(data).digest() == digest else None


def write(key: str, data: bytes) -> None:
    """Keep `data` under `key`. Where that is not possible the next start compiles again."""
    if len(data) > MAX_BYTES:
        return
    try:
        with directory().opened(make=True) as descriptor:
            _write(_name(key), hashlib.sha256(data).digest() + data, descriptor)
            _prune(descriptor)
    except OSError as error:
        log.info("the compiled network is not kept: %s", error)


def _name(key: str) -> str:
    return f"{hashlib.sha256(key.encode()).hexdigest()[:32]}.blob"


def _write(name: str, content: bytes, directory: int) -> None:
    temporary = f"{name.removesuffix('.blob')}.{os.urandom(4).hex()}"
    try:
        private_dir.write(temporary, directory, content)
        os.replace(temporary, name, src_dir_fd=directory, dst_dir_fd=directory)
    except OSError:
        with contextlib.suppress(OSError):
            os.unlink(temporary, dir_fd=directory)
        raise


def _prune(directory: int) -> None:
    with os.scandir(directory) as entries:
        ours = [entry for entry in entries if _OURS.fullmatch(entry.name)]
    ours.sort(key=lambda entry: entry.stat(follow_symlinks=False).st_mtime, reverse=True)
    for entry in ours[KEPT:]:
        with contextlib.suppress(FileNotFoundError):  # another worker does the same
            os.unlink(entry.name, dir_fd=directory)
