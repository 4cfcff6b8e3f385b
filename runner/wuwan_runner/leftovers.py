"""What dead runs have left behind: found and removed by `wuwan doctor`.

In the ordinary course nothing is left: workers end by themselves, containers remove themselves,
sockets have no files. What remains possible is a run that was killed in the half second in which
it starts a container, or while it added a model.
"""

from __future__ import annotations

import contextlib
import os
import socket
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from wuwan_runner import daemon, models
from wuwan_runner.errors import EngineError
from wuwan_runner.wire import address, control
from wuwan_worker.shared import private_dir
from wuwan_worker.shared.private_dir import PrivateDir

if TYPE_CHECKING:
    from wuwan_runner.options import Timeouts

BOOT_PREFIX = "wuwan-boot-"
# A start takes a second or two. What is older and not up was left.
MIN_AGE = 60.0


@dataclass(frozen=True, slots=True)
class Leftover:
    """One thing that a dead run left."""

    kind: str  # "container", "directory" or "model"
    name: str
    reason: str


def boot_bases() -> list[Path]:
    """Where boot sockets' directories may be made, best first: emptied at log-out, or at boot."""
    named = os.environ.get("XDG_RUNTIME_DIR", "")
    return [*([Path(named)] if named else []), Path(tempfile.gettempdir())]


def boot_base() -> Path:
    """The first of them in which our directory stays ours.

    Raises:
        EngineError: if there is none.
    """
    bases = boot_bases()
    for base in bases:
        if not private_dir.exposed(base):
            return base
    tried = "; ".join(map(private_dir.exposed, bases))
    raise EngineError(f"no directory for a socket: {tried}", hint="set TMPDIR to another one")


def directories(min_age: float = MIN_AGE) -> list[Leftover]:
    """Directories of boot sockets that nobody listens at any more."""
    found = []
    for base in boot_bases():
        for path in base.glob(f"{BOOT_PREFIX}*"):
            try:
                # Links and other users' directories are none of ours.
                with PrivateDir(base, (path.name,)).opened() as descriptor:
                    old = time.time() - os.fstat(descriptor).st_mtime >= min_age
            except OSError:
                continue
            if old and not _listening(path / "s"):
                found.append(Leftover("directory", str(path), "its run is dead"))
    return found


def _listening(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.settimeout(1.0)
        try:
            probe.connect(str(path))
        except OSError:
            return False
    return True


def remove_boot_directory(path: Path) -> None:
    """Remove it, and nothing but what a run puts there."""
    with contextlib.suppress(OSError):
        with (
            contextlib.suppress(FileNotFoundError),
            PrivateDir(path.parent, (path.name,)).opened() as descriptor,
        ):
            os.unlink("s", dir_fd=descriptor)
        path.rmdir()


def unfinished_models() -> list[Leftover]:
    """Bundles that were not added to their end, or not removed to theirs."""
    return [Leftover("model", str(path), "its run is dead") for path in models.unfinished()]


def containers(timeouts: Timeouts, min_age: float = MIN_AGE) -> list[Leftover]:
    """Containers of ours that never came up, or that no client can reach.

    Raises:
        EngineError: if the daemon does not answer.
    """
    seen = control.survey(timeouts.control)
    up = {worker.status.name for worker in seen if worker.status}
    # Whoever does not answer, or not to us, may be any of them.
    silent = {worker.address.key for worker in seen if not worker.status}
    found = []
    with daemon.connected(timeouts.docker) as client:
        labels = [
            f"{daemon.LABEL_NAMESPACE}={address.namespace()}",
            f"{daemon.LABEL_OWNER}={os.getuid()}",
        ]
        for container in client.api.containers(all=True, filters={"label": labels}):
            name, state = container["Labels"][daemon.LABEL_WORKER], container["State"]
            if time.time() - container["Created"] < min_age or name in up:
                continue
            if state != "running":
                found.append(Leftover("container", name, f"it is {state}"))
            elif (
                daemon.LABEL_LISTENS not in container["Labels"]
                and container["Labels"].get(daemon.LABEL_KEY) not in silent
            ):
                found.append(Leftover("container", name, "no client can reach it"))
    return found


def remove(leftover: Leftover, timeouts: Timeouts) -> None:
    """Remove one. Raises EngineError if a container cannot be removed."""
    if leftover.kind == "directory":
        remove_boot_directory(Path(leftover.name))
    elif leftover.kind == "model":
        models.discard(Path(leftover.name))
    else:
        from wuwan_runner.launchers import docker

        docker.remove(leftover.name, timeouts)
