"""`python -m wuwan_worker.programs.precompile`: compile the bundles here for this machine's CPU.

The image's build runs it, because a container has nowhere to keep what it has compiled. Where the
image runs on a CPU with other instructions, each start compiles, as without it.
"""

from __future__ import annotations

import os
import sys

from wuwan_worker import backends, cores
from wuwan_worker.backends.openvino import compile_cache
from wuwan_worker.shared import bundle, labels


def main() -> int:
    """Fill the directory that `compile_cache.VARIABLE` names; the exit code."""
    for name in bundle.embedded():
        model = bundle.load(bundle.find(name))
        levels = labels.read(model)
        backends.load("openvino", model, levels, device="cpu", threads=cores.available())
    kept = len(list(compile_cache.directory().path.iterdir()))
    return 0 if kept == len(bundle.embedded()) else 1


if __name__ == "__main__":
    # As in a worker: not every library's threads can be joined.
    code = main()
    sys.stdout.flush()
    os._exit(code)
