"""What an input is, wherever it comes from: something with a name that can be opened for reading.

A path, an upload, an object in a bucket: before it meets a worker it is a descriptor.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    import os

    from wuwan_runner.records import ItemFailure


class OpenError(Exception):
    """An input cannot be passed to a worker."""

    def __init__(self, failure: ItemFailure, *, shortage: bool = False) -> None:
        """
        Args:
            failure: for its record.
            shortage: whether it is not the input's fault, and may work in a moment: no descriptor
                is free.
        """
        super().__init__(failure.message)
        self.failure = failure
        self.shortage = shortage


@dataclass(frozen=True, slots=True)
class Opened:
    """An input that is open."""

    descriptor: int  # of a regular file, for reading; whoever has it closes it
    stat: os.stat_result  # of that file, as it was opened


class Input(Protocol):
    """One input. Where inputs come from is any iterator of them, which may take its time."""

    @property
    def path(self) -> str:
        """What its record calls it."""
        ...

    def open(self) -> Opened:
        """Open it. May block, and is called once more for each worker that is lost with it.

        Raises:
            OpenError: with the failure for the record.
        """
        ...


@dataclass(slots=True, eq=False)
class Item:
    """One input on its way through a run."""

    number: int  # its place among the inputs, from 0
    input: Input
    attempts: int = 0  # workers that were lost with it
    stat: os.stat_result | None = None  # as it was opened last

    @property
    def path(self) -> str:
        """What its record calls it."""
        return self.input.path
