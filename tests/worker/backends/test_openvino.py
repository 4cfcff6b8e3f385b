"""The openvino backend with networks that leave the activation to it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import openvino as ov
import pytest
from openvino import opset13 as ops

from wuwan_worker import backends
from wuwan_worker.ranking import ACTIVATIONS
from wuwan_worker.shared import bundle
from wuwan_worker.shared.labels import Label, Level

if TYPE_CHECKING:
    from pathlib import Path

MANIFEST = """
name = "three"
version = "1"
description = ""
architecture = "none"
license = ""
source = ""
[backends]
openvino = "model.xml"
[input]
name = "images"
size = 8
resize = 8
interpolation = "bilinear"
mean = [0.0, 0.0, 0.0]
std = [1.0, 1.0, 1.0]
[output]
name = "logits"
classes = 3
activation = "{activation}"
[files]
"""


def _bundle(root: Path, activation: str) -> bundle.Bundle:
    """A network whose outputs are 5 times the mean red, green and blue, in 0..1."""
    images = ops.parameter([-1, 3, 8, 8], np.float32, name="images")
    images.output(0).get_tensor().set_names({"images"})
    means = ops.reduce_mean(images, np.array([2, 3]), keep_dims=False)
    logits = ops.multiply(means, np.float32(5))
    logits.output(0).get_tensor().set_names({"logits"})
    ov.save_model(ov.Model([logits], [images]), root / "model.xml")
    (root / "bundle.toml").write_text(MANIFEST.format(activation=activation))
    return bundle.load(root)


@pytest.mark.parametrize("activation", ["none", "softmax", "sigmoid"])
def test_what_is_still_to_be_applied_is_applied(tmp_path: Path, activation: str) -> None:
    """As the manifest says, before outputs that share a row become one."""
    model = _bundle(tmp_path, activation)
    rows = Level([0, 1, 0], [Label("红蓝", "0"), Label("绿", "1")])
    backend = backends.load("auto", model, {"": rows}, device="cpu", threads=1)
    pixels = np.zeros((1, 8, 8, 3), np.uint8)
    pixels[..., 0], pixels[..., 1] = 51, 102
    red, green, blue = ACTIVATIONS[activation](np.array([1.0, 2.0, 0.0], np.float32))
    found = backend.infer(pixels, [""])[""][0]
    both = max(red, blue) if activation == "sigmoid" else red + blue
    assert found == pytest.approx(np.minimum([both, green], 1.0), abs=2e-3)
    assert (backend.gpu_memory(), backend.parked) == (0, False)


def test_a_gpu_is_refused(tmp_path: Path) -> None:
    """Never the CPU in its place."""
    model = _bundle(tmp_path, "softmax")
    with pytest.raises(backends.BackendError, match="--backend torch"):
        backends.load("openvino", model, {}, device="cuda", threads=1)


def test_every_convolution_of_the_embedded_network_is_int8() -> None:
    """One kind left in f32 takes half the speed of the whole, and changes no label."""
    network = ov.Core().read_model(bundle.load(bundle.find("imagenet-zh")).weights("openvino"))
    kinds = {"Convolution": 0, "GroupConvolution": 0}
    for node in network.get_ordered_ops():
        if (kind := node.get_type_name()) in kinds:
            weights = node.input_value(1).get_node()
            while weights.get_type_name() != "Constant":
                weights = weights.input_value(0).get_node()
            assert weights.get_element_type() == ov.Type.i8, node.get_friendly_name()
            kinds[kind] += 1
    assert kinds == {"Convolution": 33, "GroupConvolution": 16}
