"""What runs the network. A backend turns pixels into probabilities and knows nothing else."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Mapping, Sequence
    from concurrent.futures import Future

    import numpy as np
    from numpy.typing import NDArray

    from wuwan_worker.decoding.decode import Decoded, Refused
    from wuwan_worker.jobs import Job
    from wuwan_worker.shared.bundle import Bundle
    from wuwan_worker.shared.labels import Level


class BackendError(Exception):
    """The backend cannot be used here. The message says why and what to do."""


class BatchDecoder(Protocol):
    """Decodes many images at once."""

    least: int
    """So many images have to be queued before it takes any: fewer are sooner done on the CPU."""
    most: int
    """It takes no more at once."""

    def decode(
        self, jobs: Sequence[Job], on_cpu: Callable[[Job], Future[Decoded | Refused]]
    ) -> list[Decoded | Refused]:
        """An image or what is wrong with it, for each job in order. Closes no descriptor.

        Args:
            jobs: at most `most`.
            on_cpu: begins what it cannot decode itself.
        """
        ...


class Backend(Protocol):
    """A loaded network."""

    device: str
    """What it runs on, for people: "CPU (bf16)", "NVIDIA H100 …"."""
    batch_size: int
    """The largest batch `infer` takes, images."""
    streams: int
    """How many threads may be in `infer` at once with a gain."""
    decoder: BatchDecoder | None
    """Its own decoder, if it has one."""
    parked: bool
    """Whether its weights have left the GPU; the next `infer` brings them back."""

    def infer(
        self, batch: NDArray[np.uint8], levels: Collection[str]
    ) -> Mapping[str, NDArray[np.float32]]:
        """The probabilities of a batch (n, size, size, 3), RGB, 1 <= n <= batch_size.

        For each of `levels` (n, rows of that level); valid until this thread's next call.
        """
        ...

    def park(self) -> None:
        """Give GPU memory back until the next `infer`. Not asked of a backend that holds none."""
        ...

    def gpu_memory(self) -> int:
        """Bytes of GPU memory held; 0 on a CPU."""
        ...


class Factory(Protocol):
    """Loads a bundle's weights."""

    def __call__(
        self, bundle: Bundle, levels: Mapping[str, Level], *, device: str, threads: int
    ) -> Backend:
        """May take seconds; raises BackendError and BundleError."""
        ...


# name -> "module:function", imported when chosen: each has libraries of its own.
REGISTRY = {
    "openvino": "wuwan_worker.backends.openvino.backend:load",
    "torch": "wuwan_worker.backends.torch.backend:load",
}
_INSTALL = {
    "openvino": "install wuwan[cpu]",
    "torch": "use the GPU image, or an environment made from environment.yml",
}


def load(
    name: str, bundle: Bundle, levels: Mapping[str, Level], *, device: str, threads: int
) -> Backend:
    """Load `bundle`, whose labels are `levels`.

    Args:
        name: of the backend; "auto" for the bundle's own on that device.
        bundle: what to load.
        levels: its labels.
        device: "cpu" or "cuda", the first GPU that this process sees. Never the other one instead.
        threads: CPU threads to use.

    Raises:
        BackendError: if there is no such backend, its library is missing, the device cannot be
            used, or the weights do not load.
        BundleError: if the bundle has no weights for the backend.
    """
    if name == "auto":
        name = bundle.backend_on(device)
    if name not in REGISTRY:
        raise BackendError(f"no backend named {name!r}; there is: {', '.join(REGISTRY)}")
    module, function = REGISTRY[name].split(":")
    try:
        factory: Factory = getattr(importlib.import_module(module), function)
    except ImportError as error:
        raise BackendError(
            f"backend {name} needs the package {error.name!r}, which is not installed; "
            f"{_INSTALL[name]}"
        ) from None
    return factory(bundle, levels, device=device, threads=threads)
