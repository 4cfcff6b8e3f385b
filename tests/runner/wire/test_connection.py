"""One worker's connection: what may be sent, what is owed, and until when."""

from __future__ import annotations

import os
import socket
import time
from typing import TYPE_CHECKING

import pytest

from tests.runner.run.fake_worker import welcome
from wuwan_runner.inputs.base import Item
from wuwan_runner.inputs.files import Found
from wuwan_runner.options import TagOptions, Timeouts
from wuwan_runner.wire.connection import Connection, ConnectionLostError
from wuwan_worker.shared import protocol
from wuwan_worker.shared.protocol import Done, FrameDecoder, Hello, Images, Ready, Results

if TYPE_CHECKING:
    from collections.abc import Iterator

    from wuwan_worker.shared.protocol import Frame, ToWorker

TIMEOUTS = Timeouts(start=60, batch=30, per_image=1)
# The connection, and the worker's end of it.
Pair = tuple[Connection, socket.socket]


@pytest.fixture
def pair(request: pytest.FixtureRequest) -> Iterator[Pair]:
    """A connection and its peer; the parameter says whether it is private."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
    theirs.settimeout(5)
    connection = Connection(ours, 0, getattr(request, "param", False), TIMEOUTS, None)
    yield connection, theirs
    connection.close()
    theirs.close()


private = pytest.mark.parametrize("pair", [True], indirect=True)


def opened(*numbers: int) -> list[tuple[Item, int]]:
    """Images, each with a descriptor."""
    return [(Item(number, Found(f"{number}")), protocol.probe_descriptor()) for number in numbers]


def heard(peer: socket.socket) -> list[Frame[ToWorker]]:
    """What has come at the worker's end."""
    return FrameDecoder(protocol.WORKER).feed(*protocol.receive(peer))


def test_greeting(pair: Pair) -> None:
    """All that a worker needs to know of the options, and a descriptor that can be read."""
    connection, peer = pair
    options = TagOptions(top_k=3, min_score=0.5, exact=True, level="fine", ttl=7)
    connection.greet(options)
    (frame,) = heard(peer)
    assert isinstance(frame.message, Hello)
    assert (frame.message.top_k, frame.message.min_score) == (3, 0.5)
    assert (frame.message.exact, frame.message.level, frame.message.ttl) == (True, "fine", 7)
    assert frame.message.tagging
    assert os.pread(frame.descriptors[0], 64, 0) == protocol.PROBE
    frame.close()


@private
def test_a_private_worker_leaves_with_its_run(pair: Pair) -> None:
    """Whatever the TTL of the others is: nobody else can find it."""
    connection, peer = pair
    connection.greet(TagOptions(ttl=600))
    (frame,) = heard(peer)
    assert isinstance(frame.message, Hello)
    assert frame.message.ttl == 0
    frame.close()


def test_room_is_what_the_credits_leave(pair: Pair) -> None:
    """Nothing before the Welcome; then the credits, less what is not answered."""
    connection, peer = pair
    assert connection.room == 0
    connection.greeted(welcome(credits=3, state="starting"))
    assert connection.room == 3  # it may be sent images while it loads its model
    connection.send_images(opened(0, 1))
    assert connection.room == 1
    (frame,) = heard(peer)
    assert frame.message == Images(ids=[0, 1])
    frame.close()


@private
def test_a_private_worker_has_one_image_at_a_time(pair: Pair) -> None:
    """And none before its model is loaded, so that it is clear what has killed it."""
    connection, _ = pair
    connection.greeted(welcome(state="starting"))
    assert connection.room == 0
    connection.became_ready()
    assert connection.room == 1
    connection.send_images(opened(0))
    assert connection.room == 0


def test_deadlines(pair: Pair) -> None:
    """For the start, for silence, for the oldest image; none where nothing is owed."""
    connection, _ = pair
    now = time.monotonic()
    assert connection.deadline == pytest.approx(now + 60, abs=5)
    connection.greeted(welcome(credits=100, state="starting"))
    connection.last_activity = now - 20
    assert connection.deadline == now + 40  # the model is owed, though no image is
    connection.became_ready()
    assert connection.deadline == float("inf")
    connection.send_images(opened(*range(10)))
    assert connection.deadline == pytest.approx(now + 30 + 10, abs=5)
    connection.last_activity = now + 1000  # it answers others all the time
    assert connection.deadline == pytest.approx(now + 30 + 100, abs=5)


def test_waiting_for_an_image_begins_with_the_first_that_is_owed(pair: Pair) -> None:
    """A warm worker that had nothing to do for an hour was not silent for an hour."""
    connection, _ = pair
    connection.greeted(welcome())
    connection.last_activity = time.monotonic() - 3600
    connection.send_images(opened(0))
    assert connection.deadline > time.monotonic() + 20


def test_what_came_before_the_end_comes_first(pair: Pair) -> None:
    """A worker's last words are read, and only then that it has gone; in pieces, too."""
    connection, peer = pair
    sent = [welcome(), Ready(device="x"), Results(items=[]), Done(count=0)]
    stream = b"".join(map(protocol.encode, sent))
    assert connection.receive() == []
    peer.sendall(stream[:-3])
    assert connection.receive() == sent[:-1]
    assert connection.receive() == []
    peer.sendall(stream[-3:])
    peer.close()
    assert connection.receive() == sent[-1:]
    with pytest.raises(ConnectionLostError, match="closed the connection"):
        connection.receive()


def test_words_before_garbage_are_not_lost(pair: Pair) -> None:
    """The answers count; what comes after them ends the connection."""
    connection, peer = pair
    peer.sendall(protocol.encode(welcome()))
    assert connection.receive() == [welcome()]
    peer.sendall(b"garbage")
    with pytest.raises(ConnectionLostError, match="does not speak this protocol"):
        connection.receive()


def test_an_answer_is_a_sign_of_life(pair: Pair) -> None:
    """Anything else is silence."""
    connection, peer = pair
    connection.last_activity = 0.0
    assert connection.receive() == []
    assert connection.last_activity == 0.0
    peer.sendall(protocol.encode(Ready(device="x")))
    connection.receive()
    assert connection.last_activity > 0.0


def test_images_for_a_worker_that_has_gone(pair: Pair) -> None:
    """Their descriptors are closed, and they are known to be unanswered."""
    connection, peer = pair
    connection.greeted(welcome())
    peer.close()
    images = opened(4, 5)
    with pytest.raises(ConnectionLostError):
        connection.send_images(images)
    assert list(connection.outstanding) == [4, 5]
    for _, descriptor in images:
        with pytest.raises(OSError, match="Bad file descriptor"):
            os.fstat(descriptor)


def test_a_worker_that_takes_nothing_does_not_hold_up_for_ever(pair: Pair) -> None:
    """Sending has a deadline, too."""
    connection, _ = pair
    connection.timeouts = Timeouts(batch=0.2)
    much = Hello(client="x" * 10_000_000)  # more than any socket's buffer
    begin = time.monotonic()
    with pytest.raises(ConnectionLostError, match="timed out"):
        connection.send(much)
    assert time.monotonic() - begin < 10
