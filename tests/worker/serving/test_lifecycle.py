"""The lifecycle, with a clock that goes when it is told to."""

from __future__ import annotations

import math
from dataclasses import dataclass

import pytest

from wuwan_worker.serving.lifecycle import Lifecycle
from wuwan_worker.shared.protocol import State


@dataclass
class Clock:
    """Seconds that pass on demand."""

    time: float = 1000.0

    def __call__(self) -> float:
        return self.time


@pytest.fixture
def clock() -> Clock:
    """The clock of the test's worker."""
    return Clock()


@pytest.fixture
def life(clock: Clock) -> Lifecycle:
    """A worker with a TTL of 10 s and a first_client_timeout of 30 s, loaded."""
    life = Lifecycle(ttl=10.0, first_client_timeout=30.0, now=clock)
    life.loaded()
    return life


def test_states_follow_what_happens(clock: Clock) -> None:
    """Starting, ready, busy, ready, draining."""
    life = Lifecycle(ttl=10.0, now=clock)
    assert life.state == State.STARTING
    life.client_came(None)
    life.images_came(2)
    assert life.state == State.STARTING
    life.loaded()
    assert life.state == State.BUSY
    life.images_done(1)
    assert life.state == State.BUSY
    life.images_done(1)
    assert life.state == State.READY
    life.drain()
    assert life.state == State.DRAINING


def test_the_ttl_counts_from_the_last_client(life: Lifecycle, clock: Clock) -> None:
    """A worker lives for its TTL after its last client has left."""
    life.client_came(None)
    clock.time += 100
    life.client_left()
    clock.time += 9.9
    assert not life.over
    assert life.ttl_left == pytest.approx(0.1)
    clock.time += 0.2
    assert life.over


def test_the_ttl_counts_from_the_last_completion(life: Lifecycle, clock: Clock) -> None:
    """What a vanished client has left in inference counts until it is done."""
    life.client_came(None)
    life.images_came(1)
    life.client_left()
    clock.time += 100
    assert not life.over
    life.images_done(1)
    clock.time += 9.9
    assert not life.over
    clock.time += 0.2
    assert life.over


def test_never_with_a_client_present(life: Lifecycle, clock: Clock) -> None:
    """A client that is there, even without images, keeps the worker."""
    life.client_came(None)
    life.client_came(None)
    life.client_left()
    clock.time += 10_000
    assert (life.over, life.idle, life.idle_for, life.ttl_left) == (False, False, None, None)


def test_nothing_answered_is_no_completion(life: Lifecycle, clock: Clock) -> None:
    """Somebody who leaves without an image of theirs waiting does not renew the TTL."""
    life.client_came(None)
    life.client_left()
    clock.time += 6
    life.images_done(0)
    assert life.idle_for == 6
    clock.time += 4
    assert life.over


def test_grace_is_for_a_worker_that_nobody_came_to(life: Lifecycle, clock: Clock) -> None:
    """Before its first client a worker waits for the longer of first_client_timeout and TTL."""
    clock.time += 29
    assert not life.over
    clock.time += 1
    assert life.over


def test_a_long_ttl_is_longer_than_the_grace(clock: Clock) -> None:
    """A worker that is to be kept warm is kept without a client, too."""
    life = Lifecycle(ttl=100.0, first_client_timeout=30.0, now=clock)
    clock.time += 99
    assert not life.over
    clock.time += 1
    assert life.over


def test_loading_is_not_idling(clock: Clock) -> None:
    """A model that takes long to load has its whole TTL afterwards."""
    life = Lifecycle(ttl=10.0, first_client_timeout=30.0, now=clock)
    life.client_came(None)
    life.client_left()
    clock.time += 8
    life.loaded()
    clock.time += 8
    assert not life.over


def test_the_newest_client_sets_the_ttl(life: Lifecycle, clock: Clock) -> None:
    """A client without a TTL leaves it; one with a TTL sets it for all."""
    life.client_came(3.0)
    life.client_came(50.0)
    life.client_came(None)
    for _ in range(3):
        life.client_left()
    assert life.ttl_left == 50
    life.client_came(0.0)
    life.client_left()
    assert life.over


