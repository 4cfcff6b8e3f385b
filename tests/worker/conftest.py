"""What the worker's tests share: memory files, a client that speaks frames, workers to speak to."""

from __future__ import annotations

import contextlib
import gc
import os
import secrets
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import pytest

import wuwan_worker
from wuwan_worker.serving.lifecycle import Lifecycle
from wuwan_worker.serving.server import Identity, Server
from wuwan_worker.shared import protocol
from wuwan_worker.shared.protocol import FrameDecoder, Hello, Labelled, ToClient, ToWorker, Welcome

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from wuwan_worker.shared.protocol import Result

DEADLINE = 20.0  # seconds; no wait of these tests is longer
PACKAGES = Path(wuwan_worker.__file__).parents[1]

M = TypeVar("M")


def _descriptors() -> list[str]:
    """What the open descriptors of this process lead to."""
    gc.collect()  # what an earlier test has left to it
    found = []
    for entry in Path("/proc/self/fd").iterdir():
        with contextlib.suppress(OSError):  # the one that lists the directory
            found.append(str(entry.readlink()))
    return sorted(found)


@pytest.fixture
def descriptors() -> Callable[[], list[str]]:
    """Says what this process has open."""
    return _descriptors


@pytest.fixture
def memory_file() -> Iterator[Callable[[bytes], int]]:
    """Makes open descriptors of files that hold the given bytes; closes them after the test."""
    with contextlib.ExitStack() as stack:

        def make(content: bytes) -> int:
            descriptor = os.memfd_create("wuwan-test", os.MFD_CLOEXEC)
            stack.callback(os.close, descriptor)
            os.write(descriptor, content)
            return descriptor

        yield make


class Client:
    """One connection to a worker, by hand."""

    def __init__(self, name: str) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(DEADLINE)
        try:
            self.sock.connect(name)
        except BaseException:
            self.sock.close()
            raise
        self._decoder = FrameDecoder(protocol.CLIENT)
        self._messages: list[ToClient] = []

    def hello(self, **fields: Any) -> Welcome:
        """Say Hello and take the Welcome."""
        self.say_hello(**fields)
        return self.take(Welcome)

    def say_hello(self, **fields: Any) -> None:
        """Say Hello, with the probe descriptor."""
        probe = protocol.probe_descriptor()
        try:
            protocol.send_frame(self.sock, Hello(**fields), [probe])
        finally:
            os.close(probe)

    def send(self, message: ToWorker, descriptors: Sequence[int] = ()) -> None:
        """Send one frame."""
        protocol.send_frame(self.sock, message, descriptors)

    def send_images(self, ids: Sequence[int], content: bytes) -> None:
        """Send images that all have the same content."""
        opened = [os.memfd_create("wuwan-image", os.MFD_CLOEXEC) for _ in ids]
        try:
            for descriptor in opened:
                os.write(descriptor, content)
            self.send(protocol.Images(ids=list(ids)), opened)
        finally:
            protocol.close_all(opened)

    def next(self) -> ToClient | None:
        """The next message; None at the end of the stream."""
        while not self._messages:
            try:
                data, received = protocol.receive(self.sock)
            except ConnectionResetError:
                return None
            if not data:
                return None
            self._messages += [f.message for f in self._decoder.feed(data, received)]
        return self._messages.pop(0)

    def take(self, kind: type[M]) -> M:
        """The next message of that kind; others before it are passed over, Fatal is not."""
        while True:
            message = self.next()
            if isinstance(message, kind):
                return message
            assert message is not None, f"the stream ended before {kind.__name__}"
            assert not isinstance(message, protocol.Fatal), message

    def items(self, count: int) -> dict[int, Result]:
        """The next `count` results by id, none of them twice."""
        found: dict[int, Result] = {}
        while len(found) < count:
            for result in self.take(protocol.Results).items:
                assert result.id not in found
                found[result.id] = result
        return found

    def labelled(self, count: int) -> dict[int, Labelled]:
        """As `items`, all of which have labels."""
        found = {}
        for number, result in self.items(count).items():
            assert isinstance(result, Labelled)
            found[number] = result
        return found

    def ended(self) -> list[ToClient]:
        """What still comes before the end of the stream."""
        rest = []
        while (message := self.next()) is not None:
            rest.append(message)
        return rest

    def close(self) -> None:
        """Vanish."""
        self.sock.close()


@pytest.fixture
def connect() -> Iterator[Callable[[str], Client]]:
    """Connects to a worker's socket."""
    clients: list[Client] = []

    def make(name: str) -> Client:
        clients.append(Client(name))
        return clients[-1]

    yield make
    for client in clients:
        client.close()


