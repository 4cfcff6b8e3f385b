"""Records to a pipe: whole lines, a reader that leaves, errors that have a name."""

from __future__ import annotations

import json
import os
import threading

import pytest

from wuwan_runner.outputs.base import ClosedPipe, OutputError, Sink
from wuwan_runner.outputs.stream import StreamSink
from wuwan_runner.records import Label, Record


def _record(path: str, labels: int = 1) -> Record:
    found = tuple(Label(f"标签{number}" * 5, 0.5, "", ("物",)) for number in range(labels))
    return Record(path=path, model="m", labels=found, width=1, height=1)


def test_each_record_is_a_line_at_once() -> None:
    """They can be read before the run ends, in order, and lines of 100 KB are whole, too."""
    reader, writer = os.pipe()
    sink: Sink = StreamSink(writer, "a pipe")
    lines: list[bytes] = []

    def read() -> None:
        with os.fdopen(reader, "rb") as pipe:
            lines.extend(pipe)

    sink.write([_record("a.jpg")])
    assert json.loads(os.read(reader, 4096))["path"] == "a.jpg"
    thread = threading.Thread(target=read)
    thread.start()
    sink.write([_record("b.jpg", 2000), _record("c.jpg")])
    sink.commit()
    sink.close()
    thread.join(30)
    assert [json.loads(line)["path"] for line in lines] == ["b.jpg", "c.jpg"]
    assert len(lines[0]) > 100_000
    assert sink.written == 3


def test_a_reader_that_leaves() -> None:
    """It has had enough: no error, and nothing counts as written."""
    reader, writer = os.pipe()
    sink = StreamSink(writer, "a pipe")
    os.close(reader)
    with pytest.raises(ClosedPipe):
        sink.write([_record("a.jpg")])
    assert sink.written == 0
    assert sink.abandon() == ""
    sink.close()


def test_a_full_device() -> None:
    """The error has the name that the sink was given, and a hint."""
    sink = StreamSink(os.open("/dev/full", os.O_WRONLY), "the tape")
    with pytest.raises(OutputError, match="cannot write to the tape: No space left") as caught:
        sink.write([_record("a.jpg")])
    assert "free some space" in caught.value.hint
    sink.close()


@pytest.mark.parametrize(
    ("count", "said"), [(0, ""), (1, "1 record written"), (1200, "1,200 records written")]
)
def test_what_is_said_of_a_run_that_ends_early(count: int, said: str) -> None:
    """How much the reader has."""
    sink = StreamSink(os.open(os.devnull, os.O_WRONLY), "nowhere")
    sink.write([_record("a.jpg")] * count)
    assert sink.abandon() == said
    sink.close()


def test_nothing_is_taken_over_or_replaced() -> None:
    """What went down a pipe cannot be had back."""
    reader, writer = os.pipe()
    sink = StreamSink(writer, "a pipe")
    assert not sink.take_over("a.jpg")
    assert sink.replaces() == ""
    sink.close()
    assert os.read(reader, 1) == b""  # the writing end is closed
    os.close(reader)


def test_standard_streams_stay_open() -> None:
    """Others write to them as well."""
    StreamSink(2, "standard error").close()
    os.fstat(2)
