"""Records: what one line of output says."""

from __future__ import annotations

import base64
import dataclasses
import json
import os
from importlib import resources
from typing import Any

import jsonschema
import pytest
from hypothesis import given
from hypothesis import strategies as st

from wuwan_runner import records
from wuwan_runner.records import ItemFailure, ItemWarning, Label, Record
from wuwan_worker.shared.protocol import (
    Damage,
    ErrorCode,
    Failed,
    Failure,
    Labelled,
    LabelScore,
    WarningCode,
)

DOG = Label("金毛寻回犬", 0.93, "n02099601", ("犬", "动物"))
SCHEMA = json.loads(resources.files("wuwan_runner").joinpath("record.schema.json").read_text())


def _read(line: str) -> dict[str, Any]:
    """The record in a line, which is one line and as the schema says."""
    assert "\n" not in line
    record: dict[str, Any] = json.loads(line)
    jsonschema.Draft202012Validator(SCHEMA).validate(record)
    return record


def test_a_tagged_image() -> None:
    """A record has everything, in a stable order, and Chinese stays Chinese."""
    record = Record(path="狗.jpg", model="imagenet-zh", labels=(DOG,), width=40, height=30)
    line = record.to_json()
    assert line == (
        '{"v":1,"path":"狗.jpg","labels":[{"label":"金毛寻回犬","score":0.93,"id":"n02099601",'
        '"broader":["犬","动物"]}],"width":40,"height":30,"model":"imagenet-zh"}'
    )
    _read(line)


def test_an_image_without_labels() -> None:
    """No label over the limit is an empty list, not an error."""
    record = Record(path="a.jpg", model="m", width=1, height=1)
    assert _read(record.to_json())["labels"] == []


@pytest.mark.parametrize("code", list(WarningCode))
def test_an_image_with_a_warning(code: WarningCode) -> None:
    """Labels of a damaged photo have a warning beside them; with `strict` it is an error."""
    result = Labelled(id=0, width=4, height=3, labels=(), warning=Damage(code, "x"))
    record = records.from_result("a.jpg", "m", result)
    assert record.warning == ItemWarning(code, "x")
    assert _read(record.to_json())["warning"] == {"code": code.value, "message": "x"}
    strict = records.from_result("a.jpg", "m", result, strict=True)
    assert _read(strict.to_json())["error"] == {"code": "truncated", "message": "x"}
    whole = dataclasses.replace(result, warning=None)
    assert records.from_result("a.jpg", "m", whole, strict=True).warning is None


@pytest.mark.parametrize("code", list(ErrorCode))
def test_a_failed_image(code: ErrorCode) -> None:
    """An error record has a code and a message, and no labels."""
    record = Record(path="a.jpg", model="m", error=ItemFailure(code, "坏了"))
    assert _read(record.to_json()) == {
        "v": 1,
        "path": "a.jpg",
        "error": {"code": code.value, "message": "坏了"},
        "model": "m",
    }


def test_the_schema_knows_every_code() -> None:
    """The schema's codes are the protocol's."""
    codes = SCHEMA["$defs"]["failed"]["properties"]["error"]["properties"]["code"]["enum"]
    assert set(codes) == {code.value for code in ErrorCode}


@pytest.mark.parametrize(
    "change",
    [
        {"v": 2},
        {"width": 0},
        {"labels": [{"label": "x", "score": 1.5, "id": "", "broader": []}]},
        {"error": {"code": "unreadable", "message": "x"}},
        {"more": 1},
    ],
)
def test_the_schema_refuses_what_no_record_is(change: dict[str, Any]) -> None:
    """The schema is strict."""
    record = Record(path="a.jpg", model="m", labels=(DOG,), width=1, height=1).to_dict()
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.Draft202012Validator(SCHEMA).validate(record | change)


def test_a_path_that_is_not_utf8_keeps_its_bytes() -> None:
    """`path` can be read by people, `path_b64` by programs."""
    raw = b"caf\xe9/\xff.jpg"
    record = Record(path=os.fsdecode(raw), model="m", width=1, height=1)
    found = _read(record.to_json())
    assert found["path"] == "caf\N{REPLACEMENT CHARACTER}/\N{REPLACEMENT CHARACTER}.jpg"
    assert base64.b64decode(found["path_b64"]) == raw


@given(st.binary(min_size=1, max_size=40).filter(lambda raw: b"\0" not in raw))
def test_any_path_can_be_got_back(raw: bytes) -> None:
    """From a record's line the path's bytes can always be told; the line is valid UTF-8."""
    line = Record(path=os.fsdecode(raw), model="m", width=1, height=1).to_json()
    found = _read(line.encode("utf-8").decode("utf-8"))
    if "path_b64" in found:
        assert base64.b64decode(found["path_b64"]) == raw
    else:
        assert found["path"].encode() == raw


def test_a_path_with_line_ends_stays_one_line() -> None:
    """Line ends, quotes and tabs in a name are escaped."""
    path = 'a\n"b"\t\r.jpg'
    assert _read(Record(path=path, model="m", width=1, height=1).to_json())["path"] == path


def test_from_a_workers_result() -> None:
    """A result of the protocol becomes a record."""
    labels = (LabelScore("犬", 1, "n1", ("动物",)),)
    record = records.from_result("a.jpg", "m", Labelled(id=7, width=40, height=30, labels=labels))
    assert record == Record(
        path="a.jpg", model="m", labels=(Label("犬", 1, "n1", ("动物",)),), width=40, height=30
    )
    _read(record.to_json())


def test_from_a_workers_error() -> None:
    """A failure becomes an error record."""
    failed = Failed(id=7, error=Failure(ErrorCode.TRUNCATED, "cut"))
    record = records.from_result("a.jpg", "m", failed)
    assert record.error == ItemFailure(ErrorCode.TRUNCATED, "cut")
    _read(record.to_json())
