"""A bundle's labels: what its outputs stand for, at one level or at several.

`labels.tsv` has a line for each output of the network, in order. A bundle without levels (as
`imagenet-zh`) has the columns ``index, label, id, broader``. One with levels has a column for
each, broadest first (``index, coarse, mid, fine`` in `general-zh`), and labels are asked for at one
of them.

Standard library only: the CLI lists and searches labels without numpy.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from wuwan_worker.shared.bundle import BundleError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from wuwan_worker.shared.bundle import Bundle

FILE = "labels.tsv"
PLAIN = ("index", "label", "id", "broader")


@dataclass(frozen=True, slots=True)
class Label:
    """One thing that a photo can show."""

    label: str
    id: str
    broader: tuple[str, ...] = ()  # nearest first
    synonyms: tuple[str, ...] = ()  # where `label` joins several names by "/": each of them


@dataclass(frozen=True, slots=True)
class Level:
    """The labels of a bundle at one level of detail.

    A row is one way from the broadest term down to the label. Outputs that share it are summed by
    the backend. A label may have several rows (in `general-zh` 712 mid terms have more than one
    coarse term): they are summed by `Ranking`, and the likeliest row says what is broader.
    """

    rows: Sequence[int]  # for each output, its row
    labels: Sequence[Label]  # for each row


def read(bundle: Bundle) -> dict[str, Level]:
    """The bundle's labels, by level.

    Raises:
        BundleError: if the file is missing, a line is malformed or out of order, or the number of
            lines is not the number of outputs.
    """
    lines = _lines(bundle)
    return {name: _at(bundle, name, lines) for name in bundle.levels}


def read_level(bundle: Bundle, level: str) -> Level:
    """The bundle's labels at one of its levels. Raises as `read`."""
    return _at(bundle, level, _lines(bundle))


def _at(bundle: Bundle, level: str, lines: Sequence[tuple[str, ...]]) -> Level:
    if not level:
        labels = [
            Label(label, id_, tuple(filter(None, broader.split("|"))))
            for label, id_, broader in lines
        ]
        return Level(range(len(labels)), labels)
    depth = bundle.levels.index(level) + 1
    return _level(level, [line[:depth] for line in lines])


def _level(name: str, ways: Sequence[tuple[str, ...]]) -> Level:
    """`ways`: for each output, the terms from the broadest down to the label."""
    first_row: dict[tuple[str, ...], int] = {}
    first_output: dict[str, int] = {}
    rows = []
    for output, way in enumerate(ways):
        rows.append(first_row.setdefault(way, len(first_row)))
        first_output.setdefault(way[-1], output)
    labels = [
        Label(
            label,
            f"{name}-{first_output[label]}",
            # A term that is its own broader term says nothing.
            tuple(dict.fromkeys(term for term in reversed(broader) if term != label)),
            _synonyms(label),
        )
        for *broader, label in first_row
    ]
    return Level(rows, labels)


def _synonyms(label: str) -> tuple[str, ...]:
    if "/" not in label:
        return ()
    names = tuple(filter(None, (name.strip() for name in label.split("/"))))
    return names if len(names) > 1 else ()


def _lines(bundle: Bundle) -> list[tuple[str, ...]]:
    """The cells of each line after its index."""
    columns = PLAIN if bundle.levels == ("",) else ("index", *bundle.levels)
    path = bundle.root / FILE
    try:
        lines = path.read_text(encoding="utf-8").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise BundleError(f"{path}: {error}") from None
    if lines[0].split("\t") != list(columns):
        raise BundleError(f"{path}: the first line must be: {' '.join(columns)} (tabs)")
    if lines[-1] == "":
        lines.pop()
    found = []
    for number, line in enumerate(lines[1:]):
        index, *cells = line.split("\t")
        if index != str(number) or len(cells) != len(columns) - 1:
            raise BundleError(
                f"{path}:{number + 2}: expected index {number} and {len(columns)} columns"
            )
        if not cells[0]:
            raise BundleError(f"{path}:{number + 2}: no label")
        found.append(tuple(cells))
    if len(found) != bundle.classes:
        raise BundleError(f"{path}: {len(found)} labels for {bundle.classes} outputs")
    return found
