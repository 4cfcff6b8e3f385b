"""Parts that several fault tests use: real workers at a chosen address, proxies, raw clients."""

from __future__ import annotations

import contextlib
import os
import socket
import struct
import threading
import time
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

from tests.starting import request_for
from wuwan_runner import launchers
from wuwan_runner.options import WorkerSpec
from wuwan_runner.resolved import resolve
from wuwan_runner.wire import address, control
from wuwan_runner.wire.address import Address
from wuwan_worker.shared import protocol
from wuwan_worker.shared.protocol import FrameDecoder, Hello, Images, Results, ToClient, Welcome

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from wuwan_worker.shared.protocol import Result

M = TypeVar("M", bound=ToClient)
DEADLINE = 30.0  # seconds for any one step; far more than it takes, since the machine may be busy


def address_of(runner: str, spec: WorkerSpec, index: str = "0") -> Address:
    """Where clients look for the worker of that kind."""
    return Address(launchers.get(runner).key(resolve(spec)), index)


@contextmanager
def worker_at(
    target: Address, runner: str, spec: WorkerSpec | None = None, ttl: float = 600.0
) -> Iterator[None]:
    """A real worker of that runner at an address of the test's choice; ready, killed in the end."""
    listener = address.listen(target)
    assert listener is not None, f"{target} is taken"
    with listener:
        launcher = launchers.get(runner)
        request = request_for(launcher, spec or WorkerSpec(), ttl=ttl)
        started = launcher.start(request, listener)
    try:
        wait_until_ready(target)
        yield
    finally:
        started.kill()


def wait_until_ready(target: Address) -> None:
    """Wait until the model of the worker at that address is loaded."""
    deadline = time.monotonic() + DEADLINE
    while True:
        with contextlib.suppress(control.NoAnswerError), control.attach(target, 10.0) as worker:
            if worker.status().state != protocol.State.STARTING:
                return
        assert time.monotonic() < deadline, f"no worker at {target}"
        time.sleep(0.05)


# ---------------------------------------------------------------- a proxy


@dataclass(frozen=True, slots=True)
class Plan:
    """What a proxy does to one connection."""

    outward: int | None = None  # bytes from the worker that pass; then both ends are closed
    inward: int | None = None  # the same for bytes from the client
    piece: int = 65536  # bytes sent at a time to the client


class Proxy:
    """Stands where clients look for a worker, and passes everything on to the real one."""

    def __init__(self, front: Address, back: Address, plan: Callable[[int], Plan]) -> None:
        """`plan` is asked for each connection, by its number."""
        listener = address.listen(front)
        assert listener is not None, f"{front} is taken"
        self._listener = listener
        self._back = back
        self._plan = plan
        self._open: list[socket.socket] = []
        self._threads: list[threading.Thread] = []
        self._lock = threading.Lock()
        self.connections = 0
        self.cuts = 0
        self.passed: list[bytearray] = []  # what each connection's client was sent
        self.asked: list[bytearray] = []  # what it sent
        self._spawn(self._accept)

    def _spawn(self, target: Callable[..., None], *arguments: object) -> None:
        thread = threading.Thread(target=target, args=arguments, daemon=True)
        self._threads.append(thread)
        thread.start()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):  # the listener was closed
            while True:
                client, _ = self._listener.accept()
                worker = address.connect(self._back, DEADLINE)
                if worker is None:
                    client.close()
                    continue
                worker.settimeout(None)
                with self._lock:
                    self._open += [client, worker]
                    plan = self._plan(self.connections)
                    self.passed.append(bytearray())
                    self.asked.append(bytearray())
                    self.connections += 1
                self._spawn(self._outward, worker, client, plan, self.passed[-1])
                self._spawn(self._inward, client, worker, plan, self.asked[-1])

    def _outward(
        self, worker: socket.socket, client: socket.socket, plan: Plan, passed: bytearray
    ) -> None:
        left = plan.outward
        with contextlib.suppress(OSError):
            while data := worker.recv(65536):
                if left is not None:
                    data, left = data[:left], left - len(data[:left])
                passed += data
                for start in range(0, len(data), plan.piece):
                    client.sendall(data[start : start + plan.piece])
                if left == 0:
                    self.cuts += 1
                    break
        self._hang_up(client, worker)

    def _inward(
        self, client: socket.socket, worker: socket.socket, plan: Plan, asked: bytearray
    ) -> None:
        left = plan.inward
        with contextlib.suppress(OSError, protocol.ProtocolError):
            while True:
                data, descriptors = protocol.receive(client)
                if not data:
                    break
                if left is not None:
                    data, left = data[:left], left - len(data[:left])
                asked += data
                try:
                    sent = socket.send_fds(worker, [data], descriptors) if descriptors else 0
                finally:
                    protocol.close_all(descriptors)
                worker.sendall(data[sent:])
                if left == 0:
                    self.cuts += 1
                    break
        self._hang_up(client, worker)

    @staticmethod
    def _hang_up(*ends: socket.socket) -> None:
        for end in ends:
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)

    def __enter__(self) -> Proxy:
        return self

    def __exit__(self, *_: object) -> None:
        self._hang_up(self._listener, *self._open)
        self._listener.close()
        for thread in self._threads:
            thread.join(DEADLINE)
        for end in self._open:
            end.close()


