"""Where records go: standard output, or a file that appears only when it is complete."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import stat
from typing import TYPE_CHECKING, Any, BinaryIO, Protocol

from wuwan_runner.errors import LockedError, UsageError
from wuwan_runner.outputs.lines import write, write_lines
from wuwan_runner.outputs.target import PARTIAL, OutputError, check, is_partial, require_records
from wuwan_runner.records import VERSION, path_fields

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterator, Sequence

    from wuwan_runner.records import Record

_STDOUT_NAMES = ("-", "/dev/stdout", "/dev/fd/1", "/proc/self/fd/1")
_BY_DESCRIPTOR = ("/dev/fd/", "/dev/stderr", "/proc/")
_CREATE = os.O_CREAT | os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW


class ClosedPipe(Exception):  # noqa: N818  # no error: the reader has had enough
    """Nobody reads the records any more."""


class Sink(Protocol):
    """Takes records."""

    written: int
    """Records that are in the output, those of an earlier run among them."""
    failed_before: int
    """Error records among those of an earlier run."""
    warned_before: int
    """And those with a warning."""
    strict: bool
    """Whether a record with a warning cannot be taken over."""

    def replaces(self) -> str:
        """The name of the file with records that `commit` will replace, or ""."""
        ...

    def has(self, path: str) -> bool:
        """Whether the next record is in the output already, and is that of this input.

        Called with each input in order until it says no.
        """
        ...

    def write(self, records: Sequence[Record]) -> None:
        """Write and flush them, in order."""
        ...

    def commit(self) -> None:
        """All records have been written: make them last."""
        ...

    def abandon(self) -> str:
        """The run ended early; a sentence about what becomes of the records, or ""."""
        ...

    def close(self) -> None:
        """Free what is held."""
        ...


@contextlib.contextmanager
def opened(
    target: str | None,
    named: Callable[[os.stat_result], str | None],
    *,
    resume: bool = False,
    models: Collection[str] = (),
    strict: bool = False,
) -> Iterator[Sink]:
    """The sink for `--output`; with `resume` it goes on with what an earlier run has left.

    `named` tells the name of an input that is the same file. `models` are the names that the
    records' model may have; empty if that is not known. With `strict` none may have a warning.

    Raises:
        LockedError: if another run writes to the same file.
        OutputError: if it cannot be written.
        UsageError: if it is a directory, an input or a file without records, or names nothing.
    """
    sink = _open(target, named, resume, models)
    sink.strict = strict
    try:
        yield sink
    finally:
        sink.close()


def is_stdout(target: str | None) -> bool:
    """Whether that `--output` means standard output."""
    return target is None or target in _STDOUT_NAMES


def own_names(target: str | None) -> frozenset[str]:
    """What the files are called that `--output` makes, wherever they are."""
    name = os.path.basename(target or "")
    return frozenset() if is_stdout(target) else frozenset({name, name + PARTIAL})


def _open(
    target: str | None,
    named: Callable[[os.stat_result], str | None],
    resume: bool,
    models: Collection[str],
) -> Sink:
    if target == "":
        raise UsageError("--output is empty", hint="a variable without a value?")
    streams = is_stdout(target)
    if resume and (streams or (target and os.path.exists(target) and not os.path.isfile(target))):
        raise UsageError("--resume needs --output with a regular file")
    if target is None or streams:
        status = os.fstat(1)
        if stat.S_ISREG(status.st_mode) and (name := named(status)):
            raise UsageError(f"standard output is {name}, which is an input")
        return StreamSink(1, "standard output")
    with _explained(target):
        try:
            mode = os.stat(target).st_mode
        except FileNotFoundError:
            mode = stat.S_IFREG
        if stat.S_ISDIR(mode):
            raise UsageError(f"--output {target} is a directory")
        # Devices and FIFOs are written as they are, and so is a file named by way of a descriptor:
        # it cannot be renamed to.
        if not stat.S_ISREG(mode) or target.startswith(_BY_DESCRIPTOR):
            return StreamSink(os.open(target, os.O_WRONLY | os.O_CLOEXEC), target)
        check(target, named)
        return FileSink(target, resume, models)


class StreamSink:
    """Writes to a descriptor: standard output, a FIFO, a device."""

    def __init__(self, descriptor: int, name: str) -> None:
        self.written = 0
        self.failed_before = 0
        self.warned_before = 0
        self.strict = False
        self._descriptor = descriptor
        self._name = name

    def has(self, path: str) -> bool:
        """Nothing that has been read back."""
        del path
        return False

    def replaces(self) -> str:
        """Nothing."""
        return ""

    def write(self, records: Sequence[Record]) -> None:
        """See `Sink.write`."""
        with _explained(self._name):
            try:
                write_lines(self._descriptor, _lines(records))
            except BrokenPipeError:
                raise ClosedPipe from None
        self.written += len(records)

    def commit(self) -> None:
        """Nothing is left to do."""

    def abandon(self) -> str:
        """See `Sink.abandon`."""
        return f"{_records(self.written)} written" if self.written else ""

    def close(self) -> None:
        """See `Sink.close`."""
        if self._descriptor > 2:
            os.close(self._descriptor)


class FileSink:
    """Writes to FILE.partial, which becomes FILE in the end.

    The lock is on the partial file, so it dies with its holder, and what a killed run leaves is
    one file of a known name that the next run takes over.
    """

    def __init__(self, target: str, resume: bool, models: Collection[str]) -> None:
        self.written = 0
        self.failed_before = 0
        self.warned_before = 0
        self.strict = False
        self._models = models
        self._target = os.path.realpath(target)  # a link stays a link
        self._partial = self._target + PARTIAL
        self._good = 0  # bytes of whole records that belong to this run's inputs
        self._old: BinaryIO | None = None
        with _explained(target):
            self._descriptor = self._lock()
            if resume:
                self._old = os.fdopen(os.dup(self._descriptor), "rb")
            else:
                os.ftruncate(self._descriptor, 0)
            with contextlib.suppress(OSError):  # the file is new, or its mode cannot be had
                mode = stat.S_IMODE(os.stat(self._target).st_mode)
                os.fchmod(self._descriptor, mode)

    def has(self, path: str) -> bool:
        """See `Sink.has`. A torn or foreign record ends what is taken over.

        Raises:
            UsageError: if the record is of another model.
        """
        if self._old is None:
            return False
        line = self._old.readline()
        record = _parsed(line)
        fields = path_fields(path)
        if record is None or {key: record.get(key) for key in fields} != fields:
            self._drop_rest()
            return False
        if self.strict and "warning" in record:
            raise UsageError(
                f"{self._partial} holds records with warnings",
                hint="resume without --strict, or begin anew without --resume",
            )
        if self._models and record.get("model") not in self._models:
            raise UsageError(
                f"{self._partial} holds records of the model {record.get('model')}",
                hint="resume with the options of the run that was interrupted, or without --resume "
                "begin anew",
            )
        self._good += len(line)
        self.written += 1
        self.failed_before += "error" in record
        self.warned_before += "warning" in record
        return True

    def replaces(self) -> str:
        """See `Sink.replaces`."""
        with contextlib.suppress(OSError):
            return self._target if os.stat(self._target).st_size else ""
        return ""

    def _drop_rest(self) -> None:
        """Cut off what an earlier run has left after the records that were taken over."""
        if self._old is not None:
            self._old.close()
            self._old = None
            with _explained(self._target):
                os.ftruncate(self._descriptor, self._good)
                os.lseek(self._descriptor, self._good, os.SEEK_SET)

    def _lock(self) -> int:
        while True:
            descriptor = os.open(self._partial, _CREATE, 0o666)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                # The holder before us may have renamed or removed the file that we have locked.
                if _same_file(descriptor, self._partial):
                    if not is_partial(descriptor):
                        raise UsageError(
                            f"{self._partial} is nothing that an interrupted run has left",
                            hint="remove it, or choose another --output",
                        )
                    return descriptor
            except BlockingIOError:
                os.close(descriptor)
                raise LockedError(
                    f"another run is writing {self._target}",
                    hint="wait for it, or choose another --output",
                ) from None
            except BaseException:
                os.close(descriptor)
                raise
            os.close(descriptor)

    def write(self, records: Sequence[Record]) -> None:
        """See `Sink.write`."""
        self._drop_rest()
        try:
            with _explained(self._target):
                self._good += write(self._descriptor, b"".join(_lines(records)))
        except OutputError:
            # On a full disk half a line may have been written.
            with contextlib.suppress(OSError):
                os.ftruncate(self._descriptor, self._good)
            raise
        self.written += len(records)

    def commit(self) -> None:
        """See `Sink.commit`."""
        self._drop_rest()
        with _explained(self._target):
            os.fsync(self._descriptor)
            require_records(self._target)  # somebody may have put something else there meanwhile
            os.rename(self._partial, self._target)
            _sync_directory(os.path.dirname(self._target))

    def abandon(self) -> str:
        """See `Sink.abandon`."""
        if not self.written:
            # A run that was to be resumed and ended before its first input has lost nothing yet.
            if self._old is None or os.fstat(self._descriptor).st_size == 0:
                self._remove()
            return ""
        return f"{_records(self.written)} kept in {self._partial}; --resume goes on from there"

    def _remove(self) -> None:
        with contextlib.suppress(OSError):
            os.unlink(self._partial)

    def close(self) -> None:
        """See `Sink.close`."""
        if self._old is not None:
            self._old.close()
        os.close(self._descriptor)


def _records(count: int) -> str:
    return f"{count:,} record{'' if count == 1 else 's'}"


def _same_file(descriptor: int, path: str) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), os.stat(path))
    except FileNotFoundError:
        return False


def _parsed(line: bytes) -> dict[str, Any] | None:
    """The record in a line, or None if the line is torn or holds something else."""
    if not line.endswith(b"\n"):
        return None
    try:
        record = json.loads(line)
    except ValueError:
        return None
    return record if isinstance(record, dict) and record.get("v") == VERSION else None


def _lines(records: Sequence[Record]) -> list[bytes]:
    # JSON has an escape for what UTF-8 cannot encode, and it is the one that Python writes.
    return [f"{record.to_json()}\n".encode("utf-8", "backslashreplace") for record in records]


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


@contextlib.contextmanager
def _explained(name: str) -> Iterator[None]:
    """OSErrors as errors of the output."""
    try:
        yield
    except OSError as error:
        hint = "free some space and run it again" if error.errno == errno.ENOSPC else ""
        raise OutputError(f"cannot write to {name}: {error.strerror or error}", hint=hint) from None
