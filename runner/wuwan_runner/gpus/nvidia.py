"""The NVIDIA GPUs of this machine, seen without torch and without starting CUDA."""

from __future__ import annotations

import importlib
import os
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

VISIBLE = "CUDA_VISIBLE_DEVICES"
# One of these is there where a driver is (the last one under WSL). Without one nobody needs to be
# asked: to import NVML's package alone takes 40 ms of a cold start.
_SIGNS = ("/dev/nvidiactl", "/proc/driver/nvidia", "/dev/dxg")
_DRIVER = "/proc/driver/nvidia/gpus"  # a directory for each GPU, by the kernel's driver


def driver() -> bool:
    """Whether this machine has a driver at all; to look takes no time."""
    return any(map(os.path.exists, _SIGNS))


@contextmanager
def nvml() -> Iterator[Any]:
    """NVML (the optional package nvidia-ml-py), ready to be asked; None where it cannot be had."""
    if not driver():
        yield None
        return
    try:
        library = importlib.import_module("pynvml")
    except ImportError:
        yield None
        return
    try:
        library.nvmlInit()
    except library.NVMLError:
        yield None
        return
    try:
        yield library
    finally:
        library.nvmlShutdown()


def count() -> int:
    """How many GPUs the driver has, by NVML or else by /proc; 0 where there is no driver."""
    with nvml() as library:
        if library is not None:
            try:
                return int(library.nvmlDeviceGetCount())
            except library.NVMLError:
                pass
    try:
        return len(os.listdir(_DRIVER))
    except OSError:
        return 0


def visible(environment: Mapping[str, str], total: int) -> tuple[str, ...]:
    """The GPUs that CUDA_VISIBLE_DEVICES leaves to a process, each as that variable names it.

    CUDA's own rule: without the variable all of them; an index that does not exist (so also -1)
    ends the list; UUIDs of GPUs and of MIG instances are taken as they are.

    Args:
        environment: the process's.
        total: how many GPUs the driver has.
    """
    listed = environment.get(VISIBLE)
    if listed is None or not total:
        return tuple(str(index) for index in range(total))
    devices = []
    for entry in map(str.strip, listed.split(",")):
        exists = entry.isascii() and entry.isdecimal() and int(entry) < total
        if not (exists or entry.startswith(("GPU-", "MIG-"))):
            break
        devices.append(entry)
    return tuple(devices)


def environment(base: Mapping[str, str], device: str | None) -> dict[str, str]:
    """`base` for a process that is to see `device` alone, and with None no GPU.

    Indices are those of nvidia-smi, unless the user has numbered the GPUs already.
    """
    order = {} if VISIBLE in base else {"CUDA_DEVICE_ORDER": "PCI_BUS_ID"}
    return {**order, **base, VISIBLE: device or ""}
