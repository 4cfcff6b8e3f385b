"""The wire protocol: any message, any split of the stream, any garbage."""

from __future__ import annotations

import array
import contextlib
import dataclasses
import enum
import os
import resource
import socket
import struct
import threading
import types
import typing
from typing import TYPE_CHECKING, Any

import msgpack
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from wuwan_worker.shared import protocol
from wuwan_worker.shared.protocol import (
    CLIENT,
    CONTAINER,
    WORKER,
    Costs,
    DescriptorError,
    End,
    Fatal,
    Frame,
    FrameDecoder,
    Hello,
    Images,
    Labelled,
    LabelScore,
    Message,
    ProtocolError,
    Results,
    Side,
    Status,
    StatusRequest,
    Stop,
    Stopping,
    ToWorker,
    Welcome,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

# Each of the three sides, and a message that is for it.
_SIDES: tuple[Side[Any], ...] = (WORKER, CLIENT, CONTAINER)


def _kinds(side: Side[Any]) -> list[type[Any]]:
    return [getattr(protocol, name) for name in side.schemas]


def _side(message: object) -> Side[Any]:
    """Who reads that."""
    (side,) = (side for side in _SIDES if type(message).__name__ in side.schemas)
    return side


_TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
_INTEGERS = st.integers(-(2**63), 2**64 - 1)
_FLOATS = st.floats(allow_nan=False)
_PLAIN: dict[Any, st.SearchStrategy[Any]] = {
    int: _INTEGERS,
    float: _FLOATS,
    str: _TEXT,
    bool: st.booleans(),
    bytes: st.binary(max_size=20),
    type(None): st.none(),
}


def _values(hint: Any) -> st.SearchStrategy[Any]:
    parts = typing.get_args(hint)
    if typing.get_origin(hint) in (list, tuple):
        return st.lists(_values(parts[0]), max_size=3).map(typing.get_origin(hint))
    if parts:
        return st.one_of(*map(_values, parts))
    if hint in _PLAIN:
        return _PLAIN[hint]
    if issubclass(hint, enum.Enum):
        return st.sampled_from(hint)
    fields = {name: _values(part) for name, part in typing.get_type_hints(hint).items()}
    if "version" in fields:  # of another one little is read
        fields["version"] = st.just(protocol.VERSION)
    return st.builds(hint, **fields)


_KINDS = [kind for side in _SIDES for kind in _kinds(side)]
_TO_WORKER = _values(ToWorker)
_MESSAGES = _values(Message)


def _memory_file(content: bytes) -> int:
    descriptor = os.memfd_create("wuwan-test", os.MFD_CLOEXEC)
    os.write(descriptor, content)
    return descriptor


def _drain(sock: socket.socket, decoder: FrameDecoder[ToWorker]) -> list[Frame[ToWorker]]:
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
    assert protocol.unpack(protocol.pack(message), _side(message)) == message


@pytest.mark.parametrize("kind", _KINDS)
def test_every_kind_is_covered(kind: type) -> None:
    """Each message type has a value that is encoded and decoded, so none is left out above."""
    examples = {int: 7, float: 0.5, str: "犬", bool: True}
    message = kind(
        **{
            name: examples.get(hint, [] if typing.get_origin(hint) is list else None)
            for name, hint in typing.get_type_hints(kind).items()
            if name != "version"
        }
    )
    decoder = FrameDecoder(_side(message))
    assert decoder.feed(protocol.encode(message)) == [Frame(message)]


@given(st.sampled_from(_SIDES), st.data())
def test_any_split_of_the_stream_gives_the_same_frames(
    side: Side[Any], data: st.DataObject
) -> None:
    """Frames do not depend on where the stream of bytes was cut, on either side."""
    kinds = st.one_of(*map(_values, _kinds(side)))
    messages = data.draw(st.lists(kinds, min_size=1, max_size=5))
    stream = b"".join(map(protocol.encode, messages))
    cuts = sorted(data.draw(st.lists(st.integers(0, len(stream)), max_size=10)))
    decoder = FrameDecoder(side)
    frames = []
    for start, end in zip([0, *cuts], [*cuts, len(stream)], strict=True):
        frames += decoder.feed(stream[start:end])
        assert decoder.in_frame == (len(b"".join(map(_encoded, frames))) != end)
    assert [frame.message for frame in frames] == messages


def _encoded(frame: Frame[Any]) -> bytes:
    return protocol.encode(frame.message)


@settings(max_examples=40)
@given(
    st.lists(st.tuples(_TO_WORKER, st.integers(0, 3)), min_size=1, max_size=5),
    st.integers(1, 400),
)
def test_descriptors_come_with_their_frames(plan: list[tuple[ToWorker, int]], piece: int) -> None:
    """Over a real socket, in pieces of any size, each frame gets its own descriptors, in order."""
    ours, theirs = socket.socketpair()
    decoder = FrameDecoder(WORKER)
    frames: list[Frame[ToWorker]] = []
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
    message = _results(LabelScore(f"金毛寻回犬{number}", 0.5, "") for number in range(4000))
    stream = protocol.encode(message)
    assert len(stream) > 100_000
    decoder = FrameDecoder(CLIENT)
    frames = [frame for byte in stream for frame in decoder.feed(bytes([byte]))]
    assert frames == [Frame(message)]
    assert protocol.encode(frames[0].message) == stream


def _results(labels: Iterable[LabelScore]) -> Results:
    """One image with those labels."""
    return Results(items=[Labelled(id=1, width=1, height=1, labels=tuple(labels))])


def test_descriptors_sent_with_single_bytes() -> None:
    """Descriptors on a frame's first byte wait for its last byte."""
    ours, theirs = socket.socketpair()
    decoder = FrameDecoder(WORKER)
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
    frames: list[Frame[ToWorker]] = []
    decoder = FrameDecoder(WORKER)
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


# ---------------------------------------------------------------- peers that say more or less

_ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers(-9, 9) | _FLOATS | _TEXT | st.binary(max_size=3),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(_TEXT, inner, max_size=2),
    max_leaves=4,
)
_UNKNOWN = _TEXT.map(lambda name: f"future {name}")  # no field's name
# One of each kind that msgpack has.
_SPECIMENS: tuple[Any, ...] = (None, True, 1, 1.5, "x", b"x", [1.5], {"x": 1})


