"""A model bundle with random weights that behaves like a trained one, for tests without a download.

    python benchmarks/random_bundle.py DIRECTORY [--arch NAME] [--classes N] [--labels FILE]

Speed and memory do not depend on the values of the weights. Whether two ways to run a network agree
does: freshly made networks of a hundred layers answer every image with the same label. So batch
norms are set by a few images, as training does, and the head is scaled until images are told apart.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "image"))

GENERAL_ZH = ("resnest101e", 54_092)
_SPREAD = 2.0  # standard deviation of an output over images: top scores of a few per cent to 0.9


def network(architecture: str, classes: int, device: str = "cpu") -> Any:
    """The network, in evaluation mode, on the CPU."""
    import timm
    import torch

    torch.manual_seed(0)
    net = timm.create_model(architecture, num_classes=classes).to(device)
    norms = [module for module in net.modules() if isinstance(module, torch.nn.BatchNorm2d)]
    for norm in norms:
        norm.momentum = 1.0
    # Smooth colours and some noise, as photos are.
    coarse = torch.rand(16, 3, 8, 8)
    images = torch.nn.functional.interpolate(coarse, size=(224, 224), mode="bicubic")
    images = (images + 0.05 * torch.randn_like(images)).sub(0.45).div(0.225).to(device)
    with torch.no_grad():
        net.train()(images)
        outputs = net.eval()(images)
        head = net.get_classifier()
        scale = _SPREAD / outputs.std(0).mean()
        head.bias.sub_(outputs.mean(0)).mul_(scale)
        head.weight.mul_(scale)
    return net.cpu()


def label_lines(classes: int, source: Path | None) -> list[str]:
    """`labels.tsv` with three levels: from ModelScope's `meta_info.txt`, or made up."""
    lines = ["index\tcoarse\tmid\tfine"]
    if source is None:
        return [
            *lines,
            *(f"{n}\t粗{n // 6}\t中{n // 2}\t细{n}" for n in range(classes)),
        ]
    rows = source.read_text(encoding="utf-8").split("\n")[:classes]
    for number, row in enumerate(rows):
        terms = (" ".join(cell.split()) for cell in row.split("\t")[1:4])
        lines.append("\t".join([str(number), *terms]))
    if len(lines) != classes + 1:
        raise SystemExit(f"{source} has {len(lines) - 1} lines, {classes} are needed")
    return lines


def make(
    root: Path,
    architecture: str,
    classes: int,
    *,
    labels: Path | None = None,
    with_onnx: bool = True,
    device: str = "cpu",
) -> None:
    """Write the bundle into `root`."""
    import torch

    from wuwan_worker.conversion.convert import convert

    root.mkdir(parents=True, exist_ok=True)
    checkpoint = root / "checkpoint.pt"
    torch.save(network(architecture, classes, device).state_dict(), checkpoint)
    made = convert(checkpoint, architecture, classes, root, with_onnx=with_onnx)
    checkpoint.unlink()
    (root / "labels.tsv").write_text("\n".join([*label_lines(classes, labels), ""]), "utf-8")
    # As ModelScope's pipeline prepares images for general-zh.
    shape = made["input"] | {"size": 224, "resize": 256}
    tables: dict[str, dict[str, Any]] = {
        "backends": made["files"],
        "input": shape,
        "output": {"name": made["output_name"], "classes": classes, "activation": "softmax"},
        "labels": {"levels": ["coarse", "mid", "fine"], "default": "coarse"},
        "files": {name: _sha256(root / name) for name in (*made["files"].values(), "labels.tsv")},
    }
    lines = [
        'name = "random"',
        'version = "1"',
        'description = "random weights"',
        f'architecture = "{architecture}"',
        'license = "none"',
        'source = "benchmarks/random_bundle.py"',
    ]
    for table, entries in tables.items():
        lines.append(f"[{table}]")
        lines += [f"{json.dumps(key)} = {json.dumps(value)}" for key, value in entries.items()]
    (root / "bundle.toml").write_text("\n".join([*lines, ""]), "utf-8")


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def main() -> None:
    """Make one."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("directory", type=Path)
    parser.add_argument("--arch", default=GENERAL_ZH[0])
    parser.add_argument("--classes", type=int, default=GENERAL_ZH[1])
    parser.add_argument("--labels", type=Path, help="ModelScope's meta_info.txt")
    arguments = parser.parse_args()
    make(arguments.directory, arguments.arch, arguments.classes, labels=arguments.labels)


if __name__ == "__main__":
    main()
