"""A worker's container: made, locked down, and removed."""

from __future__ import annotations

import contextlib
import os
from typing import TYPE_CHECKING, Any

from wuwan_runner.containers import daemon, model_mount
from wuwan_runner.containers.boot_socket import TARGET
from wuwan_runner.errors import NoSharedFilesError, WorkerUnavailableError
from wuwan_runner.gpus import placement
from wuwan_runner.wire import address

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    import docker

    from wuwan_runner.options import Timeouts
    from wuwan_runner.worker import StartRequest

USER = "10001:10001"
PIDS = 512
LABEL_WORKER = "io.wuwan.worker"  # the worker's name
LABEL_OWNER = "io.wuwan.owner"  # uid of who started it
LABEL_NAMESPACE = "io.wuwan.namespace"
LABEL_KEY = "io.wuwan.key"
LABEL_LISTENS = "io.wuwan.listens"  # only on workers that listen inside their container


def locked_down(
    client: docker.DockerClient,
    *,
    memory: str,
    mounts: Sequence[Any] = (),
    devices: Sequence[Any] = (),
    scratch: str = "",
) -> Any:
    """What a container of ours may do, whatever it is for; a `host_config` for docker-py.

    It has no network, no capability and no file to write to but in what is mounted and in Docker's
    own /dev/shm, which is memory. What runs in it may have been taken over by an image or a
    checkpoint.

    Args:
        client: of the daemon.
        memory: its limit, as Docker takes it; it has no swap besides.
        mounts: docker-py's, besides the image's files.
        devices: docker-py's device requests: a GPU.
        scratch: a directory inside that is to be writable, in memory.
    """
    from docker.types import LogConfig

    return client.api.create_host_config(
        network_mode="none",
        read_only=True,
        tmpfs={scratch: ""} if scratch else None,
        cap_drop=["ALL"],
        security_opt=["no-new-privileges"],
        mem_limit=memory,
        memswap_limit=memory,
        pids_limit=PIDS,
        init=True,
        auto_remove=True,
        device_requests=list(devices) or None,
        log_config=LogConfig(type="json-file", config={"max-size": "1m", "max-file": "1"}),
        mounts=list(mounts) or None,
    )


def create(
    client: docker.DockerClient,
    request: StartRequest,
    name: str,
    listen: Sequence[str],
    boot: Path | None = None,
) -> str:
    """Create a worker's container; its id.

    Args:
        client: of the daemon.
        request: which worker.
        name: of container and worker.
        listen: the worker's arguments that say where it listens.
        boot: the socket that it gets as a mount, if any.

    Raises:
        WorkerUnavailableError: if it cannot have the model or the GPUs.
        NoSharedFilesError: if the daemon does not see this machine's files.
    """
    import docker.errors
    from docker.types import Mount

    spec, placed = request.wanted.spec, request.placement()
    labels = client.images.get(placed.image).labels
    model, directory = model_mount.mount(request.wanted.model, placed.image, labels)
    mounts = [
        Mount(target=target, source=str(source), type="bind", read_only=True)
        for target, source in ((TARGET, boot), (model, directory))
        if source
    ]
    device = placed.device(request.index)
    if placed.note and request.index == 0:
        request.notify(placed.note)
    try:
        created = client.api.create_container(
            image=placed.image,
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
                f"--ttl={request.ttl}",
            ],
            user=USER,
            labels={
                LABEL_WORKER: name,
                LABEL_OWNER: str(os.getuid()),
                LABEL_NAMESPACE: address.namespace(),
                LABEL_KEY: request.key,
            }
            | ({} if boot else {LABEL_LISTENS: "inside"}),
            host_config=locked_down(
                client,
                memory=spec.memory,
                mounts=mounts,
                devices=placement.device_requests(placed.driver, device),
            ),
        )
    except docker.errors.APIError as error:
        if "bind source path does not exist" in str(error):
            if boot is None:
                raise WorkerUnavailableError(
                    f"the Docker daemon does not see the directory of the model {spec.model}",
                    hint=f"wuwan image build --model {spec.model}",
                ) from None
            raise NoSharedFilesError(
                "the Docker daemon does not see this machine's files", hint="use --channel exec"
            ) from None
        raise
    identifier: str = created["Id"]
    return identifier


def remove(name: str, timeouts: Timeouts) -> None:
    """Remove a container, whatever it is doing.

    Raises WorkerUnavailableError if that cannot be done.
    """
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
    except WorkerUnavailableError as error:
        raise WorkerUnavailableError(
            f"container {name} hangs and cannot be removed: {error}", hint=f"docker rm -f {name}"
        ) from None
