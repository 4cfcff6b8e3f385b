"""Where a container finds its model: in its image, or in a directory of this machine.

The models that come with wuwan are in every image. A user's bundle is mounted, read-only; or it
is baked into the image, which a daemon on another machine needs.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from wuwan_runner.containers import daemon, images
from wuwan_runner.errors import WorkerUnavailableError
from wuwan_worker.shared import bundle

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from pathlib import Path

    from wuwan_runner.resolved import ResolvedModel
    from wuwan_worker.shared.bundle import Bundle

INSIDE = "/models"


def mount(model: ResolvedModel, image: str, labels: Mapping[str, str]) -> tuple[str, Path | None]:
    """The worker's `--model`, and the directory to mount there, if any.

    Args:
        model: which one.
        image: the image's name, for messages.
        labels: the image's.

    Raises:
        WorkerUnavailableError: if the container cannot have that model; it says how it could.
    """
    if model.embedded:
        return model.name, None
    baked = dict(
        entry.split("=", 1) for entry in labels.get(images.LABEL_MODELS, "").split() if "=" in entry
    )
    if model.found is None and model.name in baked:
        return f"{INSIDE}/{model.name}", None
    found = model.required
    inside = f"{INSIDE}/{name(found)}"
    if baked.get(name(found)) == found.fingerprint:
        return inside, None
    if daemon.is_remote():
        variant = labels.get(images.LABEL_VARIANT, "cpu")
        old = " as it is here" if name(found) in baked else ""
        raise WorkerUnavailableError(
            f"the image {image} does not hold the model {found.name}{old}, and a daemon on another "
            "machine cannot mount it",
            hint=f"{images.build_hint(variant)} --model {model.name}",
        )
    return inside, found.root


def name(found: Bundle) -> str:
    """A bundle's name as a part of a path: a directory's manifest may say anything."""
    return found.name if bundle.NAME.fullmatch(found.name) else "model"


def label(bundles: Iterable[Bundle]) -> str:
    """The label of an image that holds them."""
    return " ".join(f"{name(found)}={found.fingerprint}" for found in bundles)
