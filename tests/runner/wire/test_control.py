"""Questions to workers: asked side by side, and what counts as an answer."""

from __future__ import annotations

import contextlib
import socket
import subprocess
import sys
import threading
import time
from typing import TYPE_CHECKING, Any

import msgpack
import pytest

from wuwan_runner.containers import exec_channel
from wuwan_runner.doctor import checks
from wuwan_runner.doctor.checks import Outcome, Scope
from wuwan_runner.errors import WorkerUnavailableError
from wuwan_runner.options import Timeouts
from wuwan_runner.pool import registry
from wuwan_runner.wire import address, control
from wuwan_runner.wire.address import Address
from wuwan_runner.wire.control import Control, GoneError, NoAnswerError
from wuwan_worker.shared import protocol
from wuwan_worker.shared.protocol import (
    Done,
    Fatal,
    FatalCode,
    FrameDecoder,
    Hello,
    Status,
    StatusRequest,
    Stop,
    Stopping,
    ToClient,
    ToWorker,
    Welcome,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

WELCOME = Welcome(
    name="a-worker",
    model="none",
    fingerprint="",
    runner="local",
    device="nothing",
    state="ready",
    pid=1,
    credits=32,
    readable=True,
)
STATUS = Status(
    name="a-worker",
    model="none",
    runner="local",
    device="nothing",
    state="ready",
    pid=1,
    clients=0,
    images_done=0,
    queued=0,
    idle_for=1.0,
    ttl=30.0,
    ttl_left=29.0,
    memory=0,
    gpu_memory=0,
    uptime=1.0,
)
HUNG = 8
PATIENCE = 0.5  # seconds


@pytest.fixture
def listen() -> Iterator[Callable[[str], socket.socket]]:
    """`listen(index)` takes the name of a worker with that index, and says nothing."""
    with contextlib.ExitStack() as stack:

        def make(index: str) -> socket.socket:
            listener = address.listen(Address("key", index))
            assert listener is not None
            return stack.enter_context(listener)

        yield make


@pytest.fixture
def stub(listen: Callable[[str], socket.socket]) -> Iterator[Callable[[str], None]]:
    """`stub(index)` starts a real worker there, one that has no model to load."""
    processes: list[subprocess.Popen[bytes]] = []

    def start(index: str) -> None:
        with listen(index) as listener:
            command = [sys.executable, "-m", "wuwan_worker.programs.stub", "--listen-fd"]
            processes.append(
                subprocess.Popen(
                    [*command, str(listener.fileno())],
                    pass_fds=[listener.fileno()],
                    stderr=subprocess.DEVNULL,
                )
            )
        with control.attach(Address("key", index), 20.0) as worker:
            worker.status()

    yield start
    for process in processes:
        process.terminate()
        process.wait(20)


def test_those_that_hang_cost_one_timeout(
    listen: Callable[[str], socket.socket], stub: Callable[[str], None]
) -> None:
    """However many they are, and those that answer are seen, in a stable order."""
    for number in range(HUNG):
        listen(f"{number}")
    stub("3a")
    stub("9")
    begin = time.monotonic()
    seen = control.survey(PATIENCE)
    took = time.monotonic() - begin
    assert PATIENCE <= took < 2 * PATIENCE, took
    assert [one.address.index for one in seen] == [*"0123", "3a", *"4567", "9"]
    assert [one.address.index for one in seen if one.status] == ["3a", "9"]
    assert {one.problem for one in seen if not one.status} == {"no answer within 0.5 s"}
    assert not [one for one in threading.enumerate() if one.name.startswith("ask")]


def test_one_is_left_out(listen: Callable[[str], socket.socket]) -> None:
    """The one that is just being started is not asked."""
    for index in "01":
        listen(index)
    (seen,) = control.survey(0.1, without=Address("key", "0"))
    assert seen.address == Address("key", "1")


def test_a_greeting_buys_no_more_time(listen: Callable[[str], socket.socket]) -> None:
    """Who greets late and then hangs has no second timeout."""
    listener = listen("0")

    def greet() -> None:
        peer, _ = listener.accept()
        with peer:
            time.sleep(0.6 * PATIENCE)
            peer.sendall(protocol.encode(WELCOME))
            peer.recv(1 << 16)
            time.sleep(PATIENCE)

    thread = threading.Thread(target=greet)
    thread.start()
    begin = time.monotonic()
    (seen,) = control.survey(PATIENCE)
    assert time.monotonic() - begin < 1.5 * PATIENCE
    assert seen.status is None
    thread.join(5)


@pytest.mark.parametrize("moment", ["before it accepts", "after Hello", "after Welcome"])
def test_who_ends_meanwhile_is_gone(
    listen: Callable[[str], socket.socket], stub: Callable[[str], None], moment: str
) -> None:
    """It is no worker that does not answer: nobody lists it, and the doctor finds nothing wrong."""
    stub("1")
    listener = listen("0")

    def vanish() -> None:
        if moment == "before it accepts":
            time.sleep(0.2)
            listener.shutdown(socket.SHUT_RDWR)
            listener.close()
            return
        with contextlib.suppress(OSError):
            while True:
                peer, _ = listener.accept()
                with peer:
                    if moment == "after Welcome":
                        peer.recv(1)
                        peer.sendall(protocol.encode(WELCOME))
                    time.sleep(0.1)  # what comes now is never read: the end is a reset

    thread = threading.Thread(target=vanish)
    thread.start()
    try:
        assert [member.name for member in registry.members(Timeouts(control=5.0))] == ["wuwan-stub"]
        check = checks.warm_workers(Scope(timeouts=Timeouts(control=5.0)))
    finally:
        with contextlib.suppress(OSError):
            listener.shutdown(socket.SHUT_RDWR)
        thread.join(5)
    assert check.outcome is Outcome.OK, check
    assert check.detail.startswith("1: ")


def test_workers_elsewhere_are_asked_side_by_side(monkeypatch: pytest.MonkeyPatch) -> None:
    """Eight of them at a time, in the order of their names; one that has gone is left out."""
    names = [f"worker-{number:02}" for number in range(16)]
    most = at_once = 0
    lock = threading.Lock()

    @contextlib.contextmanager
    def control_of(name: str, timeouts: Timeouts) -> Iterator[Any]:
        nonlocal most, at_once
        with lock:
            at_once += 1
            most = max(most, at_once)
        time.sleep(timeouts.control)
        with lock:
            at_once -= 1
        if name == "worker-03":
            raise GoneError
        raise NoAnswerError("no answer")
        yield

    monkeypatch.setattr("wuwan_runner.containers.exec_channel.control_of", control_of)
    monkeypatch.setattr("wuwan_runner.containers.daemon.is_remote", lambda: True)
    monkeypatch.setattr(registry, "_containers", lambda _: names)
    begin = time.monotonic()
    found = registry.members(Timeouts(control=0.3))
    assert time.monotonic() - begin < 4 * 0.3
    assert most == 8
    assert [member.name for member in found] == [name for name in names if name != "worker-03"]


@pytest.mark.parametrize("gone", [True, False])
def test_the_end_of_the_way_there_is_no_workers_end(
    monkeypatch: pytest.MonkeyPatch, gone: bool
) -> None:
    """A container that has gone is gone; a daemon that does not answer is worth a word."""

    def attach(*_: object) -> None:
        raise exec_channel.NoContainerError("there is none")

    @contextlib.contextmanager
    def connected(timeout: float) -> Iterator[None]:
        if not gone:
            raise WorkerUnavailableError("no Docker daemon answers")
        yield None

    monkeypatch.setattr(exec_channel.Attachment, "open", attach)
    monkeypatch.setattr("wuwan_runner.containers.daemon.connected", connected)
    asked = exec_channel.control_of("worker", Timeouts(control=5.0))
    with pytest.raises(NoAnswerError) as caught, asked:
        pass
    assert isinstance(caught.value, GoneError) == gone
    assert str(caught.value) == ("it has ended" if gone else "no Docker daemon answers")


# ---------------------------------------------------------------- one connection


class Peer:
    """The worker's end of a connection: answers each message as a script says."""

    def __init__(self, *script: list[ToClient] | bytes) -> None:
        self.ours, self._theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        self.heard: list[ToWorker] = []
        self._script = script
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        decoder = FrameDecoder(protocol.WORKER)
        with contextlib.suppress(OSError), self._theirs as sock:
            for answers in self._script:
                while True:
                    data, descriptors = protocol.receive(sock)
                    if not data:
                        return
                    if frames := decoder.feed(data, descriptors):
                        break
                for frame in frames:
                    self.heard.append(frame.message)
                    frame.close()
                sock.sendall(
                    answers
                    if isinstance(answers, bytes)
                    else b"".join(protocol.encode(message) for message in answers)
                )

    def __enter__(self) -> Peer:
        return self

    def __exit__(self, *_: object) -> None:
        self.ours.close()
        self._thread.join(5)
        assert not self._thread.is_alive()


def test_asks_and_commands() -> None:
    """It greets as one that does not tag, and takes the answer to what it asked."""
    script: list[list[ToClient]] = [[WELCOME], [STATUS], [Stopping(accepted=True)]]
    with Peer(*script) as peer:
        with Control(peer.ours, 5.0) as asker:
            assert asker.welcome == WELCOME
            assert asker.status() == STATUS
            assert asker.stop(if_idle=True)
            assert asker.wait_for_end(5.0)
        hello, *rest = peer.heard
    assert isinstance(hello, Hello)
    assert not hello.tagging
    assert rest == [StatusRequest(), Stop(if_idle=True)]


def test_other_messages_are_passed_over() -> None:
    """A worker that becomes ready meanwhile says so to everyone."""
    script: list[list[ToClient]] = [[WELCOME], [protocol.Ready(device="x"), STATUS]]
    with Peer(*script) as peer, Control(peer.ours, 5.0) as asker:
        assert asker.status() == STATUS


@pytest.mark.parametrize(
    ("script", "gone", "words"),
    [
        ((), True, "it has ended"),
        (([],), True, "it has ended"),
        (([Done(count=0)],), True, "it has ended"),
        (([Fatal(code=FatalCode.FULL, message="too many")],), False, "too many"),
        ((b"HTTP/1.1 400 Bad Request\r\n",), False, "does not speak this protocol"),
        (([], []), False, "no answer within"),
    ],
)
def test_what_is_no_answer(script: tuple[Any, ...], gone: bool, words: str) -> None:
    """The end of a worker, and whatever else it is that keeps it from answering."""
    with Peer(*script) as peer, pytest.raises(NoAnswerError, match=words) as caught:
        Control(peer.ours, 0.5)
    assert isinstance(caught.value, GoneError) == gone
    assert peer.ours.fileno() == -1  # closed


def _strange(kind: str, **fields: Any) -> bytes:
    """A frame of a version to come."""
    payload: bytes = msgpack.packb({"type": kind, "mood": {"good": [1]}, **fields})
    return protocol.HEADER.pack(protocol.MAGIC, 0, len(payload)) + payload


def test_a_worker_of_another_version_is_asked_and_stopped() -> None:
    """With fields that mean something else by then, and fields that are not known yet."""
    welcome = _strange(
        "Welcome",
        version=protocol.VERSION + 1,
        name="a-worker",
        runner="local",
        pid=7,
        credits={"images": 3},
        state=["ready"],
    )
    status = _strange("Status", name="a-worker", state="dreaming", queued=3)
    stopping = _strange("Stopping", accepted=True, after=3.5)
    with Peer(welcome, status, stopping) as peer, Control(peer.ours, 5.0) as asker:
        said = asker.welcome
        assert (said.version, said.name) == (protocol.VERSION + 1, "a-worker")
        assert (said.runner, said.pid) == ("local", 7)
        assert asker.status() == Status(name="a-worker", state="dreaming", queued=3)
        assert asker.stop()


# ---------------------------------------------------------------- the end by force


class Killer:
    """A launcher that ends workers on paper."""

    def __init__(self) -> None:
        self.killed: list[Welcome] = []

    def kill(self, worker: Welcome, timeouts: Timeouts) -> None:
        del timeouts
        self.killed.append(worker)


@pytest.fixture
def launchers(monkeypatch: pytest.MonkeyPatch) -> dict[str, Killer]:
    """Those that there are, all of them on paper."""
    made = {"docker": Killer(), "local": Killer()}
    monkeypatch.setattr("wuwan_runner.launchers.get", made.__getitem__)
    return made


class Mute:
    """Greets at an address as often as `greetings` says, and says nothing else."""

    def __init__(self, listener: socket.socket, greetings: int, welcome: bytes) -> None:
        self._listener, self._greetings, self._welcome = listener, greetings, welcome
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        with contextlib.suppress(OSError), contextlib.ExitStack() as stack:
            while True:
                peer, _ = self._listener.accept()
                stack.enter_context(peer)
                if self._greetings:
                    self._greetings -= 1
                    peer.sendall(self._welcome)

    def close(self) -> None:
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._thread.join(5)
        assert not self._thread.is_alive()


@pytest.mark.parametrize("greetings", [0, 1, 2])
def test_who_cannot_be_spoken_to_is_ended_by_its_launcher(
    listen: Callable[[str], socket.socket], launchers: dict[str, Killer], greetings: int
) -> None:
    """As long as it has said who it is: when it was looked for, or when it is to stop."""
    timeouts = Timeouts(control=0.2)
    mute = Mute(listen("0"), greetings, protocol.encode(WELCOME))
    try:
        (member,) = registry.members(timeouts)
        assert member.status is None
        assert member.problem == "no answer within 0.2 s"
        assert member.name == ("a-worker" if greetings else "?")
        if not greetings:
            with pytest.raises(WorkerUnavailableError, match="does not answer"):
                registry.stop(member, timeouts, 1.0)
            assert launchers["local"].killed == []
        else:
            assert not registry.stop(member, timeouts, 1.0)
            assert launchers["local"].killed == [WELCOME]
    finally:
        mute.close()


def test_a_runner_that_is_unknown_ends_nobody(
    listen: Callable[[str], socket.socket], launchers: dict[str, Killer]
) -> None:
    """A version to come may start workers in a way that we cannot end them."""
    timeouts = Timeouts(control=0.2)
    welcome = _strange("Welcome", version=9, name="moonbeam", runner="moon", pid=1)
    mute = Mute(listen("0"), 2, welcome)
    try:
        (member,) = registry.members(timeouts)
        with pytest.raises(WorkerUnavailableError, match="moonbeam"):
            registry.stop(member, timeouts, 1.0)
    finally:
        mute.close()


def test_one_that_has_ended_meanwhile_has_stopped(
    listen: Callable[[str], socket.socket], launchers: dict[str, Killer]
) -> None:
    """Nobody is killed for it."""
    timeouts = Timeouts(control=0.2)
    mute = Mute(listen("0"), 1, protocol.encode(WELCOME))
    (member,) = registry.members(timeouts)
    mute.close()
    assert registry.stop(member, timeouts, 1.0)
    assert launchers["local"].killed == []


@pytest.mark.parametrize("gone", [True, False])
def test_a_container_elsewhere_is_known_by_its_name(
    monkeypatch: pytest.MonkeyPatch, launchers: dict[str, Killer], gone: bool
) -> None:
    """One that hangs is removed, though it has never said a word; one that has ended, has ended."""

    @contextlib.contextmanager
    def control_of(name: str, timeouts: Timeouts) -> Iterator[Any]:
        raise GoneError if gone else NoAnswerError("no answer")
        yield

    monkeypatch.setattr("wuwan_runner.containers.exec_channel.control_of", control_of)
    member = registry.RunningWorker("far-away", None, None, "no answer")
    assert registry.stop(member, Timeouts(control=0.2), 1.0) == gone
    killed = [worker.name for worker in launchers["docker"].killed]
    assert killed == ([] if gone else ["far-away"])


@pytest.mark.parametrize("count", [0, 1, 2, 100])
def test_side_by_side(count: int) -> None:
    """Answers come in the order of the questions, and an error is the caller's."""
    assert control.side_by_side(lambda number: -number, range(count)) == [
        -number for number in range(count)
    ]
    if count:
        with pytest.raises(ZeroDivisionError):
            control.side_by_side(lambda number: 1 // number, range(count))
