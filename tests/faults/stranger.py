"""Another user of this machine, who tries to command a worker by hand."""

from __future__ import annotations

import json
import os
import socket
from typing import TYPE_CHECKING, Any

from wuwan_worker.shared import protocol
from wuwan_worker.shared.protocol import (
    End,
    Fatal,
    FrameDecoder,
    Hello,
    Images,
    LogsRequest,
    StatusRequest,
    Stop,
)

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

UID = 12345
TIMEOUT = 10.0  # seconds
GUESSES = ("", "0" * 64, "é" * 40)
REQUESTS = (
    StatusRequest(),
    LogsRequest(),
    Stop(),
    Stop(if_idle=True),
    Images(ids=[1]),
    End(count=0),
)


def commands(name: str, photo: Path, tokens: tuple[str, ...] = GUESSES) -> list[str]:
    """What the worker says to each of the stranger's attempts: the code, if it is a Fatal alone.

    Args:
        name: the socket's.
        photo: the stranger's own, opened by him.
        tokens: that he tries.
    """

    def attempts() -> list[str]:
        said = []
        for token in tokens:
            for request in REQUESTS:
                for tagging in (True, False):
                    hello = Hello(token=token, tagging=tagging, ttl=0.0 if tagging else None)
                    said.append(_say(name, hello, request, photo))
        # Not even a Hello.
        return said + [_say(name, request, request, photo) for request in REQUESTS]

    return as_stranger(attempts)


def _say(name: str, first: Any, then: Any, photo: Path) -> str:
    decoder, messages = FrameDecoder(protocol.CLIENT), []
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as sock:
        sock.settimeout(TIMEOUT)
        sock.connect(name)
        try:
            for message in (first, then):
                descriptor = os.open(photo, os.O_RDONLY)
                try:
                    protocol.send_frame(sock, message, [descriptor])
                finally:
                    os.close(descriptor)
        except (BrokenPipeError, ConnectionResetError):
            pass  # it has hung up by then; what it has said is still there
        try:
            while data := sock.recv(protocol.RECEIVE_SIZE):
                messages += [frame.message for frame in decoder.feed(data)]
        except ConnectionResetError:
            pass
    if not messages:
        return "nothing"
    last = messages[-1]
    return last.code if len(messages) == 1 and isinstance(last, Fatal) else repr(messages)


def as_stranger(work: Callable[[], Any]) -> Any:
    """What `work` gives, as JSON, in a process of another user's."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            os.setgroups([])
            os.setresgid(UID, UID, UID)
            os.setresuid(UID, UID, UID)
            try:
                result = work()
            except Exception as error:
                result = f"{type(error).__name__}: {error}"
            os.write(writer, json.dumps(result).encode())
        finally:
            os._exit(0)
    os.close(writer)
    with open(reader, "rb") as answer:
        result = json.loads(answer.read() or b'"the stranger died"')
    os.waitpid(child, 0)
    return result
