"""What has become of one input."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import os

    from wuwan_runner.records import Record
    from wuwan_worker.shared.results import Extras


@dataclass(frozen=True, slots=True)
class Outcome:
    """A record, and what else is known that is not shown to everybody."""

    record: Record
    stat: os.stat_result | None = None  # of the file as it was opened; None if it was not
    extras: Extras | None = None  # what the worker has found besides
