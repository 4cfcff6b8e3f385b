"""Records to whoever reads them at once: standard output, a FIFO, a device."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from wuwan_runner.outputs.base import ClosedPipe, counted, explained
from wuwan_runner.outputs.jsonl import encoded
from wuwan_runner.outputs.lines import write_lines

if TYPE_CHECKING:
    from collections.abc import Sequence

    from wuwan_runner.records import Record


class StreamSink:
    """Writes to a descriptor; no record that went there can be had back."""

    def __init__(self, descriptor: int, name: str) -> None:
        """
        Args:
            descriptor: `close` closes it, but for standard input, output and error (0, 1, 2).
            name: what errors call it.
        """
        self.written = 0
        self.failed_before = 0
        self.warned_before = 0
        self._descriptor = descriptor
        self._name = name

    def take_over(self, path: str) -> bool:
        """Nothing that could be read back."""
        del path
        return False

    def write(self, records: Sequence[Record]) -> None:
        """See `Sink.write`."""
        with explained(self._name):
            try:
                write_lines(self._descriptor, encoded(records))
            except BrokenPipeError:
                raise ClosedPipe from None
        self.written += len(records)

    def replaces(self) -> str:
        """Nothing."""
        return ""

    def commit(self) -> None:
        """Nothing is left to do."""

    def abandon(self) -> str:
        """See `Sink.abandon`."""
        return f"{counted(self.written)} written" if self.written else ""

    def close(self) -> None:
        """See `Sink.close`."""
        if self._descriptor > 2:
            os.close(self._descriptor)
