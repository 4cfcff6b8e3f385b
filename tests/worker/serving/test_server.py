"""The worker's server: the handshake, flow control, the ends of its life, hostile peers.

Where the model does not matter the server runs on a thread of the test, which answers for the
engine; elsewhere it is a real worker process.
"""

from __future__ import annotations

import contextlib
import errno
import math
import os
import socket
import subprocess
import sys
import threading
import time
from typing import TYPE_CHECKING, Any

import msgpack
import pytest

from wuwan_worker.jobs import Options
from wuwan_worker.serving import server, session
from wuwan_worker.shared import bundle, labels, protocol
from wuwan_worker.shared.protocol import (
    Cancel,
    Cancelled,
    Done,
    End,
    ErrorCode,
    Failed,
    Fatal,
    FatalCode,
    ImageOptions,
    Images,
    KeepAlive,
    Labelled,
    LabelScore,
    Logs,
    LogsRequest,
    Ready,
    Results,
    State,
    Status,
    StatusRequest,
    Stop,
    Stopping,
    Wanted,
    Welcome,
)

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from conftest import Client, InProcess, Worker

    Connect = Callable[[str], Client]
    Serve = Callable[..., InProcess]
    Start = Callable[..., Worker]


def _large(number: int, size: int) -> Labelled:
    """An answer of about that many bytes."""
    labels = (LabelScore("x" * size, 1.0, ""),)
    return Labelled(id=number, width=1, height=1, labels=labels)


def _fatal(client: Client) -> Fatal:
    """The Fatal that ends the stream."""
    *_, last = client.ended()
    assert isinstance(last, Fatal)
    return last


# ---------------------------------------------------------------- the handshake


def test_welcome_says_who_serves(serve: Serve, connect: Connect) -> None:
    """A good Hello is answered by the worker's identity and its credits."""
    welcome = connect(serve().name).hello()
    assert welcome.version == protocol.VERSION
    assert (welcome.name, welcome.model, welcome.runner) == ("test", "none", "test")
    assert (welcome.device, welcome.state) == ("nothing", State.READY)
    assert welcome.pid == os.getpid()
    assert welcome.credits == server.CREDITS
    assert welcome.readable


@pytest.mark.parametrize("content", [b"", b"something else"])
def test_a_wrong_probe_is_not_readable(serve: Serve, connect: Connect, content: bytes) -> None:
    """A worker that cannot read the probe says so."""
    client = connect(serve().name)
    descriptor = os.memfd_create("wuwan-test")
    os.write(descriptor, content)
    client.send(protocol.Hello(), [descriptor])
    os.close(descriptor)
    assert not client.take(Welcome).readable


def test_a_hello_without_a_probe_is_not_readable(serve: Serve, connect: Connect) -> None:
    """No descriptor, no reading."""
    client = connect(serve().name)
    client.send(protocol.Hello())
    assert not client.take(Welcome).readable


def test_another_version_is_refused(serve: Serve, connect: Connect) -> None:
    """A client of another protocol version is told so."""
    client = connect(serve().name)
    client.say_hello(version=protocol.VERSION + 1)
    fatal = _fatal(client)
    assert fatal.code == FatalCode.PROTOCOL
    assert f"protocol {protocol.VERSION}" in fatal.message


def _strange(kind: str, **fields: Any) -> bytes:
    """A frame of a version to come."""
    payload: bytes = msgpack.packb({"type": kind, **fields})
    return protocol.HEADER.pack(protocol.MAGIC, 0, len(payload)) + payload


@pytest.mark.parametrize("strange", [{}, {"level": 7, "top_k": "all", "ttl": [1]}])
def test_a_hello_that_cannot_be_understood_is_refused_by_its_version(
    serve: Serve, connect: Connect, strange: dict[str, Any]
) -> None:
    """Not for a field that means something else by then."""
    client = connect(serve().name)
    client.sock.sendall(_strange("Hello", version=protocol.VERSION + 1, **strange))
    assert "speaks protocol" in _fatal(client).message


@pytest.mark.parametrize("version", [1, protocol.VERSION + 1])
def test_any_version_may_ask_for_the_status_and_stop(
    serve: Serve, connect: Connect, version: int
) -> None:
    """With a Hello of which little is understood, and questions with fields that are unknown."""
    running = serve()
    client = connect(running.name)
    client.sock.sendall(_strange("Hello", version=version, tagging=False, level=7, mood="good"))
    assert client.take(Welcome).name == "test"
    client.sock.sendall(_strange("StatusRequest", depth=3))
    assert client.take(Status).clients == 0
    client.sock.sendall(_strange("Stop", if_idle=True, kindly=True))
    assert client.take(Stopping).accepted
    assert running.join() == 0


def test_a_level_that_the_model_lacks_is_refused(serve: Serve, connect: Connect) -> None:
    """Labels at another level than the one asked for would be a silent fall-back."""
    client = connect(serve().name)
    client.say_hello(level="fine")
    fatal = _fatal(client)
    assert fatal.code == FatalCode.LEVEL
    assert "no level 'fine'" in fatal.message


