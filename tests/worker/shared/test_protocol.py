"""The wire protocol: any message, any split of the stream, any garbage."""

from __future__ import annotations

import array
import contextlib
import os
import resource
import socket
import struct
import threading
import typing
from typing import TYPE_CHECKING, Any

import msgpack
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from wuwan_worker.shared import protocol
from wuwan_worker.shared.protocol import (
    DescriptorError,
    End,
    Frame,
    FrameDecoder,
    Hello,
    Images,
    Message,
    ProtocolError,
    Results,
    Status,
    StatusRequest,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

_TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
_INTEGERS = st.integers(-(2**63), 2**64 - 1)
_FLOATS = st.floats(allow_nan=False)
_ITEMS = st.dictionaries(
    _TEXT,
    st.recursive(
        st.none() | st.booleans() | _INTEGERS | _FLOATS | _TEXT,
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(_TEXT, inner, max_size=3),
        max_leaves=5,
    ),
    max_size=4,
)


def _values(hint: Any) -> st.SearchStrategy[Any]:
    if hint == list[dict[str, Any]]:
        return st.lists(_ITEMS, max_size=3)
    if typing.get_origin(hint) is list:
        return st.lists(_values(typing.get_args(hint)[0]), max_size=5)
    if parts := typing.get_args(hint):
        return st.one_of(*map(_values, parts))
    return {
        int: _INTEGERS,
        float: _FLOATS,
        str: _TEXT,
        bool: st.booleans(),
        type(None): st.none(),
    }[hint]


_KINDS = typing.get_args(Message)
_MESSAGES = st.one_of(
    *(
        st.builds(
            kind, **{name: _values(hint) for name, hint in typing.get_type_hints(kind).items()}
        )
        for kind in _KINDS
    )
)


def _memory_file(content: bytes) -> int:
    descriptor = os.memfd_create("wuwan-test", os.MFD_CLOEXEC)
    os.write(descriptor, content)
    return descriptor


def _drain(sock: socket.socket, decoder: FrameDecoder) -> list[Frame]:
    """What has arrived, as frames."""
    frames = []
    sock.setblocking(False)
    with contextlib.suppress(BlockingIOError):
        while True:
            data, received = protocol.receive(sock)
            if not data:
                break
            frames += decoder.feed(data, received)
    return frames


# ---------------------------------------------------------------- round trips and splits


@given(_MESSAGES)
def test_any_message_survives_the_way(message: Message) -> None:
    """Every message comes out of its payload as it went in."""
    assert protocol.unpack(protocol.pack(message)) == message


@pytest.mark.parametrize("kind", _KINDS)
def test_every_kind_is_covered(kind: type) -> None:
    """Each message type has a value that is encoded and decoded, so none is left out above."""
    examples = {int: 7, float: 0.5, str: "犬", bool: True, float | None: None}
    fields = {name: examples.get(hint, []) for name, hint in typing.get_type_hints(kind).items()}
    message = kind(**fields)
    assert FrameDecoder().feed(protocol.encode(message)) == [Frame(message)]


@given(st.lists(_MESSAGES, min_size=1, max_size=5), st.data())
def test_any_split_of_the_stream_gives_the_same_frames(
    messages: list[Message], data: st.DataObject
) -> None:
    """Frames do not depend on where the stream of bytes was cut."""
    stream = b"".join(map(protocol.encode, messages))
    cuts = sorted(data.draw(st.lists(st.integers(0, len(stream)), max_size=10)))
    decoder = FrameDecoder()
    frames = []
    for start, end in zip([0, *cuts], [*cuts, len(stream)], strict=True):
        frames += decoder.feed(stream[start:end])
        assert decoder.in_frame == (len(b"".join(map(_encoded, frames))) != end)
    assert [frame.message for frame in frames] == messages


def _encoded(frame: Frame) -> bytes:
    return protocol.encode(frame.message)


@settings(max_examples=40)
@given(
    st.lists(st.tuples(_MESSAGES, st.integers(0, 3)), min_size=1, max_size=5),
    st.integers(1, 400),
)
def test_descriptors_come_with_their_frames(plan: list[tuple[Message, int]], piece: int) -> None:
    """Over a real socket, in pieces of any size, each frame gets its own descriptors, in order."""
    ours, theirs = socket.socketpair()
    decoder = FrameDecoder()
    frames: list[Frame] = []
    with ours, theirs:
        for number, (message, count) in enumerate(plan):
            sent = [_memory_file(b"%d-%d" % (number, place)) for place in range(count)]
            stream = protocol.encode(message, count)
            socket.send_fds(ours, [stream[:piece]], sent)
            for start in range(piece, len(stream), piece):
                ours.send(stream[start : start + piece])
                if start % 3 == 0:
                    frames += _drain(theirs, decoder)
            protocol.close_all(sent)
        frames += _drain(theirs, decoder)
    assert [frame.message for frame in frames] == [message for message, _ in plan]
    for number, (frame, (_, count)) in enumerate(zip(frames, plan, strict=True)):
        contents = [os.pread(descriptor, 64, 0) for descriptor in frame.descriptors]
        assert contents == [b"%d-%d" % (number, place) for place in range(count)]
        frame.close()
    decoder.close()


def test_many_labels_in_chinese_one_byte_at_a_time() -> None:
    """100 KB of Chinese labels arrive exactly, even byte by byte (fault 13 of docs/faults.md)."""
    labels = [{"label": f"金毛寻回犬{number}", "score": 0.5} for number in range(4000)]
    message = Results(items=[{"id": 1, "labels": labels}])
    stream = protocol.encode(message)
    assert len(stream) > 100_000
    decoder = FrameDecoder()
    frames = [frame for byte in stream for frame in decoder.feed(bytes([byte]))]
    assert frames == [Frame(message)]
    assert protocol.encode(frames[0].message) == stream


def test_descriptors_sent_with_single_bytes() -> None:
    """Descriptors on a frame's first byte wait for its last byte."""
    ours, theirs = socket.socketpair()
    decoder = FrameDecoder()
    stream = protocol.encode(Images(ids=[1, 2]), 2)
    sent = [_memory_file(b"one"), _memory_file(b"two")]
    with ours, theirs:
        socket.send_fds(ours, [stream[:1]], sent)
        for byte in stream[1:]:
            assert _drain(theirs, decoder) == []
            ours.send(bytes([byte]))
        (frame,) = _drain(theirs, decoder)
    assert [os.pread(descriptor, 9, 0) for descriptor in frame.descriptors] == [b"one", b"two"]
    frame.close()
    protocol.close_all(sent)


def test_send_frame_sends_large_frames_whole() -> None:
    """A frame larger than the socket's buffer arrives, with its descriptor."""
    ours, theirs = socket.socketpair()
    message = Images(ids=list(range(100_000)))
    descriptor = _memory_file(b"x")
    frames: list[Frame] = []
    decoder = FrameDecoder()
    with ours, theirs:
        ours.settimeout(10)
        theirs.settimeout(10)
        sender = threading.Thread(
            target=protocol.send_frame, args=(ours, message, [descriptor]), daemon=True
        )
        sender.start()
        while not frames:
            frames = decoder.feed(*protocol.receive(theirs))
        sender.join(10)
    assert frames[0].message == message
    assert len(frames[0].descriptors) == 1
    frames[0].close()
    os.close(descriptor)


# ---------------------------------------------------------------- garbage


@given(st.binary(max_size=200))
def test_garbage_is_a_protocol_error_or_the_start_of_a_frame(garbage: bytes) -> None:
    """Nothing but ProtocolError comes of random bytes, and what is kept could be a frame."""
    decoder = FrameDecoder()
    try:
        frames = decoder.feed(garbage)
    except ProtocolError:
        assert not decoder.in_frame
    else:
        assert not frames
        assert b"WW".startswith(garbage[:2])


@given(st.binary(max_size=200))
def test_a_random_payload_is_a_protocol_error(payload: bytes) -> None:
    """Random payloads in good frames raise nothing but ProtocolError."""
    with pytest.raises(ProtocolError):
        FrameDecoder().feed(protocol.HEADER.pack(b"WW", 0, len(payload)) + payload)


@given(_MESSAGES, st.data())
def test_a_flipped_byte_never_raises_anything_else(message: Message, data: st.DataObject) -> None:
    """One wrong byte gives a message, an unfinished frame, or ProtocolError."""
    stream = bytearray(protocol.encode(message))
    place = data.draw(st.integers(0, len(stream) - 1))
    stream[place] ^= data.draw(st.integers(1, 255))
    with contextlib.suppress(ProtocolError):
        FrameDecoder().feed(bytes(stream))


@pytest.mark.parametrize("head", [b"G", b"GET / HTTP/1.1\r\n", b"WX", b"\x00"])
def test_a_wrong_magic_is_refused_at_its_first_wrong_byte(head: bytes) -> None:
    """A peer that speaks something else is not waited for until a header is complete."""
    with pytest.raises(ProtocolError, match="magic"):
        FrameDecoder().feed(head)


@pytest.mark.parametrize(
    "payload",
    [
        msgpack.packb([1, 2]),
        msgpack.packb({"type": "Nonsense"}),
        msgpack.packb({"type": ["End"], "count": 1}),
        msgpack.packb({"count": 1}),
        msgpack.packb({"type": "End"}),
        msgpack.packb({"type": "End", "count": 1, "more": 1}),
        msgpack.packb({"type": "End", "count": "1"}),
        msgpack.packb({"type": "End", "count": 1.0}),
        msgpack.packb({"type": "End", "count": True}),
        msgpack.packb({"type": "Stop", "if_idle": 1}),
        msgpack.packb({"type": "Images", "ids": [1, "2"]}),
        msgpack.packb({"type": "Images", "ids": [True]}),
        msgpack.packb({"type": "Logs", "lines": [None]}),
        msgpack.packb({"type": "End", "count": 1}) + b"\x00",
        msgpack.packb({"type": "End", "count": 1})[:-1],
        msgpack.packb({1: 2, "type": "End"}),
        b"\xa1\xff",  # text that is not UTF-8
        b"\x91" * 5000,  # nested too deep
        b"",
    ],
)
def test_a_malformed_payload_is_refused(payload: bytes) -> None:
    """A payload that is not exactly one message of a known type is a ProtocolError."""
    with pytest.raises(ProtocolError):
        protocol.unpack(payload)


def test_nested_array_lengths_claim_no_memory() -> None:
    """Arrays that say they are huge, a thousand deep, are refused at once."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    claim = b"\xdd" + struct.pack("!I", 8_000_000)
    with pytest.raises(ProtocolError):
        protocol.unpack((claim * 1000).ljust(8_100_000, b"\x90"))
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100 * 1024  # KiB


def test_a_huge_length_is_refused_before_anything_is_allocated() -> None:
    """A header that announces 4 GiB is refused as soon as it is there."""
    with pytest.raises(ProtocolError, match="over the limit"):
        FrameDecoder().feed(protocol.HEADER.pack(b"WW", 0, 2**32 - 1))


def test_a_huge_count_of_descriptors_is_refused() -> None:
    """A header that announces 65,535 descriptors is refused as soon as it is there."""
    with pytest.raises(ProtocolError, match="descriptors are over the limit"):
        FrameDecoder().feed(protocol.HEADER.pack(b"WW", 2**16 - 1, 1))


def test_encode_refuses_what_a_receiver_would_refuse() -> None:
    """What is over the limits is an error for the sender already."""
    with pytest.raises(ProtocolError, match="over the limit"):
        protocol.encode(Results(items=[{"x": "x" * protocol.MAX_PAYLOAD}]))
    with pytest.raises(ProtocolError, match="over the limit"):
        protocol.encode(Images(ids=[]), protocol.MAX_DESCRIPTORS + 1)


def test_all_labels_of_the_largest_bundle_pass() -> None:
    """An answer with 54,092 labels is no hostile array."""
    message = Results(items=[{"id": 1, "labels": [["标签", 0.1]] * 54_092}])
    (frame,) = FrameDecoder().feed(protocol.encode(message))
    assert len(typing.cast("Results", frame.message).items[0]["labels"]) == 54_092


def test_a_status_with_whole_numbers_passes() -> None:
    """Durations may be sent as integers."""
    fields = {name: 1 for name, hint in typing.get_type_hints(Status).items() if hint is not str}
    texts = {name: "" for name, hint in typing.get_type_hints(Status).items() if hint is str}
    status = Status(**fields, **texts)
    assert protocol.unpack(protocol.pack(status)) == status


# ---------------------------------------------------------------- descriptors


def _feed(message: Message, declared: int, sent: int) -> list[Frame]:
    return FrameDecoder().feed(
        protocol.encode(message, declared), [_memory_file(b"") for _ in range(sent)]
    )


def test_too_few_descriptors_are_told_apart(descriptors: Callable[[], list[str]]) -> None:
    """Descriptors lost on the way are a DescriptorError, and those that came are closed."""
    before = descriptors()
    with pytest.raises(DescriptorError, match="declares 3 descriptors, 2 came"):
        _feed(Images(ids=[1, 2, 3]), 3, 2)
    assert descriptors() == before


def test_undeclared_descriptors_are_refused(descriptors: Callable[[], list[str]]) -> None:
    """Descriptors that no frame declared are a ProtocolError, and all are closed."""
    before = descriptors()
    with pytest.raises(ProtocolError, match="undeclared"):
        _feed(Images(ids=[1]), 1, 3)
    with pytest.raises(ProtocolError, match="undeclared"):
        FrameDecoder().feed(b"", [_memory_file(b"")])
    assert descriptors() == before


def test_a_flood_of_descriptors_is_refused(descriptors: Callable[[], list[str]]) -> None:
    """An unfinished frame cannot gather more descriptors than a frame may have."""
    before = descriptors()
    decoder = FrameDecoder()
    flood: Sequence[int] = [_memory_file(b"") for _ in range(protocol.MAX_DESCRIPTORS)]
    assert decoder.feed(b"W", flood) == []
    with pytest.raises(ProtocolError, match="too many descriptors"):
        decoder.feed(b"W", [_memory_file(b"")])
    assert descriptors() == before


def test_an_error_closes_the_frames_before_it(descriptors: Callable[[], list[str]]) -> None:
    """Good frames in the same piece as a bad one do not leak their descriptors."""
    before = descriptors()
    stream = protocol.encode(Images(ids=[1]), 1) + b"garbage"
    with pytest.raises(ProtocolError):
        FrameDecoder().feed(stream, [_memory_file(b""), _memory_file(b"")])
    assert descriptors() == before


def test_close_closes_what_no_frame_has_taken(descriptors: Callable[[], list[str]]) -> None:
    """A cut stream leaves no descriptor behind."""
    before = descriptors()
    decoder = FrameDecoder()
    decoder.feed(protocol.encode(Images(ids=[1]), 1)[:-1], [_memory_file(b"")])
    assert decoder.in_frame
    decoder.close()
    assert descriptors() == before


def test_more_descriptors_than_there_is_room_for(descriptors: Callable[[], list[str]]) -> None:
    """Descriptors that the kernel had to drop are a DescriptorError, and the others are closed."""
    before = descriptors()
    ours, theirs = socket.socketpair()
    descriptor = _memory_file(b"")
    with ours, theirs:
        flood = array.array("i", [descriptor] * (protocol.MAX_DESCRIPTORS + 10))
        ours.sendmsg([b"WW"], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, flood)])
        with pytest.raises(DescriptorError):
            protocol.receive(theirs)
    os.close(descriptor)
    assert descriptors() == before


def test_received_descriptors_are_not_inherited() -> None:
    """A program that the worker might start gets none of the images."""
    ours, theirs = socket.socketpair()
    descriptor = _memory_file(b"")
    with ours, theirs:
        protocol.send_frame(ours, StatusRequest(), [descriptor])
        _, received = protocol.receive(theirs)
    assert [os.get_inheritable(number) for number in received] == [False]
    protocol.close_all([*received, descriptor])


def test_a_frame_closes_its_descriptors_once() -> None:
    """Closing twice is no error."""
    frame = Frame(End(count=0), (_memory_file(b""),))
    frame.close()
    frame.close()


def test_the_probe_can_be_read_at_any_time() -> None:
    """The probe descriptor of a Hello holds what the worker looks for."""
    descriptor = protocol.probe_descriptor()
    assert os.pread(descriptor, 64, 0) == protocol.PROBE
    os.close(descriptor)
    assert Hello().version == protocol.VERSION
