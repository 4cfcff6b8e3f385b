"""Which launcher a run uses, where that is not said."""

from __future__ import annotations

from typing import TYPE_CHECKING

from wuwan_runner import launchers
from wuwan_runner.containers import daemon
from wuwan_runner.errors import WorkerUnavailableError
from wuwan_runner.gpus import placement
from wuwan_runner.wire import address
from wuwan_runner.wire.address import Address

if TYPE_CHECKING:
    from collections.abc import Callable

    from wuwan_runner.launchers.base import Launcher
    from wuwan_runner.options import TagOptions
    from wuwan_runner.resolved import ResolvedSpec

_CONNECT = 5.0  # seconds; only a full queue makes connecting wait


def choose(wanted: ResolvedSpec, options: TagOptions, notify: Callable[[str], None]) -> Launcher:
    """The launcher for `options.runner`; for "auto" whatever is warm, then Docker, then local.

    A warm worker is looked for first: that costs a millisecond, and asking Docker for more needs
    its client.

    Raises:
        WorkerUnavailableError: if the runner cannot be used.
    """
    if options.runner != "auto":
        return launchers.get(options.runner)
    docker, local = launchers.get("docker"), launchers.get("local")
    # An image that is asked for means Docker.
    for launcher in (docker,) if wanted.spec.image else (docker, local):
        try:
            if is_warm(launcher, wanted):
                return launcher
        except WorkerUnavailableError:  # it does not know the model, or its daemon says nothing
            continue
    spec = wanted.spec
    try:
        if not daemon.may_answer():
            if spec.image:
                raise WorkerUnavailableError(
                    f"--image {spec.image} needs Docker: no Docker daemon here",
                    hint="start Docker, or set DOCKER_HOST",
                )
            return local
        contained = docker.placement(wanted, options.timeouts)
    except WorkerUnavailableError as error:
        if spec.image or (placement.by_name(spec.gpus) and not _has_gpu(local, wanted, options)):
            raise  # what was asked for by name needs Docker
        notify(f"using the local runner: {error} ({error.hint})")
        return local
    if (
        spec.gpus == "auto"
        and not (contained.devices or spec.image)
        and _has_gpu(local, wanted, options)
    ):
        notify("using the local runner: it has a GPU, a container would have none")
        return local
    return docker


def _has_gpu(launcher: Launcher, wanted: ResolvedSpec, options: TagOptions) -> bool:
    try:
        return bool(launcher.placement(wanted, options.timeouts).devices)
    except WorkerUnavailableError:
        return False


def is_warm(launcher: Launcher, wanted: ResolvedSpec) -> bool:
    """Whether a worker of that kind is up."""
    sock = address.connect(Address(launcher.key(wanted), "0"), _CONNECT)
    if sock is None:
        return False
    sock.close()
    return True
