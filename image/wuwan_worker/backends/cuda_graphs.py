"""A step of computing recorded for a few batch sizes, and replayed.

A network such as ResNeSt-101 is hundreds of kernels, and to launch them one by one from Python
takes longer than a GPU needs for a small batch. A CUDA graph launches all of them at once; the
price is that shapes and addresses are fixed, so batches are padded to the next recorded size.
"""

from __future__ import annotations

import contextlib
import threading
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

# Each is recorded when it is first wanted. Padding to the next wastes at most half of a large
# batch; under 16 images a batch takes about as long as one image.
SIZES = (1, 4, 16, 32, 64)


class CudaGraphs:
    """Runs `step` by replaying it. Not for two threads at once."""

    def __init__(
        self, step: Callable[[Any], Mapping[str, Any]], device: Any, sizes: Sequence[int] = SIZES
    ) -> None:
        """`step`: from uint8 (n, size, size, 3) on the GPU to tensors with n rows."""
        self._step = step
        self._device = device
        self._sizes = sizes
        self._recorded: dict[int, tuple[Any, Any, Mapping[str, Any]]] = {}
        self._warm: set[tuple[int, int]] = set()
        self._pool: Any = None  # memory that all recorded sizes share: they never run at once

    def __call__(self, pixels: Any) -> Mapping[str, Any]:
        """As `step`; the results live until the next call and may have more rows.

        On a stream that is not the default one, which cannot be recorded.
        """
        count = len(pixels)
        size = next(size for size in self._sizes if size >= count)
        if size not in self._recorded:
            self._recorded[size] = self._record(size, pixels.shape[1:])
        graph, images, found = self._recorded[size]
        images[:count].copy_(pixels)
        graph.replay()
        return found

    def _record(self, size: int, shape: tuple[int, ...]) -> tuple[Any, Any, Mapping[str, Any]]:
        images = torch.zeros(size, *shape, dtype=torch.uint8, device=self._device)
        warm = (threading.get_ident(), size)
        if warm not in self._warm:
            # The first run of a shape loads kernels and chooses algorithms, and cuBLAS and cuDNN
            # have handles for each thread: nothing of that can be recorded.
            self._step(images)
            self._warm.add(warm)
        graph = torch.cuda.CUDAGraph()
        # Not `torch.cuda.graph`, which first collects garbage and empties the allocator's cache:
        # that takes longer than a parked network may need to wake. Other threads go on decoding.
        graph.capture_begin(pool=self._pool, capture_error_mode="thread_local")
        try:
            found = self._step(images)
        except BaseException:
            with contextlib.suppress(RuntimeError):  # it would hide what went wrong
                graph.capture_end()
            raise
        graph.capture_end()
        self._pool = graph.pool()
        return graph, images, found

    def drop(self) -> None:
        """Forget what was recorded: addresses change when weights come and go."""
        for graph, _, _ in self._recorded.values():
            graph.reset()
        self._recorded.clear()
        self._pool = None
