"""The names of images, and what is known of one. Which one a run gets: `pool/test_choose.py`."""

from __future__ import annotations

import subprocess
from typing import TYPE_CHECKING

import pytest

from wuwan_runner.containers import images
from wuwan_runner.errors import WorkerUnavailableError
from wuwan_runner.options import WorkerSpec
from wuwan_runner.resolved import resolve
from wuwan_worker import __version__

if TYPE_CHECKING:
    import docker

NO_IMAGE = "wuwan-test:none"
LABELLED = "wuwan-test:labelled"


def test_names_and_how_they_are_made() -> None:
    """Each version has images of its own, and each image the command that builds it."""
    assert images.own_image("cpu") == f"wuwan:{__version__}"
    assert images.own_image("gpu") == f"wuwan:{__version__}-gpu"
    assert images.build_hint("cpu") == "wuwan image build"
    assert images.build_hint("gpu") == "wuwan image build --variant gpu"
    assert images.reference("") == images.own_image("cpu")
    assert images.reference("mine:1") == "mine:1"


@pytest.mark.docker
def test_what_an_image_is_for(client: docker.DockerClient, docker_image: str) -> None:
    """As its label says; one without is for CPUs, as one is that somebody made."""
    assert images.variant_of(client, docker_image) == "cpu"
    assert images.variant_of(client, NO_IMAGE) is None
    for label, variant in ((f"{images.LABEL_VARIANT}=gpu", "gpu"), ("other=gpu", "cpu")):
        made = subprocess.run(
            ["docker", "build", "-q", "-t", LABELLED, "-"],
            input=f"FROM scratch\nLABEL {label}\n".encode(),
            capture_output=True,
            timeout=60,
            check=False,
        )
        try:
            assert made.returncode == 0, made.stderr
            assert images.variant_of(client, LABELLED) == variant
        finally:
            client.api.remove_image(LABELLED)


@pytest.mark.docker
@pytest.mark.parametrize(
    ("backend", "hint"),
    [("openvino", "wuwan image build"), ("torch", "wuwan image build --variant gpu")],
)
def test_an_image_that_is_not_there(
    client: docker.DockerClient, monkeypatch: pytest.MonkeyPatch, backend: str, hint: str
) -> None:
    """It is named, and the command that makes the one that this run would have."""
    monkeypatch.setattr(images, "own_image", {"cpu": NO_IMAGE, "gpu": f"{NO_IMAGE}-gpu"}.get)
    name = NO_IMAGE if backend == "openvino" else f"{NO_IMAGE}-gpu"
    with pytest.raises(WorkerUnavailableError, match=f"image {name} is not there") as caught:
        images.image_for(client, resolve(WorkerSpec(gpus="none", backend=backend)))
    assert caught.value.hint == hint
