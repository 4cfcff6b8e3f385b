"""Connections to workers by `docker exec`, for daemons that share no file system with us.

An ordinary connection is one end of a local socket pair; threads carry what is written there to
`wuwan_worker.serving.bridge` inside the container and back (`wire.stream`). So the rest of the
runner sees no difference.

Here the container's name is the lock: the daemon gives it to one of several clients that start the
same worker at once.
"""

from __future__ import annotations

import contextlib
import socket
import struct
import threading
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from wuwan_runner.containers import container, daemon, endings
from wuwan_runner.containers.endings import LogTail
from wuwan_runner.errors import WorkerUnavailableError
from wuwan_runner.wire import stream
from wuwan_runner.wire.control import Control, GoneError, NoAnswerError
from wuwan_runner.worker import WorkerExit

if TYPE_CHECKING:
    from collections.abc import Iterator

    import docker

    from wuwan_runner.options import Timeouts
    from wuwan_runner.worker import StartRequest

LISTEN_NAME = "wuwan-worker"  # in the container's own network namespace
_HEADER = struct.Struct(">BxxxL")  # of Docker's multiplexed stream: kind, length
_STDOUT = 1
_STDERR_TAIL = 4000  # bytes
_AGAIN = 0.1
_JOIN = 5.0


class NoContainerError(WorkerUnavailableError):
    """There is no container of that name, and none is to be started."""


@contextmanager
def control_of(name: str, timeouts: Timeouts) -> Iterator[Control]:
    """A control connection to the worker in the container of that name.

    Raises:
        NoAnswerError: if there is no such worker, or it does not answer.
    """
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
    transport = ExecTransport(theirs, Attachment(name, timeouts), timeouts)
    try:
        with Control(ours, timeouts.control) as control:
            yield control
    except GoneError:
        # The channel has an end, too, and that one is no worker's.
        if transport.error is not None and not isinstance(transport.error, NoContainerError):
            raise NoAnswerError(str(transport.error)) from None
        raise
    finally:
        transport.release()


class ExecTransport:
    """Owns the threads between one connection and one container; stands in for `PendingWorker`."""

    def __init__(self, sock: socket.socket, attachment: Attachment, timeouts: Timeouts) -> None:
        """
        Args:
            sock: the end of the connection's socket pair that is ours from now on.
            attachment: the container's.
            timeouts: for calls to the daemon.
        """
        self.error: WorkerUnavailableError | None = None
        self._sock = sock
        self._attachment = attachment
        self._timeouts = timeouts
        self._bridge: Bridge | None = None
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._run, name="exec-channel", daemon=True)
        self._thread.start()

    @property
    def warm(self) -> bool:
        """Whether the container was there already."""
        return self._bridge is not None and self._attachment.log is None

    def report(self) -> WorkerExit:
        """How the worker ended; empty if that is not known."""
        ending = WorkerExit()
        with (
            contextlib.suppress(WorkerUnavailableError),
            daemon.connected(self._timeouts.docker) as client,
        ):
            ending = endings.post_mortem(client, self._attachment.name)
        log = ""
        if self._attachment.log is not None and ending.reason:
            log = self._attachment.log.ended(0.0)
        return ending.with_log(log or (self._bridge.errors if self._bridge else ""))

    def kill(self) -> None:
        """Remove the container. Raises WorkerUnavailableError if that cannot be done."""
        container.remove(self._attachment.name, self._timeouts)
        self.release()

    def release(self) -> None:
        """End the channel; the worker lives on."""
        self._closing.set()
        self._hang_up()
        self._thread.join(_JOIN)

    def _hang_up(self) -> None:
        with contextlib.suppress(OSError):
            self._sock.shutdown(socket.SHUT_RDWR)
        if self._bridge is not None:
            self._bridge.hang_up()

    def _run(self) -> None:
        inward: threading.Thread | None = None
        try:
            with daemon.connected(self._timeouts.docker) as client:
                self._bridge = bridge = self._attachment.open(client, self._closing)
                inward = threading.Thread(
                    target=stream.inward, args=(self._sock, bridge), name="exec-inward", daemon=True
                )
                inward.start()
                stream.outward(bridge, self._sock)
        except WorkerUnavailableError as error:
            if not self._closing.is_set():
                self.error = error
        except Exception as error:  # must reach the run, which is in another thread
            self.error = WorkerUnavailableError(
                f"the exec channel failed: {type(error).__name__}: {error}"
            )
        finally:
            self._hang_up()
            if inward is not None:
                inward.join(_JOIN)
            self._sock.close()
            if self._bridge is not None:
                self._bridge.close()
            if self._attachment.log is not None:
                self._attachment.log.close()


