"""timm's architectures with torch: on a GPU in bf16 or fp16, on a CPU in float32."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import torch

from wuwan_worker.backends import BackendError
from wuwan_worker.backends.torch import checkpoint, networks
from wuwan_worker.backends.torch.cuda_graphs import SIZES, CudaGraphs
from wuwan_worker.backends.torch.jpegs import JpegDecoder
from wuwan_worker.backends.torch.weights import MappedWeights, PinnedWeights
from wuwan_worker.ranking import excludes

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Mapping, Sequence

    import numpy as np
    from numpy.typing import NDArray

    from wuwan_worker.shared.bundle import Bundle
    from wuwan_worker.shared.labels import Level

_CPU_BATCH = 4  # images; larger ones fall out of the cache
# On a GPU one thread ranks labels while the other one's batch is computed.
_GPU_STREAMS = 2
# With less free GPU memory than this the largest batches are left out: they need it twice, once to
# run and once more to be recorded.
_AMPLE = 4 * 2**30  # bytes
_SMALL_SIZES = tuple(size for size in SIZES if size <= 16)
_KINDS = {torch.float32: "f32", torch.bfloat16: "bf16", torch.float16: "fp16"}


class Step:
    """From pixels to the sums of each level, all on one device."""

    def __init__(
        self, network: Any, bundle: Bundle, levels: Mapping[str, Level], device: Any, dtype: Any
    ) -> None:
        self._network = network
        self._dtype = dtype
        self._activation = bundle.activation
        self._exclusive = excludes(bundle.activation)
        spec = bundle.input
        self._mean = 255.0 * torch.tensor(spec.mean, device=device).view(1, 3, 1, 1)
        self._std = 255.0 * torch.tensor(spec.std, device=device).view(1, 3, 1, 1)
        self._levels = {
            name: (
                None
                if isinstance(level.rows, range)  # each output is its own row
                else torch.tensor(level.rows, device=device),
                len(level.labels),
            )
            for name, level in levels.items()
        }

    def __call__(self, pixels: Any) -> dict[str, Any]:
        """Uint8 (n, size, size, 3) to float32 (n, rows) for each level."""
        # In memory these are channels-last images already; only the shape says so anew.
        images = pixels.permute(0, 3, 1, 2).float().sub_(self._mean).div_(self._std)
        logits = self._network(images.to(self._dtype)).float()
        if self._activation == "softmax":
            logits = logits.softmax(dim=1)
        elif self._activation == "sigmoid":
            logits = logits.sigmoid()
        return {name: self._sum(logits, *level) for name, level in self._levels.items()}

    def _sum(self, probabilities: Any, rows: Any, count: int) -> Any:
        if rows is None:
            return probabilities
        sums = probabilities.new_zeros(len(probabilities), count)
        if not self._exclusive:
            return sums.scatter_reduce_(1, rows.expand_as(probabilities), probabilities, "amax")
        # Rounding may sum to more than 1.
        return sums.index_add_(1, rows, probabilities).clamp_(max=1.0)


class _Lane:
    """What one thread needs to have a batch under way: a stream, and pinned buffers."""

    def __init__(self, module: Any, shape: tuple[int, ...], pin: bool) -> None:
        self.stream = module.Stream()
        # One that sleeps until the GPU is done: to spin would take a core from decoding.
        self.done = module.Event(blocking=True) if pin else module.Event()
        self.pixels = torch.empty(shape, dtype=torch.uint8, pin_memory=pin)
        self._pin = pin
        self._found: dict[str, Any] = {}

    def result(self, name: str, like: Any) -> Any:
        """The host buffer for that level, cut to the rows of `like`."""
        buffer = self._found.get(name)
        if buffer is None:
            shape = (len(self.pixels), like.shape[1])
            buffer = torch.empty(shape, dtype=like.dtype, pin_memory=self._pin)
            self._found[name] = buffer
        return buffer[: len(like)]


class TorchBackend:
    """A network on one device. Its GPU memory can be given back between two batches (`park`)."""

    def __init__(
        self,
        name: str,
        step: Callable[[Any], Mapping[str, Any]],
        weights: MappedWeights | PinnedWeights,
        device: Any,
        size: int,
        decoder: JpegDecoder | None = None,
        sizes: Sequence[int] = SIZES,
    ) -> None:
        """
        Args:
            name: for people.
            step: see `Step`.
            weights: of its network; not up yet.
            device: where it runs.
            size: of the images, pixels.
            decoder: for images in batches, if there is one.
            sizes: of batches on a GPU, ascending.
        """
        gpu = device.type == "cuda"
        self.device = name
        self.batch_size = sizes[-1] if gpu else _CPU_BATCH
        self.streams = _GPU_STREAMS if gpu else 1
        self.decoder = decoder
        self.parked = True
        self._gpu = gpu
        self._on = device
        self._shape = (self.batch_size, size, size, 3)
        self._weights = weights
        self._graphs = CudaGraphs(step, device, sizes) if gpu else None
        self._run = self._graphs or step
        self._module = torch.get_device_module(device)  # torch.cuda, or torch.cpu's stand-ins
        self._local = threading.local()
        self._lock = threading.Lock()
        self._last = self._module.Event()

    def infer(
        self, batch: NDArray[np.uint8], levels: Collection[str]
    ) -> Mapping[str, NDArray[np.float32]]:
        """See `Backend.infer`. Wakes a parked network."""
        lane = self._lane()
        pixels = lane.pixels[: len(batch)].copy_(torch.from_numpy(batch))
        found = {}
        try:
            with torch.inference_mode(), self._module.stream(lane.stream):
                pixels = pixels.to(self._on, non_blocking=True)
                sums = self._compute(pixels, levels, lane.stream)
                for level, values in sums.items():
                    found[level] = lane.result(level, values)
                    found[level].copy_(values, non_blocking=True)
                lane.done.record(lane.stream)
                lane.done.synchronize()
        except torch.OutOfMemoryError as error:
            raise self._too_little(error) from None
        return {level: values.numpy() for level, values in found.items()}

    def _lane(self) -> _Lane:
        """This thread's."""
        lane: _Lane | None = getattr(self._local, "lane", None)
        if lane is None:
            lane = self._local.lane = _Lane(self._module, self._shape, self._gpu)
        return lane

    def compute(self, pixels: Any) -> None:
        """The network alone, on pixels that are on its device; for measuring."""
        lane = self._lane()
        with torch.inference_mode(), self._module.stream(lane.stream):
            self._compute(pixels, (), lane.stream)
        self._module.synchronize()

    def _compute(self, pixels: Any, levels: Collection[str], stream: Any) -> dict[str, Any]:
        """One batch at a time; copies to and from the GPU overlap with another thread's."""
        with self._lock:
            stream.wait_event(self._last)
            if self.parked:
                self._weights.load()
                self.parked = False
            sums = self._run(pixels)
            # A copy: the next batch overwrites what it is made from.
            found = {level: sums[level][: len(pixels)].clone() for level in levels}
            self._last.record(stream)
        return found

    def park(self) -> None:
        """Give the GPU's memory back, all but what CUDA itself holds, until the next `infer`."""
        with self._lock:
            self._module.synchronize()
            if self._graphs is not None:
                self._graphs.drop()
            self._weights.offload()
            if self._gpu:
                torch.cuda.empty_cache()
            self.parked = True

    def gpu_memory(self) -> int:
        """Bytes that torch holds; CUDA itself takes some hundred megabytes more."""
        return int(torch.cuda.memory_reserved(self._on)) if self._gpu else 0

    def _too_little(self, error: Exception) -> BackendError:
        if not self._gpu:
            return BackendError(f"not enough memory: {error}")
        free, total = (size / 2**30 for size in torch.cuda.mem_get_info(self._on))
        return BackendError(
            f"{self.device} is full: {free:.1f} of {total:.1f} GiB are free, the weights take "
            f"{self._weights.bytes / 2**30:.1f} GiB and a batch of {self.batch_size} some more; "
            "stop other programs there, or choose another GPU with --gpus"
        )


