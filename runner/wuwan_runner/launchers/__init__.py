"""The launchers, in an explicit registry."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

from wuwan_runner.errors import UsageError

if TYPE_CHECKING:
    from wuwan_runner.launchers.base import Launcher

# name -> "module:class", imported when chosen: Docker's client alone costs 0.15 s.
REGISTRY = {
    "docker": "wuwan_runner.launchers.docker:DockerLauncher",
    "local": "wuwan_runner.launchers.local:LocalLauncher",
}


def get(name: str) -> Launcher:
    """The launcher of that name.

    Raises:
        UsageError: if there is none.
    """
    if name not in REGISTRY:
        raise UsageError(f"no runner named {name!r}", hint=f"one of: auto, {', '.join(REGISTRY)}")
    module, cls = REGISTRY[name].split(":")
    launcher: Launcher = getattr(importlib.import_module(module), cls)()
    return launcher
