"""Which GPUs the workers of a run get: one worker for each."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from wuwan_runner.errors import WorkerUnavailableError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from wuwan_runner.options import WorkerSpec
    from wuwan_runner.resolved import ResolvedSpec

_INDEX = re.compile(r"\d+(:\d+)?", re.ASCII)  # in CDI
_CDI_KIND = "nvidia.com/gpu="


@dataclass(frozen=True, slots=True)
class Offer:
    """GPUs that workers can be given."""

    driver: str  # how: "cuda" (a process sees it), "nvidia" (Docker's runtime) or "cdi"
    devices: tuple[str, ...]  # their names; empty where nobody here can tell


@dataclass(frozen=True, slots=True)
class Problem:
    """Why workers cannot have a GPU."""

    cause: str
    advice: str


@dataclass(frozen=True, slots=True)
class Placement:
    """Where the workers of a run go."""

    driver: str = ""
    devices: tuple[str, ...] = ()  # a worker for each; empty for the CPU
    image: str = ""  # of containers
    note: str = ""  # what a person may want to know about the choice

    def device(self, index: int) -> str | None:
        """The GPU of the worker with that index; None: the CPU. More workers go round and round."""
        return self.devices[index % len(self.devices)] if self.devices else None


def by_name(choice: str) -> bool:
    """Whether GPUs are asked for, so that having none is an error."""
    return choice not in ("auto", "none")


def workers(choice: str, ask: Callable[[], Placement]) -> int:
    """How many workers a run starts: one for each chosen GPU, one on a CPU.

    `ask` is called only where the number is not in `choice` itself: it may ask a daemon.
    """
    if choice == "all":
        return max(1, len(ask().devices))
    return len(choice.split(",")) if by_name(choice) else 1


def choose(
    wanted: ResolvedSpec, offer: Offer | None, *, absent: Problem, obstacle: Problem | None
) -> Placement:
    """The GPUs for a spec; "auto" takes one, so that the others stay free for other programs.

    Args:
        wanted: the spec, and what its model is.
        offer: the GPUs that are there.
        absent: why there are none, if there are none.
        obstacle: why one that is there could not be used.

    Raises:
        WorkerUnavailableError: if GPUs are asked for by name and cannot be had. There is no silent
            fall-back.
    """
    spec = wanted.spec
    auto = spec.gpus == "auto"
    if spec.gpus == "none" or (auto and offer is None):
        return Placement()
    if offer is None:
        raise _refusal(spec, absent)
    if problem := _unfit(wanted) or obstacle:
        if not auto:
            raise _refusal(spec, problem)
        if spec.backend == "openvino":  # then the CPU is what was asked for
            return Placement()
        note = f"using the CPU, although there is a GPU: {problem.cause} ({problem.advice})"
        return Placement(note=note)
    if auto:
        return Placement(offer.driver, (offer.devices or ("0",))[:1])
    if spec.gpus != "all":
        return Placement(offer.driver, _named(spec.gpus, offer.devices))
    if not offer.devices:
        note = "how many GPUs there are cannot be told from here: one worker, on the first"
        return Placement(offer.driver, ("0",), note=f"{note} (for more, --gpus 0,1)")
    return Placement(offer.driver, offer.devices)


def _refusal(spec: WorkerSpec, problem: Problem) -> WorkerUnavailableError:
    return WorkerUnavailableError(
        f"--gpus {spec.gpus}: {problem.cause}", hint=f"{problem.advice}; or use --gpus none"
    )


def _named(choice: str, devices: Sequence[str]) -> tuple[str, ...]:
    indices = choice.split(",")
    if not devices:
        return tuple(indices)
    if over := [index for index in indices if int(index) >= len(devices)]:
        raise WorkerUnavailableError(
            f"--gpus {choice}: there is no GPU {over[0]}",
            hint=f"there are {len(devices)}, counted from 0",
        )
    return tuple(devices[int(index)] for index in indices)


def _unfit(wanted: ResolvedSpec) -> Problem | None:
    """Why a spec runs on no GPU, whichever it is; None if it does, as far as is known here."""
    spec, model = wanted.spec, wanted.model.found
    if spec.backend not in ("auto", "torch"):
        return Problem(f"the backend {spec.backend} is for CPUs", "use --backend torch")
    if model is None or "torch" in model.backends:  # it may be in the container image
        return None
    return Problem(f"the model {model.name} has no weights for GPUs", "choose another --model")


def offered(info: Mapping[str, Any], total: int) -> Offer | None:
    """What a Docker daemon can give to containers.

    Args:
        info: the daemon's /info.
        total: how many GPUs its machine has; 0 if that is not known.
    """
    cdi = _cdi_devices(info)
    if "nvidia" in (info.get("Runtimes") or {}):
        # The runtime goes by index alone.
        return Offer("nvidia", tuple(map(str, range(total or sum(map(str.isdecimal, cdi))))))
    return Offer("cdi", cdi) if cdi else None


def _cdi_devices(info: Mapping[str, Any]) -> tuple[str, ...]:
    """One name for each device: a GPU may have several, its index, its UUID, and "all"."""
    found = [str(device.get("ID", "")) for device in info.get("DiscoveredDevices") or ()]
    names = {name.removeprefix(_CDI_KIND) for name in found if name.startswith(_CDI_KIND)}
    # 0, 1, or 0:0, 0:1 for the parts of a GPU that is divided (MIG).
    indices = [name for name in names if _INDEX.fullmatch(name)]
    indices.sort(key=lambda name: [int(part) for part in name.split(":")])
    return tuple(indices or sorted(names - {"all"}) or names)


def device_requests(driver: str, device: str | None) -> list[dict[str, Any]]:
    """The HostConfig.DeviceRequests of the Docker API."""
    if device is None:
        return []
    if driver == "cdi":
        return [{"Driver": "cdi", "DeviceIDs": [f"{_CDI_KIND}{device}"]}]
    return [{"Driver": "nvidia", "DeviceIDs": [device], "Capabilities": [["gpu"]]}]
