"""CPU inference with OpenVINO: int8, or else bf16 where the CPU has it; no torch."""

from __future__ import annotations

import contextlib
import logging
import sys
import threading
from typing import TYPE_CHECKING

import numpy as np

# openvino imports its converter and, through that, a telemetry package, if they are there: 60 ms
# at each start for nothing. None in sys.modules makes that import fail, which it is prepared for.
sys.modules.setdefault("openvino.tools.ovc", None)  # type: ignore[arg-type]
import openvino as ov
from openvino import properties as props
from openvino.preprocess import PrePostProcessor

from wuwan_worker import __version__
from wuwan_worker.backends import BackendError
from wuwan_worker.backends.openvino import compile_cache, mapped_pages
from wuwan_worker.ranking import ACTIVATIONS, GroupSum, excludes

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Mapping
    from pathlib import Path

    from numpy.typing import NDArray

    from wuwan_worker.shared.bundle import Bundle
    from wuwan_worker.shared.labels import Level

log = logging.getLogger(__name__)

# Measured with EfficientNet-Lite0 (docs/performance.md): larger ones gain nothing, and
# a batch dimension that may be smaller costs nothing against a fixed one.
BATCH_SIZE = 4


class OpenVinoBackend:
    """A compiled network and one inference request for each thread that calls it."""

    def __init__(
        self,
        compiled: ov.CompiledModel,
        activation: Callable[[NDArray[np.float32]], NDArray[np.float32]],
        sums: Mapping[str, GroupSum],
        streams: int,
        precision: str,
    ) -> None:
        self.device = f"CPU ({precision})"
        self.batch_size = BATCH_SIZE
        self.streams = streams
        self.decoder = None
        self.parked = False
        self._compiled = compiled
        self._activation = activation
        self._sums = sums
        self._local = threading.local()

    def infer(
        self, batch: NDArray[np.uint8], levels: Collection[str]
    ) -> Mapping[str, NDArray[np.float32]]:
        """See `Backend.infer`."""
        request: ov.InferRequest | None = getattr(self._local, "request", None)
        if request is None:
            request = self._local.request = self._compiled.create_infer_request()
        # Shared memory on both sides: no copy in, and a view out that lives until the next call.
        output = request.infer([batch], share_inputs=True, share_outputs=True)[0]
        scores = self._activation(output)
        return {level: self._sums[level](scores) for level in levels}

    def park(self) -> None:
        """Nothing is on a GPU."""

    def gpu_memory(self) -> int:
        """None is held."""
        return 0


def load(
    bundle: Bundle, levels: Mapping[str, Level], *, device: str, threads: int, precision: str = ""
) -> OpenVinoBackend:
    """Load the bundle's ONNX or IR file with normalisation and layout folded into the graph.

    `precision` is "f32", or empty for what suits the network and the CPU: int8 if the network is
    quantised, else bf16 where the CPU has it, which takes half the time of f32 and half the memory.
    """
    if device != "cpu":
        raise BackendError("the openvino backend runs on the CPU; use --backend torch on a GPU")
    files = [bundle.root / name for name in bundle.files]
    large = not compile_cache.suits(files)
    with mapped_pages.given_back(files) if large else contextlib.nullcontext():
        return _load(bundle, levels, threads, precision)


def _load(
    bundle: Bundle, levels: Mapping[str, Level], threads: int, precision: str
) -> OpenVinoBackend:
    core = ov.Core()
    path = bundle.weights("openvino")
    try:
        compiled, precision = _compiled(core, bundle, path, threads, precision)
    except OSError as error:
        raise BackendError(f"cannot load {path}: {error}") from None
    except RuntimeError as error:
        reason = str(error).strip().splitlines()[-1]
        raise BackendError(f"OpenVINO cannot load {path}: {reason}") from None
    shape = compiled.output(bundle.output_name).partial_shape
    if shape[1].get_length() != bundle.classes:
        raise BackendError(f"{path} has {shape[1]} outputs, its manifest says {bundle.classes}")
    streams = int(compiled.get_property(props.optimal_number_of_infer_requests))
    activation, exclusive = ACTIVATIONS[bundle.activation], excludes(bundle.activation)
    sums = {name: GroupSum(level.rows, exclusive=exclusive) for name, level in levels.items()}
    backend = OpenVinoBackend(compiled, activation, sums, streams, precision)
    # The first inference belongs to one thread: OpenVINO's bindings fill C++ statics in it while
    # they let go of the interpreter lock, and two threads in there at once wait for each other
    # forever, one with the lock and one with the static (fault 8 of docs/faults.md).
    size = bundle.input.size
    backend.infer(np.zeros((1, size, size, 3), np.uint8), ())
    return backend


def _compiled(
    core: ov.Core, bundle: Bundle, path: Path, threads: int, precision: str
) -> tuple[ov.CompiledModel, str]:
    """The network, ready to run, and its precision for people; from the cache if it is there."""
    files = [bundle.root / name for name in bundle.files]
    # Sizes, so that weights that are not as the manifest says are noticed as if they were read.
    sizes = [file.stat().st_size for file in files]
    key = f"{__version__} {ov.__version__} {bundle.fingerprint} {sizes} {BATCH_SIZE}{precision}"
    keep = compile_cache.suits(files)
    if not keep:
        compile_cache.nothing_to_keep()
    if keep and (kept := compile_cache.read(key)):
        name, _, blob = kept.partition(b"\n")
        precision = name.decode()
        try:
            compiled = core.import_model(blob, "CPU", _options(threads, precision))
        except RuntimeError as error:
            log.info("compiling anew: %s", str(error).strip().splitlines()[-1])
        else:
            compile_cache.nothing_to_keep()
            return compiled, precision
    model = _read(core, bundle, path)
    quantised = any(node.get_type_name() == "FakeQuantize" for node in model.get_ops())
    compiled = core.compile_model(
        model, "CPU", _options(threads, "int8" if quantised else precision)
    )
    precision = compiled.get_property(props.hint.inference_precision).to_string()
    precision = "int8" if quantised else precision
    if keep:
        compile_cache.keep(key, precision.encode() + b"\n" + compiled.export_model().getvalue())
    return compiled, precision


def _options(threads: int, precision: str) -> dict[object, object]:
    options: dict[object, object] = {
        props.inference_num_threads: threads,
        # A stream for each core or so: with one stream over several cores they meet at each layer,
        # and whichever waits spins while decoders could use it.
        props.hint.performance_mode: props.hint.PerformanceMode.THROUGHPUT,
    }
    if precision in ("int8", "f32"):
        # In an int8 network the few layers that are not stay in f32: in bf16 scores tie, and it is
        # no faster.
        options[props.hint.inference_precision] = ov.Type.f32
    return options


def _read(core: ov.Core, bundle: Bundle, path: Path) -> ov.Model:
    model = core.read_model(path)
    steps = PrePostProcessor(model)
    image = steps.input(bundle.input.name)
    image.tensor().set_element_type(ov.Type.u8).set_layout(ov.Layout("NHWC"))
    image.model().set_layout(ov.Layout("NCHW"))
    image.preprocess().convert_element_type(ov.Type.f32).mean(
        [255.0 * value for value in bundle.input.mean]
    ).scale([255.0 * value for value in bundle.input.std])
    model = steps.build()
    size = bundle.input.size
    model.reshape({bundle.input.name: ov.PartialShape([(1, BATCH_SIZE), size, size, 3])})
    return model
