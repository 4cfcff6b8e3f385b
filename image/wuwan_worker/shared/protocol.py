"""The wire protocol between a client and a worker: the one definition that both sides use.

A connection is a Unix stream socket. Both directions carry *frames*::

    magic "WW" | descriptors: u16 | payload bytes: u32 | payload (msgpack map)

in network byte order. A frame that declares *n* descriptors is sent with them attached to its
first byte (SCM_RIGHTS); the receiver takes them in the order of arrival. The payload is one
message, a map whose ``type`` names a dataclass of this module.

A connection goes like this::

    client                               worker
      Hello (+ one probe descriptor) ──►
                                     ◄── Welcome(credits=c)
                                     ◄── Ready     if the model was not loaded yet
      Images(ids) (+ descriptors)    ──►            at most c images unanswered at any time
                                     ◄── Results    each answered image gives one credit back
      End(count)                     ──►
                                     ◄── Done(count)   the trailer: without it the stream was cut

A worker that drains sends Done without having seen End; the client takes what is unanswered
elsewhere, and nobody is to blame.

`Fatal` may come at any time instead, with the connection's end. After `Welcome` a client may also
send `StatusRequest`, `LogsRequest` or `Stop`; each has one reply.

The module is sans-IO apart from two helpers, so that every split and every piece of garbage can
be tested without a socket.
"""

from __future__ import annotations

import array
import contextlib
import enum
import os
import socket
import struct
import types
import typing
from collections import deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeAlias

import msgpack

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

VERSION = 2
HEADER = struct.Struct("!2sHI")
MAGIC = b"WW"
# A frame of results holds at most a few batches of labels; 100 KB of labels for one image must
# pass (fault 13 of docs/faults.md), a hostile length must not make the receiver allocate gigabytes.
MAX_PAYLOAD = 16 * 1024 * 1024
# The kernel takes at most SCM_MAX_FD = 253 descriptors in one message (unix(7)).
MAX_DESCRIPTORS = 128
# msgpack makes room for an array as soon as it has read its length: a few bytes of nested arrays
# would claim gigabytes. More than all labels of the largest bundle is never sent.
MAX_ELEMENTS = 2**17
RECEIVE_SIZE = 256 * 1024
# What the probe descriptor of a Hello holds: a worker that can read this can read images.
PROBE = b"wuwan probe\n"


class ProtocolError(Exception):
    """The peer broke the protocol; the connection is of no further use."""


class DescriptorError(ProtocolError):
    """Descriptors were lost on the way: this path between two processes does not carry them."""


class ErrorCode(enum.StrEnum):
    """Why one image has no labels. These are the `error.code` values of a record."""

    UNREADABLE = "unreadable"  # it could not be opened or read
    NOT_AN_IMAGE = "not_an_image"
    TRUNCATED = "truncated"  # its data ends early or is damaged
    TOO_LARGE = "too_large"  # more bytes or pixels than the limit
    UNSUPPORTED = "unsupported"  # an image, but in a format outside the allow-list
    TIMEOUT = "timeout"  # the worker did not answer in time, for this image alone
    WORKER_CRASHED = "worker_crashed"  # the worker died, on this image alone


class WarningCode(enum.StrEnum):
    """What was wrong with an image that has labels all the same: `warning.code` of a record."""

    TRUNCATED = "truncated"  # data were missing
    DAMAGED = "damaged"  # data were wrong, and repaired or skipped


class FatalCode(enum.StrEnum):
    """Why a worker ends a connection."""

    PROTOCOL = "protocol"  # the client broke the protocol, or speaks another version of it
    DESCRIPTORS = "descriptors"  # descriptors do not arrive here, or cannot be read
    FORBIDDEN = "forbidden"  # the client belongs to another user, or does not prove its own
    FULL = "full"  # too many clients
    MODEL = "model"  # the model does not load; no other worker of this kind will do better
    LEVEL = "level"  # labels are asked for at a level that the model does not have
    BACKEND = "backend"  # inference failed; another worker may do better


class State(enum.StrEnum):
    """The life of a worker. `serving.lifecycle` says what leads from one to the next."""

    STARTING = "starting"
    READY = "ready"
    BUSY = "busy"
    PARKED = "parked"
    DRAINING = "draining"


