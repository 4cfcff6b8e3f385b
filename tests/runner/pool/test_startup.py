"""A worker that is being started, and what its run may do to it meanwhile."""

from __future__ import annotations

import socket
import threading
import time
from typing import TYPE_CHECKING

import pytest

from tests.runner.pool.fake_launcher import FakeLauncher
from tests.starting import request_for
from wuwan_runner.errors import WorkerUnavailableError
from wuwan_runner.options import WorkerSpec
from wuwan_runner.pool.startup import PendingWorker
from wuwan_runner.wire import address
from wuwan_runner.worker import StartRequest, WorkerExit

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from wuwan_runner.wire.address import Address

DEADLINE = 10.0
Queue = tuple[socket.socket, socket.socket]


@pytest.fixture
def target() -> Address:
    """The worker's."""
    return address.private("key")


@pytest.fixture
def queue(target: Address) -> Iterator[Queue]:
    """The listening socket, and a client that is in its queue."""
    listener = address.listen(target)
    assert listener is not None
    client = address.connect(target, DEADLINE)
    assert client is not None
    with listener, client:
        yield listener, client


def pending(
    launcher: FakeLauncher,
    listener: socket.socket,
    prepare: Callable[[], None] = lambda: None,
) -> PendingWorker:
    """One that has begun."""
    return PendingWorker(launcher, request_for(launcher, WorkerSpec()), listener, prepare)


def fails(error: Exception) -> Callable[..., None]:
    """A step that does."""

    def step(*_: object) -> None:
        raise error

    return step


def until_cancelled(request: StartRequest) -> None:
    """A start that takes long, and looks whether anybody still waits for it."""
    assert request.cancelled.wait(DEADLINE)
    raise WorkerUnavailableError("called off")


def test_the_worker_has_the_socket_alone(queue: Queue, target: Address) -> None:
    """A client in its queue is greeted; with the worker's end the name is free."""
    listener, client = queue
    launcher = FakeLauncher()
    started = pending(launcher, listener)
    assert client.recv(1)
    assert started.report() == WorkerExit("it has ended", "the last words")
    assert (started.error, started.warm) == (None, False)
    assert listener.fileno() == -1
    launcher.workers[0].end()
    again = address.listen(target)
    assert again is not None
    again.close()


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (WorkerUnavailableError("no GPU", hint="do this"), "no GPU"),
        (ZeroDivisionError("oh"), "starting a worker failed: ZeroDivisionError: oh"),
    ],
)
@pytest.mark.parametrize("where", ["before", "prepare"])
def test_an_error_reaches_the_run(
    queue: Queue, target: Address, error: Exception, message: str, where: str
) -> None:
    """Whatever it is and wherever: the client's connection ends, and the reason is known then."""
    listener, client = queue
    if where == "before":
        started = pending(FakeLauncher(fails(error)), listener)
    else:
        started = pending(FakeLauncher(), listener, prepare=fails(error))
    # A client that was in a queue that is no more.
    with pytest.raises(ConnectionResetError):
        client.recv(1)
    assert isinstance(started.error, WorkerUnavailableError)
    assert str(started.error) == message
    assert started.error.hint == getattr(error, "hint", "")
    assert started.report() == WorkerExit()
    assert address.connect(target, DEADLINE) is None
    started.kill()
    started.release()


@pytest.mark.parametrize("end", [PendingWorker.kill, PendingWorker.release])
def test_a_start_that_is_called_off(queue: Queue, end: Callable[[PendingWorker], None]) -> None:
    """It ends within moments, and nothing of it is left."""
    listener, client = queue
    launcher = FakeLauncher(until_cancelled)
    started = pending(launcher, listener)
    begun = time.monotonic()
    end(started)
    assert time.monotonic() - begun < DEADLINE / 2
    assert listener.fileno() == -1
    with pytest.raises(ConnectionResetError):
        client.recv(1)
    assert str(started.error) == "called off"
    assert launcher.workers == []


def test_a_start_that_is_called_off_too_late(queue: Queue) -> None:
    """The worker that came all the same is ended with it."""
    entered, go_on = threading.Event(), threading.Event()

    def slow(_: StartRequest) -> None:
        entered.set()
        assert go_on.wait(DEADLINE)

    launcher = FakeLauncher(slow)
    started = pending(launcher, queue[0])
    assert entered.wait(DEADLINE)
    killer = threading.Thread(target=started.kill)
    killer.start()
    go_on.set()
    killer.join(DEADLINE)
    assert launcher.workers[0].calls == ["kill"]


@pytest.mark.parametrize(
    "ends",
    [
        (PendingWorker.release, PendingWorker.release, PendingWorker.kill),
        (PendingWorker.kill, PendingWorker.kill, PendingWorker.release),
    ],
)
def test_ends_are_told_once(
    queue: Queue, ends: tuple[Callable[[PendingWorker], None], ...]
) -> None:
    """Killed or released twice, or the one after the other: the worker hears of the first."""
    launcher = FakeLauncher()
    started = pending(launcher, queue[0])
    for end in ends:
        end(started)
    assert launcher.workers[0].calls == [ends[0].__name__]
    assert started.report() == WorkerExit()
    launcher.workers[0].end()


def test_a_worker_that_cannot_be_killed(queue: Queue, monkeypatch: pytest.MonkeyPatch) -> None:
    """Is an error that names it."""
    launcher = FakeLauncher()
    started = pending(launcher, queue[0])
    started.report()
    hangs = WorkerUnavailableError("it hangs", hint="kill it")
    monkeypatch.setattr(launcher.workers[0], "kill", fails(hangs))
    with pytest.raises(WorkerUnavailableError, match="it hangs"):
        started.kill()
    launcher.workers[0].end()
