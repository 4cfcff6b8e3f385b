"""Outcomes in the order of their inputs, and how far ahead of them inputs are taken up.

One slow image must not stop the others, nor may what waits behind it grow without bound. So an
input is taken up only if it is not too far ahead of the first one that has no outcome yet.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from wuwan_runner.run.outcome import Outcome

# Inputs ahead of the first one without an outcome. Images of a few hundred labels make 20 MB.
LEAST = 512


class Window:
    """Holds what came too early."""

    def __init__(self) -> None:
        self._size = LEAST
        self._waiting: dict[int, Outcome] = {}
        self._emitted = 0

    @property
    def emitted(self) -> int:
        """How many outcomes have been taken."""
        return self._emitted

    @property
    def limit(self) -> int:
        """The first input that may not be taken up yet, by its number."""
        return self._emitted + self._size

    @property
    def ready(self) -> bool:
        """Whether `take` has something to give."""
        return self._emitted in self._waiting

    def fit(self, credits_: int) -> None:
        """Have room for workers that take so many images at once: twice as many as they take."""
        self._size = max(LEAST, 2 * credits_)

    def put(self, number: int, outcome: Outcome) -> None:
        """An input's outcome, by its number; there is one for each."""
        self._waiting[number] = outcome

    def take(self) -> list[Outcome]:
        """Those whose turn it is, in order."""
        batch = []
        while (outcome := self._waiting.pop(self._emitted, None)) is not None:
            batch.append(outcome)
            self._emitted += 1
        return batch