def _content(message: Message) -> dict[str, Any]:
    """A message's map, as it travels."""
    content: dict[str, Any] = msgpack.unpackb(protocol.pack(message))
    return content


def _read(content: object, side: Side[Any]) -> Any:
    return protocol.unpack(msgpack.packb(content), side)


def _fits(hint: Any, value: object) -> bool:
    """Whether a value, of those above, may be in a field of that kind."""
    if typing.get_origin(hint) is types.UnionType:
        return any(_fits(part, value) for part in typing.get_args(hint))
    if typing.get_origin(hint) is list:
        return False  # no field is a list of floats
    if dataclasses.is_dataclass(hint):
        return type(value) is dict
    return type(value) in {float: (float, int), type(None): (type(None),)}.get(hint, (hint,))


@given(_MESSAGES, st.data())
def test_a_field_that_is_absent_takes_its_default(message: Any, data: st.DataObject) -> None:
    """A peer that does not know a field yet leaves it out; what has no default must be there."""
    content = _content(message)
    fields = dataclasses.fields(message)
    left_out = data.draw(st.lists(st.sampled_from(fields), unique=True) if fields else st.just([]))
    for field in left_out:
        del content[field.name]
    defaults = {
        field.name: field.default
        if field.default_factory is dataclasses.MISSING
        else field.default_factory()
        for field in left_out
    }
    if dataclasses.MISSING in defaults.values():
        with pytest.raises(ProtocolError, match="lacks"):
            _read(content, _side(message))
    else:
        assert _read(content, _side(message)) == dataclasses.replace(message, **defaults)


def _more(content: Any, name: str, value: Any) -> Any:
    """The same with a member more in every map, and in every label's array."""
    if isinstance(content, dict):
        more = {key: _more(member, name, value) for key, member in content.items()}
        if "labels" in more:
            more["labels"] = [[*label, value] for label in more["labels"]]
        return more | {name: value}
    if isinstance(content, list):
        return [_more(element, name, value) for element in content]
    return content