def load(
    bundle: Bundle, levels: Mapping[str, Level], *, device: str, threads: int, precision: str = ""
) -> TorchBackend:
    """Load the bundle's safetensors file into timm's network.

    `precision` is "f32", or empty for bf16 or fp16 on a GPU and float32 on a CPU.
    """
    path = bundle.weights("torch")
    on = cuda() if device == "cuda" else torch.device("cpu")
    gpu = on.type == "cuda"
    dtype = torch.float32
    if gpu and not precision:
        dtype = torch.bfloat16 if torch.cuda.is_bf16_supported(False) else torch.float16
    torch.set_num_threads(threads)
    # Convolutions in f32 would be in TF32 otherwise, with the 11 bits of fp16; f32 is asked for to
    # compare with.
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
    with ThreadPoolExecutor(1, "libraries") as pool:
        loading = pool.submit(_load_libraries, on, dtype) if gpu else None
        try:
            network = networks.network(bundle.architecture, bundle.classes)
            checkpoint.check(
                checkpoint.read(path),
                network,
                architecture=bundle.architecture,
                classes=bundle.classes,
            )
            weights = (
                PinnedWeights(network, path, on, dtype) if gpu else MappedWeights(network, path)
            )
            if loading is not None:
                loading.result()
            return _backend(bundle, levels, network, weights, on, dtype)
        except (OSError, checkpoint.CheckpointError) as error:
            raise BackendError(f"cannot load {path}: {error}") from None
        except RuntimeError as error:  # CUDA's come with lines of advice for programmers
            reason = str(error).strip().splitlines()[0]
            raise BackendError(f"{bundle.architecture} does not run on {on}: {reason}") from error