@pytest.mark.skipif(os.getuid() != 0, reason="only root can become somebody else")
def test_another_user_is_refused(serve: Serve, connect: Connect) -> None:
    """Abstract sockets have no permissions, so the worker looks who is there."""
    running = serve()
    child = os.fork()
    if child == 0:
        code = 1
        try:
            os.setresuid(65534, 65534, 65534)
            with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as sock:
                sock.settimeout(10)
                sock.connect(running.name)
                frames = protocol.FrameDecoder(protocol.CLIENT).feed(*protocol.receive(sock))
                message = frames[0].message
                refused = isinstance(message, Fatal) and message.code == FatalCode.FORBIDDEN
                code = 0 if refused and sock.recv(1) == b"" else 2
        finally:
            os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert connect(running.name).hello().readable


def test_too_many_clients(serve: Serve, connect: Connect, monkeypatch: pytest.MonkeyPatch) -> None:
    """One client too many is told so; when another leaves there is room again."""
    monkeypatch.setattr(server, "MAX_CLIENTS", 2)
    running = serve()
    first, _ = connect(running.name), connect(running.name).hello()
    first.hello()
    assert _fatal(connect(running.name)).code == FatalCode.FULL
    first.close()
    running.wait_for(lambda: running.lifecycle.clients == 1)
    connect(running.name).hello()


def test_ready_comes_when_the_model_is_loaded(serve: Serve, connect: Connect) -> None:
    """Whoever came while the model was loading hears when it is loaded."""
    running = serve()
    running.wait_for(lambda: running.server.device == "nothing")
    running.lifecycle._loaded = False
    client = connect(running.name)
    assert client.hello().state == State.STARTING
    running.server.loaded("CPU", lambda: 0)
    assert client.take(Ready).device == "CPU"


# ---------------------------------------------------------------- images and trailers


def test_done_counts_the_answers(serve: Serve, connect: Connect) -> None:
    """After End and the last answer comes Done with the number of answers, then the end."""
    running = serve()
    client = connect(running.name)
    client.hello()
    client.send_images([3, 1, 2], b"")
    client.send(End(count=3))
    running.answer(3)
    assert client.items(3).keys() == {1, 2, 3}
    assert client.ended() == [Done(count=3)]


def test_an_end_without_images(serve: Serve, connect: Connect) -> None:
    """Nothing to do is done."""
    client = connect(serve().name)
    client.hello()
    client.send(End(count=0))
    assert client.ended() == [Done(count=0)]


def test_credits_come_back_with_answers(serve: Serve, connect: Connect) -> None:
    """A client that never has more unanswered than its credits is served for ever."""
    running = serve()
    client = connect(running.name)
    limit = client.hello().credits
    client.send_images(range(limit), b"")
    for turn in range(1, 4):
        running.answer(limit)
        client.items(limit)
        client.send_images(range(turn * limit, (turn + 1) * limit), b"")
    running.answer(limit)
    client.items(limit)
    client.send(End(count=4 * limit))
    assert client.take(Done).count == 4 * limit


def test_options_go_with_the_images(serve: Serve, connect: Connect) -> None:
    """Each job carries what its client's Hello asked for."""
    running = serve()
    client = connect(running.name)
    client.hello(top_k=2, min_score=0.5, exact=True)
    client.send_images([7], b"content")
    job = running.server.jobs.get()
    assert job is not None
    assert (job.id, job.options) == (7, Options(2, 0.5, True, ""))
    assert os.pread(job.descriptor, 64, 0) == b"content"
    os.close(job.descriptor)


def test_an_image_may_have_options_of_its_own(serve: Serve, connect: Connect) -> None:
    """They go with their image, and what nobody knows how to do yet is no error."""
    running = serve()
    client = connect(running.name)
    client.hello(top_k=2, wanted=Wanted(keywords=True), keep_alive=KeepAlive(park_after=1.0))
    images = Images(ids=[7, 8], options=[ImageOptions(), ImageOptions(top_k=9)])
    probes = [protocol.probe_descriptor() for _ in images.ids]
    client.send(images, probes)
    protocol.close_all(probes)
    jobs = [running.server.jobs.get() for _ in range(2)]
    assert [(job.id, job.options.top_k) for job in jobs if job is not None] == [(7, 2), (8, 9)]
    protocol.close_all(job.descriptor for job in jobs if job is not None)


