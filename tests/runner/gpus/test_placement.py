"""Which GPUs the workers of a run get, by what is asked for and what is there."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from wuwan_runner.errors import ExitCode, UsageError, WorkerUnavailableError
from wuwan_runner.gpus import placement
from wuwan_runner.gpus.placement import Offer, Placement, Problem
from wuwan_runner.options import WorkerSpec
from wuwan_runner.resolved import resolve

# The parts of a daemon's /info that matter.
RUNTIME = {"Runtimes": {"runc": {"path": "runc"}, "nvidia": {"path": "nvidia-container-runtime"}}}
NONE: dict[str, Any] = {"Runtimes": {"runc": {"path": "runc"}}, "DiscoveredDevices": None}


def cdi(*names: str) -> dict[str, Any]:
    """A daemon's /info with these CDI devices."""
    devices = [{"Source": "cdi", "ID": name} for name in names]
    return {"Runtimes": {"runc": {}}, "CDISpecDirs": ["/etc/cdi"], "DiscoveredDevices": devices}


def nvidia(*names: str) -> dict[str, Any]:
    """The same for NVIDIA's."""
    return cdi(*(f"nvidia.com/gpu={name}" for name in names))


ABSENT = Problem("no GPU is there", "buy one")
OBSTACLE = Problem("torch is not there", "install it")
TWO = Offer("cuda", ("GPU-a", "GPU-b"))
UNKNOWN = Offer("nvidia", ())


def choose(
    choice: str, offer: Offer | None, obstacle: Problem | None = None, **spec: str
) -> Placement:
    """For a model that is known to nobody here, as one in a container image is."""
    wanted = WorkerSpec(model=spec.pop("model", "elsewhere"), gpus=choice, **spec)
    return placement.choose(resolve(wanted), offer, absent=ABSENT, obstacle=obstacle)


@pytest.mark.parametrize("choice", ["auto", "all", "none", "0", "3", "0,1", "10,2"])
def test_choices(choice: str) -> None:
    """Words and indices are known."""
    assert WorkerSpec(gpus=choice).gpus == choice


def test_equal_choices_make_equal_specs() -> None:
    """Else two runs that want the same GPU would not share its worker."""
    assert WorkerSpec(gpus="0,01") == WorkerSpec(gpus="0,1")


@pytest.mark.parametrize(
    "choice",
    ["", "some", "0,", ",1", "0 1", "-1", "0\n", "gpu0", "ALL", "1,1", "0,00", "٣", "9" * 5000],
)
def test_other_choices_are_refused(choice: str) -> None:
    """Anything else is an error of usage; so is a GPU that is named twice."""
    with pytest.raises(UsageError) as caught:
        WorkerSpec(gpus=choice)
    assert caught.value.exit_code == ExitCode.USAGE


@pytest.mark.parametrize("offer", [None, TWO, UNKNOWN])
@pytest.mark.parametrize("obstacle", [None, OBSTACLE])
def test_none_is_none(offer: Offer | None, obstacle: Problem | None) -> None:
    """Who wants no GPU gets none, and hears nothing."""
    assert choose("none", offer, obstacle) == Placement()


def test_a_worker_for_each_chosen_gpu() -> None:
    """`all` takes all, indices count what is offered, `auto` leaves the others free."""
    assert choose("all", TWO) == Placement("cuda", ("GPU-a", "GPU-b"))
    assert choose("1", TWO) == Placement("cuda", ("GPU-b",))
    assert choose("1,0", TWO) == Placement("cuda", ("GPU-b", "GPU-a"))
    assert choose("auto", TWO) == Placement("cuda", ("GPU-a",))


def test_more_workers_go_round() -> None:
    """Worker n gets the n-th GPU, round and round; on a CPU nobody gets one."""
    placement = choose("1,0", TWO)
    assert [placement.device(index) for index in range(4)] == ["GPU-b", "GPU-a", "GPU-b", "GPU-a"]
    assert Placement().device(3) is None


def test_where_nobody_can_count() -> None:
    """Indices go on as they are; `all` has one worker and says so, with what to do."""
    assert choose("3,5", UNKNOWN) == Placement("nvidia", ("3", "5"))
    assert choose("auto", UNKNOWN) == Placement("nvidia", ("0",))
    placement = choose("all", UNKNOWN)
    assert placement.devices == ("0",)
    assert "one worker" in placement.note
    assert "--gpus 0,1" in placement.note


def test_how_many_workers() -> None:
    """Only `all` costs a question."""

    def asked() -> Placement:
        raise AssertionError("a daemon would be asked")

    counts = {choice: placement.workers(choice, asked) for choice in ("auto", "none", "3", "0,2,4")}
    assert counts == {"auto": 1, "none": 1, "3": 1, "0,2,4": 3}
    assert placement.workers("all", lambda: Placement("cuda", ("a", "b"))) == 2
    assert placement.workers("all", Placement) == 1


