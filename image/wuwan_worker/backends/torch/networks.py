"""timm's networks, without what only training and compiling need.

torch's compiler is imported by two modules that no classifier uses (torchvision's regions of
interest, one of timm's transformers) and by the random numbers of weights that are thrown away: 1.8
of timm's 2.4 s and 140 MiB at each start. `tests/worker/backends/test_torch.py` holds it to that.
"""

from __future__ import annotations

import difflib
import sys
from types import ModuleType
from typing import Any

import torch
from torch.overrides import TorchFunctionMode

from wuwan_worker.backends.torch.checkpoint import CheckpointError


def _import_timm() -> Any:
    regions = ModuleType("torchvision.ops.roi_align")
    regions.roi_align = regions.RoIAlign = None  # type: ignore[attr-defined]
    sys.modules.setdefault(regions.__name__, regions)
    disable = torch.compiler.disable
    # To keep a function from being compiled, it is enough to compile none.
    torch.compiler.disable = lambda function=None, **_: function or (lambda inner: inner)
    try:
        import timm
    finally:
        torch.compiler.disable = disable
    return timm


timm = _import_timm()


class _Uninitialised(TorchFunctionMode):  # type: ignore[misc,unused-ignore]  # where torch is missing
    """Leaves random numbers out."""

    def __torch_function__(
        self, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        del types
        if function in (torch.Tensor.normal_, torch.Tensor.uniform_):
            return args[0]
        return function(*args, **(kwargs or {}))


def network(architecture: str, classes: int) -> Any:
    """timm's network in evaluation mode, its weights yet to come.

    They are on torch's `meta` device, without memory; but for architectures that compute tensors
    when they are built which are in no checkpoint (Swin's windows): those have all of them.

    Raises:
        CheckpointError: if timm does not know the architecture.
    """
    # Only a plain name: timm would download what a prefix such as "hf-hub:" leads to.
    if not timm.is_model(architecture):
        close = difflib.get_close_matches(architecture, timm.list_models(), n=3, cutoff=0.7)
        hint = f"; did you mean {', '.join(close)}?" if close else ""
        raise CheckpointError(f"timm {timm.__version__} has no architecture {architecture!r}{hint}")
    with torch.device("meta"), _Uninitialised():
        empty = timm.create_model(architecture, pretrained=False, num_classes=classes)
    kept = empty.state_dict().keys()
    if any(name not in kept for name, _ in empty.named_buffers()):
        return timm.create_model(architecture, pretrained=False, num_classes=classes).eval()
    return empty.eval()


def owner(network: Any, name: str) -> tuple[dict[str, Any], str]:
    """Where a network keeps the tensor of that name, to put another one there."""
    path, _, leaf = name.rpartition(".")
    module = network.get_submodule(path)
    return (module._parameters if leaf in module._parameters else module._buffers), leaf  # noqa: SLF001
