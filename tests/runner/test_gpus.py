"""Which GPUs a container gets, by what the daemon offers."""

from __future__ import annotations

from typing import Any

import pytest

from wuwan_runner import gpus
from wuwan_runner.errors import EngineError, ExitCode, UsageError
from wuwan_runner.gpus import GpuRequest

# The parts of a daemon's /info that matter.
RUNTIME = {"Runtimes": {"runc": {"path": "runc"}, "nvidia": {"path": "nvidia-container-runtime"}}}
CDI = {
    "Runtimes": {"runc": {"path": "runc"}},
    "CDISpecDirs": ["/etc/cdi", "/var/run/cdi"],
    "DiscoveredDevices": [
        {"Source": "cdi", "ID": "nvidia.com/gpu=0"},
        {"Source": "cdi", "ID": "nvidia.com/gpu=all"},
    ],
}
OTHER_CDI = {"DiscoveredDevices": [{"Source": "cdi", "ID": "vendor.com/camera=0"}]}
NONE: dict[str, Any] = {"Runtimes": {"runc": {"path": "runc"}}, "DiscoveredDevices": None}


@pytest.mark.parametrize("choice", ["auto", "all", "none", "0", "3", "0,1", "10,2"])
def test_choices(choice: str) -> None:
    """Words and indices are known."""
    assert gpus.check(choice) == choice


@pytest.mark.parametrize("choice", ["", "some", "0,", ",1", "0 1", "-1", "0\n", "gpu0", "ALL"])
def test_other_choices_are_refused(choice: str) -> None:
    """Anything else is an error of usage that says what would be known."""
    with pytest.raises(UsageError) as caught:
        gpus.check(choice)
    assert caught.value.exit_code == ExitCode.USAGE
    assert "auto, all, none" in caught.value.hint


@pytest.mark.parametrize("info", [RUNTIME, CDI, NONE])
@pytest.mark.parametrize("variant", ["cpu", "gpu"])
def test_none_is_none(info: dict[str, Any], variant: str) -> None:
    """Who wants no GPU gets none, and hears nothing."""
    assert gpus.resolve("none", info, variant) == (None, "")


@pytest.mark.parametrize(("info", "driver"), [(RUNTIME, "nvidia"), (CDI, "cdi")])
def test_what_is_offered_is_asked_for(info: dict[str, Any], driver: str) -> None:
    """Both ways of giving GPUs to containers are used."""
    every = (GpuRequest(driver, ("all",)), "")
    assert gpus.resolve("auto", info, "gpu") == every
    assert gpus.resolve("all", info, "gpu") == every
    assert gpus.resolve("1", info, "gpu") == (GpuRequest(driver, ("1",)), "")


def test_the_runtime_goes_before_cdi() -> None:
    """Where both are there, the runtime is used."""
    request, _ = gpus.resolve("auto", CDI | RUNTIME, "gpu")
    assert request == GpuRequest("nvidia", ("all",))


@pytest.mark.parametrize(("slot", "device"), [(0, "2"), (1, "5"), (2, "2"), (3, "5")])
def test_each_worker_gets_its_gpu(slot: int, device: str) -> None:
    """With indices, worker n gets the n-th, round and round."""
    request, _ = gpus.resolve("2,5", RUNTIME, "gpu", slot)
    assert request == GpuRequest("nvidia", (device,))


@pytest.mark.parametrize("info", [NONE, OTHER_CDI, {}])
def test_auto_without_a_gpu_is_the_cpu(info: dict[str, Any]) -> None:
    """Nothing is offered, nothing was asked for by name: that is obvious."""
    for variant in ("cpu", "gpu"):
        assert gpus.resolve("auto", info, variant) == (None, "")


@pytest.mark.parametrize("info", [RUNTIME, CDI])
def test_auto_with_a_cpu_image_says_so(info: dict[str, Any]) -> None:
    """A GPU that is there and not used is worth a sentence."""
    request, sentence = gpus.resolve("auto", info, "cpu")
    assert request is None
    assert "CPU" in sentence


@pytest.mark.parametrize("choice", ["all", "0", "0,1"])
@pytest.mark.parametrize(("info", "variant"), [(NONE, "gpu"), (OTHER_CDI, "gpu"), (RUNTIME, "cpu")])
def test_what_is_asked_for_by_name_is_had_or_an_error(
    choice: str, info: dict[str, Any], variant: str
) -> None:
    """There is no silent fall-back to the CPU; the error says what to do."""
    with pytest.raises(EngineError) as caught:
        gpus.resolve(choice, info, variant)
    assert caught.value.exit_code == ExitCode.ENGINE
    assert f"--gpus {choice}" in str(caught.value)
    assert "--gpus none" in caught.value.hint


def test_device_requests() -> None:
    """The API's form for each driver: all or some, by runtime or by CDI names."""
    gpu = {"Driver": "nvidia", "Capabilities": [["gpu"]]}
    assert gpus.device_requests(None) == []
    assert gpus.device_requests(GpuRequest("nvidia", ("all",))) == [
        gpu | {"Count": -1, "DeviceIDs": []}
    ]
    assert gpus.device_requests(GpuRequest("nvidia", ("0", "2"))) == [
        gpu | {"Count": 0, "DeviceIDs": ["0", "2"]}
    ]
    assert gpus.device_requests(GpuRequest("cdi", ("1",))) == [
        {"Driver": "cdi", "DeviceIDs": ["nvidia.com/gpu=1"]}
    ]
    assert gpus.device_requests(GpuRequest("cdi", ("all",))) == [
        {"Driver": "cdi", "DeviceIDs": ["nvidia.com/gpu=all"]}
    ]
