"""Questions and commands to workers that are up: what `wuwan ps`, `stop` and `logs` do."""

from __future__ import annotations

import math
import os
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

from wuwan_runner.wire import address, proof
from wuwan_worker import __version__
from wuwan_worker.shared import protocol
from wuwan_worker.shared.protocol import (
    Fatal,
    FrameDecoder,
    Hello,
    Logs,
    LogsRequest,
    Status,
    StatusRequest,
    Stop,
    Stopping,
    ToClient,
    ToWorker,
    Welcome,
)

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable, Sequence

    from wuwan_runner.wire.address import Address

Reply = TypeVar("Reply", bound=ToClient)
T = TypeVar("T")
U = TypeVar("U")

# So many are asked at once: more workers than a machine has, and few enough threads.
_AT_ONCE = 64


class NoAnswerError(Exception):
    """A worker is gone, or did not answer in time."""


class GoneError(NoAnswerError):
    """The worker has ended, so nobody needs to hear of it."""

    def __init__(self) -> None:
        super().__init__("it has ended")


class Control:
    """A connection that asks and commands, and does not tag."""

    def __init__(
        self, sock: socket.socket, timeout: float, token: str = "", until: float = math.inf
    ) -> None:
        """
        Args:
            sock: connected; owned from now on.
            timeout: seconds for each answer.
            token: see `proof`.
            until: when all answers must have come, on the monotonic clock.

        Raises:
            NoAnswerError: if the worker does not greet in time.
        """
        self._sock = sock
        self._timeout = timeout
        self._until = until
        self._decoder = FrameDecoder(protocol.CLIENT)
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
        self, message: ToWorker, kind: type[Reply], descriptors: list[int] | None = None
    ) -> Reply:
        deadline = min(time.monotonic() + self._timeout, self._until)
        try:
            self._sock.settimeout(self._timeout)
            protocol.send_frame(self._sock, message, descriptors or ())
            while (left := deadline - time.monotonic()) > 0:
                self._sock.settimeout(left)
                data = self._sock.recv(protocol.RECEIVE_SIZE)
                if not data:
                    raise GoneError
                for frame in self._decoder.feed(data):
                    if isinstance(frame.message, kind):
                        return frame.message
                    if isinstance(frame.message, Fatal):
                        raise NoAnswerError(frame.message.message)
        except TimeoutError:
            pass
        except ConnectionError:  # its end, with something of ours unread, or before we could speak
            raise GoneError from None
        except (OSError, protocol.ProtocolError) as error:
            raise NoAnswerError(str(error)) from None
        raise NoAnswerError(f"no answer within {self._timeout:g} s")

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
    welcome: Welcome | None = None  # what it said before it fell silent


def attach(target: Address, timeout: float, until: float = math.inf) -> Control:
    """A control connection to the worker at an address, as `Control`. Raises NoAnswerError."""
    sock = address.connect(target, timeout)
    if sock is None:
        raise GoneError
    return Control(sock, timeout, proof.token(target.name), until)


def survey(timeout: float, without: Address | None = None) -> list[Seen]:
    """All workers of this user on this machine, but for one, in the order of their addresses.

    However many of them hang, or are still starting, it takes `timeout` seconds. One that ends
    meanwhile is not among them.
    """

    def look(target: Address) -> Seen | None:
        welcome = None
        try:
            with attach(target, timeout, until=time.monotonic() + timeout) as control:
                welcome = control.welcome
                return Seen(target, control.status(), welcome=welcome)
        except GoneError:
            return None
        except NoAnswerError as error:
            return Seen(target, None, str(error), welcome)

    targets = [target for target in address.listed() if target != without]
    return [seen for seen in side_by_side(look, targets) if seen is not None]


def side_by_side(ask: Callable[[T], U], whom: Sequence[T], most: int = _AT_ONCE) -> list[U]:
    """What `ask` returns for each, in order; asked in threads, `most` at a time.

    Each of them is joined, so `ask` must have a deadline.
    """
    if len(whom) < 2:
        return [ask(one) for one in whom]
    # Imported here: it takes 5 ms, and most often nobody is there, or one.
    from concurrent.futures import ThreadPoolExecutor

    with ThreadPoolExecutor(min(len(whom), most), "ask") as pool:
        return list(pool.map(ask, whom))
