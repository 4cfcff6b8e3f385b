"""Records to lines and back, with paths and labels of every kind."""

from __future__ import annotations

import base64
import json
import os
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wuwan_runner.outputs import jsonl
from wuwan_runner.records import ItemFailure, Label, Record
from wuwan_worker.shared.protocol import ErrorCode


def _line(**fields: Any) -> bytes:
    return json.dumps({"v": 1, "path": "a.jpg"} | fields).encode() + b"\n"


def _round(record: Record) -> dict[str, Any]:
    (line,) = jsonl.encoded([record])
    assert line.count(b"\n") == 1
    assert jsonl.is_record(line)
    found = jsonl.decoded(line)
    assert found is not None
    return found


def test_a_line_for_each_record_in_order() -> None:
    """Each has its end, Chinese stays UTF-8, and all begin as a partial file does."""
    records = [Record(path=name, model="m", width=1, height=1) for name in ("猫.jpg", "b.jpg")]
    lines = jsonl.encoded(records)
    assert lines == [f"{record.to_json()}\n".encode() for record in records]
    assert "猫.jpg".encode() in lines[0]
    assert all(line.startswith(jsonl.BEGINNING) for line in lines)


@given(st.binary(min_size=1).filter(lambda raw: b"\0" not in raw))
def test_any_path_comes_back(raw: bytes) -> None:
    """One that is not UTF-8 keeps its bytes, and no character of a name ends the line."""
    found = _round(Record(path=os.fsdecode(raw), model="m", width=1, height=1))
    encoded = found.get("path_b64")
    assert (base64.b64decode(encoded) if encoded else found["path"].encode()) == raw


@given(st.text(st.sampled_from('a猫\n\r\0\u2028"\\\udcff')))
def test_any_message_comes_back(text: str) -> None:
    """Lone surrogates, which UTF-8 has no bytes for, and line ends, too."""
    failure = ItemFailure(ErrorCode.UNREADABLE, text)
    assert _round(Record(path="a", model="m", error=failure))["error"]["message"] == text


def test_labels_of_100_kilobytes() -> None:
    """No length is too long for a line."""
    labels = tuple(Label(f"标签{number}" * 8, 0.1, str(number), ("物",)) for number in range(1000))
    (line,) = jsonl.encoded([Record(path="a", model="m", labels=labels, width=1, height=1)])
    assert len(line) > 100_000
    found = jsonl.decoded(line)
    assert found is not None
    assert [label["label"] for label in found["labels"]] == [label.label for label in labels]


OTHER_LINES = {
    "nothing": b"",
    "an empty line": b"\n",
    "a list": b"[1]\n",
    "a number": b"1\n",
    "no JSON": b"notes\n",
    "a photo": b"\xff\xd8\xff\xe0\n",
    "no version": b'{"path":"a.jpg"}\n',
    "half a record": _line()[:20] + b"\n",
    "nested too deeply": b"[" * 100_000 + b"\n",
}


@pytest.mark.parametrize("name", OTHER_LINES)
def test_what_is_no_record(name: str) -> None:
    """Neither one that can be taken over nor one that may be replaced."""
    assert jsonl.decoded(OTHER_LINES[name]) is None
    assert not jsonl.is_record(OTHER_LINES[name])


def test_a_torn_line_is_not_taken_for_whole() -> None:
    """Only its end says that a line is whole; a file with it may be replaced all the same."""
    assert jsonl.decoded(_line()) == {"v": 1, "path": "a.jpg"}
    assert jsonl.decoded(_line()[:-1]) is None
    assert jsonl.is_record(_line()[:-1])


def test_another_version_may_be_replaced_and_not_taken_over() -> None:
    """What its fields mean is not known here, but a record it is."""
    assert jsonl.decoded(_line(v=2)) is None
    assert jsonl.is_record(_line(v=2))
    assert not jsonl.is_record(_line(v="2"))
    assert not jsonl.is_record(b'{"v":1}\n')
