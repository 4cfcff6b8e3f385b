"""A step of computing recorded for a few batch sizes, and replayed.

A network such as ResNeSt-101 is hundreds of kernels, and to launch them one by one from Python
takes longer than a GPU needs for a small batch. A CUDA graph launches all of them at once; the
price is that shapes and addresses are fixed, so batches are padded to the next recorded size.
"""

from __future__ import annotations

import contextlib
import logging
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import torch

from wuwan_worker.backends import BackendError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

log = logging.getLogger(__name__)

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
        self._warm: set[int] = set()  # sizes that have run
        # cuDNN's plans, and the handles of cuDNN and cuBLAS, belong to a thread, and must be there
        # before it records. One thread records all, so that they are made once; and on one stream,
        # as the memory that recordings share asks for.
        self._recorder = ThreadPoolExecutor(1, "record")
        self._stream: Any = None
        self._pool: Any = None  # memory that all recorded sizes share: they never run at once

    def __call__(self, pixels: Any) -> Mapping[str, Any]:
        """As `step`; the results live until the next call and may have more rows.

        On a stream that is not the default one, which cannot be recorded.
        """
        count = len(pixels)
        size = next(size for size in self._sizes if size >= count)
        if size not in self._recorded:
            stream = torch.cuda.current_stream(self._device)
            self._recorded[size] = self._recorder.submit(
                self._with_room, size, pixels.shape[1:], stream
            ).result()
        graph, images, found = self._recorded[size]
        images[:count].copy_(pixels)
        graph.replay()
        return found

    def _with_room(
        self, size: int, shape: tuple[int, ...], stream: Any
    ) -> tuple[Any, Any, Mapping[str, Any]]:
        """As `_record`; once more if there is memory that only has to be given back first."""
        try:
            return self._record(size, shape, stream)
        except torch.OutOfMemoryError:
            # What the warm-up has left cannot be reused in a recording, and while one is under way
            # the allocator gives nothing back by itself.
            log.info("no memory to record batches of %d: giving back what is cached", size)
        torch.cuda.synchronize(self._device)
        torch.cuda.empty_cache()
        return self._record(size, shape, stream)

    def _record(
        self, size: int, shape: tuple[int, ...], stream: Any
    ) -> tuple[Any, Any, Mapping[str, Any]]:
        if self._stream is None:
            self._stream = torch.cuda.Stream(self._device)
        self._stream.wait_stream(stream)  # the weights may still be on their way
        with torch.inference_mode(), torch.cuda.stream(self._stream):
            images = torch.zeros(size, *shape, dtype=torch.uint8, device=self._device)
            if size not in self._warm:
                # The first run of a shape loads kernels and chooses algorithms: nothing of that can
                # be recorded.
                self._step(images)
                self._warm.add(size)
            graph, found = self._captured(images)
        stream.wait_stream(self._stream)
        return graph, images, found

    def _captured(self, images: Any) -> tuple[Any, Mapping[str, Any]]:
        graph = torch.cuda.CUDAGraph()
        # Not `torch.cuda.graph`, which first collects garbage and empties the allocator's cache:
        # that takes longer than a parked network may need to wake. Other threads go on decoding.
        graph.capture_begin(pool=self._pool, capture_error_mode="thread_local")
        try:
            found = self._step(images)
        except BaseException as error:
            with contextlib.suppress(RuntimeError):  # it would hide what went wrong
                graph.capture_end()
            if isinstance(error, RuntimeError) and not isinstance(error, torch.OutOfMemoryError):
                raise BackendError(
                    "this architecture cannot be recorded as a CUDA graph: "
                    f"{str(error).strip().splitlines()[0]}"
                ) from error
            raise
        graph.capture_end()
        self._pool = graph.pool()
        return graph, found

    def drop(self) -> None:
        """Forget what was recorded: addresses change when weights come and go."""
        for graph, _, _ in self._recorded.values():
            graph.reset()
        self._recorded.clear()
        self._pool = None
        # No public name has it. In its own thread, since newer versions of torch have workspaces
        # for each.
        self._recorder.submit(torch._C._cuda_clearCublasWorkspaces).result()  # noqa: SLF001
