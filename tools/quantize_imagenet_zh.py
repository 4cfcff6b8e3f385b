"""Quantises the bundle `imagenet-zh` to int8, for the CPU.

    pip install -e '.[cpu]' nncf==3.4.0
    python tools/quantize_imagenet_zh.py PHOTOS
    python tools/hash_bundle.py image/wuwan_worker/bundles/imagenet-zh

Post-training quantisation (NNCF): the photos, a few hundred of the kind that is to be tagged, give
the range of each activation; no label is looked at. The shipped file was made with 200 ImageNet
photos that are not in this repository. `docs/performance.md` has what it gains, and what it loses
on photos that were held out.
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from typing import Any

import nncf
import numpy as np
import openvino as ov
from openvino import opset13

from wuwan_worker.decoding import decode
from wuwan_worker.shared import bundle

ROOT = Path(__file__).parents[1] / "image/wuwan_worker/bundles/imagenet-zh"


def calibration(photos: Path, spec: bundle.InputSpec) -> list[Any]:
    """The photos as the network's input, (1, 3, size, size) each, preprocessed exactly."""
    batches = []
    for path in sorted(photos.iterdir()):
        descriptor = os.open(path, os.O_RDONLY)
        try:
            pixels = decode.decode(descriptor, spec, exact=True).pixels
        finally:
            os.close(descriptor)
        values = (pixels / 255 - np.asarray(spec.mean)) / np.asarray(spec.std)
        batches.append(values.transpose(2, 0, 1)[None].astype(np.float32))
    return batches


def network(path: Path) -> Any:
    """The network, its constants folded.

    ONNX has the weights of a depthwise convolution as (channels, 1, 3, 3), OpenVINO reshapes them
    to (channels, 1, 1, 3, 3). With that reshape between them and the convolution NNCF takes the
    wrong axis for the channels, and the convolution runs in f32: half the speed of the whole.
    """
    model = ov.Core().read_model(path)
    for node in model.get_ordered_ops():
        source = node.input_value(0).get_node() if node.get_input_size() else None
        if node.get_type_name() != "Reshape" or source.get_type_name() != "Constant":
            continue
        folded = opset13.constant(source.data.reshape(node.get_output_shape(0)))
        folded.set_friendly_name(f"{source.get_friendly_name()}/folded")
        for target in node.output(0).get_target_inputs():
            target.replace_source_output(folded.output(0))
    model.validate_nodes_and_infer_types()
    return model


def main() -> None:
    """Write `model-int8.xml` and `model-int8.bin` beside the ONNX file."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("photos", type=Path)
    parser.add_argument("--output", type=Path, default=ROOT / "model-int8.xml")
    arguments = parser.parse_args()
    manifest = bundle.load(ROOT)
    images = calibration(arguments.photos, manifest.input)
    quantised = nncf.quantize(
        network(manifest.weights("onnx")),
        nncf.Dataset(images),
        preset=nncf.QuantizationPreset.PERFORMANCE,
        subset_size=len(images),
        fast_bias_correction=True,
    )
    # What is left in floating point keeps its precision: it is small, and the last layer's scores
    # would tie.
    ov.save_model(quantised, arguments.output, compress_to_fp16=False)


if __name__ == "__main__":
    main()