def _listener() -> tuple[str, socket.socket]:
    name = f"\0wuwan-test-{secrets.token_hex(8)}"
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    sock.bind(name)
    sock.listen(64)
    return name, sock


class InProcess:
    """A server on a thread of this process, with an engine that answers when it is told to."""

    def __init__(self, token: str = "", shared: bool = True, **lifecycle: Any) -> None:
        self.name, listener = _listener()
        self.lifecycle = Lifecycle(**({"ttl": 3600.0, "first_client_timeout": 3600.0} | lifecycle))
        identity = Identity(name="test", model="none", fingerprint="0" * 64, runner="test")
        self.log_lines: list[str] = []
        self.server = Server(
            listener,
            identity,
            self.lifecycle,
            owner=os.getuid(),
            token=token,
            shared=shared,
            log_lines=self.log_lines,
        )
        self.exit_code: int | None = None
        self.thread = threading.Thread(target=self._run, daemon=True)
        self.server.loaded("nothing", lambda: 0)

    def _run(self) -> None:
        self.exit_code = self.server.run()

    def start(self) -> None:
        """Begin to serve."""
        self.thread.start()

    def answer(self, count: int, **fields: Any) -> None:
        """Answer the next `count` images."""
        for _ in range(count):
            job = self.server.jobs.get()
            assert job is not None
            os.close(job.descriptor)
            known: dict[str, Any] = {"width": 1, "height": 1, "labels": ()}
            self.server.answer(job.client, [Labelled(id=job.id, **(known | fields))])

    def wait_for(self, condition: Callable[[], bool]) -> None:
        """Wait until something holds."""
        deadline = time.monotonic() + DEADLINE
        while not condition():
            assert time.monotonic() < deadline, "it never came true"
            time.sleep(0.002)

    def wait_to_be(self, found: Callable[[], object], expected: object) -> None:
        """Wait until something is as expected; say how it differs if it never is."""
        deadline = time.monotonic() + DEADLINE
        while found() != expected and time.monotonic() < deadline:
            time.sleep(0.002)
        assert found() == expected

    def join(self, timeout: float = DEADLINE) -> int | None:
        """Wait for the server's end; its exit code, or None if it goes on."""
        self.thread.join(timeout)
        return None if self.thread.is_alive() else self.exit_code

    def stop(self) -> None:
        """End it, whatever it is doing."""
        if self.thread.is_alive():
            self.server.fail(protocol.FatalCode.BACKEND, "the test is over", 99)
            self.thread.join(DEADLINE)
        self.server.jobs.close()
        while (job := self.server.jobs.get()) is not None:
            os.close(job.descriptor)


@pytest.fixture
def serve() -> Iterator[Callable[..., InProcess]]:
    """Starts servers in this process; keywords are `InProcess`'s."""
    servers: list[InProcess] = []

    def make(**options: Any) -> InProcess:
        servers.append(InProcess(**options))
        servers[-1].start()
        return servers[-1]

    yield make
    for server in servers:
        server.stop()


class Worker:
    """A real worker process with the embedded model."""

    def __init__(self, *arguments: str, model: str = "imagenet-zh") -> None:
        self.name, listener = _listener()
        number = str(listener.fileno())
        command = [sys.executable, "-m", "wuwan_worker", "--listen-fd", number, "--name", "test"]
        with listener:
            self.process = subprocess.Popen(
                [*command, "--model", model, *arguments],
                pass_fds=[listener.fileno()],
                env=os.environ | {"PYTHONPATH": str(PACKAGES)},
                stderr=subprocess.PIPE,
            )

    def descriptors(self) -> int:
        """How many descriptors the process has open."""
        return len(list(Path(f"/proc/{self.process.pid}/fd").iterdir()))

    def terminate(self) -> None:
        """SIGTERM."""
        self.process.send_signal(signal.SIGTERM)

    def wait(self, timeout: float = DEADLINE) -> int:
        """Wait for the end; the exit code."""
        return self.process.wait(timeout)

    def stop(self) -> str:
        """End it if it lives; what it said."""
        if self.process.poll() is None:
            self.process.kill()
        _, said = self.process.communicate(timeout=DEADLINE)
        return said.decode()


@pytest.fixture
def worker() -> Iterator[Callable[..., Worker]]:
    """Starts worker processes; arguments are the command line's."""
    workers: list[Worker] = []

    def make(*arguments: str, model: str = "imagenet-zh") -> Worker:
        workers.append(Worker(*arguments, model=model))
        return workers[-1]

    yield make
    for process in workers:
        process.stop()


@pytest.fixture(scope="module")
def warm() -> Iterator[Worker]:
    """One worker process for all tests of a module that leave it alive."""
    process = Worker("--ttl", "600", "--first-client-timeout", "600")
    yield process
    assert process.process.poll() is None, process.stop()
    process.stop()
