"""Workers on daemons that share no file system with us: frames through `docker exec`.

`RemoteWorkers` stands in for `Workers`. Each connection is one end of a local socket pair; threads
carry what is written there to `wuwan_worker.serving.bridge` inside the container and back, file
contents instead of descriptors. So the rest of the runner sees an ordinary connection.

Here the container's name is the lock: the daemon gives it to one of several clients that start the
same worker at once.
"""

from __future__ import annotations

import contextlib
import os
import socket
import struct
import threading
import time
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from wuwan_runner import daemon
from wuwan_runner.errors import EngineError
from wuwan_runner.launchers import docker as containers
from wuwan_runner.launchers.base import Ending
from wuwan_runner.staff import Staff
from wuwan_runner.wire.address import namespace
from wuwan_runner.wire.connection import Connection, ConnectionLostError
from wuwan_runner.wire.control import Control, GoneError, NoAnswerError
from wuwan_worker.shared import blobs, protocol
from wuwan_worker.shared.protocol import FrameDecoder, pack

if TYPE_CHECKING:
    from collections.abc import Iterator

    from wuwan_runner.launchers.base import Order
    from wuwan_runner.options import Timeouts

LISTEN_NAME = "wuwan-worker"  # in the container's own network namespace
_STREAM = struct.Struct(">BxxxL")  # Docker's multiplexed stream: kind, length
_STDOUT = 1
_AGAIN = 0.1
_JOIN = 5.0
_CHUNK = 1024 * 1024


class RemoteWorkers(Staff):
    """Workers in containers of a daemon that shares no file system with us."""

    def acquire(self, slot: int) -> Connection:
        """A connection to the worker in that slot, which is started if there is none."""
        return self._connection(slot, f"{namespace()}-{self._key}-{slot}", private=False)

    def acquire_private(self) -> Connection:
        """A connection to a new worker of this run alone."""
        name = f"{namespace()}-{self._key}-private-{os.urandom(4).hex()}"
        return self._connection(0, name, private=True)

    def _connection(self, slot: int, name: str, *, private: bool) -> Connection:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        order = self._order(slot, private=private)
        link = Link(theirs, name, self._options.timeouts, Errand(order, self._key))
        connection = Connection(ours, slot, private, self._options.timeouts, link)
        # A start that has failed already says why when its end is read.
        with contextlib.suppress(ConnectionLostError):
            connection.greet(self._options)
        return connection


@contextmanager
def control_of(name: str, timeouts: Timeouts) -> Iterator[Control]:
    """A control connection to the worker in the container of that name.

    Raises:
        NoAnswerError: if there is no such worker, or it does not answer.
    """
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
    link = Link(theirs, name, timeouts, None)
    try:
        with Control(ours, timeouts.control) as control:
            yield control
    except GoneError:
        # The channel has an end, too, and that one is no worker's.
        if link.error is not None and not isinstance(link.error, _NoContainerError):
            raise NoAnswerError(str(link.error)) from None
        raise
    finally:
        link.release()


class _NoContainerError(EngineError):
    """There is no container of that name, and none is to be started."""


@dataclass(frozen=True, slots=True)
class Errand:
    """The container to start where there is none."""

    order: Order
    key: str  # see `Launcher.key`


