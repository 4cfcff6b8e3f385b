"""What has become of one input."""

from __future__ import annotations

from dataclasses import dataclass, field
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import os
    from collections.abc import Mapping

    from wuwan_runner.records import Record

_NOTHING: Mapping[str, Any] = MappingProxyType({})


@dataclass(frozen=True, slots=True)
class Outcome:
    """A record, and what else is known that is not shown to everybody."""

    record: Record
    stat: os.stat_result | None = None  # of the file as it was opened; None if it was not
    extras: Mapping[str, Any] = field(default_factory=lambda: _NOTHING)
    """What the worker has said besides, by the names that the protocol has for it."""
