"""What a worker finds out about an image, as it travels.

A result is a map: of an image that is labelled ``{"id", "width", "height", "labels", …}``, of one
that is not ``{"id", "error": {"code", "message"}}``, of one that its client has taken back
``{"id", "cancelled": true}``. A label is an array, ``[label, score, id, broader, synonyms]``.

A client reads all results on its only thread, so labels are arrays and named tuples, and not maps
and dataclasses: a thousand of them are decoded and checked in 0.7 ms; to decode as many maps takes
0.6 ms without any check, and to make as many dataclasses 0.6 ms more (2-core VM, Python 3.11).
"""

from __future__ import annotations

import enum
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeAlias

from wuwan_worker.shared.schema import KindError, Schema


class ErrorCode(enum.StrEnum):
    """Why one image has no labels. These are the `error.code` values of a record."""

    UNREADABLE = "unreadable"  # it could not be opened or read
    NOT_AN_IMAGE = "not_an_image"
    TRUNCATED = "truncated"  # its data ends early or is damaged
    TOO_LARGE = "too_large"  # more bytes or pixels than the limit
    UNSUPPORTED = "unsupported"  # an image, but in a format outside the allow-list
    TIMEOUT = "timeout"  # no answer in time, for this image alone: its decoder, worker or disk
    WORKER_CRASHED = "worker_crashed"  # the worker died, on this image alone


class WarningCode(enum.StrEnum):
    """What was wrong with an image that has labels all the same: `warning.code` of a record."""

    TRUNCATED = "truncated"  # data were missing
    DAMAGED = "damaged"  # data were wrong, and repaired or skipped


class LabelScore(NamedTuple):
    """A label of an image, with its probability."""

    label: str
    score: float  # 0..1
    id: str
    broader: tuple[str, ...] = ()  # nearest first
    synonyms: tuple[str, ...] = ()  # where `label` joins several names


@dataclass(frozen=True, slots=True)
class Failure:
    """Why an image has no labels."""

    code: ErrorCode
    message: str


@dataclass(frozen=True, slots=True)
class Damage:
    """What was wrong with the data of an image that has labels all the same."""

    code: WarningCode
    message: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Extras:
    """What was found besides, of what was wanted. Reserved: no worker sends any yet."""

    digest: str = ""  # SHA-256 of all bytes of the file, hexadecimal
    keywords: tuple[str, ...] | None = None  # that are embedded in the file; None: not looked for
    thumbnail: bytes = b""  # a JPEG


@dataclass(frozen=True, slots=True, kw_only=True)
class Labelled:
    """An image and its labels."""

    id: int  # as in Images
    width: int  # pixels, as displayed
    height: int
    labels: tuple[LabelScore, ...]  # best first
    warning: Damage | None = None
    extras: Extras | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Failed:
    """An image that has no labels."""

    id: int
    error: Failure
    extras: Extras | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Cancelled:
    """An image that its client has taken back, and that nobody has looked at."""

    id: int


Result: TypeAlias = Labelled | Failed | Cancelled

# Members of a label's array: so many must be there, so many are known.
_LEAST, _MOST = 3, len(LabelScore._fields)
_FAILED, _CANCELLED = Schema(Failed), Schema(Cancelled)
_DAMAGE, _EXTRAS = Schema(Damage), Schema(Extras)


def read_results(value: object) -> list[Result]:
    """The results in an array of maps. Raises KindError."""
    if type(value) is not tuple:
        raise KindError(f"is a {type(value).__name__}")
    try:
        return [_result(content) for content in value]
    except KindError as error:
        raise KindError(f"has an element that is wrong: {error}") from None


def _result(content: Any) -> Result:
    if type(content) is not dict:
        raise KindError(f"a {type(content).__name__}")
    if content.get("error") is not None:
        return _FAILED.read(content)
    if content.get("cancelled"):
        return _CANCELLED.read(content)
    get = content.get
    id_, width, height = get("id"), get("width"), get("height")
    if not type(id_) is type(width) is type(height) is int:
        raise KindError("Labelled lacks id, width or height of the right kind")
    warning, extras = get("warning"), get("extras")
    return Labelled(
        id=id_,
        width=width,
        height=height,
        labels=_labels(get("labels")),
        warning=None if warning is None else _DAMAGE.read_any(warning),
        extras=None if extras is None else _EXTRAS.read_any(extras),
    )


def _labels(values: Any) -> tuple[LabelScore, ...]:
    if type(values) is not tuple:
        raise KindError(f"labels is a {type(values).__name__}")
    found, make = [], LabelScore._make
    for value in values:  # one loop, without calls: it takes most of a client's time for a frame
        if type(value) is not tuple or len(value) < _LEAST:
            raise KindError("a label is no array, or too short")
        if len(value) != _MOST:
            value = (*value[:_MOST], *((),) * (_MOST - len(value)))
        label, score, id_, broader, synonyms = value
        if (
            type(label) is not str
            or (type(score) is not float and type(score) is not int)
            or type(id_) is not str
            or type(broader) is not tuple
            or type(synonyms) is not tuple
        ):
            raise KindError("a label has a member of the wrong kind")
        for term in broader:
            if type(term) is not str:
                raise KindError("a label has a broader term that is no text")
        for term in synonyms:
            if type(term) is not str:
                raise KindError("a label has a synonym that is no text")
        found.append(make(value))
    return tuple(found)


def result_map(result: Result) -> dict[str, object]:
    """What `read_results` reads; what there is nothing of is left out."""
    content: dict[str, object]
    match result:
        case Labelled():
            content = {
                "id": result.id,
                "width": result.width,
                "height": result.height,
                "labels": result.labels,
            }
            if result.warning is not None:
                content["warning"] = result.warning
        case Failed():
            content = {"id": result.id, "error": result.error}
        case Cancelled():
            return {"id": result.id, "cancelled": True}
    if result.extras is not None:
        content["extras"] = result.extras
    return content
