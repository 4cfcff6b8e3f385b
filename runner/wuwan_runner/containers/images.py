"""Which image a worker's container is made from, and what is known of an image."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

from wuwan_runner.containers import daemon
from wuwan_runner.errors import WorkerUnavailableError
from wuwan_runner.gpus import nvidia, placement
from wuwan_runner.gpus.placement import Placement, Problem
from wuwan_worker import __version__

if TYPE_CHECKING:
    import docker

    from wuwan_runner.options import WorkerSpec
    from wuwan_runner.resolved import ResolvedSpec

LABEL_VARIANT = "io.wuwan.variant"  # cpu, gpu
LABEL_MODELS = "io.wuwan.models"  # the bundles that were added to it
_NO_GPU = Problem(
    "this Docker daemon offers no NVIDIA GPU (no `nvidia` runtime and no CDI device)",
    "install the NVIDIA driver and the NVIDIA Container Toolkit, run `nvidia-ctk runtime "
    "configure --runtime=docker`, restart Docker",
)


def own_image(variant: str) -> str:
    """The name of this version's own image of that variant."""
    return f"wuwan:{__version__}" if variant == "cpu" else f"wuwan:{__version__}-{variant}"


def candidates(spec: WorkerSpec) -> tuple[str, ...]:
    """The images of which `image_for` takes one."""
    if spec.image:
        return (spec.image,)
    if spec.gpus == "none" and spec.backend != "torch":
        return (own_image("cpu"),)
    return (own_image("cpu"), own_image("gpu"))


def build_hint(variant: str) -> str:
    """The command that makes this version's own image of that variant."""
    return "wuwan image build" if variant == "cpu" else f"wuwan image build --variant {variant}"


def reference(image: str) -> str:
    """The image to run: the given one, or this version's own."""
    return image or own_image("cpu")


def image_for(client: docker.DockerClient, wanted: ResolvedSpec) -> Placement:
    """The image and the GPUs for a spec; the image is there.

    This version's own image is the one for GPUs where the workers get one or need torch, and
    otherwise the one for CPUs.

    Raises:
        WorkerUnavailableError: if a GPU or the image is missing.
    """
    spec, chosen = wanted.spec, Placement()
    # A daemon elsewhere has the GPUs of its own machine.
    here = not daemon.is_remote()
    if placement.by_name(spec.gpus) or (spec.gpus == "auto" and (nvidia.driver() or not here)):
        total = nvidia.count() if here else 0
        candidate = spec.image or own_image("gpu")
        variant = variant_of(client, candidate)
        obstacle = None
        if spec.image and variant is None:
            raise _no_image(spec.image, "cpu")
        if variant is None:
            obstacle = Problem(f"there is no image {candidate}", build_hint("gpu"))
        elif variant != "gpu":
            obstacle = Problem(f"the image {candidate} has no GPU support", "use a GPU image")
        offer = placement.offered(client.api.info(), total)
        chosen = placement.choose(wanted, offer, absent=_NO_GPU, obstacle=obstacle)
    own = "gpu" if chosen.devices or spec.backend == "torch" else "cpu"
    image = spec.image or own_image(own)
    if variant_of(client, image) is None:
        raise _no_image(image, own)
    return dataclasses.replace(chosen, image=image)


def _no_image(image: str, own: str) -> WorkerUnavailableError:
    return WorkerUnavailableError(f"the container image {image} is not there", hint=build_hint(own))


def variant_of(client: docker.DockerClient, image: str) -> str | None:
    """What an image is for, "cpu" or "gpu"; None where it is not there."""
    import docker.errors

    try:
        return str(client.images.get(image).labels.get(LABEL_VARIANT, "cpu"))
    except docker.errors.ImageNotFound:
        return None