class Bridge:
    """A `ByteStream`: the bridge's standard input and output, in Docker's multiplexed stream."""

    def __init__(self, file: Any) -> None:
        """`file`: what docker-py gives for a started exec with a socket."""
        self._file = file
        # docker-py wraps the connection in a file for some transports, which reads only.
        self._sock: socket.socket = getattr(file, "_sock", file)
        self._sock.settimeout(None)  # the run has the deadlines; it hangs up
        self._stderr = bytearray()

    @property
    def errors(self) -> str:
        """The last of its standard error."""
        return self._stderr.decode(errors="replace").strip()

    def read(self) -> bytes:
        """See `ByteStream`."""
        while True:
            header = self._exactly(_HEADER.size)
            if not header:
                return b""
            kind, size = _HEADER.unpack(header)
            data = self._exactly(size)
            if kind == _STDOUT and size:
                return data
            self._stderr = (self._stderr + data)[-_STDERR_TAIL:]

    def _exactly(self, size: int) -> bytes:
        """So many bytes; nothing if the stream ends before."""
        data = bytearray()
        while len(data) < size:
            chunk = self._sock.recv(size - len(data))
            if not chunk:
                return b""
            data += chunk
        return bytes(data)

    def write(self, data: bytes) -> None:
        """See `ByteStream`."""
        self._sock.sendall(data)

    def finish(self) -> None:
        """See `ByteStream`."""
        self._sock.shutdown(socket.SHUT_WR)

    def hang_up(self) -> None:
        """End both directions, so that whoever waits for one goes on."""
        with contextlib.suppress(OSError):
            self._sock.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        """Free it, once nobody waits for it."""
        self._sock.close()
        # The descriptor stays open until the wrapper is closed, too.
        self._file.close()


class Attachment:
    """The container of that name, found or started, and the bridge that is run in it."""

    def __init__(self, name: str, timeouts: Timeouts, request: StartRequest | None = None) -> None:
        """Without a request no container is started: one that is not there is an error."""
        self.name = name
        self.log: LogTail | None = None  # of the container, if it was started here
        self._timeouts = timeouts
        self._request = request

    def open(self, client: docker.DockerClient, closing: threading.Event) -> Bridge:
        """Find or start the container, and run the bridge in it; it waits for the worker.

        Raises:
            WorkerUnavailableError: if it does not come up in time, or before `closing` is set.
            NoContainerError: if it is not there, and is not to be started.
        """
        import docker.errors

        deadline = time.monotonic() + self._timeouts.start
        while time.monotonic() < deadline and not closing.is_set():
            try:
                if self._up(client):
                    return self._bridge(client)
            except docker.errors.NotFound as error:
                if isinstance(error, docker.errors.ImageNotFound):
                    raise
            except docker.errors.APIError as error:
                # 409: somebody else creates it, or the old one of that name is being removed.
                if error.status_code != 409 and "is not running" not in str(error):
                    raise
            time.sleep(_AGAIN)
        if self.log is not None and closing.is_set():
            # We go before we have come, and perhaps nobody else comes. A client that is there by
            # now finds another worker, as after `wuwan stop`.
            with contextlib.suppress(docker.errors.APIError):
                client.api.kill(self.name, "SIGTERM")
        raise WorkerUnavailableError(
            f"the worker {self.name} did not come up within {self._timeouts.start:.0f} s",
            hint=f"docker logs {self.name}",
        )

    def _up(self, client: docker.DockerClient) -> bool:
        """Whether the container runs; if it is not there, it is started."""
        state = self._state(client)
        if self._request is None:
            if not state:
                raise NoContainerError(f"there is no container {self.name}")
        elif not state:
            if self.log is not None:  # we have started one already
                ending = endings.post_mortem(client, self.name).with_log(self.log.ended(_JOIN))
                raise endings.half_start(ending)
            self._create(client, self._request)
        elif state == "created":
            # Its creator is about to start it, or died before it could; twice does no harm.
            client.api.start(self.name)
        elif state in ("exited", "dead"):  # it should have removed itself
            client.api.remove_container(self.name, force=True, v=True)
            return False
        return True

    def _state(self, client: docker.DockerClient) -> str:
        """As `docker ps` shows it; "" if there is no such container."""
        import docker.errors

        try:
            return str(client.api.inspect_container(self.name)["State"]["Status"])
        except docker.errors.NotFound:
            return ""

    def _create(self, client: docker.DockerClient, request: StartRequest) -> None:
        listen = ["--listen", LISTEN_NAME]
        created = container.create(client, request, self.name, listen)
        log = LogTail()
        try:
            log.follow(client, created)
            client.api.start(created)
            self.log = log
        except BaseException:
            log.close()
            with contextlib.suppress(Exception):
                client.api.remove_container(created, force=True, v=True)
            raise

    def _bridge(self, client: docker.DockerClient) -> Bridge:
        command = ["python", "-m", "wuwan_worker.serving.bridge", LISTEN_NAME]
        exec_id = client.api.exec_create(self.name, command, stdin=True)["Id"]
        return Bridge(client.api.exec_start(exec_id, socket=True))
