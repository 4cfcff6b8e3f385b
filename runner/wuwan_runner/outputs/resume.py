"""What of an earlier run's records can be taken over: a line in, a decision out."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from wuwan_runner.outputs.jsonl import decoded
from wuwan_runner.records import path_fields

if TYPE_CHECKING:
    from collections.abc import Collection


@dataclass(frozen=True, slots=True)
class Terms:
    """What this run's records are like, and so what those that it takes over have to be like."""

    models: Collection[str] = ()  # the names that their model may have; empty if that is not known
    strict: bool = False  # none may have a warning


@dataclass(frozen=True, slots=True)
class Taken:
    """The record is that of the input, and this run would have written it, too."""

    failed: bool  # it is an error record
    warned: bool  # it has a warning


@dataclass(frozen=True, slots=True)
class Refused:
    """The record is that of the input, and one that does not go together with this run's."""

    reason: str  # to follow the name of the file
    hint: str


def judged(line: bytes, path: str, terms: Terms) -> Taken | Refused | None:
    """What becomes of the next record of an earlier run.

    Args:
        line: the line that it is in, with its end; empty where there is none left.
        path: that of the next input.
        terms: what is taken over.

    Returns:
        None for a line that is torn, or no record, or that of another input. It ends what can be
        taken over: what follows it belongs to other inputs as well.
    """
    record = decoded(line)
    if record is None or not _is_of(path, record):
        return None
    if terms.strict and "warning" in record:
        return Refused(
            "holds records with warnings",
            hint="resume without --strict, or begin anew without --resume",
        )
    if terms.models and record.get("model") not in terms.models:
        return Refused(
            f"holds records of the model {record.get('model')}",
            hint="resume with the options of the run that was interrupted, or without --resume "
            "begin anew",
        )
    return Taken(failed="error" in record, warned="warning" in record)


def _is_of(path: str, record: dict[str, Any]) -> bool:
    # Where the bytes are not UTF-8 `path` alone is what another file may really be called.
    fields = path_fields(path)
    return all(record.get(key) == fields.get(key) for key in ("path", "path_b64"))
