"""Records as lines of JSON, and back."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from wuwan_runner.records import VERSION

if TYPE_CHECKING:
    from collections.abc import Iterable

    from wuwan_runner.records import Record

BEGINNING = b'{"v":'
"""What each line begins with."""


def encoded(records: Iterable[Record]) -> list[bytes]:
    """A line for each record, with its end."""
    # JSON has an escape for what UTF-8 cannot encode, and it is the one that Python writes.
    return [f"{record.to_json()}\n".encode("utf-8", "backslashreplace") for record in records]


def decoded(line: bytes) -> dict[str, Any] | None:
    """The record in a line, or None if the line is torn or holds something else.

    Only records of this program's own version are known.
    """
    if not line.endswith(b"\n"):
        return None
    record = _object(line)
    return record if record is not None and record.get("v") == VERSION else None


def is_record(line: bytes) -> bool:
    """Whether that is a record of any version, older or newer, with its line's end or without."""
    record = _object(line)
    return record is not None and isinstance(record.get("v"), int) and "path" in record


def _object(line: bytes) -> dict[str, Any] | None:
    try:
        value = json.loads(line)
    except (ValueError, RecursionError):  # the latter of 1,000 brackets, which no record has
        return None
    return value if isinstance(value, dict) else None
