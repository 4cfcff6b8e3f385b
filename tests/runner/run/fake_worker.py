"""Workers made of our own protocol alone: one end of a socket pair, and a thread that answers."""

from __future__ import annotations

import contextlib
import os
import socket
import threading
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from wuwan_runner import launchers
from wuwan_runner.pool.base import WorkerPool
from wuwan_runner.resolved import resolve
from wuwan_runner.wire.connection import Connection
from wuwan_runner.worker import WorkerExit
from wuwan_worker.shared import protocol
from wuwan_worker.shared.protocol import (
    Cancelled,
    Done,
    End,
    ErrorCode,
    Failed,
    Failure,
    FrameDecoder,
    Hello,
    Images,
    Labelled,
    LabelScore,
    Result,
    Results,
    ToClient,
    Welcome,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    from wuwan_runner.errors import WorkerUnavailableError
    from wuwan_runner.options import TagOptions

JOIN = 10.0
LABEL = LabelScore("无", 1.0, "none")


def welcome(**fields: Any) -> Welcome:
    """What a worker says that is ready."""
    known: dict[str, Any] = {
        "name": "fake",
        "model": "none",
        "fingerprint": "",
        "runner": "local",
        "device": "nothing",
        "state": "ready",
        "pid": 1,
        "credits": 32,
        "readable": True,
    }
    return Welcome(**(known | fields))


class FakeWorker:
    """Answers each image as `act` says, which is asked with the image's content:

    "label", "error", "cancel" (unasked), "die" (with all that it has not answered), "hang",
    "drain", "garbage".
    """

    def __init__(self, sock: socket.socket, act: Callable[[bytes], str], credits_: int) -> None:
        self.warm = False
        self.error: WorkerUnavailableError | None = None
        self.batches: list[int] = []  # how many images came in each message
        self.hello: Hello | None = None
        self._sock = sock
        self._act = act
        self._credits = credits_
        self._killed = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    # ------------------------------------------------------------ as `StartedWorker`

    def report(self) -> WorkerExit:
        """As of a process that has crashed."""
        return WorkerExit("signal SIGSEGV", "the last log line")

    def kill(self) -> None:
        """Wake it if it hangs, and have it end."""
        self._killed.set()
        with contextlib.suppress(OSError):
            self._sock.shutdown(socket.SHUT_RDWR)

    def release(self) -> None:
        """It ends with its connection."""
        self.kill()
        self._thread.join(JOIN)
        assert not self._thread.is_alive()

    # ------------------------------------------------------------ as a worker

    def _run(self) -> None:
        decoder, answered = FrameDecoder(protocol.WORKER), 0
        with contextlib.suppress(OSError), self._sock:
            while True:
                data, descriptors = protocol.receive(self._sock)
                if not data:
                    return
                for frame in decoder.feed(data, descriptors):
                    contents = [os.pread(descriptor, 4096, 0) for descriptor in frame.descriptors]
                    frame.close()
                    match frame.message:
                        case Hello() as hello:
                            self.hello = hello
                            self._send(welcome(credits=self._credits))
                        case Images(ids=ids):
                            self.batches.append(len(ids))
                            for number, content in zip(ids, contents, strict=True):
                                if not self._answer(number, content, answered):
                                    decoder.close()
                                    return
                                answered += 1
                        case End():
                            self._send(Done(count=answered))

    def _answer(self, number: int, content: bytes, answered: int) -> bool:
        match self._act(content):
            case "label":
                self._send_result(Labelled(id=number, width=1, height=1, labels=(LABEL,)))
                return True
            case "error":
                failure = Failure(ErrorCode.NOT_AN_IMAGE, "no image")
                self._send_result(Failed(id=number, error=failure))
                return True
            case "cancel":
                self._send_result(Cancelled(id=number))
                return True
            case "hang":
                self._killed.wait(JOIN)
            case "drain":
                self._send(Done(count=answered))
            case "garbage":
                self._sock.sendall(b"garbage")
        return False

    def _send_result(self, result: Result) -> None:
        self._send(Results(items=[result]))

    def _send(self, message: ToClient) -> None:
        self._sock.sendall(protocol.encode(message))


@dataclass
class World:
    """What all fake workers of a test do, and what was seen of them."""

    act: Callable[[bytes], str]
    credits: int = 32
    workers: list[FakeWorker] = field(default_factory=list)
    private: int = 0  # how many of them were for quarantine
    told: list[str] = field(default_factory=list)

    def pool(self, options: TagOptions) -> FakePool:
        """What a run gets its workers from."""
        return FakePool(self, options)


class FakePool(WorkerPool):
    """Each connection leads to a worker of its own."""

    def __init__(self, world: World, options: TagOptions) -> None:
        super().__init__(launchers.get("local"), resolve(options.spec), options, world.told.append)
        self._world = world

    def acquire(self, index: int) -> Connection:
        """See `WorkerPool.acquire`."""
        return self._connection(index, private=False)

    def acquire_private(self) -> Connection:
        """See `WorkerPool.acquire_private`."""
        self._world.private += 1
        return self._connection(0, private=True)

    def _connection(self, index: int, *, private: bool) -> Connection:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        worker = FakeWorker(theirs, self._world.act, self._world.credits)
        self._world.workers.append(worker)
        connection = Connection(ours, index, private, self._options.timeouts, worker)
        connection.greet(self._options)
        return connection
