"""Stands in for `wuwan_worker.conversion.convert` without torch: the same arguments and answers.

Its "checkpoint" is a JSON object: {"classes": outputs of the head}, or {"say": …} for any answer.
Its network is the one of `imagenet-zh`.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
import time
from pathlib import Path

from wuwan_worker.shared import bundle

EXIT_REFUSED = 65


def main() -> int:
    """Convert; the exit code."""
    parser = argparse.ArgumentParser()
    for option in ("--weights", "--arch", "--out", "--activation"):
        parser.add_argument(option, required=True)
    parser.add_argument("--classes", type=int, required=True)
    arguments = parser.parse_args()
    print("some library's chatter", file=sys.stderr)
    checkpoint = json.loads(Path(arguments.weights).read_text())
    if "hang" in checkpoint:
        Path(arguments.out, "half").write_text(str(os.getpid()))
        time.sleep(60)
    if "die" in checkpoint:
        print(checkpoint["die"], file=sys.stderr)
        return 1
    if "link" in checkpoint:
        Path(arguments.out, "model.onnx").symlink_to(checkpoint["link"])
    elif checkpoint["classes"] != arguments.classes:
        reason = f"the head has {checkpoint['classes']} outputs"
        print(json.dumps({"error": reason}))
        return EXIT_REFUSED
    else:
        shutil.copy(bundle.find("imagenet-zh") / "model.onnx", arguments.out)
    Path(arguments.out, "scratch").mkdir()
    print("a line that is not the answer")
    mean, std = 127 / 255, 128 / 255
    answer = {
        "files": {"openvino": "model.onnx"},
        "input": {
            "name": "images",
            "size": 224,
            "resize": 256,
            "interpolation": "bicubic",
            "mean": [mean] * 3,
            "std": [std] * 3,
        },
        "output_name": "probabilities",
        "activation": "none",
    }
    print(json.dumps(answer | checkpoint.get("say", {})))
    return 0


if __name__ == "__main__":
    sys.exit(main())
