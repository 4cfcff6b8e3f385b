"""Which runner, which image and which GPU a run gets. The daemon is real, its GPUs are not."""

from __future__ import annotations

import socket
import subprocess
from typing import TYPE_CHECKING

import pytest

from tests.starting import request_for
from wuwan_runner import TagOptions
from wuwan_runner.containers import daemon, images
from wuwan_runner.errors import WorkerUnavailableError
from wuwan_runner.gpus import nvidia, placement
from wuwan_runner.gpus.placement import Offer, Placement
from wuwan_runner.launchers.docker import DockerLauncher
from wuwan_runner.launchers.local import LocalLauncher
from wuwan_runner.options import Timeouts, WorkerSpec
from wuwan_runner.pool.choose import choose
from wuwan_runner.resolved import resolve

if TYPE_CHECKING:
    from collections.abc import Callable

RUNTIME = Offer("nvidia", ("0", "1"))
MODEL = "in-the-image"  # nothing is known of it here, so it may have weights for GPUs
MODELS = f'{images.LABEL_MODELS}="{MODEL}=0"'
CPU_IMAGE, GPU_IMAGE, NO_IMAGE = "wuwan-test:latest", "wuwan-test:as-gpu", "wuwan-test:none"


@pytest.fixture(scope="session")
def both_images(docker_image: str) -> None:
    """The CPU image, and the same with the labels of a GPU image that holds a model."""
    assert docker_image == CPU_IMAGE
    subprocess.run(
        ["docker", "build", "-q", "-t", GPU_IMAGE, "-"],
        input=f"FROM {CPU_IMAGE}\nLABEL io.wuwan.variant=gpu {MODELS}\n".encode(),
        capture_output=True,
        timeout=60,
        check=True,
    )


