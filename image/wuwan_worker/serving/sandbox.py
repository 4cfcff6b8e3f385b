"""What a worker gives up before it decodes anything.

A decoder may be taken over by the image that it decodes. What it can do then is what the process
can do, so the process gives up what it does not need: it goes on reading files and answering
clients on the sockets it has, and that is all. In a container the same holds once more.

Where the kernel does not have something the rest is done all the same, and the log says so.
"""

from __future__ import annotations

import ctypes
import logging
import resource
from pathlib import Path

from wuwan_worker.shared import landlock, seccomp

log = logging.getLogger(__name__)

_PR_SET_DUMPABLE, _PR_SET_NO_NEW_PRIVS = 4, 38  # prctl(2)
# What CUDA opens for writing: its devices, and those under them; of other names on Jetson and WSL.
_GPU_DEVICES = ("nvidia*", "nvhost*", "nvmap", "nvgpu", "dxg")
_MODPROBE_TIMEOUT = 10.0  # seconds
# What is written there goes nowhere.
_NOWHERE = (Path("/dev/null"),)


def enter(*, gpu: bool) -> None:
    """Give it up, for good; from the main thread, before there is another one.

    Args:
        gpu: whether CUDA will be used: then its devices may be written to, and sockets be made,
            since its driver library uses some of its own.
    """
    if gpu:
        _make_gpu_devices()
    no_core_dumps()
    held = []
    if _prctl(_PR_SET_NO_NEW_PRIVS, 1):
        writable = [*_NOWHERE, *(_gpu_devices() if gpu else ())]
        try:
            version = landlock.restrict(writable)
            held.append(f"Landlock ABI {version}: {landlock.holds(version)}")
        except OSError as error:
            held.append(f"no Landlock ({_reason(error)})")
        try:
            seccomp.restrict(sockets=gpu)
            held.append("seccomp: " + (seccomp.HOLDS_ON_GPU if gpu else seccomp.HOLDS))
        except OSError as error:
            held.append(f"no seccomp ({_reason(error)})")
    else:
        held.append("none: no_new_privs cannot be set")
    log.info("sandbox: %s", "; ".join(held))


def no_core_dumps() -> None:
    """A crash leaves no copy of the photos that were in memory.

    Two ways, since a program that core_pattern names (core(5)) is run whatever the limit is, and a
    process that is not dumpable has neither. Nor can other processes of the user look into its
    memory. What `wuwan stop` reads, /proc/PID/cmdline, is open to all as before.
    """
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    _prctl(_PR_SET_DUMPABLE, 0)


def _reason(error: OSError) -> str:
    return error.strerror or str(error)


def _make_gpu_devices() -> None:
    """What CUDA's library would do itself, by a program that is root's and would not be any longer.

    On a machine without a display /dev/nvidia-uvm may be missing until somebody computes.
    """
    import shutil
    import subprocess

    control, memory = (Path("/dev") / name for name in ("nvidiactl", "nvidia-uvm"))
    if control.exists() and not memory.exists() and (program := shutil.which("nvidia-modprobe")):
        try:
            subprocess.run([program, "-u", "-c=0"], timeout=_MODPROBE_TIMEOUT, check=True)
        except (OSError, subprocess.SubprocessError) as error:
            log.info("sandbox: the GPU's devices may be missing: %s", error)


def _gpu_devices() -> list[Path]:
    return [path for pattern in _GPU_DEVICES for path in Path("/dev").glob(pattern)]


def _prctl(option: int, value: int) -> bool:
    wide = map(ctypes.c_ulong, (value, 0, 0, 0))
    return bool(ctypes.CDLL(None).prctl(option, *wide) == 0)
