"""What dead runs have left behind: found and removed by `wuwan doctor`.

In the ordinary course nothing is left: workers end by themselves, containers remove themselves,
sockets have no files. What remains possible is a run that was killed in the half second in which
it starts a container, or while it added a model.
"""

from __future__ import annotations

import os
import socket
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from wuwan_runner.containers import boot_socket, container, daemon
from wuwan_runner.models import store
from wuwan_runner.wire import address, control
from wuwan_worker.shared.private_dir import PrivateDir

if TYPE_CHECKING:
    from wuwan_runner.options import Timeouts

# A start takes a second or two. What is older and not up was left.
MIN_AGE = 60.0


@dataclass(frozen=True, slots=True)
class Orphan:
    """One thing that a dead run left."""

    kind: str  # "container", "directory" or "model"
    name: str
    reason: str


def directories(min_age: float = MIN_AGE) -> list[Orphan]:
    """Directories of boot sockets that nobody listens at any more."""
    found = []
    for base in boot_socket.bases():
        for path in base.glob(f"{boot_socket.PREFIX}*"):
            try:
                # Links and other users' directories are none of ours.
                with PrivateDir(base, (path.name,)).opened() as descriptor:
                    old = time.time() - os.fstat(descriptor).st_mtime >= min_age
            except OSError:
                continue
            if old and not _listening(path / "s"):
                found.append(Orphan("directory", str(path), "its run is dead"))
    return found


def _listening(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.settimeout(1.0)
        try:
            probe.connect(str(path))
        except OSError:
            return False
    return True


def unfinished_models() -> list[Orphan]:
    """Bundles that were not added to their end, or not removed to theirs."""
    return [Orphan("model", str(path), "its run is dead") for path in store.unfinished()]


def containers(timeouts: Timeouts, min_age: float = MIN_AGE) -> list[Orphan]:
    """Containers of ours that never came up, or that no client can reach.

    Raises:
        WorkerUnavailableError: if the daemon does not answer.
    """
    seen = control.survey(timeouts.control)
    up = {worker.status.name for worker in seen if worker.status}
    # Whoever does not answer, or not to us, may be any of them.
    silent = {worker.address.key for worker in seen if not worker.status}
    found = []
    with daemon.connected(timeouts.docker) as client:
        labels = [
            f"{container.LABEL_NAMESPACE}={address.namespace()}",
            f"{container.LABEL_OWNER}={os.getuid()}",
        ]
        for listed in client.api.containers(all=True, filters={"label": labels}):
            name, state = listed["Labels"][container.LABEL_WORKER], listed["State"]
            if time.time() - listed["Created"] < min_age or name in up:
                continue
            if state != "running":
                found.append(Orphan("container", name, f"it is {state}"))
            elif (
                container.LABEL_LISTENS not in listed["Labels"]
                and listed["Labels"].get(container.LABEL_KEY) not in silent
            ):
                found.append(Orphan("container", name, "no client can reach it"))
    return found


def remove(orphan: Orphan, timeouts: Timeouts) -> None:
    """Remove one. Raises WorkerUnavailableError if a container cannot be removed."""
    if orphan.kind == "directory":
        boot_socket.remove_directory(Path(orphan.name))
    elif orphan.kind == "model":
        store.discard(Path(orphan.name))
    else:
        container.remove(orphan.name, timeouts)
