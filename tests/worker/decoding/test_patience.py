"""One image's clock: what counts, and what does not."""

from __future__ import annotations

import math

import pytest

from wuwan_worker.decoding.patience import Limits, Patience

LIMITS = Limits(base=5.0, per_megapixel=1.0, per_megabyte=2.0)


class Clock:
    """Seconds that pass on demand."""

    def __init__(self) -> None:
        self.time = 1000.0

    def __call__(self) -> float:
        return self.time


@pytest.fixture
def clock() -> Clock:
    """The clock of the test."""
    return Clock()


@pytest.fixture
def patience(clock: Clock) -> Patience:
    """An image that was just taken up."""
    return Patience(LIMITS, clock)


def test_time_passes(patience: Patience, clock: Clock) -> None:
    """What says nothing of itself has the base."""
    assert patience.left == 5
    clock.time += 6
    assert patience.left == -1


def test_reading_has_a_time_of_its_own(patience: Patience, clock: Clock) -> None:
    """By the file's size; decoding begins anew, and without it."""
    patience.reading(10_000_000)
    assert patience.left == 25
    clock.time += 20
    patience.decoding()
    assert patience.left == 5


def test_pixels_have_time(patience: Patience, clock: Clock) -> None:
    """The largest picture counts, the clock goes on: a file that is decoded three times has no
    more."""
    patience.decoding()
    patience.of_pixels(20_000_000)
    clock.time += 10
    patience.of_pixels(20_000_000)
    patience.of_pixels(3_000_000)
    assert patience.left == 15


def test_waiting_does_not_count(patience: Patience, clock: Clock) -> None:
    """For memory, or its turn; but somebody sees how long it has been."""
    clock.time += 1
    assert patience.waited == 0
    with patience.waiting():
        clock.time += 100
        assert patience.left == math.inf
        assert patience.waited == 100
    assert patience.left == 4
    assert patience.waited == 0


def test_a_process_that_stood_still_is_excused(patience: Patience, clock: Clock) -> None:
    """By who saw it."""
    clock.time += 60
    patience.excuse(58)
    assert patience.left == 3