def test_images_that_are_taken_back(
    serve: Serve, connect: Connect, descriptors: Callable[[], list[str]]
) -> None:
    """Those that are queued are answered at once and closed; the others as ever; Done has all."""
    running = serve()
    client, other = connect(running.name), connect(running.name)
    for one in (client, other):
        one.hello()
    before = descriptors()
    other.send_images([2], b"")
    running.wait_for(lambda: len(running.server.jobs) == 1)
    client.send_images([1, 2, 3], b"")
    running.wait_for(lambda: len(running.server.jobs) == 4)
    begun = [running.server.jobs.get(), running.server.jobs.get()]  # one of each
    client.send(Cancel(ids=[1, 2, 77]))
    assert client.items(1) == {2: Cancelled(id=2)}
    client.send(End(count=3))
    for job in begun:
        assert job is not None
        os.close(job.descriptor)
        running.server.answer(job.client, [_large(job.id, 1)])
    running.answer(1)
    assert client.labelled(2).keys() == {1, 3}
    assert client.ended() == [Done(count=3)]
    assert other.labelled(1).keys() == {2}
    other.send(StatusRequest())
    assert other.take(Status).images_done == 3  # nobody has looked at the fourth
    assert running.lifecycle.unanswered == 0
    client.close()
    running.wait_to_be(lambda: len(descriptors()), len(before) - 2)  # both ends of its connection