# ---------------------------------------------------------------- a client by hand


class Client:
    """One connection to a worker, frame by frame."""

    def __init__(self, target: Address, *, timeout: float = DEADLINE) -> None:
        sock = address.connect(target, timeout)
        assert sock is not None, f"no worker at {target}"
        self.sock = sock
        self._decoder = FrameDecoder(protocol.CLIENT)
        self._messages: list[ToClient] = []

    def hello(self, **fields: Any) -> Welcome:
        """Greet, and be greeted."""
        probe = protocol.probe_descriptor()
        try:
            protocol.send_frame(self.sock, Hello(**fields), [probe])
        finally:
            os.close(probe)
        return self.take(Welcome)

    def send_images(self, ids: Sequence[int], paths: Sequence[str]) -> None:
        """Send those files."""
        descriptors = [os.open(path, os.O_RDONLY) for path in paths]
        try:
            protocol.send_frame(self.sock, Images(ids=list(ids)), descriptors)
        finally:
            protocol.close_all(descriptors)

    def next(self) -> ToClient | None:
        """The next message; None at the end of the stream."""
        while not self._messages:
            try:
                data, received = protocol.receive(self.sock)
            except (ConnectionResetError, BrokenPipeError):
                return None
            if not data:
                return None
            self._messages += [frame.message for frame in self._decoder.feed(data, received)]
        return self._messages.pop(0)

    def take(self, kind: type[M]) -> M:
        """The next message of that kind; those before it are passed over."""
        while not isinstance(message := self.next(), kind):
            assert message is not None, f"the stream ended before {kind.__name__}"
            assert not isinstance(message, protocol.Fatal), message
        return message

    def answers(self, count: int) -> list[Result]:
        """The next `count` results."""
        results: list[Result] = []
        while len(results) < count:
            results += self.take(Results).items
        return results

    def close(self) -> None:
        """Vanish; with an RST-like end, so that nothing of it waits in the worker."""
        with contextlib.suppress(OSError):
            self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self._decoder.close()
        self.sock.close()

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def status_of(target: Address) -> protocol.Status:
    """What the worker at that address says of itself."""
    with control.attach(target, DEADLINE) as worker:
        return worker.status()


def frame_ends(stream: bytes) -> list[int]:
    """Where the frames of a stream end."""
    ends, position = [], 0
    while position + protocol.HEADER.size <= len(stream):
        _, _, size = protocol.HEADER.unpack_from(stream, position)
        position += protocol.HEADER.size + size
        ends.append(position)
    return ends
