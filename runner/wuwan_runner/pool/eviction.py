"""Which idle workers make room when another one starts."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from wuwan_runner.gpus import nvidia
from wuwan_runner.wire import control

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from wuwan_runner.wire.address import Address
    from wuwan_runner.wire.control import Seen

# Of a GPU's memory: above it, idle workers give theirs back. A rule of thumb of gateways that start
# workers on demand; no measurement says that it is the best.
PRESSURE = 0.80
# Seconds a worker has to answer. One that is still starting does not, and is not idle either.
_TIMEOUT = 0.25
_END = 5.0  # seconds an idle worker has to end


class GpuMemory(Protocol):
    """Reads how full the GPUs are."""

    def __call__(self) -> tuple[int, int] | None:
        """Bytes in use and in all, of the fullest GPU; None where there is none to read."""
        ...


def nvml_memory() -> tuple[int, int] | None:
    """By NVML (the optional package nvidia-ml-py)."""
    with nvidia.nvml() as library:
        if library is None:
            return None
        try:
            readings = [
                library.nvmlDeviceGetMemoryInfo(library.nvmlDeviceGetHandleByIndex(index))
                for index in range(library.nvmlDeviceGetCount())
            ]
        except library.NVMLError:
            return None
    if not readings:
        return None
    fullest = max(readings, key=lambda reading: reading.used / reading.total)
    return int(fullest.used), int(fullest.total)


def victims(seen: Sequence[Seen], *, max_cached: int, gpu: tuple[int, int] | None) -> list[Seen]:
    """The idle workers to stop before one more is started, least recently used first.

    Args:
        seen: the workers that are up.
        max_cached: how many workers may be warm, the new one among them.
        gpu: bytes of GPU memory in use and in all.
    """
    idle = sorted(
        (worker for worker in seen if worker.status and worker.status.idle_for is not None),
        key=lambda worker: -(worker.status.idle_for or 0.0) if worker.status else 0.0,
    )
    chosen = idle[: max(0, len(idle) - max_cached + 1)]
    if gpu is not None:
        used, total = gpu
        used -= sum(_gpu_memory(worker) for worker in chosen)
        for worker in idle:
            if used <= PRESSURE * total:
                break
            if worker not in chosen and _gpu_memory(worker):
                chosen.append(worker)
                used -= _gpu_memory(worker)
    return chosen


def _gpu_memory(worker: Seen) -> int:
    return worker.status.gpu_memory if worker.status else 0


def make_room(
    newcomer: Address,
    max_cached: int,
    notify: Callable[[str], None],
    memory: GpuMemory = nvml_memory,
) -> None:
    """Stop idle workers so that one may start at `newcomer`; waits for GPU memory to be free."""
    seen = control.survey(_TIMEOUT, without=newcomer)
    if not seen:
        return
    holds_gpu = any(_gpu_memory(worker) for worker in seen)
    for worker in victims(seen, max_cached=max_cached, gpu=memory() if holds_gpu else None):
        try:
            with control.attach(worker.address, _TIMEOUT) as connection:
                # It may have got a client since: then it declines, and stays.
                if connection.stop(if_idle=True) and _gpu_memory(worker):
                    connection.wait_for_end(_END)
                name = worker.status.name if worker.status else ""
            notify(f"stopped the idle worker {name} to make room")
        except control.NoAnswerError:
            continue