def _load_libraries(device: Any, dtype: Any) -> None:
    """Have cuDNN and cuBLAS loaded: up to a second, and meanwhile the weights can be read."""
    with torch.inference_mode():
        images = torch.zeros(1, 8, 8, 8, device=device, dtype=dtype)
        images = images.to(memory_format=torch.channels_last)
        torch.nn.functional.conv2d(images, torch.zeros(8, 8, 3, 3, device=device, dtype=dtype))
        images.reshape(8, 64).mm(images.reshape(64, 8))


def _backend(
    bundle: Bundle,
    levels: Mapping[str, Level],
    network: Any,
    weights: MappedWeights | PinnedWeights,
    on: Any,
    dtype: Any,
) -> TorchBackend:
    """Ready to infer."""
    name, decoder = "CPU, torch", None
    sizes: tuple[int, ...] = SIZES
    if on.type == "cuda":
        name, decoder = torch.cuda.get_device_name(on), JpegDecoder(bundle.input, on)
        sizes = SIZES if torch.cuda.mem_get_info(on)[0] >= _AMPLE else _SMALL_SIZES
    step = Step(network, bundle, levels, on, dtype)
    size = bundle.input.size
    backend = TorchBackend(f"{name} ({_KINDS[dtype]})", step, weights, on, size, decoder, sizes)
    # Whatever is wrong shows now, and not with the first image.
    backend.infer(torch.zeros(1, size, size, 3, dtype=torch.uint8).numpy(), levels)
    return backend


def cuda() -> Any:
    """The first GPU that this process sees.

    Raises:
        BackendError: saying why there is none.
    """
    if torch.version.cuda is None:
        raise BackendError(
            f"torch {torch.__version__} is built without CUDA; install the build for CUDA, "
            "or use --gpus none"
        )
    try:
        torch.cuda.init()
        torch.cuda.mem_get_info()  # needs the context, where a full GPU shows
    except (AssertionError, RuntimeError) as error:
        reason = str(error).strip().splitlines()[0]
        raise BackendError(
            f"torch finds no GPU that it can use: {reason} Look at nvidia-smi, or use --gpus none"
        ) from None
    return torch.device("cuda", 0)