def test_an_index_too_high() -> None:
    """The error says how many there are."""
    with pytest.raises(WorkerUnavailableError, match="--gpus 0,2: there is no GPU 2") as caught:
        choose("0,2", TWO)
    assert "there are 2" in caught.value.hint


def test_auto_without_a_gpu_is_the_cpu() -> None:
    """Nothing is there, nothing was asked for by name: that is obvious."""
    assert choose("auto", None) == Placement()
    assert choose("auto", None, OBSTACLE) == Placement()


def test_auto_says_why_a_gpu_is_not_used() -> None:
    """A GPU that is there and not used is worth a sentence, unless the CPU was asked for."""
    placement = choose("auto", TWO, OBSTACLE)
    assert placement.devices == ()
    assert "using the CPU" in placement.note
    assert "torch is not there (install it)" in placement.note
    assert choose("auto", TWO, OBSTACLE, backend="openvino") == Placement()


@pytest.mark.parametrize("choice", ["all", "0", "0,1"])
@pytest.mark.parametrize(
    ("offer", "obstacle", "problem"), [(None, None, ABSENT), (TWO, OBSTACLE, OBSTACLE)]
)
def test_what_is_asked_for_by_name_is_had_or_an_error(
    choice: str, offer: Offer | None, obstacle: Problem | None, problem: Problem
) -> None:
    """There is no silent fall-back to the CPU; the error says what to do."""
    with pytest.raises(WorkerUnavailableError) as caught:
        choose(choice, offer, obstacle)
    assert caught.value.exit_code == ExitCode.UNAVAILABLE
    assert str(caught.value) == f"--gpus {choice}: {problem.cause}"
    assert caught.value.hint == f"{problem.advice}; or use --gpus none"


def test_a_model_without_weights_for_gpus(tmp_path: Path) -> None:
    """Is told before anything is started; one that has them gets its GPU."""
    embedded = Path(__file__).parents[3] / "image/wuwan_worker/bundles/imagenet-zh/bundle.toml"
    manifest = embedded.read_text()
    for backend in ("openvino", "torch"):
        (tmp_path / backend).mkdir()
        text = manifest.replace("openvino = ", f"{backend} = ")
        (tmp_path / backend / "bundle.toml").write_text(text)
    assert choose("0", TWO, model=f"{tmp_path}/torch").devices == ("GPU-a",)
    placement = choose("auto", TWO, model=f"{tmp_path}/openvino")
    assert placement.devices == ()
    assert "the model imagenet-zh has no weights for GPUs" in placement.note
    with pytest.raises(WorkerUnavailableError, match="no weights for GPUs"):
        choose("0", TWO, model=f"{tmp_path}/openvino")


def test_a_backend_for_cpus() -> None:
    """With a GPU it is a contradiction."""
    with pytest.raises(WorkerUnavailableError, match="the backend openvino is for CPUs"):
        choose("0", TWO, backend="openvino")


@pytest.mark.parametrize("info", [NONE, cdi("vendor.com/camera=0"), {}])
def test_a_daemon_without_gpus(info: dict[str, Any]) -> None:
    """Other vendors' devices are none."""
    assert placement.offered(info, 0) is None
    assert placement.offered(info, 2) is None


def test_a_daemon_with_the_runtime() -> None:
    """It goes by index; how many there are is known from this machine, or from CDI, or not."""
    assert placement.offered(RUNTIME, 2) == Offer("nvidia", ("0", "1"))
    assert placement.offered(RUNTIME, 0) == Offer("nvidia", ())
    assert placement.offered(nvidia("0", "1", "2", "all") | RUNTIME, 0) == Offer(
        "nvidia", ("0", "1", "2")
    )


@pytest.mark.parametrize(
    ("names", "devices"),
    [
        (("0", "1", "all"), ("0", "1")),
        (("10", "9", "all", "GPU-aa", "GPU-bb"), ("9", "10")),
        (("0:1", "0:0", "1", "all"), ("0:0", "0:1", "1")),
        (("GPU-bb", "GPU-aa", "all"), ("GPU-aa", "GPU-bb")),
        (("all",), ("all",)),
    ],
)
def test_a_daemon_with_cdi(names: tuple[str, ...], devices: tuple[str, ...]) -> None:
    """A GPU with several names counts once."""
    assert placement.offered(nvidia(*names), 7) == Offer("cdi", devices)


def test_device_requests() -> None:
    """The API's form, by runtime or by CDI names."""
    assert placement.device_requests("", None) == []
    assert placement.device_requests("nvidia", "2") == [
        {"Driver": "nvidia", "DeviceIDs": ["2"], "Capabilities": [["gpu"]]}
    ]
    assert placement.device_requests("cdi", "1") == [
        {"Driver": "cdi", "DeviceIDs": ["nvidia.com/gpu=1"]}
    ]
