"""Frames with descriptors, over a stream that carries bytes only, and back into what they were."""

from __future__ import annotations

import contextlib
import io
import os
import random
import socket
import threading
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from wuwan_runner.wire import stream
from wuwan_worker.serving import bridge
from wuwan_worker.shared import blobs, protocol
from wuwan_worker.shared.protocol import FrameDecoder, Images, ProtocolError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

DEADLINE = 20.0
MIB = 1024 * 1024
Content = tuple[list[int], list[bytes]]  # of a frame: the images' ids, and the files

# Of any size: hypothesis' own bytes are mostly few.
BYTES = st.integers(0, 800).map(lambda size: random.Random(size).randbytes(size))
CONTENTS = st.lists(
    st.tuples(st.lists(st.integers(0, 2**32), max_size=5), st.lists(BYTES, max_size=5)), max_size=5
)
CUTS = st.lists(st.integers(1, 100), min_size=1, max_size=10)


@dataclass
class Pieces:
    """A `ByteStream` that passes on what is written in pieces of these sizes."""

    sock: socket.socket
    cuts: Sequence[int] = (65536,)
    written: Callable[[bytes], None] = lambda _: None
    _number: int = 0

    def read(self) -> bytes:
        """See `ByteStream`."""
        self._number += 1
        return self.sock.recv(self.cuts[self._number % len(self.cuts)])

    def write(self, data: bytes) -> None:
        """See `ByteStream`."""
        view = memoryview(data)
        while view:
            self._number += 1
            size = self.cuts[self._number % len(self.cuts)]
            self.sock.sendall(view[:size])
            view = view[size:]
        self.written(data)

    def finish(self) -> None:
        """See `ByteStream`."""
        self.sock.shutdown(socket.SHUT_WR)


@contextlib.contextmanager
def pair() -> Iterator[tuple[socket.socket, socket.socket]]:
    """Two ends that nobody waits at for ever."""
    one, other = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
    with one, other:
        one.settimeout(DEADLINE)
        other.settimeout(DEADLINE)
        yield one, other


@contextlib.contextmanager
def thread(work: Callable[[], None]) -> Iterator[None]:
    """Does `work` meanwhile, and has ended with it at the end."""
    errors: list[BaseException] = []

    def run() -> None:
        try:
            work()
        except BaseException as error:
            errors.append(error)

    running = threading.Thread(target=run)
    running.start()
    yield
    running.join(DEADLINE)
    assert not running.is_alive()
    assert errors == []


def file(content: bytes) -> int:
    """A descriptor of a file in memory. Its offset is at the end, which does not matter."""
    descriptor = os.memfd_create("wuwan-test")
    assert os.write(descriptor, content) == len(content)
    return descriptor


def send(
    sock: socket.socket,
    contents: Sequence[Content],
    cuts: Sequence[int] = (65536,),
    opened: Callable[[bytes], int] = file,
) -> None:
    """What a client sends: each frame's descriptors go with its first bytes."""
    for ids, files in contents:
        data = protocol.encode(Images(ids=ids), len(files))
        descriptors = [opened(content) for content in files]
        try:
            for start in range(0, len(data), cuts[0]):
                piece = data[start : start + cuts[0]]
                if start == 0 and descriptors:
                    socket.send_fds(sock, [piece], descriptors)
                else:
                    sock.sendall(piece)
        finally:
            protocol.close_all(descriptors)
    sock.shutdown(socket.SHUT_WR)


@dataclass
class Worker:
    """What has come at the worker's end of a connection."""

    contents: list[Content] = field(default_factory=list)

    def receive(self, sock: socket.socket) -> None:
        """All frames until the end, and what is in their files."""
        decoder = FrameDecoder(protocol.WORKER)
        try:
            while True:
                data, descriptors = protocol.receive(sock)
                if not data:
                    return
                for frame in decoder.feed(data, descriptors):
                    assert isinstance(frame.message, Images)
                    sizes = [os.fstat(one).st_size for one in frame.descriptors]
                    files = map(os.pread, frame.descriptors, sizes, [0] * len(sizes))
                    self.contents.append((frame.message.ids, list(files)))
                    frame.close()
        finally:
            decoder.close()


def carried(
    contents: Sequence[Content],
    cuts: Sequence[int] = (65536,),
    written: Callable[[bytes], None] = lambda _: None,
    opened: Callable[[bytes], int] = file,
) -> list[Content]:
    """What comes out at the worker if this goes in at the client."""
    worker = Worker()
    with pair() as (client, ours), pair() as (near, far), pair() as (inside, served):

        def unpack() -> None:
            with far.makefile("rb") as source:
                bridge.inward(source, inside)
            inside.shutdown(socket.SHUT_WR)

        with (
            thread(lambda: send(client, contents, cuts, opened)),
            thread(lambda: stream.inward(ours, Pieces(near, cuts, written))),
            thread(unpack),
        ):
            worker.receive(served)
    return worker.contents


@pytest.fixture(autouse=True)
def descriptors() -> Iterator[None]:
    """As many are open after a test as before it."""
    before = len(os.listdir("/proc/self/fd"))
    yield
    assert len(os.listdir("/proc/self/fd")) == before


@settings(deadline=None, max_examples=60)
@given(contents=CONTENTS, cuts=CUTS)
def test_all_comes_as_it_went(contents: list[Content], cuts: list[int]) -> None:
    """Whatever is in the files, and wherever the stream is cut on its way."""
    assert carried(contents, cuts) == contents


