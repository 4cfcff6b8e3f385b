"""Records: one for every input, as one JSON object a line."""

from __future__ import annotations

import base64
import json
import os
from dataclasses import dataclass
from typing import Any

from wuwan_worker.shared.protocol import ErrorCode, Failed, Labelled, WarningCode

VERSION = 1


@dataclass(frozen=True, slots=True)
class Label:
    """A label with its probability."""

    label: str
    score: float  # 0..1
    id: str
    broader: tuple[str, ...]  # nearest first
    synonyms: tuple[str, ...] = ()  # where `label` joins several names

    def to_dict(self) -> dict[str, Any]:
        """The label as JSON types."""
        content: dict[str, Any] = {
            "label": self.label,
            "score": self.score,
            "id": self.id,
            "broader": list(self.broader),
        }
        if self.synonyms:
            content["synonyms"] = list(self.synonyms)
        return content


@dataclass(frozen=True, slots=True)
class ItemFailure:
    """Why an image has no labels."""

    code: ErrorCode
    message: str


@dataclass(frozen=True, slots=True)
class ItemWarning:
    """What was wrong with the data of an image that has labels all the same."""

    code: WarningCode
    message: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Record:
    """What is known of one input: its labels or its error."""

    path: str  # as the file system decodes it; bytes that are not UTF-8 are surrogate-escaped
    model: str
    labels: tuple[Label, ...] = ()  # best first
    width: int | None = None  # pixels, as displayed
    height: int | None = None
    error: ItemFailure | None = None
    warning: ItemWarning | None = None  # beside labels: data were missing, or repaired

    def to_dict(self) -> dict[str, Any]:
        """The record as JSON types; the schema is `record.schema.json`."""
        content: dict[str, Any] = {"v": VERSION} | path_fields(self.path)
        if self.error is None:
            content["labels"] = [label.to_dict() for label in self.labels]
            content["width"] = self.width
            content["height"] = self.height
            if self.warning is not None:
                content["warning"] = {
                    "code": str(self.warning.code),
                    "message": self.warning.message,
                }
        else:
            content["error"] = {"code": str(self.error.code), "message": self.error.message}
        content["model"] = self.model
        return content

    def to_json(self) -> str:
        """One line without its line end; Chinese stays Chinese."""
        return json.dumps(self.to_dict(), ensure_ascii=False, separators=(",", ":"))


def path_fields(path: str) -> dict[str, str]:
    """`path`, and for one that is not valid UTF-8 also `path_b64`, which keeps its bytes."""
    raw = os.fsencode(path)
    try:
        return {"path": raw.decode("utf-8")}
    except UnicodeDecodeError:
        return {
            "path": raw.decode("utf-8", "replace"),
            "path_b64": base64.b64encode(raw).decode("ascii"),
        }


def from_result(
    path: str, model: str, result: Labelled | Failed, *, strict: bool = False
) -> Record:
    """The record for a worker's result.

    With `strict` a warning is an error: `truncated`, as for data of which too much is missing.
    """
    if isinstance(result, Failed):
        failure = ItemFailure(result.error.code, result.error.message)
        return Record(path=path, model=model, error=failure)
    warning = None
    if found := result.warning:
        if strict:
            failure = ItemFailure(ErrorCode.TRUNCATED, found.message)
            return Record(path=path, model=model, error=failure)
        warning = ItemWarning(found.code, found.message)
    return Record(
        path=path,
        model=model,
        width=result.width,
        height=result.height,
        labels=tuple([Label(*label) for label in result.labels]),
        warning=warning,
    )
