"""Which GPUs a container gets."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from wuwan_runner.errors import EngineError, UsageError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

_INDICES = re.compile(r"\d+(,\d+)*")
_CDI_KIND = "nvidia.com/gpu"


@dataclass(frozen=True, slots=True)
class GpuRequest:
    """What the daemon is asked for: a driver and the devices."""

    driver: str  # "nvidia" (the runtime's hook) or "cdi"
    devices: tuple[str, ...]  # indices, or "all"


def check(choice: str) -> str:
    """`choice` if it is one of auto, all, none, or indices such as 0,1.

    Raises:
        UsageError: otherwise.
    """
    if choice in ("auto", "all", "none") or _INDICES.fullmatch(choice):
        return choice
    raise UsageError(f"--gpus {choice!r} is not known", hint="auto, all, none, or indices: 0,1")


def resolve(
    choice: str, info: Mapping[str, Any], variant: str, slot: int = 0
) -> tuple[GpuRequest | None, str]:
    """What to ask the daemon for, and a sentence if the choice was not obvious.

    Args:
        choice: as `--gpus`.
        info: the daemon's /info.
        variant: of the image, "cpu" or "gpu".
        slot: which of several workers this is; with indices, worker n gets the n-th GPU.

    Raises:
        EngineError: if GPUs are asked for by name and cannot be had. There is no silent fall-back.
    """
    if choice == "none":
        return None, ""
    offered = _offered(info)
    if choice == "auto":
        if offered is None:
            return None, ""
        if variant != "gpu":
            return None, "the daemon offers GPUs, but the image is the CPU variant: using the CPU"
        return GpuRequest(offered, ("all",)), ""
    if offered is None:
        raise EngineError(
            f"--gpus {choice}: this Docker daemon offers no NVIDIA GPU (no `nvidia` runtime and no "
            "CDI device)",
            hint="install the NVIDIA driver and the NVIDIA Container Toolkit, run `nvidia-ctk "
            "runtime configure --runtime=docker`, restart Docker; or use --gpus none",
        )
    if variant != "gpu":
        raise EngineError(
            f"--gpus {choice}: the container image has no GPU support",
            hint="use a GPU image, or --gpus none",
        )
    if choice == "all":
        return GpuRequest(offered, ("all",)), ""
    indices = choice.split(",")
    return GpuRequest(offered, (indices[slot % len(indices)],)), ""


def _offered(info: Mapping[str, Any]) -> str | None:
    if "nvidia" in (info.get("Runtimes") or {}):
        return "nvidia"
    devices: Sequence[Mapping[str, Any]] = info.get("DiscoveredDevices") or ()
    if any(str(device.get("ID", "")).startswith(_CDI_KIND) for device in devices):
        return "cdi"
    return None


def device_requests(request: GpuRequest | None) -> list[dict[str, Any]]:
    """The HostConfig.DeviceRequests of the Docker API."""
    if request is None:
        return []
    if request.driver == "cdi":
        names = [f"{_CDI_KIND}={device}" for device in request.devices]
        return [{"Driver": "cdi", "DeviceIDs": names}]
    every = request.devices == ("all",)
    return [
        {
            "Driver": "nvidia",
            "Count": -1 if every else 0,
            "DeviceIDs": [] if every else list(request.devices),
            "Capabilities": [["gpu"]],
        }
    ]
