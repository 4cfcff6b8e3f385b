"""Fault 20: somebody speaks nonsense to the worker's socket (any service that listens).

Garbage, huge lengths, another version, floods of descriptors, connections that say nothing: each is
dropped, the worker lives, and a run that goes on meanwhile gets its own labels and no others.
"""

from __future__ import annotations

import contextlib
import os
import random
import socket
import threading
import time
from typing import TYPE_CHECKING, Any

import pytest

from tests.faults.support import DEADLINE, Client, address_of, status_of
from wuwan_runner import WorkerSpec
from wuwan_runner.wire import address
from wuwan_worker.serving.server import MAX_CLIENTS
from wuwan_worker.shared import protocol
from wuwan_worker.shared.protocol import Hello, Images

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from wuwan_runner.wire.address import Address

RUNNERS = ["local", pytest.param("docker", marks=pytest.mark.docker)]
SLOW_PEERS = 100


def _raw(target: Address) -> socket.socket:
    sock = address.connect(target, 5.0)
    assert sock is not None
    return sock


def _refused(sock: socket.socket) -> None:
    """The worker ends the connection, whatever it says before."""
    with sock, contextlib.suppress(ConnectionResetError, BrokenPipeError):
        while sock.recv(65536):
            pass


def _garbage(target: Address) -> None:
    sock = _raw(target)
    with contextlib.suppress(OSError):
        sock.sendall(b"GET / HTTP/1.1\r\n\r\n" + random.randbytes(5000))
    _refused(sock)


def _huge_length(target: Address) -> None:
    sock = _raw(target)
    sock.sendall(protocol.HEADER.pack(protocol.MAGIC, 0, 0xFFFF_FFFF))
    _refused(sock)


def _deep_nesting(target: Address) -> None:
    sock = _raw(target)
    payload = b"\xdd\x7f\xff\xff\xff" * 20_000  # arrays that claim two thousand million elements
    with contextlib.suppress(OSError):
        sock.sendall(protocol.HEADER.pack(protocol.MAGIC, 0, len(payload)) + payload)
    _refused(sock)


def _wrong_version(target: Address) -> None:
    sock = _raw(target)
    sock.sendall(protocol.encode(Hello(version=999)))
    _refused(sock)


def _answers_instead_of_questions(target: Address) -> None:
    client = Client(target)
    client.hello()
    client.sock.sendall(protocol.encode(protocol.Done(count=7)))
    _refused(client.sock)


def _descriptor_flood(target: Address) -> None:
    """As many descriptors as the kernel takes, again and again, declared by nobody."""
    sock, null = _raw(target), os.open(os.devnull, os.O_RDONLY)
    try:
        with contextlib.suppress(OSError):
            for _ in range(20):
                socket.send_fds(sock, [protocol.HEADER.pack(protocol.MAGIC, 0, 9)], [null] * 253)
    finally:
        os.close(null)
    _refused(sock)


def _too_many_images(target: Address) -> None:
    client, null = Client(target), os.open(os.devnull, os.O_RDONLY)
    welcome = client.hello()
    ids = list(range(welcome.credits + 1))
    try:
        with contextlib.suppress(OSError):
            protocol.send_frame(client.sock, Images(ids=ids), [null] * len(ids))
    finally:
        os.close(null)
    _refused(client.sock)


def _images_without_descriptors(target: Address) -> None:
    client = Client(target)
    client.hello()
    client.sock.sendall(protocol.encode(Images(ids=[1, 2, 3])))
    _refused(client.sock)


def _vanishing(target: Address) -> None:
    """Leaves in the middle of a frame, with images under way."""
    client, null = Client(target), os.open("/dev/zero", os.O_RDONLY)
    client.hello()
    try:
        protocol.send_frame(client.sock, Images(ids=[1]), [null])
    finally:
        os.close(null)
    client.sock.sendall(protocol.encode(Images(ids=[2, 3]))[:-3])
    client.close()


def _never_reading(target: Address) -> None:
    """Asks and asks, and reads no answer."""
    client = Client(target, timeout=0.2)
    client.hello(tagging=False)
    with contextlib.suppress(OSError):
        for _ in range(2000):
            client.sock.sendall(protocol.encode(protocol.LogsRequest()))
    client.close()


ATTACKS = [
    _garbage,
    _huge_length,
    _deep_nesting,
    _wrong_version,
    _answers_instead_of_questions,
    _descriptor_flood,
    _too_many_images,
    _images_without_descriptors,
    _vanishing,
    _never_reading,
]