def test_no_ttl_still_serves(clock: Clock) -> None:
    """With a TTL of 0 a client and its images are served all the same."""
    life = Lifecycle(ttl=0.0, first_client_timeout=30.0, now=clock)
    assert not life.over
    life.client_came(None)
    life.images_came(1)
    assert not life.over
    life.images_done(1)
    assert not life.over
    life.client_left()
    assert life.over


def test_a_ttl_without_end(life: Lifecycle, clock: Clock) -> None:
    """Infinity is a TTL."""
    life.client_came(math.inf)
    life.client_left()
    clock.time += 1e12
    assert not life.over
    assert life.ttl_left == math.inf


def test_draining_ends_with_the_last_answer(life: Lifecycle) -> None:
    """A draining worker waits for what it has received, and for no client."""
    life.client_came(None)
    life.images_came(2)
    life.drain()
    assert not life.over
    life.images_done(2)
    assert life.over


def test_draining_without_work_is_over(life: Lifecycle) -> None:
    """Nothing received, nothing to wait for."""
    life.client_came(None)
    life.drain()
    assert life.over


# ---------------------------------------------------------------- parking


@pytest.fixture
def on_gpu(clock: Clock) -> Lifecycle:
    """A loaded worker that parks after 5 s."""
    life = Lifecycle(ttl=10.0, park_after=5.0, now=clock)
    life.loaded()
    return life


def test_weights_leave_after_a_rest(on_gpu: Lifecycle, clock: Clock) -> None:
    """The rest begins with the last answer, whether or not a client stays; it is asked for once."""
    on_gpu.client_came(None)
    assert on_gpu.park_left == 5.0
    clock.time += 4
    on_gpu.images_came(1)
    assert on_gpu.park_left is None
    clock.time += 100
    on_gpu.images_done(1)
    assert on_gpu.park_left == 5.0
    clock.time += 5
    assert on_gpu.park_left == 0.0
    on_gpu.asked_to_park()
    assert on_gpu.park_left is None
    on_gpu.images_came(1)
    on_gpu.images_done(1)
    assert on_gpu.park_left == 5.0


def test_nothing_parks_before_it_is_loaded_or_while_it_ends(clock: Clock) -> None:
    """There is nothing to take away yet, or nobody to do it for."""
    life = Lifecycle(ttl=10.0, park_after=0.0, now=clock)
    assert life.park_left is None
    life.loaded()
    assert life.park_left == 0.0
    life.drain()
    assert life.park_left is None


def test_a_worker_without_a_gpu_never_parks(life: Lifecycle, clock: Clock) -> None:
    """However long it rests."""
    clock.time += 1e6
    assert life.park_left is None


def test_parked_is_what_the_backend_says(on_gpu: Lifecycle) -> None:
    """An image whose decoding failed does not wake it: it is busy, then parked as before."""
    parked = True
    on_gpu.parked = lambda: parked
    assert on_gpu.state == State.PARKED
    on_gpu.images_came(1)
    assert on_gpu.state == State.BUSY
    on_gpu.images_done(1)
    assert on_gpu.state == State.PARKED
    parked = False
    assert on_gpu.state == State.READY


def test_a_parked_worker_ends_at_its_ttl(on_gpu: Lifecycle, clock: Clock) -> None:
    """Parking neither shortens nor prolongs a worker's life."""
    on_gpu.client_came(None)
    on_gpu.client_left()
    clock.time += 6
    on_gpu.asked_to_park()
    assert on_gpu.ttl_left == 4.0
    clock.time += 4
    assert on_gpu.over


# ---------------------------------------------------------------- decoders that do not come back


def test_a_worker_with_a_decoder_that_hangs_ends_when_it_may(life: Lifecycle) -> None:
    """When nothing is unanswered, client or not; where the decoder comes back it stays."""
    life.client_came(None)
    life.images_came(2)
    life.hanging = 2
    assert (life.worn, life.spent) == (False, False)
    life.images_done(2)
    assert (life.worn, life.spent) == (True, False)
    life.hanging = 0
    assert not life.worn
    life.hanging = 1
    life.drain()
    assert not life.worn  # it is done


@pytest.mark.parametrize(("hanging", "stuck"), [(3, False), (1, True)])
def test_a_worker_that_is_spent_ends_at_once(life: Lifecycle, hanging: int, stuck: bool) -> None:
    """More than two threads are lost, or somebody waits for what they hold."""
    life.client_came(None)
    life.images_came(2)
    life.hanging, life.stuck = hanging, stuck
    assert life.spent