def test_answers_larger_than_a_frame_are_split(serve: Serve, connect: Connect) -> None:
    """All labels of a large bundle for several images at once end nobody."""
    running = serve()
    client = connect(running.name)
    client.hello()
    client.send_images([1, 2, 3], b"")
    items = []
    for _ in range(3):
        job = running.server.jobs.get()
        assert job is not None
        os.close(job.descriptor)
        items.append(_large(job.id, protocol.MAX_PAYLOAD // 2))
    running.server.answer(0, items)
    assert client.items(3).keys() == {1, 2, 3}


def test_one_answer_larger_than_a_frame(serve: Serve, connect: Connect) -> None:
    """An answer that cannot be sent ends its connection, and no other."""
    running = serve()
    client = connect(running.name)
    client.hello()
    client.send_images([1], b"")
    running.answer(1, labels=_large(1, protocol.MAX_PAYLOAD).labels)
    assert _fatal(client).code == FatalCode.PROTOCOL
    connect(running.name).hello()


def test_a_client_that_vanishes_leaves_nothing_queued(
    serve: Serve, connect: Connect, descriptors: Callable[[], list[str]]
) -> None:
    """What a gone client has waiting is forgotten and closed; what is being done goes nowhere."""
    running = serve()
    connect(running.name).hello()
    before = descriptors()
    client = connect(running.name)
    client.hello()
    client.send_images(range(10), b"")
    running.wait_for(lambda: len(running.server.jobs) == 10)
    job = running.server.jobs.get()
    assert job is not None
    client.close()
    running.wait_for(lambda: len(running.server.jobs) == 0)
    # A decoder that hangs on it must not keep the worker up when all its clients are gone.
    running.wait_for(lambda: running.lifecycle.unanswered == 0)
    os.close(job.descriptor)
    running.server.answer(job.client, [_large(job.id, 1)])
    running.wait_to_be(descriptors, before)
    assert running.lifecycle.unanswered == 0


def test_a_client_that_does_not_read_holds_up_nobody(serve: Serve, connect: Connect) -> None:
    """Answers that are not read wait in memory, and other clients get theirs."""
    running = serve()
    silent, other = connect(running.name), connect(running.name)
    silent.hello()
    other.hello()
    silent.send_images(range(10), b"")
    running.answer(10, labels=_large(1, 500_000).labels)
    other.send_images([1], b"")
    running.answer(1)
    other.items(1)
    assert silent.items(10).keys() == set(range(10))


def test_a_client_that_never_reads_is_not_listened_to(serve: Serve, connect: Connect) -> None:
    """Its answers have a bound; when it reads, all of its images are answered."""
    running = serve()
    client = connect(running.name)
    client.hello()
    size = session.MAX_UNREAD // 3
    for number in range(4):  # the socket's own buffers hold a part of the first
        client.send_images([number], b"")
        running.answer(1, labels=_large(1, size).labels)
        running.wait_to_be(lambda: running.lifecycle.unanswered, 0)
    for number in range(4, 20):
        client.send_images([number], b"")
    other = connect(running.name)
    other.hello()
    other.send_images([1], b"")
    running.answer(1)  # of the other one: nothing more was taken of the first
    assert other.items(1).keys() == {1}
    held = max(len(one.outgoing) for one in running.server._clients.values())
    assert session.MAX_UNREAD < held < session.MAX_UNREAD + 2 * size
    assert len(running.server.jobs) == 0
    assert client.items(4).keys() == {0, 1, 2, 3}
    running.answer(16)
    assert client.items(16).keys() == {*range(4, 20)}
    client.send(End(count=20))
    assert client.ended() == [Done(count=20)]


def test_who_never_reads_may_vanish(serve: Serve, connect: Connect) -> None:
    """It is not listened to, and yet its end is noticed."""
    running = serve()
    client = connect(running.name)
    client.hello()
    client.send_images(range(3), b"")
    running.answer(3, labels=_large(1, session.MAX_UNREAD // 2).labels)
    running.wait_to_be(lambda: running.lifecycle.unanswered, 0)
    client.close()
    running.wait_to_be(lambda: running.lifecycle.clients, 0)


def test_who_is_silent_makes_place(
    serve: Serve, connect: Connect, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The one that has been so for longest; never who waits for an answer, or has just spoken."""
    monkeypatch.setattr(server, "MAX_CLIENTS", 4)
    running = serve()
    waiting, first, asking, second = (connect(running.name) for _ in range(4))
    waiting.hello()
    waiting.send_images([1], b"")
    running.wait_for(lambda: len(running.server.jobs) == 1)
    first.hello()
    asking.hello(tagging=False)
    second.hello()
    # All of them have just come.
    assert _fatal(connect(running.name)).code == FatalCode.FULL
    monkeypatch.setattr(server, "MAY_BE_SILENT", 0.0)
    first.send(StatusRequest())
    first.take(Status)
    places = [connect(running.name) for _ in range(3)]
    places[0].hello()
    assert asking.ended() == []
    places[1].hello()
    assert second.ended() == [Done(count=0)]
    places[2].hello()
    assert first.ended() == [Done(count=0)]
    for place in places:  # nobody silent is left but who has come
        place.send_images([2], b"")
    running.wait_for(lambda: len(running.server.jobs) == 4)
    assert _fatal(connect(running.name)).code == FatalCode.FULL
    running.answer(4)
    assert waiting.items(1).keys() == {1}


def test_who_does_not_read_makes_place_later(
    serve: Serve, connect: Connect, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It would lose its answers: one whose reader is a pager has more time, not all."""
    monkeypatch.setattr(server, "MAX_CLIENTS", 1)
    monkeypatch.setattr(server, "MAY_BE_SILENT", 0.0)
    running = serve()
    deaf = connect(running.name)
    deaf.hello()
    deaf.send_images([1], b"")
    running.answer(1, labels=_large(1, session.MAX_UNREAD).labels)
    running.wait_to_be(lambda: running.lifecycle.unanswered, 0)
    assert _fatal(connect(running.name)).code == FatalCode.FULL
    monkeypatch.setattr(server, "MAY_BE_DEAF", 0.0)
    connect(running.name).hello()
    assert running.lifecycle.clients == 1


def test_no_descriptor_is_free(
    serve: Serve, connect: Connect, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who comes then waits in line, at no cost; who is there is served; then the line moves on."""
    running = serve()
    client = connect(running.name)
    client.hello()
    none_free, accept = threading.Event(), socket.socket.accept
    refused: list[float] = []
    none_free.set()

    def accept_or_fail(listener: socket.socket) -> Any:
        if none_free.is_set():
            refused.append(time.monotonic())
            raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))
        return accept(listener)

    monkeypatch.setattr(socket.socket, "accept", accept_or_fail)
    waiting = connect(running.name)
    waiting.say_hello()
    running.wait_for(lambda: bool(refused))
    begin, asked = time.monotonic(), 0
    while time.monotonic() - begin < 0.3:
        client.send(StatusRequest())
        client.take(Status)
        asked += 1
    assert asked > 15  # nobody sleeps while the line is looked at now and then
    assert 2 <= len(refused) <= 8
    none_free.clear()
    assert waiting.take(Welcome).readable


# ---------------------------------------------------------------- questions and orders


def test_status(serve: Serve, connect: Connect) -> None:
    """Status counts tagging clients, queued images and answered ones."""
    running = serve(ttl=100.0)
    busy, asking = connect(running.name), connect(running.name)
    busy.hello()
    asking.hello(tagging=False)
    busy.send_images([1, 2, 3], b"")
    running.answer(1)
    busy.items(1)
    asking.send(StatusRequest())
    status = asking.take(Status)
    assert (status.clients, status.queued, status.images_done) == (1, 2, 1)
    assert (status.state, status.ttl, status.ttl_left) == (State.BUSY, 100.0, None)
    assert status.memory > 1_000_000
    assert status.uptime >= 0


def test_asking_is_no_work(serve: Serve, connect: Connect) -> None:
    """Whoever only asks does not put off the worker's end."""
    running = serve(ttl=0.5, first_client_timeout=0.5)
    begin = time.monotonic()
    while running.thread.is_alive():
        assert time.monotonic() - begin < 10, "asking kept it alive"
        with contextlib.suppress(OSError):  # the last one comes too late
            client = connect(running.name)
            client.say_hello(tagging=False)
            client.send(StatusRequest())
            client.next()
            client.close()
    assert running.exit_code == 0


def test_logs(serve: Serve, connect: Connect) -> None:
    """The last log lines are sent on request."""
    running = serve()
    running.log_lines.extend(["一", "二"])
    client = connect(running.name)
    client.hello(tagging=False)
    client.send(LogsRequest())
    assert client.take(Logs).lines == ["一", "二"]


def test_stop_if_idle(serve: Serve, connect: Connect) -> None:
    """A worker with a client declines to stop if it should only when idle, and then stops."""
    running = serve()
    busy, asking = connect(running.name), connect(running.name)
    busy.hello()
    asking.hello(tagging=False)
    asking.send(Stop(if_idle=True))
    assert not asking.take(Stopping).accepted
    busy.close()
    running.wait_for(lambda: running.lifecycle.idle)
    asking.send(Stop(if_idle=True))
    assert asking.take(Stopping).accepted
    assert running.join() == 0


# ---------------------------------------------------------------- draining


def test_stop_answers_what_was_received(serve: Serve, connect: Connect) -> None:
    """After Stop what was received is answered and counted; no client is taken any more."""
    running = serve()
    client, asking = connect(running.name), connect(running.name)
    client.hello()
    client.send_images([1, 2], b"")
    running.wait_for(lambda: len(running.server.jobs) == 2)
    asking.hello(tagging=False)
    asking.send(Stop())
    assert asking.take(Stopping).accepted
    running.wait_for(lambda: running.lifecycle.state == State.DRAINING)
    with pytest.raises(ConnectionRefusedError):
        connect(running.name)
    running.answer(2)
    assert client.items(2).keys() == {1, 2}
    assert client.ended() == [Done(count=2)]
    assert running.join() == 0


def test_draining_takes_no_more_images(serve: Serve, connect: Connect) -> None:
    """A client that goes on sending does not keep a draining worker, and is told what counts."""
    running = serve()
    client = connect(running.name)
    client.hello()
    client.send_images([1, 2], b"")
    running.wait_for(lambda: len(running.server.jobs) == 2)
    running.server.drain()
    running.wait_for(lambda: running.lifecycle.state == State.DRAINING)
    client.send_images([3, 4], b"")
    client.send(End(count=4))
    client.send(StatusRequest())
    assert client.take(Status).queued == 2
    running.answer(2)
    assert client.items(2).keys() == {1, 2}
    assert client.ended() == [Done(count=2)]
    assert running.join() == 0


def test_a_hello_during_draining_is_done_at_once(serve: Serve, connect: Connect) -> None:
    """Who came just before and speaks just after learns that nothing was taken."""
    running = serve()
    busy, late = connect(running.name), connect(running.name)
    busy.hello()
    busy.send_images([1], b"")
    running.wait_for(lambda: len(running.server.jobs) == 1)
    running.wait_for(lambda: len(running.server._clients) == 2)
    running.server.drain()
    running.wait_for(lambda: running.lifecycle.state == State.DRAINING)
    assert late.hello().state == State.DRAINING
    assert late.ended() == [Done(count=0)]
    running.answer(1)
    assert running.join() == 0


def test_decoders_that_hang_end_a_worker_that_has_nothing_to_do(
    serve: Serve, connect: Connect
) -> None:
    """What was received is answered before; the client is told as in any drain."""
    running = serve()
    client = connect(running.name)
    client.hello()
    client.send_images([1, 2], b"")
    running.wait_for(lambda: len(running.server.jobs) == 2)
    running.server.hanging(1, False)
    running.answer(2)
    assert client.items(2).keys() == {1, 2}
    assert client.ended() == [Done(count=2)]
    assert running.join() == 0


@pytest.mark.parametrize(("hanging", "stuck"), [(3, False), (1, True)])
def test_a_spent_worker_ends_at_once(
    serve: Serve,
    connect: Connect,
    descriptors: Callable[[], list[str]],
    hanging: int,
    stuck: bool,
) -> None:
    """With images unanswered, which Done does not count; late answers of theirs go nowhere."""
    running = serve()
    client, other = connect(running.name), connect(running.name)
    client.hello()
    other.hello(tagging=False)
    client.send_images([1, 2, 3], b"")
    running.answer(1)
    client.items(1)
    job = running.server.jobs.get()
    assert job is not None
    running.server.hanging(hanging, stuck)
    assert client.ended() == [Done(count=1)]
    assert other.ended() == []
    assert running.join() == 0
    os.close(job.descriptor)
    running.server.answer(job.client, [_large(job.id, 1)])
    running.server.hanging(0, False)
    assert not [name for name in descriptors() if "wuwan-image" in name]


def test_unread_answers_end_the_end(
    serve: Serve, connect: Connect, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A client that reads nothing puts off the end by no more than LINGER."""
    monkeypatch.setattr(server, "LINGER", 0.2)
    running = serve()
    client = connect(running.name)
    client.hello()
    client.send_images([1], b"")
    running.answer(1, labels=_large(1, 5_000_000).labels)
    running.server.drain()
    assert running.join() == 0


def test_orders_after_the_end_are_no_error(serve: Serve) -> None:
    """A second SIGTERM while the process ends, or an answer that is too late, is nothing."""
    running = serve()
    running.server.drain()
    assert running.join() == 0
    running.server.drain()
    running.server.answer(0, [])


def test_failure_is_told_to_every_client(serve: Serve, connect: Connect) -> None:
    """When inference fails, all clients hear it and the exit code says so."""
    running = serve()
    clients = [connect(running.name) for _ in range(3)]
    for client in clients:
        client.hello()
    running.server.fail(FatalCode.BACKEND, "out of memory", 70)
    for client in clients:
        assert _fatal(client) == Fatal(code=FatalCode.BACKEND, message="out of memory")
    assert running.join() == 70


# ---------------------------------------------------------------- the time to live


def test_no_ttl_ends_with_the_last_client(serve: Serve, connect: Connect) -> None:
    """With a TTL of 0 the worker leaves with its last client, not with its first."""
    running = serve(ttl=0.0, first_client_timeout=60.0)
    first, second = connect(running.name), connect(running.name)
    first.hello()
    second.hello()
    first.close()
    assert running.join(0.2) is None
    second.close()
    assert running.join() == 0


def test_the_ttl_ends_an_idle_worker(serve: Serve, connect: Connect) -> None:
    """The TTL counts from the last client's leaving."""
    running = serve(ttl=0.4, first_client_timeout=60.0)
    client = connect(running.name)
    client.hello()
    assert running.join(0.6) is None
    left = time.monotonic()
    client.close()
    assert running.join() == 0
    assert 0.35 < time.monotonic() - left < 2


def test_a_client_may_change_the_ttl(serve: Serve, connect: Connect) -> None:
    """The newest client's TTL holds."""
    running = serve(ttl=3600.0)
    client = connect(running.name)
    client.hello(ttl=0.1)
    client.close()
    assert running.join() == 0


def test_grace_ends_a_worker_that_nobody_came_to(serve: Serve) -> None:
    """Without a launcher a worker ends by itself."""
    assert serve(ttl=0.1, first_client_timeout=0.3).join() == 0


@pytest.mark.parametrize("ttl", [math.inf, 1e300, 2**63, 10**9])
def test_a_ttl_may_be_as_long_as_it_likes(serve: Serve, connect: Connect, ttl: float) -> None:
    """No number of seconds is too large to wait for."""
    running = serve()
    client = connect(running.name)
    client.hello(ttl=ttl)
    client.close()
    running.wait_for(lambda: running.lifecycle.idle)
    assert running.join(0.1) is None
    connect(running.name).hello()


@pytest.mark.parametrize("ttl", [math.nan, -1.0])
def test_a_ttl_that_is_no_duration_is_refused(serve: Serve, connect: Connect, ttl: float) -> None:
    """Such a TTL would end the worker for everyone."""
    client = connect(serve().name)
    client.say_hello(ttl=ttl)
    assert _fatal(client).code == FatalCode.PROTOCOL


def test_who_is_about_to_speak_is_waited_for(
    serve: Serve, connect: Connect, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A connection at the TTL's end is served; waiting for its Hello costs no CPU time."""
    running = serve(ttl=0.1, first_client_timeout=0.1)
    client = connect(running.name)
    begin = time.process_time()
    assert running.join(1.0) is None
    assert time.process_time() - begin < 0.3
    client.hello(ttl=0)
    client.close()
    assert running.join() == 0


# ---------------------------------------------------------------- hostile peers


def _hello_then(*data: bytes) -> bytes:
    return b"".join([protocol.encode(protocol.Hello()), *data])


@pytest.mark.parametrize(
    "data",
    [
        b"G",
        b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n",
        b"\xf7" + b"\x00" * 100_000,
        protocol.HEADER.pack(b"WW", 0, 2**32 - 1),
        protocol.HEADER.pack(b"WW", 2**16 - 1, 4),
        protocol.HEADER.pack(b"WW", 0, 4) + b"\xc1\xc1\xc1\xc1",
        protocol.encode(StatusRequest()),
        protocol.encode(End(count=0)),
        protocol.encode(protocol.Done(count=0)),
        _hello_then(protocol.encode(protocol.Hello())),
        _hello_then(protocol.encode(End(count=5))),
        _hello_then(protocol.encode(Results(items=[]))),
        _hello_then(protocol.encode(protocol.Adopt())),
        _hello_then(protocol.encode(Images(ids=[1]))),
        _hello_then(b"garbage"),
    ],
)
def test_a_peer_that_breaks_the_protocol_is_turned_away(
    serve: Serve, connect: Connect, data: bytes
) -> None:
    """It is told why and dropped, and the others go on."""
    running = serve()
    other, client = connect(running.name), connect(running.name)
    other.hello()
    client.sock.sendall(data)
    assert _fatal(client).code == FatalCode.PROTOCOL
    other.send_images([1], b"")
    running.answer(1)
    other.items(1)


@pytest.mark.parametrize("count", [1, 5])
def test_a_frame_that_lacks_descriptors(serve: Serve, connect: Connect, count: int) -> None:
    """Descriptors that were declared and did not come are told apart: the way drops them."""
    client = connect(serve().name)
    client.hello()
    client.sock.sendall(protocol.encode(Images(ids=list(range(count))), count))
    assert _fatal(client).code == FatalCode.DESCRIPTORS


@pytest.mark.parametrize("case", ["before Hello", "mismatched", "too many", "not tagging", "ended"])
def test_images_out_of_place(
    serve: Serve, connect: Connect, descriptors: Callable[[], list[str]], case: str
) -> None:
    """Images that may not come are refused, and their descriptors are closed."""
    running = serve()
    connect(running.name).hello()
    before = descriptors()
    client = connect(running.name)
    ids = [1, 2]
    if case != "before Hello":
        client.hello(tagging=case != "not tagging")
    if case == "too many":
        ids = list(range(server.CREDITS + 1))
    if case == "ended":
        client.send_images([9], b"")
        client.send(End(count=1))
    if case == "mismatched":
        descriptor = os.memfd_create("wuwan-test")
        client.send(Images(ids=ids), [descriptor])
        os.close(descriptor)
    else:
        client.send_images(ids, b"")
    assert _fatal(client).code == FatalCode.PROTOCOL
    client.close()
    running.wait_to_be(descriptors, before)
    assert running.lifecycle.unanswered == 0
    assert len(running.server.jobs) == 0


def test_a_flood_of_descriptors(
    serve: Serve, connect: Connect, descriptors: Callable[[], list[str]]
) -> None:
    """Descriptors without frames, or with the wrong ones, are closed with the connection."""
    running = serve()
    connect(running.name).hello()
    before = descriptors()
    flood = [os.memfd_create("wuwan-flood") for _ in range(120)]
    for frame in (b"WW", protocol.encode(StatusRequest()), protocol.encode(Stop(), 2)):
        client = connect(running.name)
        client.hello()
        try:
            for _ in range(5):
                socket.send_fds(client.sock, [frame], flood)
        except OSError:  # it was quick
            pass
        assert _fatal(client).code in (FatalCode.PROTOCOL, FatalCode.DESCRIPTORS)
        client.close()
    protocol.close_all(flood)
    running.wait_to_be(descriptors, before)


def test_a_silent_connection_is_dropped(
    serve: Serve, connect: Connect, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who says nothing, or half a Hello, is dropped after HELLO_TIMEOUT; clients may be silent."""
    monkeypatch.setattr(server, "HELLO_TIMEOUT", 0.3)
    running = serve()
    client, silent, slow = (connect(running.name) for _ in range(3))
    client.hello()
    slow.sock.sendall(protocol.encode(protocol.Hello())[:-1])
    assert silent.ended() == []
    assert slow.ended() == []
    client.send(StatusRequest())
    assert client.take(Status).clients == 1


def test_questions_without_reading_the_answers(
    serve: Serve, connect: Connect, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who asks and asks and never reads is dropped before the answers fill the memory."""
    monkeypatch.setattr(server, "LINGER", 0.2)
    running = serve()
    running.log_lines.extend(["x" * 1000] * 500)
    client = connect(running.name)
    client.hello()
    deadline = time.monotonic() + 20
    with contextlib.suppress(BrokenPipeError, ConnectionResetError):
        while time.monotonic() < deadline:
            client.sock.sendall(protocol.encode(LogsRequest()) * 1000)
    assert time.monotonic() < deadline
    running.wait_for(lambda: running.lifecycle.clients == 0)


def test_what_a_client_calls_itself_is_cut(
    serve: Serve, connect: Connect, caplog: pytest.LogCaptureFixture
) -> None:
    """A client's name cannot fill the log or forge its lines."""
    caplog.set_level("INFO")
    client = connect(serve().name)
    client.hello(client="line\nline" + "x" * 60_000)
    assert all(len(line) < 300 and "\n" not in line for line in caplog.messages)


# ---------------------------------------------------------------- real workers


def test_photos_get_their_labels(warm: Worker, connect: Connect, photos: Path) -> None:
    """A cat is a cat, a cup is a cup, text is no image, and each answer has its own id."""
    client = connect(warm.name)
    assert client.hello(top_k=3).model == "imagenet-zh"
    contents = {
        11: (photos / "chelsea.png").read_bytes(),
        12: b"no image",
        13: (photos / "coffee.png").read_bytes(),
    }
    for number, content in contents.items():
        client.send_images([number], content)
    client.send(End(count=3))
    items = client.items(3)
    assert client.ended() == [Done(count=3)]
    cat, text, cup = items[11], items[12], items[13]
    assert isinstance(text, Failed)
    assert text.error.code == ErrorCode.NOT_AN_IMAGE
    assert isinstance(cat, Labelled)
    assert isinstance(cup, Labelled)
    assert "猫" in str(cat.labels)
    assert "杯" in str(cup.labels) or "咖啡" in str(cup.labels)
    assert (cat.width, cat.height) == (451, 300)
    for photo in (cat, cup):
        scores = [label.score for label in photo.labels]
        assert len(scores) == 3
        assert scores == sorted(scores, reverse=True)
        assert all(0 <= score <= 1 for score in scores)


def test_clients_get_their_own_answers(warm: Worker, connect: Connect, photos: Path) -> None:
    """Clients that tag at once, with equal ids and other options, are not mixed up."""
    cat, cup = ((photos / name).read_bytes() for name in ("chelsea.png", "coffee.png"))
    clients = [connect(warm.name) for _ in range(4)]
    for number, client in enumerate(clients):
        client.hello(top_k=number + 1)
    for _ in range(3):
        for number, client in enumerate(clients):
            client.send_images(range(4), cup if number % 2 else cat)
        for number, client in enumerate(clients):
            items = client.labelled(4)
            assert items.keys() == set(range(4))
            best = {item.labels[0].label for item in items.values()}
            assert len(best) == 1
            assert ("猫" in str(items[0])) == (number % 2 == 0)
            assert {len(item.labels) for item in items.values()} == {number + 1}


def test_hostile_peers_leave_a_worker_as_it_was(
    warm: Worker, connect: Connect, photos: Path
) -> None:
    """After garbage, floods and vanishing clients the worker has no more open than before."""
    steady = connect(warm.name)
    steady.hello()
    steady.send_images([0], (photos / "chelsea.png").read_bytes())
    steady.items(1)
    if not os.access(f"/proc/{warm.process.pid}/fd", os.R_OK):
        pytest.skip("only root may list a worker's descriptors")
    before = warm.descriptors()
    for turn in range(60):
        client = connect(warm.name)
        match turn % 6:
            case 0:
                client.sock.sendall(b"garbage")
            case 1:
                client.sock.sendall(protocol.HEADER.pack(b"WW", 0, 2**32 - 1))
            case 2:
                client.send_images(range(8), b"before Hello")
            case 3:
                client.hello()
                client.send_images(range(32), b"no image")
            case 4:
                client.hello()
                client.send_images(range(100), b"too many")
            case 5:
                client.say_hello()
        client.close()
    deadline = time.monotonic() + 10
    while warm.descriptors() != before:
        assert time.monotonic() < deadline, (before, warm.descriptors())
        time.sleep(0.02)
    steady.send_images([1], (photos / "chelsea.png").read_bytes())
    assert "猫" in str(steady.items(1)[1])


def test_sigterm_drains(worker: Start, connect: Connect, photos: Path) -> None:
    """SIGTERM: what was received is answered, Done is sent, the exit code is 0."""
    process = worker()
    client = connect(process.name)
    client.hello()
    client.send_images(range(30), (photos / "chelsea.png").read_bytes())
    client.send(StatusRequest())
    client.take(Status)  # so the images have arrived
    process.terminate()
    assert client.items(30).keys() == set(range(30))
    assert client.ended() == [Done(count=30)]
    assert process.wait() == 0
    assert "draining" in process.stop()


def test_sigterm_ends_a_worker_that_nobody_uses(worker: Start, connect: Connect) -> None:
    """SIGTERM while the model loads, or when idle, ends the process at once."""
    process = worker()
    connect(process.name).hello()  # its signal handlers are there
    begin = time.monotonic()
    process.terminate()
    assert process.wait() == 0
    assert time.monotonic() - begin < 5


def test_the_ttl_ends_the_process(worker: Start, connect: Connect, photos: Path) -> None:
    """With its work done and its TTL over, the process is gone, and so is its socket."""
    process = worker("--ttl", "0.5")
    client = connect(process.name)
    client.hello()
    client.send_images([1], (photos / "coffee.png").read_bytes())
    client.send(End(count=1))
    client.take(Done)
    client.close()
    assert process.wait() == 0
    with pytest.raises(ConnectionRefusedError):
        connect(process.name)


def test_grace_ends_the_process(worker: Start) -> None:
    """A worker whose launcher died before it connected ends."""
    assert worker("--ttl", "0.1", "--first-client-timeout", "0.1").wait() == 0


def test_a_bundle_that_is_missing_is_told_on_stderr(worker: Start) -> None:
    """A model that does not exist ends the process with its own exit code and a reason."""
    process = worker(model="nonsense")
    assert process.wait() == 65
    assert "no model named 'nonsense'; there is: imagenet-zh" in process.stop()


def test_a_model_that_does_not_load_is_told_to_the_client(
    worker: Start, connect: Connect, tmp_path: Path
) -> None:
    """Clients that wait for a broken model hear that it is the model."""
    embedded = bundle.load(bundle.find("imagenet-zh"))
    weights = embedded.weights("openvino").name
    for name in (bundle.MANIFEST, *embedded.files):
        broken = name not in (bundle.MANIFEST, labels.FILE)
        content = b"no network" if broken else (embedded.root / name).read_bytes()
        (tmp_path / name).write_bytes(content)
    process = worker(model=str(tmp_path))
    client = connect(process.name)
    client.say_hello()
    fatal = _fatal(client)
    assert fatal.code == FatalCode.MODEL
    assert weights in fatal.message
    assert process.wait() == 65


def test_no_socket_to_listen_on(tmp_path: Path) -> None:
    """A worker without its socket says so and ends."""
    command = [sys.executable, "-m", "wuwan_worker", "--name", "test"]
    environment = os.environ | {"PYTHONPATH": str(bundle.EMBEDDED.parents[1])}
    for place in (["--listen-fd", "999"], ["--adopt", str(tmp_path / "nothing")]):
        done = subprocess.run(
            [*command, *place], capture_output=True, env=environment, timeout=30, check=False
        )
        assert done.returncode == 71
        assert b"no socket to listen on" in done.stderr