@given(_MESSAGES, _UNKNOWN, _ANYTHING)
def test_what_is_unknown_is_ignored(message: Message, name: str, value: Any) -> None:
    """A peer may say more than we understand, at any depth."""
    assert _read(_more(_content(message), name, value), _side(message)) == message


@given(_MESSAGES.filter(dataclasses.fields), st.data())
def test_a_wrong_kind_is_refused(message: Any, data: st.DataObject) -> None:
    """What is known and of another kind than ever is no other version, but broken."""
    hints = typing.get_type_hints(type(message))
    name = data.draw(st.sampled_from(sorted(hints)))
    wrong = [value for value in _SPECIMENS if not _fits(hints[name], value)]
    content = _content(message) | {name: data.draw(st.sampled_from(wrong))}
    with pytest.raises(ProtocolError, match=name):
        _read(content, _side(message))


_LABEL = ["犬", 0.5, "n1", ["动物"], []]


@pytest.mark.parametrize(
    "item",
    [
        1,
        {},
        {"id": 1},
        {"id": 1, "labels": []},
        {"id": True, "width": 1, "height": 1, "labels": []},
        {"id": 1, "width": 1.0, "height": 1, "labels": []},
        {"id": 1, "width": 1, "height": 1, "labels": {}},
        {"id": 1, "width": 1, "height": 1, "labels": ["犬"]},
        {"id": 1, "width": 1, "height": 1, "labels": [_LABEL[:2]]},
        *(
            {"id": 1, "width": 1, "height": 1, "labels": [_LABEL, [*_LABEL[:at], bad, *rest]]}
            for at, bad, rest in [
                (0, 1, _LABEL[1:]),
                (1, "1", _LABEL[2:]),
                (1, True, _LABEL[2:]),
                (2, None, _LABEL[3:]),
                (3, "动物", _LABEL[4:]),
                (3, [1], _LABEL[4:]),
                (4, [None], []),
                (4, {}, []),
            ]
        ),
        {"id": 1, "width": 1, "height": 1, "labels": [], "warning": "cut"},
        {"id": 1, "width": 1, "height": 1, "labels": [], "warning": {"code": "?", "message": ""}},
        {"id": 1, "width": 1, "height": 1, "labels": [], "extras": {"keywords": [1]}},
        {"id": 1, "error": "cut"},
        {"id": 1, "error": {"code": "truncated"}},
        {"id": 1, "error": {"code": "no such code", "message": ""}},
        {"id": 1, "error": {"code": ["truncated"], "message": ""}},
        {"id": "1", "cancelled": True},
    ],
)
def test_a_result_of_the_wrong_kind_is_refused(item: Any) -> None:
    """No answer of a worker goes into a record unseen."""
    good = {"id": 1, "width": 1, "height": 1, "labels": [_LABEL]}
    with pytest.raises(ProtocolError, match="items"):
        _read({"type": "Results", "items": [good, item]}, CLIENT)


def test_what_a_label_and_a_result_may_lack() -> None:
    """Broader terms and synonyms, a warning and extras."""
    labels = [["犬", 1, "n1"], ["猫", 0.5, "n2", ["动物"]], _LABEL]
    item = {"id": 1, "width": 2, "height": 3, "labels": labels, "warning": None}
    assert _read({"type": "Results", "items": [item]}, CLIENT).items == [
        Labelled(
            id=1,
            width=2,
            height=3,
            labels=(
                LabelScore("犬", 1, "n1"),
                LabelScore("猫", 0.5, "n2", ("动物",)),
                LabelScore("犬", 0.5, "n1", ("动物",)),
            ),
        )
    ]


@pytest.mark.parametrize("side", _SIDES, ids=lambda side: side.name)
@pytest.mark.parametrize("kind", _KINDS)
def test_each_side_reads_its_messages_alone(side: Side[Any], kind: type[Any]) -> None:
    """A message of the other side is refused by its name, whatever is in it."""
    if kind in _kinds(side):
        return
    with pytest.raises(ProtocolError, match=f"{kind.__name__} is not for {side.name}"):
        _read({"type": kind.__name__}, side)


