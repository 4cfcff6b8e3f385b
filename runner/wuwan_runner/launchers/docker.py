"""Runs the worker in a container that can reach nothing but what it is handed.

No network, no capability, no writable file, no mount but one socket (and, read-only, a model of the
user's): through it the container's worker receives the socket to listen on, and the mount's source
is removed at once. From then on nothing of the worker is in the file system, and the container
removes itself when its worker ends.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import select
import socket
import tempfile
import threading
import time
from collections import deque
from pathlib import Path
from typing import TYPE_CHECKING, Any

from wuwan_runner import daemon, gpus, leftovers, model_place, nvidia
from wuwan_runner.errors import EndedByHandError, EngineError, NoSharedFilesError
from wuwan_runner.gpus import Placement, Problem
from wuwan_runner.launchers.base import Ending, new_name
from wuwan_runner.wire import address
from wuwan_worker.shared import protocol
from wuwan_worker.shared.protocol import Adopt

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    import docker

    from wuwan_runner.launchers.base import Order
    from wuwan_runner.options import Timeouts, WorkerSpec
    from wuwan_worker.shared.protocol import Welcome

SOCKET_TARGET = "/run/wuwan.sock"
USER = "10001:10001"
PIDS = 512
_LOG_LINES = 20


class DockerStarted:
    """A container that this process has started."""

    def __init__(self, name: str, timeouts: Timeouts, log: LogTail) -> None:
        self.name = name
        self._timeouts = timeouts
        self._log = log

    def report(self) -> Ending:
        """See `Started.report`."""
        lines = self._log.ended(2.0)
        ending = Ending()
        with contextlib.suppress(EngineError), daemon.connected(self._timeouts.docker) as client:
            ending = daemon.post_mortem(client, self.name)
        return ending.with_log(lines)

    def kill(self) -> None:
        """See `Started.kill`."""
        remove(self.name, self._timeouts)
        self.release()

    def release(self) -> None:
        """See `Started.release`."""
        self._log.close()


class DockerLauncher:
    """Starts a container from the `wuwan` image."""

    name = "docker"
    contained = True

    def key(self, spec: WorkerSpec) -> str:
        """See `Launcher.key`."""
        return address.key(
            self.name,
            {
                "model": spec.model,
                "bundle": model_place.fingerprint(spec.model),
                "backend": spec.backend,
                "gpus": spec.gpus,
                "image": spec.image,
                "memory": spec.memory,
                "host": os.environ.get("DOCKER_HOST", ""),
            },
        )

    def place(self, spec: WorkerSpec, timeouts: Timeouts) -> Placement:
        """See `Launcher.place`."""
        with daemon.connected(timeouts.docker) as client:
            return place(client, spec)

    def start(self, order: Order, listener: socket.socket) -> DockerStarted:
        """See `Launcher.start`."""
        name = new_name(order.spec.model)
        listen = [f"--adopt={SOCKET_TARGET}"]
        with daemon.connected(order.timeouts.docker) as client, _boot_socket() as (boot, path):
            container = create(client, order, name, listen, key=self.key(order.spec), boot=path)
            log = LogTail()
            try:
                log.follow(client, container)
                client.api.start(container)
                _hand_over(
                    boot,
                    listener,
                    Adopt(token=order.token, shared=order.shared),
                    log,
                    order.timeouts.start,
                    order.cancelled,
                    lambda: daemon.post_mortem(client, name),
                )
            except BaseException:
                log.close()
                with contextlib.suppress(Exception):
                    client.api.remove_container(container, force=True, v=True)
                raise
        return DockerStarted(name, order.timeouts, log)

    def kill(self, worker: Welcome, timeouts: Timeouts) -> None:
        """See `Launcher.kill`."""
        remove(worker.name, timeouts)


_NO_GPU = Problem(
    "this Docker daemon offers no NVIDIA GPU (no `nvidia` runtime and no CDI device)",
    "install the NVIDIA driver and the NVIDIA Container Toolkit, run `nvidia-ctk runtime "
    "configure --runtime=docker`, restart Docker",
)


def place(client: docker.DockerClient, spec: WorkerSpec) -> Placement:
    """The image and the GPUs for `spec`; the image is there.

    This version's own image is the one for GPUs where the workers get one or need torch, and
    otherwise the one for CPUs.

    Raises:
        EngineError: if a GPU or the image is missing.
    """
    placement = Placement()
    # A daemon elsewhere has the GPUs of its own machine.
    here = not daemon.is_remote()
    if gpus.by_name(spec.gpus) or (spec.gpus == "auto" and (nvidia.driver() or not here)):
        total = nvidia.count() if here else 0
        candidate = spec.image or daemon.own_image("gpu")
        variant = _variant(client, candidate)
        obstacle = None
        if spec.image and variant is None:
            raise _no_image(spec.image, "cpu")
        if variant is None:
            obstacle = Problem(f"there is no image {candidate}", daemon.build_hint("gpu"))
        elif variant != "gpu":
            obstacle = Problem(f"the image {candidate} has no GPU support", "use a GPU image")
        offer = gpus.offered(client.api.info(), total)
        placement = gpus.choose(spec, offer, absent=_NO_GPU, obstacle=obstacle)
    own = "gpu" if placement.devices or spec.backend == "torch" else "cpu"
    image = spec.image or daemon.own_image(own)
    if _variant(client, image) is None:
        raise _no_image(image, own)
    return dataclasses.replace(placement, image=image)


def _no_image(image: str, own: str) -> EngineError:
    return EngineError(f"the container image {image} is not there", hint=daemon.build_hint(own))


def _variant(client: docker.DockerClient, image: str) -> str | None:
    """What an image is for, "cpu" or "gpu"; None where it is not there."""
    import docker.errors

    try:
        return str(client.images.get(image).labels.get(daemon.LABEL_VARIANT, "cpu"))
    except docker.errors.ImageNotFound:
        return None


def create(
    client: docker.DockerClient,
    order: Order,
    name: str,
    listen: Sequence[str],
    *,
    key: str,
    boot: Path | None = None,
) -> str:
    """Create a worker's container; its id.

    Args:
        client: of the daemon.
        order: which worker.
        name: of container and worker.
        listen: the worker's arguments that say where it listens.
        key: as `Launcher.key`.
        boot: the socket that it gets as a mount, if any.

    Raises:
        EngineError: if it cannot have the model or the GPUs.
        NoSharedFilesError: if the daemon does not see this machine's files.
    """
    import docker.errors
    from docker.types import LogConfig, Mount

    spec = order.spec
    placement = place(client, spec)
    labels = client.images.get(placement.image).labels
    model, directory = model_place.place(spec.model, placement.image, labels)
    mounts = [
        Mount(target=target, source=str(source), type="bind", read_only=True)
        for target, source in ((SOCKET_TARGET, boot), (model, directory))
        if source
    ]
    device = placement.device(order.slot)
    requests: list[Any] = gpus.device_requests(placement.driver, device)
    if placement.note and order.slot == 0:
        order.notify(placement.note)
    host_config = client.api.create_host_config(
        network_mode="none",
        read_only=True,
        cap_drop=["ALL"],
        security_opt=["no-new-privileges"],
        mem_limit=spec.memory,
        memswap_limit=spec.memory,
        pids_limit=PIDS,
        init=True,
        auto_remove=True,
        device_requests=requests or None,
        log_config=LogConfig(type="json-file", config={"max-size": "1m", "max-file": "1"}),
        mounts=mounts or None,
    )
    try:
        created = client.api.create_container(
            image=placement.image,
            name=name,
            command=[
                "python",
                "-m",
                "wuwan_worker",
                *listen,
                f"--name={name}",
                "--runner=docker",
                f"--model={model}",
                f"--backend={spec.backend}",
                f"--device={'cuda' if device else 'cpu'}",
                f"--ttl={order.ttl}",
            ],
            user=USER,
            labels={
                daemon.LABEL_WORKER: name,
                daemon.LABEL_OWNER: str(os.getuid()),
                daemon.LABEL_NAMESPACE: address.namespace(),
                daemon.LABEL_KEY: key,
            }
            | ({} if boot else {daemon.LABEL_LISTENS: "inside"}),
            host_config=host_config,
        )
    except docker.errors.APIError as error:
        if "bind source path does not exist" in str(error):
            if boot is None:
                raise EngineError(
                    f"the Docker daemon does not see the directory of the model {spec.model}",
                    hint=f"wuwan image build --model {spec.model}",
                ) from None
            raise NoSharedFilesError(
                "the Docker daemon does not see this machine's files", hint="use --channel exec"
            ) from None
        raise
    identifier: str = created["Id"]
    return identifier


@contextlib.contextmanager
def _boot_socket() -> Iterator[tuple[socket.socket, Path]]:
    """A listening socket in a private directory; both are gone at the end.

    Any user id may be in the container (user namespaces, rootless Docker), so the socket itself is
    open to all, and the directory that hides it from the machine's other users is ours alone. The
    container gets the socket as its mount, without the directory.
    """
    base = leftovers.boot_base()
    directory = Path(tempfile.mkdtemp(prefix=leftovers.BOOT_PREFIX, dir=base))
    try:
        path = directory / "s"
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as boot:
            boot.bind(str(path))
            path.chmod(0o666)
            boot.listen(1)
            yield boot, path
    finally:
        leftovers.remove_boot_directory(directory)


def _hand_over(
    boot: socket.socket,
    listener: socket.socket,
    adopt: Adopt,
    log: LogTail,
    timeout: float,
    cancelled: threading.Event,
    post_mortem: Callable[[], Ending],
) -> None:
    """Wait for the container's worker and give it the listening socket.

    Raises:
        EngineError: if the container ends first, or the deadline passes, or the run is cancelled.
    """
    started = time.monotonic()
    deadline = started + timeout
    while not select.select([boot], [], [], 0.05)[0]:
        if cancelled.is_set():
            raise EngineError(
                f"the container's worker was not up after {time.monotonic() - started:.0f} s\n"
                f"{log.text()}".rstrip(),
                hint="is the image from this version? `wuwan image build` makes it anew",
            )
        if log.over:
            raise half_start(post_mortem().with_log(log.text()))
        if time.monotonic() > deadline:
            raise EngineError(
                f"the container's worker did not come up within {timeout:.0f} s\n{log.text()}",
                hint="a daemon that does not share this machine's file system cannot be used",
            )
    worker, _ = boot.accept()
    with worker:
        worker.settimeout(timeout)
        protocol.send_frame(worker, adopt, [listener.fileno()])


def half_start(ending: Ending) -> EngineError:
    """The error for a container that has ended before its worker was up."""
    if ending.by_hand:
        return EndedByHandError(f"the container was {ending}")
    return EngineError(
        f"the container ended before its worker was up: {ending}".removesuffix(": "),
        hint="is the image from this version? `wuwan image build` makes it anew",
    )


def remove(name: str, timeouts: Timeouts) -> None:
    """Remove a container, whatever it is doing. Raises EngineError if that cannot be done."""
    import docker.errors

    try:
        with daemon.connected(timeouts.docker) as client:
            try:
                # A paused container cannot be killed.
                with contextlib.suppress(docker.errors.APIError):
                    client.api.unpause(name)
                client.api.remove_container(name, force=True, v=True)
            except docker.errors.NotFound:
                return
            except docker.errors.APIError as error:
                if error.status_code != 409:  # 409: its removal is under way already
                    raise
    except EngineError as error:
        raise EngineError(
            f"container {name} hangs and cannot be removed: {error}", hint=f"docker rm -f {name}"
        ) from None


class LogTail:
    """The last lines of a container's output, followed from before its start.

    A container that removes itself takes its log with it, so it is read while it runs.
    """

    def __init__(self) -> None:
        self._lines: deque[str] = deque(maxlen=_LOG_LINES)
        self._over = threading.Event()
        self._exit_code: int | None = None
        self._stream: Any = None
        self._thread: threading.Thread | None = None

    def follow(self, client: docker.DockerClient, container: str) -> None:
        """Attach to a created container."""
        self._stream = client.api.attach(
            container, stdout=True, stderr=True, stream=True, logs=True
        )
        self._thread = threading.Thread(target=self._read, name="container-log", daemon=True)
        self._thread.start()

    def _read(self) -> None:
        pending = ""
        with contextlib.suppress(Exception):  # the stream ends with the container, or with `close`
            for chunk in self._stream:
                pending += chunk.decode(errors="replace")
                *lines, pending = pending.split("\n")
                self._lines.extend(line for line in lines if line.strip())
        if pending.strip():
            self._lines.append(pending)
        self._over.set()

    @property
    def over(self) -> bool:
        """Whether the container has ended."""
        return self._over.is_set()

    def text(self) -> str:
        """The last lines."""
        return "\n".join(self._lines)

    def ended(self, timeout: float) -> str:
        """The last lines if the container ends within `timeout` seconds, else ""."""
        return self.text() if self._over.wait(timeout) else ""

    def close(self) -> None:
        """Stop following."""
        if self._stream is not None:
            with contextlib.suppress(Exception):
                self._stream.close()
        if self._thread is not None:
            self._thread.join(2.0)
        daemon.hang_up(self._stream)
