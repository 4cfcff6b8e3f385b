"""Which sink `--output` means: standard output, a FIFO or a device, or a file."""

from __future__ import annotations

import contextlib
import os
import stat
from typing import TYPE_CHECKING

from wuwan_runner.errors import UsageError
from wuwan_runner.outputs.atomic import PARTIAL
from wuwan_runner.outputs.base import TargetError, explained
from wuwan_runner.outputs.file import FileSink
from wuwan_runner.outputs.stream import StreamSink
from wuwan_runner.outputs.target import check

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterator

    from wuwan_runner.outputs.base import Sink

_STDOUT_NAMES = ("-", "/dev/stdout", "/dev/fd/1", "/proc/self/fd/1")
_BY_DESCRIPTOR = ("/dev/fd/", "/dev/stderr", "/proc/")


def is_stdout(target: str | None) -> bool:
    """Whether that `--output` means standard output."""
    return target is None or target in _STDOUT_NAMES


def own_names(target: str | None) -> frozenset[str]:
    """What the files are called that `--output` makes, wherever they are."""
    name = os.path.basename(target or "")
    return frozenset() if is_stdout(target) else frozenset({name, name + PARTIAL})


def _no_input(_status: os.stat_result) -> str | None:
    return None


@contextlib.contextmanager
def opened(
    target: str | None,
    named: Callable[[os.stat_result], str | None] = _no_input,
    *,
    resume: bool = False,
    models: Collection[str] = (),
    strict: bool = False,
) -> Iterator[Sink]:
    """The sink for `--output`, closed in the end.

    Args:
        target: a file, a FIFO, a device; None or "-" for standard output.
        named: tells the name of an input that is the same file.
        resume: go on with what an earlier run has left.
        models: the names that the model of its records may have; empty if that is not known.
        strict: none of its records may have a warning.

    Raises:
        LockedError: if another run writes to the same file.
        OutputError: if it cannot be written.
        UsageError: if it is a directory, an input or a file without records, or names nothing.
    """
    with contextlib.closing(_sink(target, named, resume, models, strict)) as sink:
        yield sink


def _sink(
    target: str | None,
    named: Callable[[os.stat_result], str | None],
    resume: bool,
    models: Collection[str],
    strict: bool,
) -> Sink:
    if target == "":
        raise TargetError("is empty", hint="a variable without a value?")
    streams = is_stdout(target)
    if resume and (streams or (target and os.path.exists(target) and not os.path.isfile(target))):
        raise UsageError("--resume needs --output with a regular file")
    if target is None or streams:
        status = os.fstat(1)
        if stat.S_ISREG(status.st_mode) and (name := named(status)):
            raise UsageError(f"standard output is {name}, which is an input")
        return StreamSink(1, "standard output")
    with explained(target):
        try:
            mode = os.stat(target).st_mode
        except FileNotFoundError:
            mode = stat.S_IFREG
        if stat.S_ISDIR(mode):
            raise TargetError(f"{target} is a directory")
        # Devices and FIFOs are written as they are, and so is a file named by way of a descriptor:
        # it cannot be renamed to.
        if not stat.S_ISREG(mode) or target.startswith(_BY_DESCRIPTOR):
            return StreamSink(os.open(target, os.O_WRONLY | os.O_CLOEXEC), target)
        check(target, named)
    return FileSink(target, resume=resume, models=models, strict=strict)
