"""A program in a container of its own, that is as locked down as a worker's."""

from __future__ import annotations

import contextlib
import os
import socket
import threading
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from wuwan_runner.containers.container import USER, locked_down

if TYPE_CHECKING:
    from collections.abc import Iterator

    import docker

_JOIN = 5.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Program:
    """What to run, and what it may use."""

    image: str
    command: tuple[str, ...]
    memory: str  # as Docker takes it
    mounts: tuple[Any, ...] = ()  # docker-py's
    devices: tuple[Any, ...] = ()  # docker-py's device requests
    ours: bool = False  # whether the files that it writes to its mounts are to be this user's
    stdin: bytes = b""


@dataclass(frozen=True, slots=True)
class Done:
    """What it said."""

    output: bytes
    errors: bytes


def run(client: docker.DockerClient, program: Program, *, deadline: float) -> Done | None:
    """Run a program to its end; None if it has none within `deadline` seconds.

    Nothing of it is left, whatever happens.
    """
    user = USER
    if program.ours:
        # In a rootless daemon's containers we are root.
        options = client.info()["SecurityOptions"] or ()
        rootless = any("rootless" in str(option) for option in options)
        user = "0:0" if rootless else f"{os.getuid()}:{os.getgid()}"
    container: str = client.api.create_container(
        image=program.image,
        command=list(program.command),
        user=user,
        environment={"HOME": "/tmp"},  # noqa: S108  # the container's own, in memory
        stdin_open=bool(program.stdin),
        host_config=locked_down(
            client,
            memory=program.memory,
            mounts=program.mounts,
            devices=program.devices,
            scratch="/tmp",  # noqa: S108
        ),
    )["Id"]
    with _removed_in_the_end(client, container, deadline) as (late, hang_up):
        output, errors = _talk(client, container, program.stdin, hang_up)
        return None if late.is_set() else Done(output, errors)


def _talk(
    client: docker.DockerClient, container: str, stdin: bytes, ends: contextlib.ExitStack
) -> tuple[bytes, bytes]:
    """Start it, and have its standard output and standard error to their end.

    `ends` is closed at the deadline, and hangs up.
    """
    from docker.utils.socket import demux_adaptor, frames_iter

    # Without its log: what is said while the daemon reads that would come twice.
    parameters = {"stdin": int(bool(stdin)), "stdout": 1, "stderr": 1, "stream": 1}
    file = client.api.attach_socket(container, params=parameters)
    raw: socket.socket = getattr(file, "_sock", file)
    raw.settimeout(None)  # its removal ends it, or whoever closes this:
    ends.callback(_shut, raw)

    def write() -> None:
        with contextlib.suppress(OSError):  # it may end before it has read all
            raw.sendall(stdin)
            raw.shutdown(socket.SHUT_WR)

    writer = threading.Thread(target=write, name="program-stdin", daemon=True)
    output, errors = bytearray(), bytearray()
    try:
        client.api.start(container)
        writer.start()
        for kind, data in frames_iter(file, tty=False):  # type: ignore[no-untyped-call]
            out, err = demux_adaptor(kind, data)
            output += out or b""
            errors += err or b""
    finally:
        _shut(raw)
        if writer.ident is not None:
            writer.join(_JOIN)
        raw.close()
        file.close()
    return bytes(output), bytes(errors)


def _shut(raw: socket.socket) -> None:
    with contextlib.suppress(OSError):
        raw.shutdown(socket.SHUT_RDWR)


@contextlib.contextmanager
def _removed_in_the_end(
    client: docker.DockerClient, container: str, deadline: float
) -> Iterator[tuple[threading.Event, contextlib.ExitStack]]:
    """The container goes at the end of the block, or at the deadline.

    The deadline sets the event and closes the stack: the daemon may not hear of the removal.
    """
    late, ends = threading.Event(), contextlib.ExitStack()

    def remove() -> None:
        with contextlib.suppress(Exception):  # it removes itself as it ends
            client.api.remove_container(container, force=True, v=True)

    def expire() -> None:
        late.set()
        ends.close()
        remove()

    timer = threading.Timer(deadline, expire)
    timer.start()
    try:
        yield late, ends
    finally:
        timer.cancel()
        timer.join()
        remove()