# ---------------------------------------------------------------- messages


@dataclass(frozen=True, slots=True, kw_only=True)
class Hello:
    """The client's first frame; it carries one descriptor, a file that holds `PROBE`."""

    version: int = VERSION
    client: str = ""  # for logs, e.g. "wuwan 0.1.0 (pid 4242)"
    top_k: int = 5
    min_score: float = 0.0
    exact: bool = False  # the reference preprocessing instead of the fast one
    level: str = ""  # of the labels, e.g. "coarse"; empty for the bundle's default
    ttl: float | None = None  # seconds; a new TTL for the worker, or None to leave it
    tagging: bool = True  # False for a client that only asks or commands; it counts as nobody
    token: str = ""  # as in Adopt


@dataclass(frozen=True, slots=True, kw_only=True)
class Welcome:
    """The worker's answer to Hello."""

    version: int = VERSION
    name: str
    model: str
    fingerprint: str  # sha256 of the bundle's manifest
    runner: str
    device: str
    state: str
    pid: int  # in the worker's own PID namespace
    credits: int  # images that may be unanswered
    readable: bool  # whether the probe descriptor arrived and could be read
    shared: bool = True  # False for a worker that ends with its client, as no other one can use it


@dataclass(frozen=True, slots=True, kw_only=True)
class Ready:
    """The model is loaded now; sent to clients whose Welcome said `starting`."""

    device: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Images:
    """Images to label; one descriptor for each id, in the same order."""

    ids: list[int]


@dataclass(frozen=True, slots=True, kw_only=True)
class Results:
    """Answers, in any order.

    Each item is ``{"id", "width", "height", "labels": [{"label", "score", "id", "broader"}, …]}``,
    a label with "synonyms" where it has any, and the item with ``"warning": {"code", "message"}``
    where its data were damaged; or ``{"id", "error": {"code", "message"}}``.
    """

    items: list[dict[str, Any]]


@dataclass(frozen=True, slots=True, kw_only=True)
class End:
    """The client has sent all its images: `count` of them."""

    count: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Done:
    """The trailer: the worker has answered `count` images on this connection."""

    count: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Fatal:
    """The worker cannot serve this connection; it closes it after this frame."""

    code: str  # a FatalCode
    message: str


@dataclass(frozen=True, slots=True, kw_only=True)
class StatusRequest:
    """Asks for Status."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Status:
    """What `wuwan ps` shows. Durations in seconds, memory in bytes."""

    name: str
    model: str
    runner: str
    device: str
    state: str
    pid: int
    clients: int
    images_done: int
    queued: int
    idle_for: float | None  # None while it has work or a client
    ttl: float
    ttl_left: float | None
    memory: int  # resident host memory
    gpu_memory: int
    uptime: float


@dataclass(frozen=True, slots=True, kw_only=True)
class LogsRequest:
    """Asks for the last log lines."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Logs:
    """The last log lines, oldest first."""

    lines: list[str]


@dataclass(frozen=True, slots=True, kw_only=True)
class Stop:
    """Drain, then exit. With `if_idle` the worker declines while it has clients or work."""

    if_idle: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Stopping:
    """The answer to Stop."""

    accepted: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Adopt:
    """Launcher to container, at start-up: here (one descriptor) is the socket to listen on."""

    token: str = ""  # clients have to show it, where the worker cannot tell users apart
    shared: bool = True  # whether later runs of the launcher's user know it


Message: TypeAlias = (
    Hello
    | Welcome
    | Ready
    | Images
    | Results
    | End
    | Done
    | Fatal
    | StatusRequest
    | Status
    | LogsRequest
    | Logs
    | Stop
    | Stopping
    | Adopt
)


def _kinds(annotation: Any) -> tuple[type, ...]:
    """The classes that a value of this annotation may have; int passes for float."""
    if typing.get_origin(annotation) is types.UnionType:
        return tuple(kind for part in typing.get_args(annotation) for kind in _kinds(part))
    origin = typing.get_origin(annotation) or annotation
    return (float, int) if origin is float else (origin,)


