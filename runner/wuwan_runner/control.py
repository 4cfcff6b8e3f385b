"""Questions and commands to workers that are up: what `wuwan ps`, `stop` and `logs` do."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

from wuwan_runner import address, proof
from wuwan_worker import __version__, protocol
from wuwan_worker.protocol import (
    Fatal,
    FrameDecoder,
    Hello,
    Logs,
    LogsRequest,
    Message,
    Status,
    StatusRequest,
    Stop,
    Stopping,
    Welcome,
)

if TYPE_CHECKING:
    import socket

    from wuwan_runner.address import Address

Reply = TypeVar("Reply", bound=Message)


class NoAnswerError(Exception):
    """A worker is gone, or did not answer in time."""


class Control:
    """A connection that asks and commands, and does not tag."""

    def __init__(self, sock: socket.socket, timeout: float, token: str = "") -> None:
        """
        Args:
            sock: connected; owned from now on.
            timeout: seconds for each answer.
            token: see `proof`.

        Raises:
            NoAnswerError: if the worker does not greet in time.
        """
        self._sock = sock
        self._timeout = timeout
        self._decoder = FrameDecoder()
        probe = protocol.probe_descriptor()
        try:
            name = f"wuwan {__version__} control (pid {os.getpid()})"
            hello = Hello(client=name, tagging=False, token=token)
            self.welcome: Welcome = self._ask(hello, Welcome, [probe])
        except BaseException:
            self.close()
            raise
        finally:
            os.close(probe)

    def status(self) -> Status:
        """What the worker is doing. Raises NoAnswerError."""
        return self._ask(StatusRequest(), Status)

    def logs(self) -> list[str]:
        """The worker's last log lines. Raises NoAnswerError."""
        return self._ask(LogsRequest(), Logs).lines

    def stop(self, *, if_idle: bool = False) -> bool:
        """Have the worker drain and end; whether it agreed. Raises NoAnswerError."""
        return self._ask(Stop(if_idle=if_idle), Stopping).accepted

    def wait_for_end(self, timeout: float) -> bool:
        """Wait for the worker to close the connection, which it does when it ends."""
        deadline = time.monotonic() + timeout
        try:
            while (left := deadline - time.monotonic()) > 0:
                self._sock.settimeout(left)
                if not self._sock.recv(protocol.RECEIVE_SIZE):
                    return True
        except TimeoutError:
            return False
        except OSError:
            return True
        return False

    def _ask(
        self, message: Message, kind: type[Reply], descriptors: list[int] | None = None
    ) -> Reply:
        deadline = time.monotonic() + self._timeout
        try:
            self._sock.settimeout(self._timeout)
            protocol.send_frame(self._sock, message, descriptors or ())
            while (left := deadline - time.monotonic()) > 0:
                self._sock.settimeout(left)
                data = self._sock.recv(protocol.RECEIVE_SIZE)
                if not data:
                    raise NoAnswerError("it has ended")
                for frame in self._decoder.feed(data):
                    if isinstance(frame.message, kind):
                        return frame.message
                    if isinstance(frame.message, Fatal):
                        raise NoAnswerError(frame.message.message)
        except TimeoutError:
            pass
        except (OSError, protocol.ProtocolError) as error:
            raise NoAnswerError(str(error)) from None
        raise NoAnswerError(f"no answer within {self._timeout:.0f} s")

    def close(self) -> None:
        """Leave the worker alone."""
        self._decoder.close()
        self._sock.close()

    def __enter__(self) -> Control:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


@dataclass(frozen=True, slots=True)
class Seen:
    """A worker that was found: its status, or why there is none."""

    address: Address
    status: Status | None
    problem: str = ""


def attach(place: Address, timeout: float) -> Control:
    """A control connection to the worker at an address. Raises NoAnswerError."""
    sock = address.connect(place, timeout)
    if sock is None:
        raise NoAnswerError("it has ended")
    return Control(sock, timeout, proof.token(place.name))


def survey(timeout: float, without: Address | None = None) -> list[Seen]:
    """All workers of this user on this machine, but for one.

    One that hangs, or is still starting, costs `timeout` seconds.
    """
    seen = []
    for place in address.listed():
        if place == without:
            continue
        try:
            with attach(place, timeout) as control:
                seen.append(Seen(place, control.status()))
        except NoAnswerError as error:
            if str(error) != "it has ended":
                seen.append(Seen(place, None, str(error)))
    return seen
