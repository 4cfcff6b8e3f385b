"""The runner: files, batches, warm workers, containers, retries.

`Tagger` is the public API; the command line is its first user. Names are loaded when they are
first used, so that importing the package costs nothing.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from wuwan_runner.errors import (
        ExitCode,
        LockedError,
        UsageError,
        WorkerUnavailableError,
        WuwanError,
    )
    from wuwan_runner.inputs.survey import Survey
    from wuwan_runner.options import Selection, TagOptions, Timeouts, WorkerSpec
    from wuwan_runner.records import ItemFailure, ItemWarning, Label, Record
    from wuwan_runner.tagger import Tagger

_HOMES = {
    "Selection": "options",
    "WorkerUnavailableError": "errors",
    "ExitCode": "errors",
    "LockedError": "errors",
    "UsageError": "errors",
    "WuwanError": "errors",
    "TagOptions": "options",
    "Timeouts": "options",
    "WorkerSpec": "options",
    "ItemFailure": "records",
    "ItemWarning": "records",
    "Label": "records",
    "Record": "records",
    "Survey": "inputs.survey",
    "Tagger": "tagger",
}

__all__ = [
    "ExitCode",
    "ItemFailure",
    "ItemWarning",
    "Label",
    "LockedError",
    "Record",
    "Selection",
    "Survey",
    "TagOptions",
    "Tagger",
    "Timeouts",
    "UsageError",
    "WorkerSpec",
    "WorkerUnavailableError",
    "WuwanError",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
