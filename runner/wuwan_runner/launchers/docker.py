"""Runs the worker in a container that can reach nothing but what it is handed.

No network, no capability, no writable file, no mount but one socket (and, read-only, a model of the
user's): through it the container's worker receives the socket to listen on, and the mount's source
is removed at once. From then on nothing of the worker is in the file system, and the container
removes itself when its worker ends.
"""

from __future__ import annotations

import contextlib
import hashlib
from typing import TYPE_CHECKING

from wuwan_runner.containers import (
    boot_socket,
    container,
    daemon,
    endings,
    endpoint,
    image_ids,
    images,
)
from wuwan_runner.containers.endings import LogTail
from wuwan_runner.errors import WorkerUnavailableError
from wuwan_runner.wire import address
from wuwan_runner.worker import WorkerExit, new_name
from wuwan_worker.shared.protocol import Adopt

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable

    from wuwan_runner.gpus.placement import Placement
    from wuwan_runner.options import Timeouts
    from wuwan_runner.resolved import ResolvedSpec
    from wuwan_runner.worker import StartRequest
    from wuwan_worker.shared.protocol import Welcome


class DockerHandle:
    """A container that this process has started."""

    def __init__(self, name: str, timeouts: Timeouts, log: LogTail) -> None:
        self.name = name
        self._timeouts = timeouts
        self._log = log

    def report(self) -> WorkerExit:
        """See `WorkerHandle.report`."""
        lines = self._log.ended(2.0)
        ending = WorkerExit()
        with (
            contextlib.suppress(WorkerUnavailableError),
            daemon.connected(self._timeouts.docker) as client,
        ):
            ending = endings.post_mortem(client, self.name)
        return ending.with_log(lines)

    def kill(self) -> None:
        """See `WorkerHandle.kill`."""
        container.remove(self.name, self._timeouts)
        self.release()

    def release(self) -> None:
        """See `WorkerHandle.release`."""
        self._log.close()


class DockerLauncher:
    """Starts a container from the `wuwan` image."""

    name = "docker"
    contained = True

    def key(
        self,
        wanted: ResolvedSpec,
        timeout: float = 0.0,
        notify: Callable[[str], None] | None = None,
    ) -> str:
        """See `Launcher.key`.

        It is two hashes, the second one of the images that the names stand for now: an image that
        was built anew does not meet a worker of the old one. If the daemon says nothing, a worker
        that is up is known by the first.
        """
        spec, model = wanted.spec, wanted.model
        kind = address.key(
            self.name,
            {
                "model": spec.model,
                # What comes with wuwan is told by the version.
                "bundle": model.found.fingerprint if model.found and not model.embedded else "",
                "backend": spec.backend,
                "gpus": spec.gpus,
                "image": spec.image,
                "memory": spec.memory,
                "daemon": endpoint.current().identity,
            },
        )
        names = images.candidates(spec)
        ids = image_ids.quickly(names)
        if ids is None:
            if not endpoint.current().is_remote and (up := address.warm(f"{kind}-")):
                if notify:
                    notify("the Docker daemon does not answer: using the worker that is warm")
                return up
            if not timeout:
                raise WorkerUnavailableError("the Docker daemon does not answer at once")
            ids = image_ids.patiently(names, timeout)
        return f"{kind}-{hashlib.sha256(' '.join(ids).encode()).hexdigest()[:12]}"

    def placement(self, wanted: ResolvedSpec, timeouts: Timeouts) -> Placement:
        """See `Launcher.placement`."""
        with daemon.connected(timeouts.docker) as client:
            return images.image_for(client, wanted)

    def start(self, request: StartRequest, listener: socket.socket) -> DockerHandle:
        """See `Launcher.start`."""
        name = new_name(request.wanted.spec.model)
        listen = [f"--adopt={boot_socket.TARGET}"]
        with (
            daemon.connected(request.timeouts.docker) as client,
            boot_socket.made() as (boot, path),
        ):
            created = container.create(client, request, name, listen, boot=path)
            log = LogTail()
            try:
                log.follow(client, created)
                client.api.start(created)
                boot_socket.hand_over(
                    boot,
                    listener,
                    Adopt(token=request.token, shared=request.shared),
                    log,
                    request.timeouts.start,
                    request.cancelled,
                    lambda: endings.post_mortem(client, name),
                )
            except BaseException:
                log.close()
                with contextlib.suppress(Exception):
                    client.api.remove_container(created, force=True, v=True)
                raise
        return DockerHandle(name, request.timeouts, log)

    def kill(self, worker: Welcome, timeouts: Timeouts) -> None:
        """See `Launcher.kill`."""
        container.remove(worker.name, timeouts)