_OTHER_VERSIONS = st.integers(0, 99).filter(lambda version: version != protocol.VERSION)
_STRANGE = st.dictionaries(
    st.sampled_from([field.name for field in dataclasses.fields(Hello)]) | _TEXT, _ANYTHING
)


@given(_OTHER_VERSIONS, _STRANGE)
def test_a_hello_of_another_version_is_always_understood(
    version: int, strange: dict[str, Any]
) -> None:
    """Whatever else it says by names that we know, so that it can be refused by its version."""
    read = _read(strange | {"type": "Hello", "version": version}, WORKER)
    lasting = {
        name: strange[name]
        for name, kind in (("client", str), ("token", str), ("tagging", bool))
        if type(strange.get(name)) is kind
    }
    assert read == Hello(version=version, **lasting)


@given(_OTHER_VERSIONS, _STRANGE)
def test_a_welcome_of_another_version_says_who_it_is(version: int, strange: dict[str, Any]) -> None:
    """Its name, its runner and its process are enough to ask and to end it."""
    said = {"type": "Welcome", "version": version, "name": "a", "runner": "local", "pid": 7}
    assert _read(strange | said, CLIENT) == Welcome(
        version=version, name="a", runner="local", pid=7
    )


def test_what_lasts_for_ever() -> None:
    """These are on the wire of every version; a change here cuts `ps` and `stop` off from it."""
    assert protocol.LASTING == {
        "Hello": ("version", "client", "tagging", "token"),
        "Welcome": ("version", "name", "runner", "pid"),
    }
    assert _read({"type": "StatusRequest"}, WORKER) == StatusRequest()
    assert _read({"type": "Stop"}, WORKER) == Stop(if_idle=False)
    assert _read({"type": "Stop", "if_idle": True}, WORKER) == Stop(if_idle=True)
    assert _read({"type": "Stopping", "accepted": True}, CLIENT) == Stopping(accepted=True)
    assert _read({"type": "Status", "name": "a"}, CLIENT) == Status(name="a")
    assert _read({"type": "Fatal", "code": "new", "message": "m"}, CLIENT) == Fatal(
        code="new", message="m"
    )


# ---------------------------------------------------------------- garbage


@given(st.binary(max_size=200))
def test_garbage_is_a_protocol_error_or_the_start_of_a_frame(garbage: bytes) -> None:
    """Nothing but ProtocolError comes of random bytes, and what is kept could be a frame."""
    decoder = FrameDecoder(WORKER)
    try:
        frames = decoder.feed(garbage)
    except ProtocolError:
        assert not decoder.in_frame
    else:
        assert not frames
        assert b"WW".startswith(garbage[:2])


@given(st.binary(max_size=200), st.sampled_from(_SIDES))
def test_a_random_payload_is_a_protocol_error(payload: bytes, side: Side[Any]) -> None:
    """Random payloads in good frames raise nothing but ProtocolError."""
    with pytest.raises(ProtocolError):
        FrameDecoder(side).feed(protocol.HEADER.pack(b"WW", 0, len(payload)) + payload)


@given(_MESSAGES, st.data())
def test_a_flipped_byte_never_raises_anything_else(message: Message, data: st.DataObject) -> None:
    """One wrong byte gives a message, an unfinished frame, or ProtocolError."""
    stream = bytearray(protocol.encode(message))
    place = data.draw(st.integers(0, len(stream) - 1))
    stream[place] ^= data.draw(st.integers(1, 255))
    with contextlib.suppress(ProtocolError):
        FrameDecoder(_side(message)).feed(bytes(stream))


@pytest.mark.parametrize("head", [b"G", b"GET / HTTP/1.1\r\n", b"WX", b"\x00"])
def test_a_wrong_magic_is_refused_at_its_first_wrong_byte(head: bytes) -> None:
    """A peer that speaks something else is not waited for until a header is complete."""
    with pytest.raises(ProtocolError, match="magic"):
        FrameDecoder(WORKER).feed(head)


