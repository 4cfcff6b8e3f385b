"""What takes records, and what may go wrong with it."""

from __future__ import annotations

import contextlib
import errno
from typing import TYPE_CHECKING, Protocol

from wuwan_runner.errors import OptionError, WuwanError

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from wuwan_runner.records import Record


class OutputError(WuwanError):
    """Records cannot be written."""


class TargetError(OptionError):
    """The output is something that records cannot be written to."""

    def __init__(self, problem: str, *, hint: str = "") -> None:
        """
        Args:
            problem: what is wrong, to follow the name that the option has.
            hint: what to do.
        """
        self.option = "output"
        self._problem = problem
        WuwanError.__init__(self, self.called(self.option), hint=hint)

    def called(self, name: str) -> str:
        """See `OptionError.called`."""
        return f"{name} {self._problem}"


class ClosedPipe(Exception):  # noqa: N818  # no error: the reader has had enough
    """Nobody reads the records any more."""


class Sink(Protocol):
    """Takes records: first those of an earlier run, then new ones; in the end it is closed.

    After the last record comes `commit`, and `abandon` if the run ends before that.
    """

    written: int
    """Records that are in the output, those of an earlier run among them."""
    failed_before: int
    """Error records among those of an earlier run."""
    warned_before: int
    """And those with a warning."""

    def take_over(self, path: str) -> bool:
        """Take over the next record of an earlier run, if it is that of this input.

        Called with the path of each input, in order, until it says no: then what is left of the
        earlier run is dropped, and `write` is to give this record and all that follow.

        Raises:
            OutputError: if the rest cannot be dropped.
            UsageError: if the record is one that this run would not write.
        """
        ...

    def write(self, records: Sequence[Record]) -> None:
        """Write and flush them, in order.

        Raises:
            ClosedPipe: if nobody reads them any more.
            OutputError: if they cannot be written; none of them is half written to a file.
        """
        ...

    def replaces(self) -> str:
        """The name of the file with records that `commit` will replace, or ""."""
        ...

    def commit(self) -> None:
        """All records have been written: make them last.

        Raises:
            OutputError: if that cannot be done.
            UsageError: if something else than records would be replaced.
        """
        ...

    def abandon(self) -> str:
        """The run ended early; a sentence about what becomes of the records, or ""."""
        ...

    def close(self) -> None:
        """Free what is held."""
        ...


def counted(records: int) -> str:
    """How many records, in words."""
    return f"{records:,} record{'' if records == 1 else 's'}"


@contextlib.contextmanager
def explained(name: str) -> Iterator[None]:
    """An OSError in here is an OutputError that names the output."""
    try:
        yield
    except OSError as error:
        hint = "free some space and run it again" if error.errno == errno.ENOSPC else ""
        raise OutputError(f"cannot write to {name}: {error.strerror or error}", hint=hint) from None
