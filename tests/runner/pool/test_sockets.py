"""Warm workers are found and new ones started: the sockets are real, the workers only greet."""

from __future__ import annotations

import contextlib
import dataclasses
import socket
import threading
import time
from typing import TYPE_CHECKING

import pytest

from tests.runner.pool.fake_launcher import FakeLauncher
from wuwan_runner.errors import WorkerUnavailableError
from wuwan_runner.options import TTL, TagOptions, Timeouts
from wuwan_runner.pool.sockets import SocketPool
from wuwan_runner.resolved import resolve
from wuwan_runner.wire import address
from wuwan_runner.wire.address import Address
from wuwan_runner.wire.connection import ConnectionLostError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from wuwan_runner.wire.connection import Connection

DEADLINE = 10.0
OPTIONS = TagOptions(timeouts=Timeouts(start=DEADLINE))


@pytest.fixture
def pool() -> Iterator[Callable[..., SocketPool]]:
    """`pool(LAUNCHER, OPTIONS)`; the workers of its launcher end with the test."""
    launchers = []

    def make(launcher: FakeLauncher, options: TagOptions = OPTIONS) -> SocketPool:
        launchers.append(launcher)
        return SocketPool(launcher, resolve(options.spec), options, lambda _: None)

    yield make
    for launcher in launchers:
        for worker in launcher.workers:
            worker.end()


def leave(connection: Connection) -> None:
    """As at the end of a run."""
    if connection.started is not None:
        connection.started.release()
    connection.close()


def greeted(connection: Connection) -> bool:
    """Whether a worker has accepted it."""
    connection.sock.settimeout(DEADLINE)
    return bool(connection.sock.recv(1))


def test_one_is_started_and_then_found(pool: Callable[..., SocketPool]) -> None:
    """The first client has a new worker, all later ones the same; another index is another one."""
    launcher = FakeLauncher()
    first, second = pool(launcher), pool(launcher)
    connections = [first.acquire(0), second.acquire(0), first.acquire(1)]
    assert all(map(greeted, connections))
    assert [one.started is not None for one in connections] == [True, False, True]
    assert [one.index for one in connections] == [0, 0, 1]
    assert [request.index for request in launcher.requests] == [0, 1]
    assert {request.ttl for request in launcher.requests} == {TTL}
    for one in connections:
        leave(one)


def test_eight_at_once(pool: Callable[..., SocketPool]) -> None:
    """To bind the name is the lock: one starts the worker, the others queue, and all are served."""
    everybody = threading.Barrier(8)

    def slowly(_: object) -> None:
        time.sleep(0.1)  # the queue has to hold while the worker is not up

    launcher = FakeLauncher(slowly)
    pools = [pool(launcher) for _ in range(8)]
    connections: list[Connection] = []

    def acquire(one: SocketPool) -> None:
        everybody.wait(DEADLINE)
        connections.append(one.acquire(0))

    threads = [threading.Thread(target=acquire, args=(one,)) for one in pools]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(DEADLINE)
    assert len(connections) == 8
    assert all(map(greeted, connections))
    assert len(launcher.requests) == 1
    assert sum(one.started is not None for one in connections) == 1
    for one in connections:
        leave(one)


def test_private_ones(pool: Callable[..., SocketPool]) -> None:
    """Each is new, nobody else finds it, and it has no time to wait for others."""
    launcher = FakeLauncher()
    one = pool(launcher, dataclasses.replace(OPTIONS, ttl=60.0))
    connections = [one.acquire_private(), one.acquire_private(), one.acquire(0)]
    assert all(map(greeted, connections))
    assert [request.ttl for request in launcher.requests] == [0.0, 0.0, 60.0]
    assert [connection.private for connection in connections] == [True, True, False]
    for connection in connections:
        leave(connection)


def test_a_worker_that_ends_just_now(pool: Callable[..., SocketPool]) -> None:
    """Its connection ends, which is said, or another worker is there: no other error, no wait."""
    for _ in range(30):
        one = pool(launcher := FakeLauncher())
        connection = one.acquire(0)
        assert connection.started is not None
        connection.started.report()  # it is up
        ending = threading.Thread(target=launcher.workers[0].end)
        ending.start()
        found = []
        deadline = time.monotonic() + DEADLINE
        while not found:
            assert time.monotonic() < deadline
            with contextlib.suppress(ConnectionLostError):
                found.append(one.acquire(0))
        ending.join(DEADLINE)
        leave(connection)
        # In the old one's queue it is told that there is none, and looks again, as a run does.
        if found[0].started is None:
            leave(found.pop())
            found.append(one.acquire(0))
        assert found[0].started is not None
        assert greeted(found[0])
        found[0].started.report()
        leave(found[0])
        assert len(launcher.workers) == 2
        launcher.workers[1].end()


def test_a_stranger_at_the_name(
    pool: Callable[..., SocketPool], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who holds the name and is not us gets nothing; at the deadline it is said what is wrong."""
    launcher = FakeLauncher()
    one = pool(launcher, TagOptions(timeouts=Timeouts(start=0.3)))
    monkeypatch.setattr("wuwan_worker.shared.peers.uid", lambda _: 12345)
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as stranger:
        stranger.bind(Address(one.key, "0").name)
        stranger.listen(512)
        started = time.monotonic()
        with pytest.raises(WorkerUnavailableError, match="is taken by something") as caught:
            one.acquire(0)
        assert 0.3 <= time.monotonic() - started < DEADLINE
        assert Address(one.key, "0").name[1:] in str(caught.value)
        assert "/proc/net/unix" in caught.value.hint
        client, _ = stranger.accept()
        client.settimeout(DEADLINE)
        assert client.recv(100) == b""  # not even a Hello
        client.close()
    assert launcher.requests == []


def test_where_nobody_can_be_told_apart(
    pool: Callable[..., SocketPool], monkeypatch: pytest.MonkeyPatch
) -> None:
    """No warm worker can be trusted then: each has a name that nobody can guess."""
    monkeypatch.setattr(address, "told_apart", lambda: False)
    launcher = FakeLauncher()
    connections = [pool(launcher).acquire(0) for _ in range(2)]
    assert all(map(greeted, connections))
    assert len(launcher.requests) == 2
    for one in connections:
        leave(one)


def test_a_start_that_fails(pool: Callable[..., SocketPool]) -> None:
    """The run hears the reason from its own connection; the name is free for the next one."""

    def fail(_: object) -> None:
        raise WorkerUnavailableError("no GPU")

    connection = pool(FakeLauncher(fail)).acquire(0)
    assert connection.started is not None
    connection.started.report()
    assert str(connection.started.error) == "no GPU"
    leave(connection)
    launcher = FakeLauncher()
    other = pool(launcher).acquire(0)
    assert greeted(other)
    leave(other)
