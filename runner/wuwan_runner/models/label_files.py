"""Label files as people have them, made into a bundle's `labels.tsv` (`shared.labels`)."""

from __future__ import annotations

import unicodedata
from dataclasses import dataclass
from typing import TYPE_CHECKING

from wuwan_runner.errors import ModelError
from wuwan_worker.shared.labels import PLAIN

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

# `meta_info.txt` of ModelScope's recognition models: a line for each output,
# "index coarse mid fine f1 f2". What f1 and f2 are is documented nowhere; they are left out.
META_INFO_LEVELS = ("coarse", "mid", "fine")
_META_INFO_CELLS = 6


@dataclass(frozen=True, slots=True)
class LabelTable:
    """The content of a `labels.tsv`."""

    columns: tuple[str, ...]
    rows: Sequence[tuple[str, ...]]  # without the index

    @property
    def levels(self) -> tuple[str, ...]:
        """The levels' names, broadest first; none for a table without levels."""
        return () if self.columns == PLAIN else self.columns[1:]

    def text(self) -> str:
        """The file."""
        numbered = ((str(index), *row) for index, row in enumerate(self.rows))
        return "".join("\t".join(cells) + "\n" for cells in (self.columns, *numbered))


def read_meta_info(path: Path) -> LabelTable:
    """ModelScope's label list: three levels, cleaned.

    Spellings of one label that differ in case, width or white space only are made one, the first.
    A "/" joins synonyms and stays: it is no level.

    Raises:
        ModelError: naming the line that is not as it should be.
    """
    first: list[dict[str, str]] = [{} for _ in META_INFO_LEVELS]
    rows = []
    for number, line in enumerate(_lines(path)):
        index, *cells = line.split("\t")
        if len(cells) != _META_INFO_CELLS - 1:
            raise ModelError(
                f"{path}, line {number + 1}: {len(cells) + 1} columns, not {_META_INFO_CELLS}"
            )
        if index != str(number):
            raise ModelError(f"{path}, line {number + 1}: index {index!r} where {number} must be")
        labels = tuple(map(clean, cells[: len(META_INFO_LEVELS)]))
        if not all(labels):
            raise ModelError(f"{path}, line {number + 1}: an empty label")
        rows.append(
            tuple(
                spelling.setdefault("".join(label.split()).casefold(), label)
                for spelling, label in zip(first, labels, strict=True)
            )
        )
    return _filled(path, LabelTable(("index", *META_INFO_LEVELS), rows))


def read(path: Path) -> LabelTable:
    """One label a line, in the order of the outputs; or a table as in a bundle, with its head.

    Raises:
        ModelError: naming the line that is not as it should be.
    """
    lines = _lines(path)
    if lines and lines[0].startswith("index\t"):
        return _filled(path, _table(path, lines))
    first: dict[str, int] = {}
    rows = []
    for number, line in enumerate(lines):
        if "\t" in line:
            raise ModelError(
                f"{path}, line {number + 1}: more than one column",
                hint=f"one label a line, or a table whose first line is: {' '.join(PLAIN)} (tabs)",
            )
        label = " ".join(line.split())
        if not label:
            raise ModelError(f"{path}, line {number + 1}: no label")
        if not label.isprintable():
            raise ModelError(f"{path}, line {number + 1}: control characters: {label!r:.80}")
        rows.append((label, str(first.setdefault(label, number)), ""))
    return _filled(path, LabelTable(PLAIN, rows))


def _table(path: Path, lines: Sequence[str]) -> LabelTable:
    columns = tuple(lines[0].split("\t"))
    rows = []
    for number, line in enumerate(lines[1:]):
        index, *cells = line.split("\t")
        if index != str(number) or len(cells) != len(columns) - 1:
            raise ModelError(
                f"{path}, line {number + 2}: expected index {number} and {len(columns)} columns"
            )
        rows.append(tuple(cells))
    return LabelTable(columns, rows)


def clean(label: str) -> str:
    """`label` with one form of each character (NFKC) and single spaces."""
    return " ".join(unicodedata.normalize("NFKC", label).split())


def _lines(path: Path) -> list[str]:
    try:
        lines = path.read_text(encoding="utf-8-sig").split("\n")
    except UnicodeDecodeError as error:
        raise ModelError(f"{path} is not UTF-8: byte {error.start}") from None
    except OSError as error:
        raise ModelError(f"cannot read {path}: {error.strerror}") from None
    if lines[-1] == "":
        lines.pop()
    return [line.removesuffix("\r") for line in lines]


def _filled(path: Path, table: LabelTable) -> LabelTable:
    if not table.rows:
        raise ModelError(f"{path} holds no labels")
    return table
