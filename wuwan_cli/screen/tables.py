"""Tables on standard output. What draws them is imported with the first one: that takes 40 ms."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    # A text as it is, whatever is in it, or parts of it, each with how it looks.
    Cell = str | Sequence[tuple[str, str]]


@dataclass(frozen=True, slots=True)
class Column:
    """A column, and what becomes of its cells where there is too little room."""

    heading: str
    right: bool = False  # aligned, as figures are
    whole: bool = False  # cut short rather than broken into lines


def show(
    columns: Sequence[Column],
    rows: Iterable[Sequence[Cell]],
    *,
    title: str = "",
    headings: bool = True,
    piped_width: int | None = None,
) -> None:
    """Print a table; a row may have fewer cells than there are columns.

    Args:
        columns: from left to right.
        rows: from top to bottom.
        title: stands above it.
        headings: whether those of the columns are shown.
        piped_width: characters that there is room for where standard output is no terminal; None
            for what a terminal would have, which is 80 unless COLUMNS says something else.
    """
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(
        title=Text(title, "table.title") if title else None,
        box=box.SIMPLE_HEAD,
        pad_edge=False,
        show_header=headings,
    )
    for column in columns:
        table.add_column(
            column.heading,
            justify="right" if column.right else "left",
            no_wrap=column.whole,
            overflow="ellipsis" if column.whole else "fold",
        )
    for row in rows:
        # Never a plain string: rich would take [brackets] in a name for mark-up.
        table.add_row(
            *(Text(cell) if isinstance(cell, str) else Text.assemble(*cell) for cell in row)
        )
    console = Console()
    if piped_width is not None and not console.is_terminal:
        console = Console(width=piped_width)
    console.print(table)
