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
send `StatusRequest`, `LogsRequest` or `Stop`, each of which has one reply, and `Cancel`, whose
images are answered as all others.

Each side reads the messages of its union alone, `ToWorker` or `ToClient`.

Peers of other versions. A field that is absent takes its default and one that is unknown is
ignored (`schema`), so fields may be added within a version. `VERSION` changes when what is said
means something else; a worker refuses to tag for a client of another version, and says so. For
everything else they understand each other for ever: whatever the version, `Hello` has the fields
of `LASTING`, and so has `Welcome`; `StatusRequest`, `Status`, `Stop`, `Stopping` and `Fatal` keep
their names and the kinds of their fields. So any `wuwan ps` sees every worker, and any `wuwan stop`
ends it.

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
import typing
from collections import deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Generic, TypeAlias, TypeVar

import msgpack

# Of the protocol, too, and known by its name.
from wuwan_worker.shared.results import Cancelled as Cancelled
from wuwan_worker.shared.results import Damage as Damage
from wuwan_worker.shared.results import ErrorCode as ErrorCode
from wuwan_worker.shared.results import Extras as Extras
from wuwan_worker.shared.results import Failed as Failed
from wuwan_worker.shared.results import Failure as Failure
from wuwan_worker.shared.results import Labelled as Labelled
from wuwan_worker.shared.results import LabelScore as LabelScore
from wuwan_worker.shared.results import Result as Result
from wuwan_worker.shared.results import WarningCode as WarningCode
from wuwan_worker.shared.results import read_results, result_map
from wuwan_worker.shared.schema import KindError, Schema, as_map, read_by

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


# ---------------------------------------------------------------- parts of messages


@dataclass(frozen=True, slots=True, kw_only=True)
class KeepAlive:
    """How long a worker stays after its last work, as its clients' arrivals advise.

    Reserved: no client sends it yet, and a worker goes by its TTL alone. Never stronger than a TTL
    that somebody has asked for.
    """

    park_after: float | None = None  # seconds of idleness until the weights leave the GPU; or never
    end_after: float | None = None  # seconds of idleness until the worker ends
    resident: bool = False  # it shall not park, and work renews its time
    reason: str = ""  # why, for people


@dataclass(frozen=True, slots=True, kw_only=True)
class Costs:
    """What a worker's comings and goings cost, as measured; None where nothing was measured.

    Reserved: no worker measures them yet.
    """

    start: float | None = None  # seconds from nothing to READY
    wake: float | None = None  # seconds that PARKED adds to the first answer
    resident: int | None = None  # bytes on the GPU, or else of the host, while READY
    parked: int | None = None  # bytes on the GPU while PARKED
    host: int | None = None  # bytes of host memory


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """What is wanted beside labels, for `Extras`. Reserved: workers ignore it yet."""

    digest: bool = False
    keywords: bool = False
    thumbnail: int = 0  # pixels of its longer side; 0: none


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageOptions:
    """How one image is to be labelled, where that differs from what Hello says; None: as Hello."""

    top_k: int | None = None
    min_score: float | None = None
    exact: bool | None = None
    level: str | None = None
    wanted: Wanted | None = None


# ---------------------------------------------------------------- messages to a worker


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
    wanted: Wanted | None = None  # for all images
    keep_alive: KeepAlive | None = None
    costs: Costs | None = None  # averages that the client knows of such workers


@dataclass(frozen=True, slots=True, kw_only=True)
class Images:
    """Images to label; one descriptor for each id, in the same order."""

    ids: list[int]
    options: list[ImageOptions] = field(default_factory=list)  # none, or one for each id


@dataclass(frozen=True, slots=True, kw_only=True)
class Cancel:
    """Images whose labels are not wanted any more.

    Each is answered all the same: those that nobody has begun with as `Cancelled`, at once, the
    others as they turn out. Ids of images that are answered already are ignored.
    """

    ids: list[int]


@dataclass(frozen=True, slots=True, kw_only=True)
class End:
    """The client has sent all its images: `count` of them."""

    count: int


@dataclass(frozen=True, slots=True, kw_only=True)
class StatusRequest:
    """Asks for Status."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LogsRequest:
    """Asks for the last log lines."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Stop:
    """Drain, then exit. With `if_idle` the worker declines while it has clients or work."""

    if_idle: bool = False


# ---------------------------------------------------------------- messages to a client


@dataclass(frozen=True, slots=True, kw_only=True)
class Welcome:
    """The worker's answer to Hello."""

    version: int = VERSION
    name: str
    model: str = ""
    fingerprint: str = ""  # sha256 of the bundle's manifest
    runner: str  # who started it, and can end it
    device: str = ""
    state: str = ""
    pid: int = 0  # in the worker's own PID namespace
    credits: int = 1  # images that may be unanswered
    readable: bool = False  # whether the probe descriptor arrived and could be read
    shared: bool = True  # False for a worker that ends with its client, as no other one can use it


@dataclass(frozen=True, slots=True, kw_only=True)
class Ready:
    """The model is loaded now; sent to clients whose Welcome said `starting`."""

    device: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Results:
    """Answers, in any order."""

    items: list[Result] = field(metadata=read_by(read_results))