def test_large_files() -> None:
    """Over the size of one piece, just at it, and empty."""
    files = [os.urandom(size) for size in (MIB - 1, MIB, MIB + 1, 3 * MIB, 0)]
    assert carried([([1], files), ([2], [b"after"])]) == [([1], files), ([2], [b"after"])]


def test_as_many_files_as_a_frame_may_have() -> None:
    """One for each image of the largest message."""
    files = [bytes([number]) * number for number in range(protocol.MAX_DESCRIPTORS)]
    assert carried([(list(range(len(files))), files)]) == [(list(range(len(files))), files)]


@pytest.mark.parametrize("left", [0, 1, MIB, MIB + 7])
def test_a_file_that_is_cut_while_it_is_sent(left: int) -> None:
    """Its length is promised by then: zeros are in place of the rest, and all after it is whole."""
    content, after = os.urandom(2 * MIB + 5), ([2], [b"the next"])
    shrinking = file(content)

    def cut(data: bytes) -> None:
        if data == blobs.HEADER.pack(len(content)):
            os.ftruncate(shrinking, left)

    def opened(wanted: bytes) -> int:
        return os.dup(shrinking) if wanted == content else file(wanted)

    try:
        came = carried([([1], [content]), after], written=cut, opened=opened)
    finally:
        os.close(shrinking)
    assert came == [([1], [content[:left] + bytes(len(content) - left)]), after]


def encoded(contents: Sequence[Content]) -> list[bytes]:
    """What goes over the stream for each frame: itself, and its files as blobs."""
    return [
        protocol.encode(Images(ids=ids), len(files))
        + b"".join(blobs.HEADER.pack(len(content)) + content for content in files)
        for ids, files in contents
    ]


def unpacked(data: bytes) -> tuple[list[Content], type | None]:
    """What the bridge passes on of a stream, and what it ends with."""
    worker, kind = Worker(), None
    with pair() as (inside, served), thread(lambda: worker.receive(served)):
        try:
            bridge.inward(io.BytesIO(data), inside)
        except Exception as error:
            kind = type(error)
        inside.shutdown(socket.SHUT_WR)
    return worker.contents, kind


@settings(deadline=None, max_examples=60)
@given(contents=CONTENTS, data=st.data())
def test_a_stream_that_is_cut(contents: list[Content], data: st.DataObject) -> None:
    """Frames that are whole are passed on, half of one is not, and leaves no file behind."""
    frames = encoded(contents)
    whole = b"".join(frames)
    end = data.draw(st.integers(0, len(whole)))
    complete = sum(1 for n in range(len(frames)) if len(b"".join(frames[: n + 1])) <= end)
    at_border = len(b"".join(frames[:complete])) == end
    assert unpacked(whole[:end]) == (contents[:complete], None if at_border else EOFError)


@pytest.mark.parametrize(
    "nonsense",
    [
        b"GET / HTTP/1.1\r\n\r\n",
        protocol.HEADER.pack(protocol.MAGIC, 0, protocol.MAX_PAYLOAD + 1),
        protocol.encode(Images(ids=[]), 1) + blobs.HEADER.pack(blobs.MAX_SIZE + 1),
    ],
)
def test_nonsense(nonsense: bytes) -> None:
    """Is refused before memory is made for it; what came before it is passed on."""
    before = ([1], [b"x"])
    assert unpacked(encoded([before])[0] + nonsense) == ([before], ProtocolError)


@pytest.mark.parametrize("nonsense", [b"nonsense", b"WW\x00\x01\x00\x00\x00\x00"])
def test_a_client_that_speaks_nonsense(nonsense: bytes) -> None:
    """Ends its direction, as one does that is gone; the other one may still say why."""
    with pair() as (client, ours), pair() as (near, far):
        descriptor = file(b"x")
        socket.send_fds(client, [nonsense], [descriptor])
        os.close(descriptor)
        with thread(lambda: stream.inward(ours, Pieces(near))):
            assert far.recv(100) == b""
        far.sendall(b"why")
        assert near.recv(100) == b"why"


def test_a_client_that_dies_in_the_middle_of_a_frame() -> None:
    """The files that came with its first half are closed, the second half is not waited for."""
    with pair() as (client, ours), pair() as (near, far):
        descriptor = file(b"x")
        socket.send_fds(client, [protocol.encode(Images(ids=[1]), 1)[:-1]], [descriptor])
        os.close(descriptor)
        client.close()
        with thread(lambda: stream.inward(ours, Pieces(near))):
            assert far.recv(100) == b""


def test_a_bridge_that_is_gone() -> None:
    """Ends the client's direction, and keeps none of its files."""
    with pair() as (client, ours), pair() as (near, far):
        far.close()
        with thread(lambda: stream.inward(ours, Pieces(near))):
            send(client, [([1], [b"x"])] * 3)


@settings(deadline=None, max_examples=30)
@given(data=BYTES, cuts=CUTS)
def test_what_the_worker_says(data: bytes, cuts: list[int]) -> None:
    """Comes back as it is, though pipes take less at a time than they are given."""
    numbers = iter(range(10**6))
    with pair() as (served, inside), pair() as (far, near), pair() as (ours, client):

        def write(view: memoryview) -> int:
            return far.send(view[: cuts[next(numbers) % len(cuts)]])

        def out() -> None:
            bridge.outward(inside, write)
            far.shutdown(socket.SHUT_WR)

        def back() -> None:
            stream.outward(Pieces(near, cuts), ours)
            ours.shutdown(socket.SHUT_WR)

        def say() -> None:
            served.sendall(data)
            served.shutdown(socket.SHUT_WR)

        with thread(say), thread(out), thread(back):
            received = b"".join(iter(lambda: client.recv(4096), b""))
    assert received == data
