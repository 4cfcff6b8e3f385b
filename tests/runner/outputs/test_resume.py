"""What becomes of a line that an earlier run has left, as a table."""

from __future__ import annotations

import os

import pytest

from wuwan_runner.outputs.jsonl import encoded
from wuwan_runner.outputs.resume import Refused, Taken, Terms, judged
from wuwan_runner.records import ItemFailure, ItemWarning, Record
from wuwan_worker.shared.protocol import ErrorCode, WarningCode

ODD = os.fsdecode("狗.jpg".encode("gbk"))
SHOWN = "\N{REPLACEMENT CHARACTER}" * 2 + ".jpg"  # what people see of it, and a name as well
ANY = Terms()
STRICT = Terms(strict=True)
NAMED = Terms(models=frozenset({"m", "./m"}))


def _good(path: str = "a.jpg", model: str = "m") -> bytes:
    return encoded([Record(path=path, model=model, width=1, height=1)])[0]


FAILURE = ItemFailure(ErrorCode.UNREADABLE, "no such file")
WARNING = ItemWarning(WarningCode.TRUNCATED, "the end is missing")
FAILED = encoded([Record(path="a.jpg", model="m", error=FAILURE)])[0]
WARNED = encoded([Record(path="a.jpg", model="m", width=1, height=1, warning=WARNING)])[0]
PLAIN = Taken(failed=False, warned=False)

TABLE = {
    "labels": (_good(), "a.jpg", ANY, PLAIN),
    "an error": (FAILED, "a.jpg", ANY, Taken(failed=True, warned=False)),
    "a warning": (WARNED, "a.jpg", ANY, Taken(failed=False, warned=True)),
    "a path that is not UTF-8": (_good(ODD), ODD, ANY, PLAIN),
    "a path with U+FFFD": (_good(SHOWN), SHOWN, ANY, PLAIN),
    "one that looks like the input": (_good(SHOWN), ODD, ANY, None),
    "one that the input looks like": (_good(ODD), SHOWN, ANY, None),
    "other bytes that look the same": (_good(ODD), ODD.replace("\udcb9", "\udcba"), ANY, None),
    "another input": (_good("b.jpg"), "a.jpg", ANY, None),
    "another input of another model": (_good("b.jpg", "n"), "a.jpg", NAMED, None),
    "the end of the file": (b"", "a.jpg", ANY, None),
    "a torn line": (_good()[:-1], "a.jpg", ANY, None),
    "half a line": (_good()[:20], "a.jpg", ANY, None),
    "something else": (b"notes\n", "a.jpg", ANY, None),
    "another version": (_good().replace(b'"v":1', b'"v":2'), "a.jpg", ANY, None),
    "a model that is meant": (_good(model="./m"), "a.jpg", NAMED, PLAIN),
    "strict, labels": (_good(), "a.jpg", STRICT, PLAIN),
    "strict, an error": (FAILED, "a.jpg", STRICT, Taken(failed=True, warned=False)),
}


@pytest.mark.parametrize("row", TABLE)
def test_what_becomes_of_a_line(row: str) -> None:
    """It is that of the input and taken over, or ends what is taken over."""
    line, path, terms, expected = TABLE[row]
    assert judged(line, path, terms) == expected


REFUSED = {
    "another model": (_good(model="n"), NAMED, "holds records of the model n"),
    "an error of another model": (FAILED.replace(b'"m"', b'"n"'), NAMED, "of the model n"),
    "a record without a model": (b'{"v":1,"path":"a.jpg"}\n', NAMED, "of the model None"),
    "strict, a warning": (WARNED, STRICT, "holds records with warnings"),
}


@pytest.mark.parametrize("row", REFUSED)
def test_what_cannot_be_mixed_with_new_records(row: str) -> None:
    """A record of this input that this run would not write: the user has to say what to do."""
    line, terms, reason = REFUSED[row]
    verdict = judged(line, "a.jpg", terms)
    assert isinstance(verdict, Refused)
    assert reason in verdict.reason
    assert "resume" in verdict.hint