def _element_kinds(annotation: Any) -> tuple[type, ...] | None:
    arguments = typing.get_args(annotation)
    return _kinds(arguments[0]) if typing.get_origin(annotation) is list else None


# type name -> (class, {field: (classes of the value, classes of its elements if a list)})
_SCHEMAS: dict[str, tuple[type, dict[str, tuple[tuple[type, ...], tuple[type, ...] | None]]]] = {
    cls.__name__: (
        cls,
        {
            name: (_kinds(hint), _element_kinds(hint))
            for name, hint in typing.get_type_hints(cls).items()
        },
    )
    for cls in typing.get_args(Message)
}


def _is(value: object, kinds: tuple[type, ...]) -> bool:
    # bool is an int to Python, but not to this protocol.
    return isinstance(value, kinds) and (bool in kinds or not isinstance(value, bool))


def pack(message: Message) -> bytes:
    """The payload of `message`."""
    payload = {name: getattr(message, name) for name in _SCHEMAS[type(message).__name__][1]}
    payload["type"] = type(message).__name__
    return typing.cast("bytes", msgpack.packb(payload))


def unpack(payload: bytes) -> Message:
    """The message in a payload.

    Raises:
        ProtocolError: if it is not msgpack, of no known type, or a field is missing, unknown or
            of the wrong kind.
    """
    try:
        content = msgpack.unpackb(payload, max_array_len=MAX_ELEMENTS, max_map_len=MAX_ELEMENTS)
    except Exception as error:  # msgpack raises ValueError, TypeError and its own classes
        raise ProtocolError(f"payload is not msgpack: {error}") from None
    if not isinstance(content, dict):
        raise ProtocolError(f"payload is a {type(content).__name__}, not a map")
    name = content.pop("type", None)
    if not isinstance(name, str) or name not in _SCHEMAS:
        raise ProtocolError(f"unknown message type {name!r:.80}")
    cls, fields = _SCHEMAS[name]
    if content.keys() != fields.keys():
        odd = sorted(map(repr, content.keys() ^ fields.keys()))
        raise ProtocolError(f"{name}: fields missing or unknown: {', '.join(odd)[:200]}")
    for key, (kinds, element_kinds) in fields.items():
        value = content[key]
        if not _is(value, kinds):
            raise ProtocolError(f"{name}.{key} is a {type(value).__name__}")
        if element_kinds and not all(_is(element, element_kinds) for element in value):
            raise ProtocolError(f"{name}.{key} has an element of the wrong kind")
    return typing.cast("Message", cls(**content))


def encode(message: Message, descriptors: int = 0) -> bytes:
    """The bytes of one frame that declares that many descriptors.

    Raises:
        ProtocolError: if the frame would be larger than a receiver takes.
    """
    payload = pack(message)
    if len(payload) > MAX_PAYLOAD:
        raise ProtocolError(f"frame of {len(payload)} bytes is over the limit of {MAX_PAYLOAD}")
    if descriptors > MAX_DESCRIPTORS:
        raise ProtocolError(f"{descriptors} descriptors are over the limit of {MAX_DESCRIPTORS}")
    return HEADER.pack(MAGIC, descriptors, len(payload)) + payload


@dataclass(frozen=True, slots=True)
class Frame:
    """One received message with its descriptors, which the receiver now owns."""

    message: Message
    descriptors: tuple[int, ...] = ()

    def close(self) -> None:
        """Close the descriptors."""
        close_all(self.descriptors)


def close_all(descriptors: Iterable[int]) -> None:
    """Close descriptors, whatever state they are in."""
    for descriptor in descriptors:
        with contextlib.suppress(OSError):
            os.close(descriptor)


