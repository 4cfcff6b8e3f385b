"""Tables on standard output: texts stay as they are, on a terminal and into a pipe."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import termios
from typing import TYPE_CHECKING, Any

import pytest

from wuwan_cli.screen.tables import Column, show

if TYPE_CHECKING:
    from pathlib import Path

# What rich would hide, fail on, replace and paint, of a string that it takes for mark-up.
ODD = "[bold] [/x] :smile: \\[ 3"
LONG = "x" * 70


@pytest.fixture(autouse=True)
def columns(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody says how wide the terminal is."""
    monkeypatch.delenv("COLUMNS", raising=False)


def test_texts_are_no_mark_up(capsys: pytest.CaptureFixture[str]) -> None:
    """Cells, parts of cells and titles come from file names and from other programs."""
    rows = [(ODD, ((ODD, "bold"), ("|", "")))]
    show((Column("NAME"), Column("WHAT")), rows, title=ODD)
    title, _, head, _, row, *_ = capsys.readouterr().out.splitlines()
    assert title.strip() == ODD
    assert head.split() == ["NAME", "WHAT"]
    assert row.strip() == f"{ODD}   {ODD}|"


def test_columns_are_aligned(capsys: pytest.CaptureFixture[str]) -> None:
    """Figures to the right; a row may end early, and there may be no headings."""
    columns = (Column("A"), Column("B", right=True), Column("C"))
    show(columns, [("a", "1", "c"), ("aaa", "1,000")], headings=False)
    rows = [line.rstrip() for line in capsys.readouterr().out.splitlines()]
    assert [row for row in rows if row] == [" a         1   c", " aaa   1,000"]


def test_what_is_too_long_is_broken_or_cut(capsys: pytest.CaptureFixture[str]) -> None:
    """A text goes on in the next line, and is all there; a whole column's ends with an ellipsis."""
    show([Column("A"), Column("B")], [(LONG, LONG)])
    assert capsys.readouterr().out.count("x") == 140
    show([Column("A", whole=True), Column("B", whole=True)], [(LONG, LONG)])
    (row,) = (line for line in capsys.readouterr().out.splitlines() if "x" in line)
    assert row.count("…") == 2


def test_a_pipe_may_be_wider(capsys: pytest.CaptureFixture[str]) -> None:
    """What reads it wants each row in one line."""
    show([Column("A"), Column("B")], [(LONG, LONG)], piped_width=200)
    assert f"{LONG}   {LONG}" in capsys.readouterr().out


def test_a_terminal_is_as_wide_as_it_is() -> None:
    """Whatever the width that a pipe would have."""
    code = (
        "from wuwan_cli.screen.tables import Column, show\n"
        f"show([Column('A', whole=True)], [({LONG!r},)], piped_width=200)"
    )
    reader, terminal = os.openpty()
    termios.tcsetwinsize(terminal, (24, 40))
    with os.fdopen(reader, "rb", buffering=0) as output, os.fdopen(terminal, "wb") as stdout:
        subprocess.run(
            [sys.executable, "-c", code],
            stdin=stdout,
            stdout=stdout,
            env=os.environ | {"TERM": "xterm"},
            check=True,
            timeout=30,
        )
        said = output.read(4096).decode()
    assert "…" in said
    assert said.count("x") < 40


def test_a_model_that_is_damaged_in_an_odd_place(wuwan: Any, tmp_path: Path) -> None:
    """`wuwan model list` shows the path of it as it is."""
    home = tmp_path / "[/x]"
    manifest = home / "wuwan/models/mine/bundle.toml"
    manifest.parent.mkdir(parents=True)
    manifest.write_text("what?")
    done = wuwan("model", "list", env=os.environ | {"XDG_DATA_HOME": str(home), "COLUMNS": "500"})
    assert done.returncode == 0, done.stderr
    assert f"unusable: {manifest} is not valid TOML" in done.stdout.decode()


def test_a_worker_has_a_row(wuwan: Any) -> None:
    """`wuwan ps` into a pipe: a line for each worker, under a heading for each of its columns."""
    assert wuwan("warm", "--runner=local").returncode == 0
    done = wuwan("ps")
    assert done.returncode == 0, done.stderr
    lines = [line for line in done.stdout.decode().splitlines() if line.strip()]
    headings, _, row = (re.split(r"\s{2,}", line.strip()) for line in lines)
    assert headings[:3] == ["NAME", "MODEL", "RUNNER"]
    assert (row[1:3], row[-1]) == (["imagenet-zh", "local"], "-")
    assert len(row) == len([word for heading in headings for word in heading.split()])
