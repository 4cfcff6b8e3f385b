"""How far a download is: a bar on a terminal, otherwise a line every ten seconds."""

from __future__ import annotations

import os
import time
from typing import Any, Self

from wuwan_cli.screen.progress import INTERVAL
from wuwan_cli.shell.boundary import say


class Transfer:
    """Shows one file after the other on standard error."""

    def __init__(self) -> None:
        self._terminal = os.isatty(2)
        self._bar: Any = None
        self._name = ""
        self._shown_at = time.monotonic()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._close()

    def update(self, name: str, done: int, total: int) -> None:
        """`done` of `total` bytes of the file `name` are there."""
        if self._terminal:
            self._draw(name, done, total)
        elif time.monotonic() - self._shown_at >= INTERVAL or done >= total:
            self._shown_at = time.monotonic()
            say(f"{name}: {done / 1e6:,.0f} of {total / 1e6:,.0f} MB")

    def _draw(self, name: str, done: int, total: int) -> None:
        if name != self._name:
            from tqdm import tqdm

            self._close()
            self._name = name
            self._bar = tqdm(
                total=total, initial=done, desc=name, unit="B", unit_scale=True, unit_divisor=1000
            )
        self._bar.update(done - self._bar.n)

    def _close(self) -> None:
        if self._bar is not None:
            self._bar.close()
            self._bar = None
