"""Runs the worker as a process of this user, on the CPU or on a GPU that the user sees."""

from __future__ import annotations

import importlib.util
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from wuwan_runner.errors import WorkerUnavailableError
from wuwan_runner.gpus import nvidia, placement
from wuwan_runner.gpus.placement import Offer, Placement, Problem
from wuwan_runner.launchers import code
from wuwan_runner.wire import address
from wuwan_runner.worker import WorkerExit, new_name
from wuwan_worker.shared import peers

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable

    from wuwan_runner.options import Timeouts
    from wuwan_runner.resolved import ResolvedSpec
    from wuwan_runner.worker import StartRequest
    from wuwan_worker.shared.protocol import Welcome

# What each backend imports, and the extra of wuwan that installs it.
NEEDED = {
    "openvino": ("numpy", "PIL", "pillow_heif", "openvino"),
    "torch": ("numpy", "PIL", "pillow_heif", "torch", "torchvision", "timm", "safetensors"),
}
EXTRAS = {"openvino": "cpu", "torch": "gpu"}
_LOG_TAIL = 4000  # bytes shown of a dead worker's log
_NO_GPU = Problem(
    "no NVIDIA GPU is visible here",
    f"`nvidia-smi` shows what the driver sees, {nvidia.VISIBLE} may hide some of it",
)


def missing(backend: str) -> list[str]:
    """What `backend` imports and is not installed; looked up, not imported."""
    return [name for name in NEEDED.get(backend, ()) if importlib.util.find_spec(name) is None]


def _not_installed(backend: str) -> Problem | None:
    if not (names := missing(backend)):
        return None
    return Problem(
        f"a local worker needs {', '.join(names)}, which is not installed",
        f"pip install 'wuwan[{EXTRAS[backend]}]', or use --runner docker",
    )


# Workers that outlive their run are still this process's children until it ends: waited for here,
# so that a long-lived program that uses `Tagger` collects no zombies.
_released: list[subprocess.Popen[bytes]] = []


def _reap() -> None:
    _released[:] = [process for process in _released if process.poll() is None]


class LocalHandle:
    """A worker process and the memory file that its output goes to."""

    def __init__(self, name: str, process: subprocess.Popen[bytes], log: int) -> None:
        self.name = name
        self._process = process
        self._log = log

    def report(self) -> WorkerExit:
        """See `WorkerHandle.report`."""
        try:
            # Its socket is closed, so it is ending; give the kernel a moment to say how.
            code = self._process.wait(timeout=2.0)
        except subprocess.TimeoutExpired:
            return WorkerExit()
        size = os.fstat(self._log).st_size
        tail = os.pread(self._log, _LOG_TAIL, max(0, size - _LOG_TAIL)).decode(errors="replace")
        reason = f"signal {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"
        return WorkerExit(
            reason,
            tail.strip(),
            in_order=code == 0,
            by_hand=-code in (signal.SIGTERM, signal.SIGINT),
        )

    def kill(self) -> None:
        """See `WorkerHandle.kill`."""
        self._process.kill()
        try:
            self._process.wait(timeout=5.0)
        except subprocess.TimeoutExpired:  # in the kernel's hands: a disk or a GPU that is gone
            raise WorkerUnavailableError(
                f"worker {self.name} hangs in the kernel and cannot be killed",
                hint=f"kill -9 {self._process.pid} once what it waits for is back",
            ) from None
        finally:
            self.release()

    def release(self) -> None:
        """See `WorkerHandle.release`."""
        if self._log >= 0:
            os.close(self._log)
            self._log = -1
        _released.append(self._process)
        _reap()


class LocalLauncher:
    """Starts `python -m wuwan_worker` with the listening socket inherited."""

    name = "local"
    contained = False

    def key(
        self,
        wanted: ResolvedSpec,
        timeout: float = 0.0,
        notify: Callable[[str], None] | None = None,
    ) -> str:
        """See `Launcher.key`."""
        del timeout, notify
        spec, model = wanted.spec, wanted.model.required
        return address.key(
            self.name,
            {
                "code": code.digest(),
                "model": str(model.root),
                "bundle": model.fingerprint,
                "backend": spec.backend,
                "gpus": spec.gpus,
                "visible": os.environ.get(nvidia.VISIBLE, "all") if spec.gpus != "none" else "",
            },
        )

    def placement(self, wanted: ResolvedSpec, timeouts: Timeouts) -> Placement:
        """See `Launcher.placement`."""
        del timeouts
        spec = wanted.spec
        visible = nvidia.visible(os.environ, nvidia.count()) if spec.gpus != "none" else ()
        offer = Offer("cuda", visible) if visible else None
        obstacle = _not_installed("torch") if visible else None
        return placement.choose(wanted, offer, absent=_NO_GPU, obstacle=obstacle)

    def start(self, request: StartRequest, listener: socket.socket) -> LocalHandle:
        """See `Launcher.start`."""
        spec = request.wanted.spec
        placed = request.placement()
        device = placed.device(request.index)
        if placed.note and request.index == 0:
            request.notify(placed.note)
        model = request.wanted.model.required
        on = "cuda" if device else "cpu"
        backend = model.backend_on(on) if spec.backend == "auto" else spec.backend
        if problem := _not_installed(backend):
            raise WorkerUnavailableError(problem.cause, hint=problem.advice)
        _reap()
        name = new_name(spec.model)
        # The log goes to memory that vanishes with its last holder: no file to clean up, and the
        # worker holds none of our descriptors, so whoever reads our output sees its end.
        log = os.memfd_create("wuwan-log", os.MFD_CLOEXEC)
        os.set_inheritable(listener.fileno(), True)
        try:
            process = subprocess.Popen(
                [
                    sys.executable,
                    "-m",
                    "wuwan_worker",
                    f"--listen-fd={listener.fileno()}",
                    f"--name={name}",
                    f"--runner={self.name}",
                    f"--model={model.root}",
                    f"--backend={spec.backend}",
                    f"--device={on}",
                    f"--ttl={request.ttl}",
                ],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                pass_fds=[listener.fileno()],
                env={
                    **nvidia.environment(os.environ, device),
                    peers.TOKEN_VARIABLE: request.token,
                },
                start_new_session=True,
                cwd="/",
            )
        except OSError as error:
            os.close(log)
            raise WorkerUnavailableError(f"cannot start a worker process: {error}") from None
        return LocalHandle(name, process, log)

    def kill(self, worker: Welcome, timeouts: Timeouts) -> None:
        """See `Launcher.kill`."""
        del timeouts
        try:
            arguments = Path(f"/proc/{worker.pid}/cmdline").read_bytes().split(b"\0")
            # The number may have gone to another process since.
            if f"--name={worker.name}".encode() in arguments:
                os.kill(worker.pid, signal.SIGKILL)
        except (FileNotFoundError, ProcessLookupError):
            pass
        except OSError as error:
            raise WorkerUnavailableError(
                f"worker {worker.name} hangs and cannot be killed: {error}",
                hint=f"kill -9 {worker.pid}",
            ) from None
