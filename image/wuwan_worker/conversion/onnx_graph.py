"""Writes a network as ONNX: its graph alone, with the weights left where they are.

ONNX may keep a tensor outside its own file, at an offset of another one; safetensors files are
nothing but tensors at offsets. So both backends share one copy of the weights on disk, and
OpenVINO maps it instead of reading it.

The graph is traced with weights that take no memory, one zero each, by torch's TorchScript
exporter. The newer one needs two packages more and the weights themselves.
"""

from __future__ import annotations

import io
import logging
import warnings
from typing import TYPE_CHECKING, Any

import onnx
import torch

from wuwan_worker.backends.torch import checkpoint, networks

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

INPUT, OUTPUT = "images", "logits"
OPSET = 17  # the newest that the TorchScript exporter writes in full


class _Lifted(torch.nn.Module):  # type: ignore[misc,unused-ignore]  # where torch is missing
    """A network whose weights are inputs: what is an input is named and never looked into."""

    def __init__(self, network: Any, names: Sequence[str]) -> None:
        super().__init__()
        self._hidden = [network]  # in a list: as a submodule it would be exported with its weights
        self._names = names

    def forward(self, images: Any, *weights: Any) -> Any:
        network = self._hidden[0]
        for name, tensor in zip(self._names, weights, strict=True):
            tensors, leaf = networks.owner(network, name)
            tensors[leaf] = tensor
        return network(images)


def write(network: Any, size: int, weights: Path, path: Path) -> None:
    """Write the graph of `network`; it is of no use afterwards.

    The file has the input `images`, float32 (n, 3, size, size), normalised RGB, and the output
    `logits`, (n, classes).

    Args:
        network: on torch's `meta` device, in evaluation mode.
        size: of its input, pixels.
        weights: a safetensors file with its weights in float32, in the same directory as `path`.
        path: the file to write.
    """
    tensors = network.state_dict()
    names = [name for name, tensor in tensors.items() if tensor.is_floating_point()]
    model = onnx.load_from_string(_trace(network, size, {name: tensors[name] for name in names}))
    used = {value.name for value in model.graph.input[1:]}
    del model.graph.input[1:]
    for name, (shape, offset, length) in checkpoint.offsets(weights).items():
        if name not in used:
            continue
        tensor = model.graph.initializer.add(
            name=name,
            data_type=onnx.TensorProto.FLOAT,
            dims=shape,
            data_location=onnx.TensorProto.EXTERNAL,
        )
        for key, value in (("location", weights.name), ("offset", offset), ("length", length)):
            tensor.external_data.add(key=key, value=str(value))
    path.write_bytes(model.SerializeToString(deterministic=True))


def _trace(network: Any, size: int, tensors: Mapping[str, Any]) -> bytes:
    hollow = [torch.zeros(()).expand(tensor.shape) for tensor in tensors.values()]
    buffer = io.BytesIO()
    # Two images: with one, an exporter may take the batch for a dimension that is always 1.
    images = torch.zeros(2, 3, size, size)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        logging.getLogger("torch.onnx").setLevel(logging.ERROR)
        torch.onnx.export(
            _Lifted(network, list(tensors)).eval(),
            (images, *hollow),
            buffer,
            input_names=[INPUT, *tensors],
            output_names=[OUTPUT],
            dynamic_axes={INPUT: {0: "n"}, OUTPUT: {0: "n"}},
            opset_version=OPSET,
            dynamo=False,
        )
    return buffer.getvalue()
