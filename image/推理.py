"""Label one image in this process: `python 推理.py --image photo.jpg`.

For a look at the model without a client: in the container image this script is /app/推理.py.
`wuwan tag` is the way to label many.
"""

from __future__ import annotations

import argparse
import os
import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

MODEL = "imagenet-zh"
DEFAULT_IMAGE = "/app/input.png"


def main(argv: Sequence[str] | None = None) -> int:
    """Print the labels; the exit code."""
    parser = argparse.ArgumentParser(description="Label one image with Chinese labels.")
    parser.add_argument("--image", default=DEFAULT_IMAGE, metavar="PATH", help="%(default)s")
    parser.add_argument("--top-k", type=int, default=5, metavar="N", help="%(default)s labels")
    parser.add_argument("--model", default=MODEL, metavar="NAME", help="a bundle; %(default)s")
    arguments = parser.parse_args(argv)
    if arguments.top_k < 1:
        parser.error("--top-k must be at least 1")
    # The libraries load after the arguments are known to be right.
    try:
        from wuwan_worker import backends, cores
        from wuwan_worker.decoding import decode
        from wuwan_worker.ranking import Ranking, excludes
        from wuwan_worker.shared import bundle, labels
    except ImportError as error:
        return _fail(f"the package {error.name} is not installed; pip install 'wuwan[cpu]'")
    try:
        model = bundle.load(bundle.find(arguments.model))
        levels = labels.read(model)
        descriptor = os.open(arguments.image, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        try:
            image = decode.decode(descriptor, model.input)
        finally:
            os.close(descriptor)
        backend = backends.load("auto", model, levels, device="cpu", threads=cores.available())
    except OSError as error:
        return _fail(f"cannot read {arguments.image}: {error.strerror}")
    except decode.ItemError as error:
        return _fail(f"cannot label {arguments.image}: {error} ({error.code})")
    except (bundle.BundleError, backends.BackendError) as error:
        return _fail(str(error))
    if image.flaw is not None:
        print(f"推理.py: {arguments.image}: {image.flaw.message}", file=sys.stderr)
    level = model.default_level
    rows = backend.infer(image.pixels[None], [level])[level][0]
    ranking = Ranking(levels[level].labels, exclusive=excludes(model.activation))
    best = ranking.top(rows, arguments.top_k, 0.0)
    print("Final result:", "，".join(f"{entry.label} ({entry.score:.2f})" for entry in best))
    return 0


def _fail(message: str) -> int:
    print(f"推理.py: {message}", file=sys.stderr)
    return 1


if __name__ == "__main__":
    sys.exit(main())