@contextlib.contextmanager
def _slow_peers(target: Address) -> Iterator[list[socket.socket]]:
    """Connections that send one byte of a header, and no more."""
    peers = []
    try:
        for _ in range(SLOW_PEERS):
            peers.append(_raw(target))  # closed if one fails
            peers[-1].sendall(protocol.MAGIC[:1])
        yield peers
    finally:
        for peer in peers:
            peer.close()


class _Attackers:
    """Threads that attack until they are told to stop."""

    def __init__(self, target: Address) -> None:
        self.counts = dict.fromkeys((attack.__name__ for attack in ATTACKS), 0)
        self.errors: list[BaseException] = []
        self._place = target
        self._stop = threading.Event()
        self._threads = [
            threading.Thread(target=self._run, args=(attack,), daemon=True) for attack in ATTACKS
        ]

    def _run(self, attack: Callable[[Address], None]) -> None:
        try:
            while not self._stop.wait(0.05):
                attack(self._place)
                self.counts[attack.__name__] += 1
        except BaseException as error:
            self.errors.append(error)

    def __enter__(self) -> _Attackers:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join(DEADLINE)


@pytest.mark.parametrize("runner", RUNNERS)
def test_run_goes_on_under_attack(
    tools: Any, wuwan: Any, request: pytest.FixtureRequest, runner: str
) -> None:
    image = request.getfixturevalue("docker_image") if runner == "docker" else ""
    arguments = ("--runner", runner, "--ttl", 60, *(("--image", image) if image else ()))
    assert wuwan("warm", *arguments).returncode == 0
    target = address_of(runner, WorkerSpec(image=image))
    name = status_of(target).name
    album = tools.album(60)
    with _slow_peers(target), _Attackers(target) as attackers:
        for _ in range(2):
            done = wuwan("tag", album.root, *arguments)
            assert done.returncode == 0, done.stderr.decode()
            album.check(tools.parsed(done.stdout), tools.expected)
            assert b"was lost" not in done.stderr
    assert not attackers.errors
    assert all(attackers.counts.values()), attackers.counts
    # The same worker, with nothing left of all this.
    tools.eventually(lambda: status_of(target).idle_for is not None, 20, "the worker is idle")
    status = status_of(target)
    assert status.name == name
    assert (status.clients, status.queued) == (0, 0)
    assert wuwan("stop", "--all").returncode == 0


def test_silent_peers_are_dropped_in_time(tools: Any, wuwan: Any) -> None:
    """They hold their target for seconds, and do not keep a worker alive for longer."""
    assert wuwan("warm", "--runner", "local", "--ttl", 1).returncode == 0
    target = address_of("local", WorkerSpec())
    with _slow_peers(target) as peers:
        started = time.monotonic()
        tools.eventually(lambda: not tools.inventory.all(), 20, "the worker is gone")
        assert time.monotonic() - started > 1
        for peer in peers:
            _refused(peer)


def test_silent_clients_keep_nobody_out(tools: Any, wuwan: Any) -> None:
    """As many as there are places, all of which have said Hello: a run finds a place in seconds."""
    assert wuwan("warm", "--runner", "local", "--ttl", 60).returncode == 0
    target = address_of("local", WorkerSpec())
    album = tools.album(4)
    with contextlib.ExitStack() as stack:
        for _ in range(MAX_CLIENTS):
            stack.enter_context(Client(target)).hello()
        runs = []

        def has_run() -> bool:
            runs.append(wuwan("tag", album.root, "--runner", "local", "--ttl", 60))
            return bool(runs[-1].returncode == 0)

        tools.eventually(has_run, 30, "a run has found a place")
        album.check(tools.parsed(runs[-1].stdout), tools.expected)
    assert wuwan("stop", "--all").returncode == 0


def test_stranger_at_the_workers_name(tools: Any, wuwan: Any) -> None:
    """Who binds the name and says nothing holds a run up for its deadline only: clear error."""
    listener = address.listen(address_of("local", WorkerSpec()))
    assert listener is not None

    def talk_nonsense() -> None:
        with contextlib.suppress(OSError):
            while True:
                client, _ = listener.accept()
                with client:
                    client.sendall(random.randbytes(1000))

    thread = threading.Thread(target=talk_nonsense, daemon=True)
    thread.start()
    try:
        done = wuwan("tag", tools.album(2).root, "--runner", "local", timeout=90)
    finally:
        listener.shutdown(socket.SHUT_RDWR)
        listener.close()
        thread.join(5)
    assert done.returncode == 4, done.stderr
    assert b"Traceback" not in done.stderr
    assert done.stdout == b""