@pytest.mark.parametrize(
    "payload",
    [
        msgpack.packb([1, 2]),
        msgpack.packb({"type": "Nonsense"}),
        msgpack.packb({"type": ["End"], "count": 1}),
        msgpack.packb({"count": 1}),
        msgpack.packb({"type": "End"}),
        msgpack.packb({"type": "End", "count": "1"}),
        msgpack.packb({"type": "End", "count": 1.0}),
        msgpack.packb({"type": "End", "count": True}),
        msgpack.packb({"type": "Stop", "if_idle": 1}),
        msgpack.packb({"type": "Images", "ids": [1, "2"]}),
        msgpack.packb({"type": "Images", "ids": [True]}),
        msgpack.packb({"type": "Images", "ids": 1}),
        msgpack.packb({"type": "Images", "ids": [1], "options": [1]}),
        msgpack.packb({"type": "Images", "ids": [1], "options": [{"top_k": "5"}]}),
        msgpack.packb({"type": "Hello", "version": "2"}),
        msgpack.packb({"type": "Hello", "keep_alive": {"resident": 1}}),
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
        protocol.unpack(payload, WORKER)


def test_nested_array_lengths_claim_no_memory() -> None:
    """Arrays that say they are huge, a thousand deep, are refused at once."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    claim = b"\xdd" + struct.pack("!I", 8_000_000)
    with pytest.raises(ProtocolError):
        protocol.unpack((claim * 1000).ljust(8_100_000, b"\x90"), CLIENT)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100 * 1024  # KiB


def test_a_huge_length_is_refused_before_anything_is_allocated() -> None:
    """A header that announces 4 GiB is refused as soon as it is there."""
    with pytest.raises(ProtocolError, match="over the limit"):
        FrameDecoder(WORKER).feed(protocol.HEADER.pack(b"WW", 0, 2**32 - 1))


def test_a_huge_count_of_descriptors_is_refused() -> None:
    """A header that announces 65,535 descriptors is refused as soon as it is there."""
    with pytest.raises(ProtocolError, match="descriptors are over the limit"):
        FrameDecoder(WORKER).feed(protocol.HEADER.pack(b"WW", 2**16 - 1, 1))


def test_encode_refuses_what_a_receiver_would_refuse() -> None:
    """What is over the limits is an error for the sender already."""
    with pytest.raises(ProtocolError, match="over the limit"):
        protocol.encode(Hello(client="x" * protocol.MAX_PAYLOAD))
    with pytest.raises(ProtocolError, match="over the limit"):
        protocol.encode(Images(ids=[]), protocol.MAX_DESCRIPTORS + 1)


def test_all_labels_of_the_largest_bundle_pass() -> None:
    """An answer with 54,092 labels is no hostile array."""
    message = _results([LabelScore("标签", 0.1, "")] * 54_092)
    assert FrameDecoder(CLIENT).feed(protocol.encode(message)) == [Frame(message)]


def test_a_status_with_whole_numbers_passes() -> None:
    """Durations may be sent as integers."""
    status = Status(name="a", idle_for=1, ttl=30, uptime=7, costs=Costs(start=2))
    assert protocol.unpack(protocol.pack(status), CLIENT) == status


# ---------------------------------------------------------------- descriptors


def _feed(message: Message, declared: int, sent: int) -> list[Frame[ToWorker]]:
    return FrameDecoder(WORKER).feed(
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
        FrameDecoder(WORKER).feed(b"", [_memory_file(b"")])
    assert descriptors() == before


def test_a_flood_of_descriptors_is_refused(descriptors: Callable[[], list[str]]) -> None:
    """An unfinished frame cannot gather more descriptors than a frame may have."""
    before = descriptors()
    decoder = FrameDecoder(WORKER)
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
        FrameDecoder(WORKER).feed(stream, [_memory_file(b""), _memory_file(b"")])
    assert descriptors() == before


def test_close_closes_what_no_frame_has_taken(descriptors: Callable[[], list[str]]) -> None:
    """A cut stream leaves no descriptor behind."""
    before = descriptors()
    decoder = FrameDecoder(WORKER)
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
