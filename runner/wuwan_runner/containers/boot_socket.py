"""How a container's worker gets the socket to listen on: through another one, its mount."""

from __future__ import annotations

import contextlib
import os
import select
import socket
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING

from wuwan_runner.containers.endings import half_start
from wuwan_runner.errors import WorkerUnavailableError
from wuwan_worker.shared import private_dir, protocol
from wuwan_worker.shared.private_dir import PrivateDir

if TYPE_CHECKING:
    import threading
    from collections.abc import Callable, Iterator

    from wuwan_runner.containers.endings import LogTail
    from wuwan_runner.worker import WorkerExit
    from wuwan_worker.shared.protocol import Adopt

PREFIX = "wuwan-boot-"
TARGET = "/run/wuwan.sock"  # in the container


def bases() -> list[Path]:
    """Where boot sockets' directories may be made, best first: emptied at log-out, or at boot."""
    named = os.environ.get("XDG_RUNTIME_DIR", "")
    return [*([Path(named)] if named else []), Path(tempfile.gettempdir())]


def base() -> Path:
    """The first of them in which our directory stays ours.

    Raises:
        WorkerUnavailableError: if there is none.
    """
    candidates = bases()
    for candidate in candidates:
        if not private_dir.exposed(candidate):
            return candidate
    tried = "; ".join(map(private_dir.exposed, candidates))
    raise WorkerUnavailableError(
        f"no directory for a socket: {tried}", hint="set TMPDIR to another one"
    )


@contextlib.contextmanager
def made() -> Iterator[tuple[socket.socket, Path]]:
    """A listening socket in a private directory; both are gone at the end.

    Any user id may be in the container (user namespaces, rootless Docker), so the socket itself is
    open to all, and the directory that hides it from the machine's other users is ours alone. The
    container gets the socket as its mount, without the directory.
    """
    directory = Path(tempfile.mkdtemp(prefix=PREFIX, dir=base()))
    try:
        path = directory / "s"
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as boot:
            boot.bind(str(path))
            path.chmod(0o666)
            boot.listen(1)
            yield boot, path
    finally:
        remove_directory(directory)


def hand_over(
    boot: socket.socket,
    listener: socket.socket,
    adopt: Adopt,
    log: LogTail,
    timeout: float,
    cancelled: threading.Event,
    post_mortem: Callable[[], WorkerExit],
) -> None:
    """Wait for the container's worker and give it the listening socket.

    Raises:
        WorkerUnavailableError: if the container ends first, or the deadline passes, or the run is
            cancelled.
    """
    started = time.monotonic()
    deadline = started + timeout
    while not select.select([boot], [], [], 0.05)[0]:
        if cancelled.is_set():
            raise WorkerUnavailableError(
                f"the container's worker was not up after {time.monotonic() - started:.0f} s\n"
                f"{log.text()}".rstrip(),
                hint="is the image from this version? `wuwan image build` makes it anew",
            )
        if log.over:
            raise half_start(post_mortem().with_log(log.text()))
        if time.monotonic() > deadline:
            raise WorkerUnavailableError(
                f"the container's worker did not come up within {timeout:.0f} s\n{log.text()}",
                hint="a daemon that does not share this machine's file system cannot be used",
            )
    worker, _ = boot.accept()
    with worker:
        worker.settimeout(timeout)
        protocol.send_frame(worker, adopt, [listener.fileno()])


def remove_directory(path: Path) -> None:
    """Remove it, and nothing but what a run puts there."""
    with contextlib.suppress(OSError):
        with (
            contextlib.suppress(FileNotFoundError),
            PrivateDir(path.parent, (path.name,)).opened() as descriptor,
        ):
            os.unlink("s", dir_fd=descriptor)
        path.rmdir()
