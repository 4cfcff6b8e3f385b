"""What runs the network. A backend turns pixels into probabilities and knows nothing else."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from wuwan_worker.bundle import Bundle


class BackendError(Exception):
    """The backend cannot be used here. The message says why and what to do."""


class Backend(Protocol):
    """A loaded network."""

    device: str
    """What it runs on, for people: "CPU (bf16)", "NVIDIA H100 …"."""
    batch_size: int
    """The largest batch `infer` takes, images."""
    streams: int
    """How many threads may be in `infer` at once with a gain."""

    def infer(self, batch: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Probabilities (n, classes) of a batch (n, size, size, 3), RGB, 1 <= n <= batch_size."""
        ...

    def gpu_memory(self) -> int:
        """Bytes of GPU memory held."""
        ...


class Factory(Protocol):
    """Loads a bundle's weights."""

    def __call__(self, bundle: Bundle, *, threads: int) -> Backend:
        """May take seconds; raises BackendError."""
        ...


# name -> "module:function", imported when chosen: each has libraries of its own.
REGISTRY = {
    "openvino": "wuwan_worker.backends.openvino:load",
}


def load(name: str, bundle: Bundle, *, threads: int) -> Backend:
    """Load `bundle` with the backend `name`.

    Raises:
        BackendError: if there is no such backend, its library is missing, or the weights do not
            load.
    """
    if name not in REGISTRY:
        raise BackendError(f"no backend named {name!r}; there is: {', '.join(REGISTRY)}")
    module, function = REGISTRY[name].split(":")
    try:
        factory: Factory = getattr(importlib.import_module(module), function)
    except ImportError as error:
        raise BackendError(
            f"backend {name} needs the package {error.name!r}, which is not installed; "
            "install wuwan[cpu]"
        ) from None
    return factory(bundle, threads=threads)