@pytest.fixture
def has(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """`has(OFFER, cpu=…, gpu=…)`: what the daemon offers, and this version's own images."""

    def make(offer: Offer | None, cpu: str = CPU_IMAGE, gpu: str = GPU_IMAGE) -> None:
        monkeypatch.setattr(placement, "offered", lambda *_: offer)
        monkeypatch.setattr(nvidia, "driver", lambda: True)
        monkeypatch.setattr(images, "own_image", {"cpu": cpu, "gpu": gpu}.__getitem__)

    return make


def place(choice: str, **spec: str) -> Placement:
    """Where the Docker launcher would put it."""
    wanted = WorkerSpec(model=spec.pop("model", MODEL), gpus=choice, **spec)
    return DockerLauncher().placement(resolve(wanted), Timeouts())


@pytest.mark.docker
@pytest.mark.usefixtures("both_images")
class TestDocker:
    """Containers."""

    def test_the_image_goes_with_the_gpu(self, has: Callable[..., None]) -> None:
        """Who gets a GPU gets the image for it, who gets none the small one."""
        has(RUNTIME)
        assert place("auto") == Placement("nvidia", ("0",), GPU_IMAGE)
        assert place("all") == Placement("nvidia", ("0", "1"), GPU_IMAGE)
        assert place("1") == Placement("nvidia", ("1",), GPU_IMAGE)
        assert place("none") == Placement(image=CPU_IMAGE)
        assert place("none", backend="torch") == Placement(image=GPU_IMAGE)
        has(None)
        assert place("auto") == Placement(image=CPU_IMAGE)
        assert place("auto", backend="torch") == Placement(image=GPU_IMAGE)

    def test_image_overrides(self, has: Callable[..., None]) -> None:
        """An image that is named is the one that is used, or the error."""
        has(RUNTIME, cpu=NO_IMAGE, gpu=NO_IMAGE)
        assert place("auto", image=GPU_IMAGE) == Placement("nvidia", ("0",), GPU_IMAGE)
        assert place("none", image=GPU_IMAGE) == Placement(image=GPU_IMAGE)
        placement = place("auto", image=CPU_IMAGE)
        assert (placement.devices, placement.image) == ((), CPU_IMAGE)
        assert f"the image {CPU_IMAGE} has no GPU support" in placement.note
        with pytest.raises(
            WorkerUnavailableError, match=f"--gpus 0: the image {CPU_IMAGE} has no GPU"
        ):
            place("0", image=CPU_IMAGE)
        for choice in ("auto", "none", "0"):
            with pytest.raises(WorkerUnavailableError, match=f"image {NO_IMAGE} is not there"):
                place(choice, image=NO_IMAGE)

    def test_without_a_gpu_image(self, has: Callable[..., None]) -> None:
        """`auto` says that it takes the CPU; by name it is an error; both say what to do."""
        has(RUNTIME, gpu=NO_IMAGE)
        placement = place("auto")
        assert (placement.devices, placement.image) == ((), CPU_IMAGE)
        assert "using the CPU" in placement.note
        assert "wuwan image build --variant gpu" in placement.note
        with pytest.raises(WorkerUnavailableError, match=f"there is no image {NO_IMAGE}") as caught:
            place("all")
        assert "wuwan image build --variant gpu" in caught.value.hint

    def test_a_model_for_cpus(self, has: Callable[..., None]) -> None:
        """Is no reason to load gigabytes."""
        has(RUNTIME)
        placement = place("auto", model="imagenet-zh")
        assert (placement.devices, placement.image) == ((), CPU_IMAGE)
        assert "no weights for GPUs" in placement.note

    @pytest.mark.parametrize("offer", [RUNTIME, Offer("cdi", ("0",))])
    def test_a_daemon_that_cannot_keep_its_promise(
        self, has: Callable[..., None], offer: Offer, namespace: str
    ) -> None:
        """The refusal comes with advice and leaves no container (fault 10 of docs/faults.md)."""
        has(offer)
        spec = WorkerSpec(model=MODEL, gpus="0")
        request = request_for(DockerLauncher(), spec)
        with socket.socket() as listener, pytest.raises(WorkerUnavailableError) as caught:
            DockerLauncher().start(request, listener)
        assert "device driver" in str(caught.value)
        assert "nvidia-smi" in caught.value.hint
        assert "--gpus none" in caught.value.hint
        left = subprocess.run(
            ["docker", "ps", "-aq", "--filter", f"label=io.wuwan.namespace={namespace}"],
            capture_output=True,
            timeout=30,
            check=True,
        )
        assert left.stdout == b""


def answer(placement: Placement | WorkerUnavailableError) -> Callable[..., Placement]:
    """A launcher's `placement`."""

    def place(*_: object) -> Placement:
        if isinstance(placement, WorkerUnavailableError):
            raise placement
        return placement

    return place


ON_GPU, ON_CPU = Placement("x", ("0",)), Placement()
REFUSED = WorkerUnavailableError("no GPU in containers", hint="do this")
NO_LOCAL = WorkerUnavailableError("no GPU here", hint="do that")


@pytest.mark.parametrize(
    ("choice", "contained", "here", "expected"),
    [
        ("auto", ON_GPU, ON_GPU, "docker"),
        ("auto", ON_CPU, ON_CPU, "docker"),
        ("auto", ON_CPU, ON_GPU, "local"),
        ("none", ON_CPU, ON_CPU, "docker"),
        ("auto", REFUSED, ON_CPU, "local"),
        ("0", ON_GPU, ON_GPU, "docker"),
        ("0", REFUSED, ON_GPU, "local"),
        ("0", REFUSED, NO_LOCAL, "no GPU in containers"),
        ("all", REFUSED, NO_LOCAL, "no GPU in containers"),
    ],
)
def test_the_runner_follows_the_gpu(
    monkeypatch: pytest.MonkeyPatch,
    choice: str,
    contained: Placement | WorkerUnavailableError,
    here: Placement | WorkerUnavailableError,
    expected: str,
) -> None:
    """Without `--runner` Docker goes first, unless only a local worker has the GPU; it is said."""
    monkeypatch.setattr(daemon, "may_answer", lambda: True)
    monkeypatch.setattr(DockerLauncher, "placement", answer(contained))
    monkeypatch.setattr(LocalLauncher, "placement", answer(here))
    options, told = TagOptions(spec=WorkerSpec(gpus=choice)), list[str]()
    if " " in expected:
        with pytest.raises(WorkerUnavailableError, match=expected):
            choose(resolve(options.spec), options, told.append)
        return
    assert choose(resolve(options.spec), options, told.append).name == expected
    assert len(told) == (expected == "local")


def test_without_docker_a_gpu_is_asked_of_the_local_runner(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Its own error is the one that helps."""
    monkeypatch.setattr(daemon, "may_answer", lambda: False)
    options = TagOptions(spec=WorkerSpec(gpus="0"))
    assert choose(resolve(options.spec), options, lambda _: None).name == "local"
    with pytest.raises(WorkerUnavailableError, match="--image x needs Docker"):
        choose(
            resolve(WorkerSpec(image="x")), TagOptions(spec=WorkerSpec(image="x")), lambda _: None
        )
