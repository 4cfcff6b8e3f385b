"""Records to a file that is whole or not there, and what an interrupted run has left of it."""

from __future__ import annotations

import os
import threading
from typing import TYPE_CHECKING

from wuwan_runner.errors import UsageError
from wuwan_runner.outputs.atomic import AtomicFile
from wuwan_runner.outputs.base import counted
from wuwan_runner.outputs.jsonl import encoded
from wuwan_runner.outputs.resume import Refused, Taken, Terms, judged
from wuwan_runner.outputs.target import is_partial, require_records

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence

    from wuwan_runner.records import Record


class FileSink:
    """Writes to FILE.partial, which becomes FILE in the end."""

    def __init__(
        self,
        target: str | os.PathLike[str],
        *,
        resume: bool = False,
        models: Collection[str] = (),
        strict: bool = False,
    ) -> None:
        """Lock FILE.partial; see `AtomicFile` for the errors.

        Args:
            target: FILE: a new one, or one with records, which stays as it is until `commit`.
            resume: `take_over` gives what an earlier run has left; otherwise that is dropped.
            models: the names that its records' model may have; empty if that is not known.
            strict: none of its records may have a warning.
        """
        self.written = 0
        self.failed_before = 0
        self.warned_before = 0
        self._terms = Terms(models, strict)
        self._taken = 0  # bytes of records that were taken over
        self._file = AtomicFile(os.fspath(target), ours=is_partial, fresh=not resume)
        self._earlier = self._file.reader() if resume else None
        # `take_over` is called in another thread than the rest, and may come too late.
        self._lock = threading.Lock()
        self._closed = False

    def take_over(self, path: str) -> bool:
        """See `Sink.take_over`."""
        with self._lock:
            return not self._closed and self._take_over(path)

    def _take_over(self, path: str) -> bool:
        if self._earlier is None:
            return False
        line = self._earlier.readline()
        match judged(line, path, self._terms):
            case Taken(failed, warned):
                self._taken += len(line)
                self.written += 1
                self.failed_before += failed
                self.warned_before += warned
                return True
            case Refused(reason, hint):
                raise UsageError(f"{self._file.partial} {reason}", hint=hint)
        self._drop_rest()
        return False

    def _drop_rest(self) -> None:
        """Cut off what an earlier run has left after the records that were taken over."""
        if self._earlier is not None:
            self._earlier.close()
            self._earlier = None
            self._file.keep(self._taken)

    def write(self, records: Sequence[Record]) -> None:
        """See `Sink.write`."""
        self._drop_rest()
        self._file.append(b"".join(encoded(records)))
        self.written += len(records)

    def replaces(self) -> str:
        """See `Sink.replaces`."""
        return self._file.replaces()

    def commit(self) -> None:
        """See `Sink.commit`."""
        self._drop_rest()
        self._file.commit(require_records)

    def abandon(self) -> str:
        """See `Sink.abandon`."""
        if self._file.committed:  # and only the directory could not be synced
            return f"{counted(self.written)} written"
        if not self.written:
            # A run that was to be resumed and ended before its first input has lost nothing yet.
            if self._earlier is None or self._file.is_empty():
                self._file.remove()
            return ""
        return f"{counted(self.written)} kept in {self._file.partial}; --resume goes on from there"

    def close(self) -> None:
        """See `Sink.close`."""
        with self._lock:
            self._closed = True
            if self._earlier is not None:
                self._earlier.close()
            self._file.close()
