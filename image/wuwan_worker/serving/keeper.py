"""A process beside the worker that writes for it what is worth keeping, before it sees an image.

The worker can write no file (`sandbox`). Two things would be missed at its next start: the network
that it had to compile, and the bytecode of modules that had none. So it begins with a fork that
still may write, and that believes it only as far as it must:

- one network, or the word that there is none, comes first. No image is decoded before that, so no
  image can have a say in what native code will load some other day.
- after that only names of modules come, whose sources are compiled here.

It ends when its pipe does, that is, with the worker at the latest.
"""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import struct
import sys
import threading
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, NoReturn

if TYPE_CHECKING:
    from collections.abc import Iterable

log = logging.getLogger(__name__)

_SIZES = struct.Struct("=QQ")  # of key and network; both 0 if there is none


class Keeper:
    """The worker's end of the pipe."""

    def __init__(self) -> None:
        """Fork; before there are threads, and before anything is given up.

        Raises:
            OSError: if there may be no more processes.
        """
        self.settled = threading.Event()
        """Set once no network can be kept any longer, so that images may be decoded."""
        signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody has to wait for it
        source, self._pipe = os.pipe()
        try:
            if os.fork() == 0:
                _serve(source)
        except OSError:
            os.close(self._pipe)
            raise
        finally:
            os.close(source)

    def keep(self, key: str, network: bytes) -> None:
        """Have that kept; once."""
        if not self.settled.is_set():
            name = key.encode()
            try:
                with os.fdopen(os.dup(self._pipe), "wb") as pipe:
                    pipe.write(_SIZES.pack(len(name), len(network)) + name)
                    pipe.write(network)
            except OSError as error:
                log.info("the compiled network is not kept: %s", error)
            self.settled.set()

    def settle(self) -> None:
        """Say that there is nothing, or nothing more."""
        self.keep("", b"")

    def close(self) -> None:
        """Name what was imported without bytecode, and let go."""
        # A keeper that hangs on its disk must not hold up the worker.
        os.set_blocking(self._pipe, False)
        with contextlib.suppress(OSError):
            os.write(self._pipe, b"".join(os.fsencode(path) + b"\n" for path in _uncompiled()))
        os.close(self._pipe)


def _uncompiled() -> Iterable[str]:
    if sys.dont_write_bytecode:
        return
    for module in list(sys.modules.values()):
        spec = getattr(module, "__spec__", None)
        cached, origin = getattr(spec, "cached", None), getattr(spec, "origin", None)
        if cached and origin and not os.path.exists(cached):
            yield origin


def _serve(source: int) -> NoReturn:
    """The keeper's life; never returns."""
    try:
        # The worker's name lives as long as somebody holds its socket, so that goes first.
        os.dup2(source, 0)
        os.closerange(3, os.sysconf("SC_OPEN_MAX"))
        with os.fdopen(0, "rb") as pipe:
            _keep(pipe)
    finally:
        os._exit(0)


def _keep(pipe: BinaryIO) -> None:
    sizes = pipe.read(_SIZES.size)
    if len(sizes) < _SIZES.size:
        return
    named, size = _SIZES.unpack(sizes)
    key, network = pipe.read(named).decode(), pipe.read(size)
    if key and len(network) == size:
        from wuwan_worker.backends.openvino import compile_cache

        compile_cache.write(key, network)
    if names := pipe.read().split(b"\n")[:-1]:
        _compile(Path(os.fsdecode(name)) for name in names)


def _compile(sources: Iterable[Path]) -> None:
    import py_compile

    roots = [Path(entry).resolve() for entry in sys.path if entry]
    for source in sources:
        # Only what an import could have compiled just as well.
        if any(source.resolve().is_relative_to(root) for root in roots):
            with contextlib.suppress(OSError, ValueError):
                py_compile.compile(str(source), quiet=2)
