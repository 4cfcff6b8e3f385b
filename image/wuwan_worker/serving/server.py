"""The worker's one I/O thread: accepts clients, reads frames, writes answers, keeps the time."""

from __future__ import annotations

import contextlib
import logging
import math
import os
import selectors
import socket
import time
from collections import deque
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, assert_never

from wuwan_worker.jobs import FairQueue, Job
from wuwan_worker.serving.session import (
    ClientSession,
    Close,
    Greet,
    Recall,
    Send,
    StopWorker,
    Take,
    TellLogs,
    TellStatus,
    Terms,
    TurnAway,
)
from wuwan_worker.shared import peers, protocol
from wuwan_worker.shared.protocol import (
    Cancelled,
    DescriptorError,
    Fatal,
    FatalCode,
    Frame,
    FrameDecoder,
    Hello,
    Logs,
    ProtocolError,
    Result,
    Results,
    Status,
    Stopping,
    ToClient,
    ToWorker,
    Welcome,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Sequence

    from wuwan_worker.serving.lifecycle import Lifecycle
    from wuwan_worker.serving.session import Action

log = logging.getLogger(__name__)

# The least credits that a client gets: a few batches. Enough that decoding never waits for the
# client, little enough that no client needs many open files.
CREDITS = 32
MAX_CLIENTS = 512
HELLO_TIMEOUT = 10.0  # seconds a connection may stay silent before its Hello
# Who has said nothing for that long and is owed nothing has to go when places are short. Hundreds
# of connections that had said Hello kept everybody out for ever.
MAY_BE_SILENT = 5.0  # seconds
# The same for who has not even read its answers: its consumer may be a pager, and it loses them.
MAY_BE_DEAF = 60.0  # seconds
# How long answers to a client that does not read them are kept when the worker wants to end.
LINGER = 5.0
MAX_WAIT = 24 * 3600.0  # seconds; a TTL may be anything, what epoll takes has a limit (2^31 ms)
_ACCEPT_PAUSE = 0.05  # seconds without looking for clients, when no descriptor is free
_MAX_REQUEST = 64 * 1024  # bytes of a client's frame: it holds numbers and names


@dataclass(frozen=True, slots=True, kw_only=True)
class Identity:
    """What a worker says of itself."""

    name: str
    model: str
    fingerprint: str
    runner: str
    levels: tuple[str, ...] = ("",)  # that labels can be asked for at
    default_level: str = ""


@dataclass(slots=True, eq=False)
class _Client:
    id: int
    sock: socket.socket
    deadline: float  # monotonic clock: to have said Hello, or to have read what ends the connection
    session: ClientSession
    silent_since: float  # monotonic clock; when it last said something or was answered
    decoder: FrameDecoder[ToWorker] = field(
        default_factory=lambda: FrameDecoder(protocol.WORKER, max_payload=_MAX_REQUEST)
    )
    outgoing: bytearray = field(default_factory=bytearray)
    hanging_up: bool = False  # once `outgoing` is written
    events: int = selectors.EVENT_READ  # what the selector watches for


class Server:
    """Serves clients on a listening socket until the lifecycle is over."""

    def __init__(
        self,
        listener: socket.socket,
        identity: Identity,
        lifecycle: Lifecycle,
        *,
        owner: int,
        token: str = "",
        shared: bool = True,
        credits_: int = CREDITS,
        log_lines: Sequence[str] = (),
    ) -> None:
        """
        Args:
            listener: a listening Unix stream socket; closed by `run`.
            identity: for Welcome and Status.
            lifecycle: owned by the server from now on.
            owner: the user id whose clients are served; others are turned away, because an
                abstract socket has no file permissions.
            token: what clients have to show besides, if anything.
            shared: whether several runs may use the worker; otherwise it ends with its client.
            credits_: how many images a client may have unanswered.
            log_lines: the last log lines, live.
        """
        self.jobs = FairQueue()
        self.device = ""
        self.gpu_memory: Callable[[], int] = lambda: 0
        self._park: Callable[[], None] = lambda: None
        self.exit_code = 0
        self._listener: socket.socket | None = listener
        self._identity = identity
        self._lifecycle = lifecycle
        self._owner = owner
        self._shared = shared
        self._terms = Terms(
            model=identity.model,
            credits=credits_,
            levels=identity.levels,
            default_level=identity.default_level,
            token=token,
        )
        self._log_lines = log_lines
        self._clients: dict[int, _Client] = {}
        self._next_id = 0
        self._images_done = 0
        self._started = time.monotonic()
        self._posted: deque[Callable[[], None]] = deque()
        self._over = False
        self._ended = False
        self._accept_again = math.inf  # monotonic clock; finite while no client is looked for
        self._selector = selectors.DefaultSelector()
        # An eventfd, not a socket pair: one descriptor, and it may be written in a signal handler.
        self._wake = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        listener.setblocking(False)
        self._selector.register(listener, selectors.EVENT_READ, self._accept)
        self._selector.register(self._wake, selectors.EVENT_READ, self._woken)

    # ------------------------------------------------------------ from other threads

    def post(self, action: Callable[[], None]) -> None:
        """Have the server's thread run `action` soon. Safe from any thread and signal handler."""
        self._posted.append(action)
        if not self._ended:
            os.eventfd_write(self._wake, 1)

    def answer(self, client_id: int, results: Sequence[Result]) -> None:
        """Send results to a client; for the engine's threads."""
        self.post(lambda: self._answered(client_id, results))

    def loaded(
        self,
        device: str,
        gpu_memory: Callable[[], int] = lambda: 0,
        parked: Callable[[], bool] = lambda: False,
        park: Callable[[], None] = lambda: None,
    ) -> None:
        """The model is loaded; for the loader's thread.

        Args:
            device: what it runs on, for people.
            gpu_memory: says how many bytes are held there.
            parked: says whether the weights have left the GPU.
            park: asks for that; returns at once.
        """

        def apply() -> None:
            self.device, self.gpu_memory, self._park = device, gpu_memory, park
            self._lifecycle.parked = parked
            self._lifecycle.loaded()
            log.info("ready on %s after %.2f s", device, time.monotonic() - self._started)
            for client in list(self._clients.values()):
                self._perform(client, client.session.loaded(device))

        self.post(apply)

    def fail(self, code: FatalCode, message: str, exit_code: int) -> None:
        """Tell every client, then end; for threads that cannot go on."""

        def apply() -> None:
            log.error("%s: %s", code, message)
            self.exit_code = exit_code
            self._close_listener()
            for client in list(self._clients.values()):
                self._turn_away(client, code, message)
            self._over = True

        self.post(apply)

    def hanging(self, count: int, stuck: bool) -> None:
        """So many decoders were written off and have not ended; for the engine's threads.

        Args:
            count: how many.
            stuck: whether others wait for what they hold.
        """

        def apply() -> None:
            self._lifecycle.hanging, self._lifecycle.stuck = count, stuck

        self.post(apply)

    def drain(self) -> None:
        """Take nothing more, answer what was received, end. Safe in a signal handler."""
        self.post(self._drain)

    # ------------------------------------------------------------ the loop

    def run(self) -> int:
        """Serve until the end; the process's exit code."""
        try:
            while not self._finished():
                for key, mask in self._selector.select(self._timeout()):
                    key.data(mask)
                self._expire_silent()
                self._watch_listener()
                self._park_if_due()
                self._retire_if_due()
            self._close_listener()
            self._flush_all()
        finally:
            for client in list(self._clients.values()):
                self._drop(client)
            self._close_listener()
            self._selector.close()
            self._ended = True  # a second SIGTERM may come now
            os.close(self._wake)
        return self.exit_code

    def _finished(self) -> bool:
        # Someone who has connected and is about to say Hello is a client to be; where it may be
        # anybody, the worker is not kept alive for it.
        silent = any(client.session.hello is None for client in self._clients.values())
        about_to_speak = silent and not self._terms.token
        return self._over or (self._lifecycle.over and not about_to_speak)

    def _timeout(self) -> float | None:
        now = time.monotonic()
        limits = [client.deadline - now for client in self._clients.values()]
        limits.append(self._accept_again - now)
        # A TTL that has run out while somebody is about to speak is no reason to look again.
        if left := self._lifecycle.ttl_left:
            limits.append(left)
        if (left := self._lifecycle.park_left) is not None:
            limits.append(left)
        limit = min(limits, default=math.inf)
        return None if limit == math.inf else max(0.0, min(limit, MAX_WAIT))

    def _woken(self, _mask: int) -> None:
        with contextlib.suppress(BlockingIOError):
            os.eventfd_read(self._wake)
        while self._posted:
            self._posted.popleft()()

    def _accept(self, _mask: int) -> None:
        if self._listener is None:
            return
        try:
            sock, _ = self._listener.accept()
        except OSError as error:  # the client has given up, or no descriptor is free
            log.warning("cannot accept a client: %s", error)
            # It stays in line, and the selector would spin.
            self._selector.unregister(self._listener)
            self._accept_again = time.monotonic() + _ACCEPT_PAUSE
            return
        sock.setblocking(False)
        now = time.monotonic()
        session = ClientSession(self._terms)
        client = _Client(self._next_id, sock, now + HELLO_TIMEOUT, session, silent_since=now)
        self._next_id += 1
        self._clients[client.id] = client
        self._selector.register(sock, selectors.EVENT_READ, lambda mask: self._ready(client, mask))
        if peers.uid(sock) != self._owner:
            self._turn_away(client, FatalCode.FORBIDDEN, "this worker belongs to another user")
        elif len(self._clients) > MAX_CLIENTS and not self._place_made():
            self._turn_away(client, FatalCode.FULL, f"{MAX_CLIENTS} clients are connected already")

    def _place_made(self) -> bool:
        """Let somebody go who has been silent for long and is owed nothing, for somebody new."""
        now = time.monotonic()
        idle = [
            client
            for client in self._clients.values()
            if client.session.idle
            and now - client.silent_since >= (MAY_BE_DEAF if client.outgoing else MAY_BE_SILENT)
        ]
        if not idle:
            return False
        client = min(idle, key=lambda one: (bool(one.outgoing), one.silent_since))
        log.info("client %d makes place: silent for %.0f s", client.id, now - client.silent_since)
        # Told as in a drain: one that is no attacker comes again when it has images.
        self._perform(client, client.session.let_go())
        self._drop(client)  # if it did not read even that
        return True

    def _watch_listener(self) -> None:
        """Look for clients again, where that was left off for a while."""
        if time.monotonic() >= self._accept_again:
            self._accept_again = math.inf
            if self._listener is not None:
                self._selector.register(self._listener, selectors.EVENT_READ, self._accept)

    def _expire_silent(self) -> None:
        now = time.monotonic()
        for client in list(self._clients.values()):
            if now > client.deadline:
                log.warning("client %d is dropped: it was silent for too long", client.id)
                self._drop(client)

    def _park_if_due(self) -> None:
        if self._lifecycle.park_left == 0.0:
            self._lifecycle.asked_to_park()
            self._park()

    def _retire_if_due(self) -> None:
        """Because of decoders that do not come back."""
        if self._over:
            return
        if self._lifecycle.spent:
            log.warning(
                "%d decoders were written off%s: what is unanswered goes elsewhere",
                self._lifecycle.hanging,
                ", and others wait for what they hold" if self._lifecycle.stuck else "",
            )
            self._close_listener()
            self._lifecycle.drain()
            for client in list(self._clients.values()):
                self._perform(client, client.session.let_go())
            self._over = True
        elif self._lifecycle.worn:
            self._drain()

    # ------------------------------------------------------------ one client

    def _ready(self, client: _Client, mask: int) -> None:
        if mask & selectors.EVENT_WRITE:
            self._write(client)
        if mask & selectors.EVENT_READ and client.id in self._clients and self._listens_to(client):
            self._read(client)

    def _listens_to(self, client: _Client) -> bool:
        return client.session.listened_to(len(client.outgoing))

    def _read(self, client: _Client) -> None:
        try:
            data, descriptors = protocol.receive(client.sock)
            frames = client.decoder.feed(data, descriptors)
        except BlockingIOError:
            return
        except DescriptorError as error:
            self._turn_away(client, FatalCode.DESCRIPTORS, str(error))
            return
        except ProtocolError as error:
            self._turn_away(client, FatalCode.PROTOCOL, str(error))
            return
        except OSError as error:
            log.info("client %d is lost: %s", client.id, error)
            self._drop(client)
            return
        if not data:
            self._drop(client)
            return
        for frame in frames:
            self._handle(client, frame)

    def _handle(self, client: _Client, frame: Frame[ToWorker]) -> None:
        if client.id not in self._clients or client.session.closing:
            frame.close()
            return
        client.silent_since = time.monotonic()
        actions = client.session.received(
            frame.message,
            descriptors=len(frame.descriptors),
            readable=isinstance(frame.message, Hello) and _is_probe(frame.descriptors),
            unread=len(client.outgoing),
        )
        if not any(isinstance(action, Take) for action in actions):
            frame.close()
        self._perform(client, actions, frame.descriptors)

    def _perform(
        self, client: _Client, actions: Sequence[Action], descriptors: Sequence[int] = ()
    ) -> None:
        """What the client's session says, until the client is lost or turned away."""
        for action in actions:
            if client.id not in self._clients or client.hanging_up:
                return
            match action:
                case Greet():
                    self._greet(client, action)
                case Send(message):
                    self._send(client, message)
                case Take():
                    self._take(client, action, descriptors)
                case Recall(ids):
                    self._recall(client, ids)
                case TellStatus():
                    self._send(client, self._status())
                case TellLogs():
                    self._send(client, Logs(lines=list(self._log_lines)))
                case StopWorker(if_idle):
                    accepted = self._lifecycle.idle or not if_idle
                    self._send(client, Stopping(accepted=accepted))
                    if accepted:
                        self._drain()
                case TurnAway(code, message):
                    self._turn_away(client, code, message)
                case Close():
                    self._close_when_written(client)
                case _:
                    assert_never(action)

    def _greet(self, client: _Client, greet: Greet) -> None:
        client.deadline = math.inf
        if greet.hello.tagging:
            self._lifecycle.client_came(greet.hello.ttl if self._shared else 0.0)
        log.info("client %d: %.100r", client.id, greet.hello.client)
        self._send(
            client,
            Welcome(
                name=self._identity.name,
                model=self._identity.model,
                fingerprint=self._identity.fingerprint,
                runner=self._identity.runner,
                device=self.device,
                state=self._lifecycle.state,
                pid=os.getpid(),
                credits=self._terms.credits,
                readable=greet.readable,
                shared=self._shared,
            ),
        )

    def _take(self, client: _Client, take: Take, descriptors: Sequence[int]) -> None:
        self._lifecycle.images_came(len(take.ids))
        images = zip(take.ids, descriptors, take.options, strict=True)
        self.jobs.put(client.id, [Job(client.id, *image) for image in images])

    def _recall(self, client: _Client, ids: Collection[int]) -> None:
        jobs = self.jobs.discard(client.id, ids)
        protocol.close_all(job.descriptor for job in jobs)
        if jobs:
            self._settle(client, [Cancelled(id=job.id) for job in jobs])

    def _answered(self, client_id: int, results: Sequence[Result]) -> None:
        self._images_done += len(results)
        if (client := self._clients.get(client_id)) is not None:
            self._settle(client, results)
        # Else it has gone; `_drop` has settled what it had.

    def _settle(self, client: _Client, results: Sequence[Result]) -> None:
        self._lifecycle.images_done(len(results))
        client.silent_since = time.monotonic()
        self._perform(client, client.session.answered_with(results))

    def _status(self) -> Status:
        life = self._lifecycle
        return Status(
            name=self._identity.name,
            model=self._identity.model,
            runner=self._identity.runner,
            device=self.device,
            state=life.state,
            pid=os.getpid(),
            clients=life.clients,
            images_done=self._images_done,
            queued=len(self.jobs),
            idle_for=life.idle_for,
            ttl=life.ttl,
            ttl_left=life.ttl_left,
            memory=_resident(),
            gpu_memory=self.gpu_memory(),
            uptime=time.monotonic() - self._started,
        )

    # ------------------------------------------------------------ writing and ending

    def _send(self, client: _Client, message: ToClient) -> None:
        try:
            client.outgoing += _encoded(message)
        except ProtocolError as error:
            self._turn_away(client, FatalCode.PROTOCOL, str(error))
            return
        self._write(client)

    def _write(self, client: _Client) -> None:
        try:
            while client.outgoing:
                sent = client.sock.send(client.outgoing, socket.MSG_NOSIGNAL)
                del client.outgoing[:sent]
        except BlockingIOError:
            pass
        except OSError:
            self._drop(client)
            return
        if client.hanging_up and not client.outgoing:
            self._drop(client)
            return
        unread = len(client.outgoing)
        events = selectors.EVENT_READ if client.session.listened_to(unread) else 0
        if client.outgoing:
            events |= selectors.EVENT_WRITE
        if events != client.events:
            client.events = events
            self._selector.modify(client.sock, events, self._selector.get_key(client.sock).data)

    def _close_when_written(self, client: _Client) -> None:
        if client.id in self._clients:
            client.session.close()
            client.hanging_up = True
            self._write(client)

    def _turn_away(self, client: _Client, code: FatalCode, message: str) -> None:
        log.warning("client %d is turned away: %s: %s", client.id, code, message)
        if client.id in self._clients and not client.hanging_up:
            # What it has broken is not worth waiting for long.
            client.deadline = time.monotonic() + LINGER
            self._send(client, Fatal(code=code, message=message))
            self._close_when_written(client)

    def _drop(self, client: _Client) -> None:
        if self._clients.pop(client.id, None) is None:
            return
        self._selector.unregister(client.sock)
        client.sock.close()
        client.decoder.close()
        protocol.close_all(job.descriptor for job in self.jobs.discard(client.id))
        # What decoders still have of it counts no more, either: nobody waits for the answer, and a
        # decoder or a loading model that hangs must not keep the worker when its clients are gone.
        self._lifecycle.images_done(client.session.unanswered)
        if client.session.tagging:
            self._lifecycle.client_left()

    def _close_listener(self) -> None:
        if self._listener is not None:
            with contextlib.suppress(KeyError, ValueError):
                self._selector.unregister(self._listener)
            self._listener.close()
            self._listener = None

    def _drain(self) -> None:
        if self._listener is None:
            return
        log.info("draining")
        self._close_listener()
        self._lifecycle.drain()
        for client in list(self._clients.values()):
            self._perform(client, client.session.drain())

    def _flush_all(self) -> None:
        """Give clients a last chance to read what was written for them."""
        self._selector.unregister(self._wake)
        for client in list(self._clients.values()):
            self._close_when_written(client)
        deadline = time.monotonic() + LINGER
        while self._clients and (left := deadline - time.monotonic()) > 0:
            for key, mask in self._selector.select(left):
                key.data(mask)


def _encoded(message: ToClient) -> bytes:
    """A frame; or several, if all labels of a large bundle are asked for.

    Raises:
        ProtocolError: if one result alone is too large.
    """
    try:
        return protocol.encode(message)
    except ProtocolError:
        if not isinstance(message, Results) or len(message.items) < 2:
            raise
        middle = len(message.items) // 2
        halves = message.items[:middle], message.items[middle:]
        return b"".join(_encoded(Results(items=half)) for half in halves)


def _is_probe(descriptors: Sequence[int]) -> bool:
    """Whether that is the probe of a Hello, and can be read."""
    try:
        return [os.pread(number, 64, 0) for number in descriptors] == [protocol.PROBE]
    except OSError:
        return False


def _resident() -> int:
    """Resident memory of this process, bytes (proc(5), statm)."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")
