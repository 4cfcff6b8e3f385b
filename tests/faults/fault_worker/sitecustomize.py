"""Makes a worker's decoder and backend fail on request; Python imports this file at its start.

What happens is steered by the images themselves: a "photo" whose content begins with ``FAULT:`` is
an order to the decoder::

    FAULT:segfault        the process dies as a crashing codec dies
    FAULT:exit            the process ends in the middle of it
    FAULT:sleep:SECONDS   the decoder hangs that long, outside of Python's control
    FAULT:freeze:SECONDS  the same with the interpreter's lock held: the whole worker stands still
    FAULT:hungry          memory is taken until the kernel says no
    FAULT:attack          what a decoder that was taken over tries (`attack.py`); the log says how
                          far it came

and by the environment::

    WUWAN_FAULT_LOAD=sleep:SECONDS | raise | hungry     when the model is loaded
    WUWAN_FAULT_DECODE=SECONDS                          each image takes that much longer
    WUWAN_FAULT_INFER_AFTER=N                           each call of the backend after N raises
    WUWAN_FAULT_PATIENCE=SECONDS                        an image may take that long, if it is small
    WUWAN_FAULT_GPU=1                                   a worker for a GPU computes on the CPU, and
                                                        says which GPU it was given
"""

from __future__ import annotations

import ctypes
import importlib.abc
import importlib.machinery
import os
import signal
import sys
import time
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Sequence
    from types import ModuleType

_MARK = b"FAULT:"
_PAGE = 4096
_STEP = 16 * 1024 * 1024


def _eat() -> None:
    hoard = []
    while True:
        block = bytearray(_STEP)
        block[::_PAGE] = b"x" * (_STEP // _PAGE)  # touched, so that it counts
        hoard.append(block)


def _obey(order: str, descriptor: int = -1) -> None:
    kind, _, detail = order.partition(":")
    if kind == "segfault":
        os.kill(os.getpid(), signal.SIGSEGV)
        time.sleep(10)
    elif kind == "exit":
        os._exit(9)
    elif kind == "sleep":
        ctypes.CDLL(None).usleep(int(float(detail) * 1e6))
    elif kind == "freeze":
        ctypes.PyDLL(None).usleep(int(float(detail) * 1e6))
    elif kind == "hungry":
        _eat()
    elif kind == "attack":
        import attack

        attack.run(descriptor)
    elif kind == "raise":
        raise RuntimeError("the fault that was ordered")


def _patch_decode(module: ModuleType) -> None:
    original: Any = module.decode
    delay = float(os.environ.get("WUWAN_FAULT_DECODE", "0"))

    def decode(descriptor: int, *arguments: Any, **options: Any) -> Any:
        head = os.pread(descriptor, 64, 0)
        if head.startswith(_MARK):
            _obey(head.split(b"\n", 1)[0][len(_MARK) :].decode(), descriptor)
        time.sleep(delay)
        return original(descriptor, *arguments, **options)

    module.decode = decode  # type: ignore[attr-defined]


def _patch_backends(module: ModuleType) -> None:
    original: Any = module.load
    limit = int(os.environ.get("WUWAN_FAULT_INFER_AFTER", "-1"))
    calls = 0

    def load(*arguments: Any, **options: Any) -> Any:
        _obey(os.environ.get("WUWAN_FAULT_LOAD", ""))
        if "WUWAN_FAULT_GPU" in os.environ and options["device"] == "cuda":
            options["device"] = "cpu"
            backend = original(*arguments, **options)
            backend.device = f"GPU {os.environ['CUDA_VISIBLE_DEVICES']}"
        else:
            backend = original(*arguments, **options)
        if limit >= 0:
            infer = backend.infer

            def poisoned(*arguments: Any) -> Any:
                nonlocal calls
                calls += 1
                if calls > limit:
                    raise RuntimeError("CUDA error: an illegal memory access was encountered")
                return infer(*arguments)

            backend.infer = poisoned
        return backend

    module.load = load  # type: ignore[attr-defined]


def _patch_patience(module: ModuleType) -> None:
    original: Any = module.Limits
    if seconds := os.environ.get("WUWAN_FAULT_PATIENCE"):
        module.Limits = lambda: original(base=float(seconds))  # type: ignore[attr-defined]


_PATCHES = {
    "wuwan_worker.decoding.decode": _patch_decode,
    "wuwan_worker.decoding.patience": _patch_patience,
    "wuwan_worker.backends": _patch_backends,
}


class _Finder(importlib.abc.MetaPathFinder):
    """Patches those modules when they are imported, and leaves all others alone."""

    def find_spec(
        self, name: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if name not in _PATCHES:
            return None
        spec = importlib.machinery.PathFinder.find_spec(name, path, target)
        if spec is not None and spec.loader is not None:
            loader: Any = spec.loader
            execute = loader.exec_module

            def exec_module(module: ModuleType) -> None:
                execute(module)
                _PATCHES[name](module)

            loader.exec_module = exec_module
        return spec


sys.meta_path.insert(0, _Finder())