@dataclass(slots=True)
class FrameDecoder:
    """Turns a stream of bytes and descriptors into frames, however the stream was split.

    After a ProtocolError the decoder has closed the descriptors that it held and is unusable.
    """

    max_payload: int = MAX_PAYLOAD
    max_descriptors: int = MAX_DESCRIPTORS
    _buffer: bytearray = field(default_factory=bytearray)
    _descriptors: deque[int] = field(default_factory=deque)

    def feed(self, data: bytes, descriptors: Sequence[int] = ()) -> list[Frame]:
        """The frames that are complete now.

        Raises:
            ProtocolError: on a wrong magic, an excessive length, fewer descriptors than a frame
                declares, or descriptors that no frame declared.
        """
        self._buffer += data
        self._descriptors.extend(descriptors)
        frames: list[Frame] = []
        try:
            while (frame := self._next()) is not None:
                frames.append(frame)
            # Descriptors travel with the first byte of their frame, so there can be none without
            # one, and never more than the frames in the buffer could declare.
            if self._descriptors and not self._buffer:
                raise ProtocolError(f"{len(self._descriptors)} undeclared descriptors")
            if len(self._descriptors) > self.max_descriptors:
                raise ProtocolError("too many descriptors")
        except ProtocolError:
            for frame in frames:
                frame.close()
            self.close()
            raise
        return frames

    def _next(self) -> Frame | None:
        if len(self._buffer) < HEADER.size:
            # Garbage is refused at its first wrong byte: a peer that sends less than a header
            # and then waits must not look like a slow one.
            if not MAGIC.startswith(bytes(self._buffer[: len(MAGIC)])):
                raise ProtocolError("wrong magic: the peer does not speak this protocol")
            return None
        magic, count, size = HEADER.unpack_from(self._buffer)
        if magic != MAGIC:
            raise ProtocolError("wrong magic: the peer does not speak this protocol")
        if size > self.max_payload:
            raise ProtocolError(f"a frame of {size} bytes is over the limit of {self.max_payload}")
        if count > self.max_descriptors:
            raise ProtocolError(f"{count} descriptors are over the limit of {self.max_descriptors}")
        end = HEADER.size + size
        if len(self._buffer) < end:
            return None
        if len(self._descriptors) < count:
            raise DescriptorError(
                f"the frame declares {count} descriptors, {len(self._descriptors)} came"
            )
        message = unpack(bytes(self._buffer[HEADER.size : end]))
        del self._buffer[:end]
        return Frame(message, tuple(self._descriptors.popleft() for _ in range(count)))

    @property
    def in_frame(self) -> bool:
        """Whether a frame has begun and not ended: an end of stream here is a cut."""
        return bool(self._buffer)

    def close(self) -> None:
        """Close the descriptors that no frame has taken."""
        close_all(self._descriptors)
        self._descriptors.clear()
        self._buffer.clear()


# ---------------------------------------------------------------- sockets


def send_frame(sock: socket.socket, message: Message, descriptors: Sequence[int] = ()) -> None:
    """Send one frame, whole, on a blocking socket (its timeout is the deadline of each step).

    Raises:
        OSError: as the socket does, TimeoutError among them.
        ProtocolError: if the frame is too large.
    """
    data = memoryview(encode(message, len(descriptors)))
    sent = socket.send_fds(sock, [data], list(descriptors)) if descriptors else 0
    if sent < len(data):
        sock.sendall(data[sent:])


def receive(sock: socket.socket) -> tuple[bytes, list[int]]:
    """What one recvmsg gives: bytes (empty at the end of the stream) and descriptors.

    Raises:
        OSError: as the socket does; BlockingIOError where there is nothing yet.
        DescriptorError: if the kernel had to drop descriptors (too many, a full descriptor table,
            or a security policy).
    """
    space = socket.CMSG_SPACE(MAX_DESCRIPTORS * array.array("i").itemsize)
    data, ancillary, flags, _ = sock.recvmsg(RECEIVE_SIZE, space, socket.MSG_CMSG_CLOEXEC)
    descriptors = array.array("i")
    for level, kind, content in ancillary:
        if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
            descriptors.frombytes(content[: len(content) - len(content) % descriptors.itemsize])
    if flags & socket.MSG_CTRUNC:
        close_all(descriptors)
        raise DescriptorError("descriptors were lost on the way")
    return data, list(descriptors)


def probe_descriptor() -> int:
    """A new descriptor that holds `PROBE`; the caller closes it."""
    descriptor = os.memfd_create("wuwan-probe", os.MFD_CLOEXEC)
    os.write(descriptor, PROBE)
    return descriptor
