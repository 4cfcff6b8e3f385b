"""`python -m wuwan_worker.conversion.convert`: from a checkpoint to a bundle's weights files.

Standard output is one JSON object: the files that were written for each backend, and the input
and output of the network as `bundle.toml` wants them; or ``{"error": "…"}``, exit code 65.

It may take 1.5 times the memory of the weights, beyond the libraries'. So tensors are mapped, and
the 443 MB head of `general-zh` is never copied.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import math
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Sequence

EXIT_DATA = 65  # EX_DATAERR, sysexits(3)
WEIGHTS, GRAPH = "model.safetensors", "model.onnx"
_INTERPOLATIONS = ("bilinear", "bicubic")


class ConvertError(Exception):
    """The network cannot be used with wuwan; the message says why."""


def convert(
    weights: Path, architecture: str, classes: int, out: Path, *, with_onnx: bool
) -> dict[str, Any]:
    """Write the weights files into `out`; what the manifest has to say of them.

    Raises:
        CheckpointError, ConvertError: if the checkpoint does not fit; nothing is left in `out`.
        OSError: if a file cannot be read or written.
    """
    # Imported here: they take seconds, and a wrong argument should not.
    from safetensors.torch import save_file

    from wuwan_worker.backends.torch import checkpoint, networks

    network = networks.network(architecture, classes)
    shape = _input(network.default_cfg)
    state = checkpoint.read(weights)
    checkpoint.check(state, network, architecture=architecture, classes=classes)
    # In the architecture's order, and only its own: the file's bytes follow from the weights alone.
    tensors = {name: _plain(state[name]) for name in network.state_dict()}
    if broken := [name for name, tensor in tensors.items() if not _finite(tensor)]:
        raise ConvertError(f"the checkpoint holds values that are no numbers: {', '.join(broken)}")
    out.mkdir(parents=True, exist_ok=True)
    files = {"torch": WEIGHTS}
    try:
        save_file(tensors, out / WEIGHTS)
        (out / WEIGHTS).chmod(0o644)  # not only ours: a container may read it as another user
        del state, tensors
        if with_onnx:
            from wuwan_worker.conversion import onnx_graph

            onnx_graph.write(network, shape["size"], out / WEIGHTS, out / GRAPH)
            files["openvino"] = GRAPH
    except BaseException:
        for name in (WEIGHTS, GRAPH):
            (out / name).unlink(missing_ok=True)
        raise
    return {"files": files, "input": shape, "output_name": "logits", "classes": classes}


def _finite(tensor: Any) -> bool:
    # By its extremes, which carry a NaN along: a mask of the head alone would take 110 MB.
    return not tensor.numel() or all(math.isfinite(value) for value in tensor.aminmax())


def _plain(tensor: Any) -> Any:
    """As the file wants it: in rows, in memory of its own, floats in float32."""
    if tensor.is_floating_point():
        tensor = tensor.float()
    if tensor.untyped_storage().nbytes() != tensor.nbytes:  # a view of something larger
        tensor = tensor.clone()
    return tensor.contiguous()


def _input(config: dict[str, Any]) -> dict[str, Any]:
    channels, height, width = config["input_size"]
    if channels != 3 or height != width:
        raise ConvertError(f"its input is {channels} x {height} x {width}, not square RGB")
    if config["interpolation"] not in _INTERPOLATIONS:
        raise ConvertError(f"its images are resized by {config['interpolation']!r}")
    return {
        "name": "images",
        "size": height,
        "resize": math.floor(height / config["crop_pct"]),  # timm.data.transforms_factory's rule
        "interpolation": config["interpolation"],
        "mean": list(config["mean"]),
        "std": list(config["std"]),
    }


def main(argv: Sequence[str] | None = None) -> int:
    """Convert one checkpoint; the exit code."""
    parser = argparse.ArgumentParser(prog="wuwan_worker.conversion.convert", description=__doc__)
    parser.add_argument("--weights", type=Path, required=True)
    parser.add_argument("--arch", required=True, help="timm's name of the architecture")
    parser.add_argument("--classes", type=int, required=True)
    parser.add_argument("--out", type=Path, required=True, help="directory for the files")
    parser.add_argument("--activation", choices=("softmax", "sigmoid"), default="softmax")
    parser.add_argument("--no-onnx", action="store_true", help="for the torch backend alone")
    arguments = parser.parse_args(argv)
    result: dict[str, Any]
    try:
        with contextlib.redirect_stdout(sys.stderr):  # libraries may print
            result = convert(
                arguments.weights,
                arguments.arch,
                arguments.classes,
                arguments.out,
                with_onnx=not arguments.no_onnx,
            ) | {"activation": arguments.activation}
    except ImportError as error:
        result = {"error": f"converting needs the package {error.name!r}, which is not installed"}
    except OSError as error:
        result = {"error": f"{error.filename or arguments.weights}: {error.strerror or error}"}
    except Exception as error:  # the caller has one line for it, whatever it is
        result = {"error": " ".join(str(error).split()) or type(error).__name__}
    print(json.dumps(result, ensure_ascii=False))  # noqa: T201  # the answer
    return EXIT_DATA if "error" in result else 0


if __name__ == "__main__":
    sys.exit(main())
