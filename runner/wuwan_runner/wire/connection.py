"""One worker, as one run uses it: the socket, and the images that it has not answered."""

from __future__ import annotations

import contextlib
import errno
import os
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from wuwan_worker import __version__
from wuwan_worker.shared import protocol
from wuwan_worker.shared.protocol import (
    FrameDecoder,
    Hello,
    Images,
    State,
    ToClient,
    ToWorker,
    Welcome,
)

if TYPE_CHECKING:
    import socket
    from collections.abc import Sequence

    from wuwan_runner.inputs.base import Item
    from wuwan_runner.options import TagOptions, Timeouts
    from wuwan_runner.worker import StartedWorker

# unix(7): more descriptors are under way than RLIMIT_NOFILE allows; receivers make room in no time.
_RETRY_PAUSE = 0.005


class ConnectionLostError(Exception):
    """The worker is gone, or has broken the protocol."""


@dataclass(slots=True, eq=False)
class Connection:
    """A connection to a worker that is up or on its way up."""

    sock: socket.socket
    index: int
    private: bool  # a worker of this run alone, for images that are suspected of killing workers
    timeouts: Timeouts
    started: StartedWorker | None  # if this run has started the worker
    token: str = ""  # see `proof`
    welcome: Welcome | None = None
    ready: bool = False  # the model is loaded
    answered: int = 0
    outstanding: dict[int, tuple[Item, float]] = field(default_factory=dict)  # by id; time sent
    last_activity: float = field(default_factory=time.monotonic)
    _ready_since: float = 0.0
    _decoder: FrameDecoder[ToClient] = field(default_factory=lambda: FrameDecoder(protocol.CLIENT))

    def greet(self, options: TagOptions) -> None:
        """Send Hello."""
        probe = protocol.probe_descriptor()
        try:
            self._send(
                Hello(
                    client=f"wuwan {__version__} (pid {os.getpid()})",
                    top_k=options.top_k,
                    min_score=options.min_score,
                    exact=options.exact,
                    level=options.level,
                    # A private worker leaves with us: nobody else can find it.
                    ttl=0.0 if self.private else options.ttl,
                    token=self.token,
                ),
                [probe],
            )
        finally:
            os.close(probe)

    @property
    def room(self) -> int:
        """How many more images the worker may be given now."""
        if self.welcome is None:
            return 0
        if self.private:
            # Alone, so that there is no doubt which image it was; and only once the model is
            # loaded, so that there is no doubt that it was the image.
            return 1 - len(self.outstanding) if self.ready else 0
        return self.welcome.credits - len(self.outstanding)

    @property
    def deadline(self) -> float:
        """When the worker counts as hung, on the monotonic clock; infinity if it owes nothing.

        Until the model is loaded it owes that.
        """
        if self.welcome is None or not self.ready:
            return self.last_activity + self.timeouts.start
        if not self.outstanding:
            return float("inf")
        # Silence is one sign. A decoder that hangs on one image while others go on is another:
        # then the oldest image is the one that waits.
        oldest = max(next(iter(self.outstanding.values()))[1], self._ready_since)
        return min(
            self.last_activity + self.timeouts.silence(len(self.outstanding)),
            oldest + self.timeouts.silence(self.welcome.credits),
        )

    def became_ready(self) -> None:
        """The model is loaded."""
        self.ready = True
        self._ready_since = time.monotonic()

    def send_images(self, items: Sequence[tuple[Item, int]]) -> None:
        """Send images; their descriptors are closed, whatever happens.

        Raises:
            ConnectionLostError: if they could not be sent; they count as outstanding all the same.
        """
        now = time.monotonic()
        if not self.outstanding:
            self.last_activity = now
        self.outstanding.update((item.number, (item, now)) for item, _ in items)
        descriptors = [descriptor for _, descriptor in items]
        try:
            self._send(Images(ids=[item.number for item, _ in items]), descriptors)
        finally:
            protocol.close_all(descriptors)

    def send(self, message: ToWorker) -> None:
        """Send a message without descriptors. Raises ConnectionLostError."""
        self._send(message, ())

    def _send(self, message: ToWorker, descriptors: Sequence[int]) -> None:
        deadline = time.monotonic() + self.timeouts.batch
        self.sock.settimeout(self.timeouts.batch)
        while True:
            try:
                protocol.send_frame(self.sock, message, descriptors)
            except OSError as error:
                if error.errno == errno.ETOOMANYREFS and time.monotonic() < deadline:
                    time.sleep(_RETRY_PAUSE)
                    continue
                raise ConnectionLostError(f"sending to the worker failed: {error}") from None
            return

    def receive(self) -> list[ToClient]:
        """All messages that have arrived; does not wait.

        Raises:
            ConnectionLostError: at the end of the stream, once everything before it has been taken.
        """
        messages: list[ToClient] = []
        self.sock.setblocking(False)
        try:
            while True:
                data = self.sock.recv(protocol.RECEIVE_SIZE)
                if not data:
                    raise ConnectionLostError("the worker closed the connection")
                messages += [frame.message for frame in self._decoder.feed(data)]
        except BlockingIOError:
            pass
        except (OSError, protocol.ProtocolError) as error:
            if not messages:
                raise ConnectionLostError(str(error)) from None
        except ConnectionLostError:
            if not messages:
                raise
        if messages:
            self.last_activity = time.monotonic()
        return messages

    def greeted(self, welcome: Welcome) -> None:
        """The worker has answered."""
        self.welcome = welcome
        if welcome.state != State.STARTING:
            self.became_ready()

    def close(self) -> None:
        """Close the socket; the worker lives on."""
        self._decoder.close()
        with contextlib.suppress(OSError):
            self.sock.close()