class Link:
    """Owns the threads between one connection and one container; stands in for `Launch`."""

    def __init__(
        self,
        sock: socket.socket,
        name: str,
        timeouts: Timeouts,
        errand: Errand | None,
    ) -> None:
        """Without an errand no container is started: one that is not there is an error."""
        self.error: EngineError | None = None
        self.warm = False  # the container was there already
        self._errand = errand
        self._timeouts = timeouts
        self._name = name
        self._sock = sock
        self._closing = threading.Event()
        self._stream: Any = None
        self._file: Any = None  # docker-py's wrapper of the stream
        self._stderr = bytearray()
        self._log: containers.LogTail | None = None  # of the container, if it was started here
        self._thread = threading.Thread(target=self._run, name="exec-channel", daemon=True)
        self._thread.start()

    def report(self) -> Ending:
        """How the worker ended; empty if that is not known."""
        ending = Ending()
        with contextlib.suppress(EngineError), daemon.connected(self._timeout) as client:
            ending = daemon.post_mortem(client, self._name)
        log = self._log.ended(0.0) if self._log is not None and ending.reason else ""
        return ending.with_log(log or self._stderr.decode(errors="replace").strip())

    def kill(self) -> None:
        """Remove the container. Raises EngineError if that cannot be done."""
        containers.remove(self._name, self._timeouts)
        self.release()

    def release(self) -> None:
        """End the channel; the worker lives on."""
        self._closing.set()
        self._hang_up()
        self._thread.join(_JOIN)

    @property
    def _timeout(self) -> float:
        return self._timeouts.docker

    def _hang_up(self) -> None:
        for end in (self._sock, self._stream):
            if end is not None:
                with contextlib.suppress(OSError):
                    end.shutdown(socket.SHUT_RDWR)

    def _run(self) -> None:
        inward: threading.Thread | None = None
        try:
            with daemon.connected(self._timeout) as client:
                self._stream = self._attach(client)
                inward = threading.Thread(target=self._inward, name="exec-inward", daemon=True)
                inward.start()
                self._outward()
        except EngineError as error:
            if not self._closing.is_set():
                self.error = error
        except Exception as error:  # must reach the run, which is in another thread
            self.error = EngineError(f"the exec channel failed: {type(error).__name__}: {error}")
        finally:
            self._hang_up()
            if inward is not None:
                inward.join(_JOIN)
            self._sock.close()
            if self._stream is not None:
                self._stream.close()
                # The descriptor stays open until the wrapper is closed, too.
                self._file.close()
            if self._log is not None:
                self._log.close()

    # ------------------------------------------------------------ the container

    def _attach(self, client: Any) -> socket.socket:
        """Find or start the container, and run the bridge in it; the raw stream to it."""
        import docker.errors

        deadline = time.monotonic() + self._timeouts.start
        while time.monotonic() < deadline and not self._closing.is_set():
            try:
                if self._up(client):
                    self.warm = self._log is None
                    return self._bridge(client)
            except docker.errors.NotFound as error:
                if isinstance(error, docker.errors.ImageNotFound):
                    raise
            except docker.errors.APIError as error:
                # 409: somebody else creates it, or the old one of that name is being removed.
                if error.status_code != 409 and "is not running" not in str(error):
                    raise
            time.sleep(_AGAIN)
        if self._log is not None and self._closing.is_set():
            # We go before we have come, and perhaps nobody else comes. A client that is there by
            # now finds another worker, as after `wuwan stop`.
            with contextlib.suppress(docker.errors.APIError):
                client.api.kill(self._name, "SIGTERM")
        raise EngineError(
            f"the worker {self._name} did not come up within {self._timeouts.start:.0f} s",
            hint=f"docker logs {self._name}",
        )

    def _up(self, client: Any) -> bool:
        """Whether the container runs; if it is not there, it is started."""
        state = self._state(client)
        if self._errand is None:
            if not state:
                raise _NoContainerError(f"there is no container {self._name}")
        elif not state:
            if self._log is not None:  # we have started one already
                ending = daemon.post_mortem(client, self._name).with_log(self._log.ended(_JOIN))
                raise containers.half_start(ending)
            self._create(client, self._errand)
        elif state == "created":
            # Its creator is about to start it, or died before it could; twice does no harm.
            client.api.start(self._name)
        elif state in ("exited", "dead"):  # it should have removed itself
            client.api.remove_container(self._name, force=True, v=True)
            return False
        return True

    def _state(self, client: Any) -> str:
        """As `docker ps` shows it; "" if there is no such container."""
        import docker.errors

        try:
            return str(client.api.inspect_container(self._name)["State"]["Status"])
        except docker.errors.NotFound:
            return ""

    def _create(self, client: Any, errand: Errand) -> None:
        listen = ["--listen", LISTEN_NAME]
        container = containers.create(client, errand.order, self._name, listen, key=errand.key)
        log = containers.LogTail()
        try:
            log.follow(client, container)
            client.api.start(container)
            self._log = log
        except BaseException:
            log.close()
            with contextlib.suppress(Exception):
                client.api.remove_container(container, force=True, v=True)
            raise

    def _bridge(self, client: Any) -> socket.socket:
        """The bridge waits for the worker to listen."""
        command = ["python", "-m", "wuwan_worker.serving.bridge", LISTEN_NAME]
        exec_id = client.api.exec_create(self._name, command, stdin=True)["Id"]
        self._file = client.api.exec_start(exec_id, socket=True)
        # docker-py wraps the connection in a file for some transports, which reads only.
        raw: socket.socket = getattr(self._file, "_sock", self._file)
        raw.settimeout(None)  # the run has the deadlines; it hangs up
        return raw

    # ------------------------------------------------------------ the bytes

    def _inward(self) -> None:
        """Client to worker: frames, and the contents of their descriptors."""
        decoder = FrameDecoder()
        try:
            while True:
                data, descriptors = protocol.receive(self._sock)
                if not data:
                    break
                for frame in decoder.feed(data, descriptors):
                    try:
                        payload = pack(frame.message)
                        header = protocol.HEADER.pack(
                            protocol.MAGIC, len(frame.descriptors), len(payload)
                        )
                        self._stream.sendall(header + payload)
                        for descriptor in frame.descriptors:
                            self._send_blob(descriptor)
                    finally:
                        frame.close()
        except (OSError, protocol.ProtocolError):
            pass
        finally:
            decoder.close()
            with contextlib.suppress(OSError):
                self._stream.shutdown(socket.SHUT_WR)

    def _send_blob(self, descriptor: int) -> None:
        size = os.fstat(descriptor).st_size
        self._stream.sendall(blobs.HEADER.pack(size))
        offset = 0
        while offset < size:
            chunk = os.pread(descriptor, min(_CHUNK, size - offset), offset)
            if not chunk:  # cut while it is read: the length is promised, the decoder will tell
                chunk = bytes(min(_CHUNK, size - offset))
            self._stream.sendall(chunk)
            offset += len(chunk)

    def _outward(self) -> None:
        """Worker to client: the standard output inside Docker's multiplexed stream."""
        try:
            while True:
                header = self._exactly(_STREAM.size)
                kind, size = _STREAM.unpack(header)
                data = self._exactly(size)
                if kind == _STDOUT:
                    self._sock.sendall(data)
                else:
                    self._stderr += data[-4000:]
        except (OSError, EOFError):
            return

    def _exactly(self, size: int) -> bytes:
        data = bytearray()
        while len(data) < size:
            chunk = self._stream.recv(size - len(data))
            if not chunk:
                raise EOFError
            data += chunk
        return bytes(data)