@dataclass(frozen=True, slots=True, kw_only=True)
class Done:
    """The trailer: the worker has answered `count` images on this connection."""

    count: int
    costs: Costs | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Fatal:
    """The worker cannot serve this connection; it closes it after this frame."""

    code: str  # a FatalCode, or one that later workers have
    message: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Status:
    """What `wuwan ps` shows. Durations in seconds, memory in bytes."""

    name: str
    model: str = ""
    runner: str = ""
    device: str = ""
    state: str = ""
    pid: int = 0
    clients: int = 0
    images_done: int = 0
    queued: int = 0
    idle_for: float | None = None  # None while it has work or a client
    ttl: float = 0.0
    ttl_left: float | None = None
    memory: int = 0  # resident host memory
    gpu_memory: int = 0
    uptime: float = 0.0
    keep_alive: KeepAlive | None = None  # what it goes by
    costs: Costs | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Logs:
    """The last log lines, oldest first."""

    lines: list[str]


@dataclass(frozen=True, slots=True, kw_only=True)
class Stopping:
    """The answer to Stop."""

    accepted: bool


# ---------------------------------------------------------------- launcher to container


@dataclass(frozen=True, slots=True, kw_only=True)
class Adopt:
    """Launcher to container, at start-up: here (one descriptor) is the socket to listen on."""

    token: str = ""  # clients have to show it, where the worker cannot tell users apart
    shared: bool = True  # whether later runs of the launcher's user know it


# ---------------------------------------------------------------- who reads what

ToWorker: TypeAlias = Hello | Images | Cancel | End | StatusRequest | LogsRequest | Stop
ToClient: TypeAlias = Welcome | Ready | Results | Done | Fatal | Status | Logs | Stopping
Message: TypeAlias = ToWorker | ToClient | Adopt

M = TypeVar("M", bound=Message)

# What every version says and reads in these, for ever: enough to prove who one is, and to ask and
# command. Of another version nothing else is looked at.
LASTING = {
    "Hello": ("version", "client", "tagging", "token"),
    "Welcome": ("version", "name", "runner", "pid"),
}


class Side(Generic[M]):
    """Who reads a stream, and so which messages may be in it."""

    def __init__(self, name: str, kinds: tuple[type[M], ...]) -> None:
        self.name = name
        self.schemas: dict[str, Schema[M]] = {kind.__name__: Schema(kind) for kind in kinds}


WORKER: Side[ToWorker] = Side("a worker", typing.get_args(ToWorker))
CLIENT: Side[ToClient] = Side("a client", typing.get_args(ToClient))
CONTAINER: Side[Adopt] = Side("a container that starts", (Adopt,))

_TYPES = frozenset(name for side in (WORKER, CLIENT, CONTAINER) for name in side.schemas)


def pack(message: Message) -> bytes:
    """The payload of `message`."""
    payload = as_map(message)
    payload["type"] = type(message).__name__
    return typing.cast("bytes", msgpack.packb(payload, default=_as_map))


def _as_map(value: object) -> dict[str, object]:
    return result_map(value) if isinstance(value, Labelled | Failed | Cancelled) else as_map(value)


def unpack(payload: bytes, side: Side[M]) -> M:
    """The message in a payload that `side` has received.

    Raises:
        ProtocolError: if it is not msgpack, of no type that is for this side, or a field is
            missing or of the wrong kind.
    """
    try:
        content = msgpack.unpackb(
            payload, use_list=False, max_array_len=MAX_ELEMENTS, max_map_len=MAX_ELEMENTS
        )
    except Exception as error:  # msgpack raises ValueError, TypeError and its own classes
        raise ProtocolError(f"payload is not msgpack: {error}") from None
    if not isinstance(content, dict):
        raise ProtocolError(f"payload is a {type(content).__name__}, not a map")
    name = content.get("type")
    if not isinstance(name, str) or name not in _TYPES:
        raise ProtocolError(f"unknown message type {name!r:.80}")
    if (schema := side.schemas.get(name)) is None:
        raise ProtocolError(f"{name} is not for {side.name}")
    try:
        if name in LASTING and _other_version(content):
            return schema.salvage(content, LASTING[name])
        return schema.read(content)
    except KindError as error:
        raise ProtocolError(str(error)) from None


def _other_version(content: dict[str, Any]) -> bool:
    version = content.get("version", VERSION)
    return type(version) is int and version != VERSION


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
class Frame(Generic[M]):
    """One received message with its descriptors, which the receiver now owns."""

    message: M
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
class FrameDecoder(Generic[M]):
    """Turns the stream of bytes and descriptors that a side receives into frames.

    However the stream was split.

    After a ProtocolError the decoder has closed the descriptors that it held and is unusable.
    """

    side: Side[M]
    max_payload: int = MAX_PAYLOAD
    max_descriptors: int = MAX_DESCRIPTORS
    _buffer: bytearray = field(default_factory=bytearray)
    _descriptors: deque[int] = field(default_factory=deque)

    def feed(self, data: bytes, descriptors: Sequence[int] = ()) -> list[Frame[M]]:
        """The frames that are complete now.

        Raises:
            ProtocolError: on a wrong magic, an excessive length, a message that is not for this
                side, fewer descriptors than a frame declares, or descriptors that no frame
                declared.
        """
        self._buffer += data
        self._descriptors.extend(descriptors)
        frames: list[Frame[M]] = []
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

    def _next(self) -> Frame[M] | None:
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
        message = unpack(bytes(self._buffer[HEADER.size : end]), self.side)
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
