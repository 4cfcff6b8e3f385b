"""The paths that the user names: as arguments, and in lists that are read as they grow."""

from __future__ import annotations

import os
import select
import stat
from dataclasses import dataclass
from typing import TYPE_CHECKING

from wuwan_cli.shell import boundary
from wuwan_runner.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from wuwan_runner.inputs.survey import Survey

STDIN = "-"
_ON_STDIN = "on standard input"
_CHUNK = 65536


@dataclass(frozen=True, slots=True)
class Inputs:
    """What to tag, in order. Lists are opened at once, so that a wrong name is a usage error."""

    paths: tuple[str, ...]  # "-" stands for the list on standard input
    files_from: str | None  # a list in a file, or "-"; it comes last
    separator: bytes
    list_descriptor: int | None

    @classmethod
    def of(cls, paths: Sequence[str], files_from: str | None, *, null: bool) -> Inputs:
        """Check what was given.

        Raises:
            UsageError: if there is nothing, standard input is named twice or closed, or the list is
                missing.
        """
        if not paths and files_from is None:
            raise UsageError(
                "nothing to tag", hint="name files or directories, or a list with --files-from"
            )
        if [*paths, files_from].count(STDIN) > 1:
            raise UsageError("standard input can be read once only")
        if STDIN in (*paths, files_from) and 0 in boundary.closed:
            raise UsageError("standard input is closed: there is no list to read")
        if null and files_from is None and STDIN not in paths:
            raise UsageError("-0/--null is about lists", hint="use it with --files-from or -")
        descriptor = None
        if files_from == STDIN:
            descriptor = 0
        elif files_from is not None:
            try:
                descriptor = os.open(files_from, os.O_RDONLY | os.O_CLOEXEC)
            except (OSError, ValueError) as error:
                raise UsageError(f"cannot read the list {files_from}: {error}") from None
        return cls(tuple(paths), files_from, b"\0" if null else b"\n", descriptor)

    def read(self, survey: Survey) -> Iterator[str]:
        """The paths, each as soon as it has been read; a list may make it wait.

        `survey` is told of a list without any.
        """
        for path in self.paths:
            if path == STDIN:
                yield from self._list(0, _ON_STDIN, survey)
            else:
                yield path
        if self.list_descriptor is not None:
            name = _ON_STDIN if self.files_from == STDIN else f"in {self.files_from}"
            yield from self._list(self.list_descriptor, name, survey)

    def _list(self, descriptor: int, name: str, survey: Survey) -> Iterator[str]:
        empty = True
        for path in read_list(descriptor, self.separator):
            empty = False
            yield path
        if empty:
            survey.miss(f"the list {name} is empty")

    def named(self, status: os.stat_result) -> str | None:
        """The name of the file or list, among those that are named, which has that status."""
        for path in self.paths:
            try:
                if os.path.samestat(os.fstat(0) if path == STDIN else os.stat(path), status):
                    return "the list" if path == STDIN else path
            except (OSError, ValueError):  # its record will say so
                continue
        listed = self.list_descriptor
        if listed is not None and os.path.samestat(os.fstat(listed), status):
            return "the list"
        return None

    def again(self) -> Iterator[str] | None:
        """The same paths a second time, for counting; None where a list can be read only once."""
        if STDIN in self.paths or self.files_from == STDIN:
            return None
        if self.list_descriptor is None:
            return iter(self.paths)
        if not stat.S_ISREG(os.fstat(self.list_descriptor).st_mode):
            return None
        return self._again()

    def _again(self) -> Iterator[str]:
        yield from self.paths
        assert self.files_from is not None  # noqa: S101  # `again` has looked
        descriptor = os.open(self.files_from, os.O_RDONLY | os.O_CLOEXEC)
        try:
            yield from read_list(descriptor, self.separator)
        finally:
            os.close(descriptor)


def read_list(descriptor: int, separator: bytes) -> Iterator[str]:
    """The non-empty entries of a list, byte for byte as file names are, each once it is whole.

    Raises:
        UsageError: if it cannot be read.
    """
    rest = b""
    try:
        while True:
            try:
                chunk = os.read(descriptor, _CHUNK)
            except BlockingIOError:  # whoever shares the pipe made it non-blocking
                waiting = select.poll()
                waiting.register(descriptor, select.POLLIN)
                waiting.poll()
                continue
            if not chunk:
                break
            *entries, rest = (rest + chunk).split(separator)
            for entry in entries:
                if entry:
                    yield os.fsdecode(entry)
    except OSError as error:
        raise UsageError(f"cannot read the list: {error.strerror}") from None
    if rest:
        yield os.fsdecode(rest)
