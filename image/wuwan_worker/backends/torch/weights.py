"""Where a network's weights are: mapped from their file, or in a block that a GPU copies.

`MappedWeights` are for the CPU: the file's own pages, and no copy of them is made but of
the convolutions, which are laid out anew (channels last).

`PinnedWeights` are for a GPU. The host's copy is the master, in the GPU's own number format and
layout, and the GPU's copy is made from it and dropped again: since weights never change, parking a
network copies nothing, and waking it is one transfer from pinned memory.
"""

from __future__ import annotations

import logging
import math
import weakref
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from wuwan_worker.backends.torch import checkpoint, networks

if TYPE_CHECKING:
    from pathlib import Path

log = logging.getLogger(__name__)

_ALIGNMENT = 256  # bytes, as the CUDA allocator aligns
_PIECE = 4 * 2**20  # numbers read at a time


class MappedWeights:
    """Weights in float32, mapped."""

    bytes = 0  # of a device

    def __init__(self, network: Any, path: Path) -> None:
        network.load_state_dict(checkpoint.read(path), assign=True)
        network.to(memory_format=torch.channels_last)
        network.requires_grad_(False)

    def load(self) -> None:
        """They are always there."""

    def offload(self) -> None:
        """They hold no GPU memory."""


class PinnedWeights:
    """Weights in one block of host memory, and in one of the device while they are up."""

    def __init__(self, network: Any, path: Path, device: Any, dtype: Any) -> None:
        """Read the weights; they are not up yet.

        Args:
            network: what they belong to; on torch's `meta` device.
            path: a safetensors file, float32.
            device: where `up` takes them.
            dtype: torch's type for them. Batch norms stay in float32: they are few, and their
                variances spread over more magnitudes than bf16 can tell apart.
        """
        self._network = network
        self._device = device
        self._tensors: list[tuple[dict[str, Any], str, TensorSlice]] = []
        whole = {
            name
            for name, module in network.named_modules()
            if isinstance(module, torch.nn.modules.batchnorm._BatchNorm)  # noqa: SLF001
        }
        size = 0
        sources = checkpoint.offsets(path)
        read: list[tuple[TensorSlice, int]] = []
        for name, tensor in network.state_dict().items():
            if not tensor.is_floating_point():  # how many batches a batch norm has seen
                continue
            tensors, leaf = networks.owner(network, name)
            kind = torch.float32 if name.rpartition(".")[0] in whole else dtype
            part = TensorSlice(size, tuple(tensor.shape), kind)
            size += -(-part.bytes // _ALIGNMENT) * _ALIGNMENT
            self._tensors.append((tensors, leaf, part))
            read.append((part, sources[name][1]))
        for name, buffer in network.named_buffers():
            if name not in sources:  # computed when the network was built; they are small, and stay
                kind = dtype if buffer.is_floating_point() else buffer.dtype
                tensors, leaf = networks.owner(network, name)
                tensors[leaf] = buffer.to(device, kind)
        self.bytes = size
        self._host = torch.empty(size, dtype=torch.uint8)
        if device.type == "cuda":
            self._pin()
        with path.open("rb") as file:
            for part, offset in read:
                file.seek(offset)
                part.fill(self._host, file)

    def _pin(self) -> None:
        """Have the GPU copy from there without a stop on the way.

        torch's own pinned memory comes in powers of two: 512 MiB for the 300 MiB of `general-zh`.
        """
        runtime, start = torch.cuda.cudart(), self._host.data_ptr()
        status = runtime.cudaHostRegister(start, self.bytes, 0)
        if status != runtime.cudaError.success:  # as in gVisor; CUDA copies from any memory
            log.warning("the weights are not pinned, so waking takes longer: %s", status)
            return
        # Before the memory goes: whatever came to the same place could not be pinned again.
        weakref.finalize(self, runtime.cudaHostUnregister, start).atexit = False

    def load(self) -> None:
        """Copy them to the device, on the current stream."""
        block = self._host.to(self._device, non_blocking=True, copy=True)
        self._assign(block)

    def offload(self) -> None:
        """Drop the device's copy."""
        self._assign(torch.empty(self.bytes, dtype=torch.uint8, device="meta"))

    def _assign(self, block: Any) -> None:
        for tensors, leaf, part in self._tensors:
            tensors[leaf] = part.of(block)


class TensorSlice:
    """Where one tensor lies in a block of bytes."""

    def __init__(self, start: int, shape: tuple[int, ...], dtype: Any) -> None:
        self._start, self._shape, self._dtype = start, shape, dtype
        self._count = math.prod(shape)
        self.bytes = self._count * dtype.itemsize

    def of(self, block: Any) -> Any:
        """The tensor; images' channels come last in memory."""
        flat = block[self._start : self._start + self.bytes].view(self._dtype)
        if len(self._shape) != 4:
            return flat.view(self._shape)
        outputs, inputs, height, width = self._shape
        return flat.view(outputs, height, width, inputs).permute(0, 3, 1, 2)

    def fill(self, block: Any, file: Any) -> None:
        """Read it from where `file` is, float32, in pieces: no second copy of it exists."""
        tensor = self.of(block)
        rows = tensor if self._shape else tensor.view(1)
        width = max(1, self._count // max(1, len(rows)))
        step = max(1, _PIECE // width)
        for first in range(0, len(rows), step):
            part = rows[first : first + step]
            numbers = np.empty(part.numel(), np.float32)
            if file.readinto(numbers.data.cast("B")) != numbers.nbytes:
                raise OSError(f"{file.name} is cut short")
            part.copy_(torch.from_numpy(numbers).view(part.shape))
