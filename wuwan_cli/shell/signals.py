"""SIGINT, SIGTERM and SIGHUP: the first ends the run in good order, the second at once.

The handlers are restored in the end and the signal is raised again, so that whoever started us
sees that we died of it (a shell then shows 130 or 143, and stops its loop on Ctrl-C).
"""

from __future__ import annotations

import contextlib
import os
import signal
from typing import TYPE_CHECKING, Any, Self

if TYPE_CHECKING:
    from collections.abc import Iterator

HANDLED = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
# How long a shielded step may go on after the signal: a reader that has stopped reading must not
# keep us alive.
GRACE = 2  # seconds


class Signalled(KeyboardInterrupt):
    """A signal arrived; raised in the main thread, once."""


class Signals:
    """The handlers, as a context manager."""

    def __init__(self) -> None:
        self.received: int | None = None
        self._previous: dict[int, Any] = {}
        self._shielded = False
        self._raised = False

    def __enter__(self) -> Self:
        for number in HANDLED:
            # What is ignored stays so: nohup, and `&` in a script.
            if signal.getsignal(number) is not signal.SIG_IGN:
                self._previous[number] = signal.signal(number, self._handle)
        self._previous[signal.SIGALRM] = signal.signal(signal.SIGALRM, self._expired)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    @contextlib.contextmanager
    def shield(self) -> Iterator[None]:
        """A first signal inside is raised at the end of the block, or after `GRACE` seconds."""
        self._shielded = True
        try:
            yield
        finally:
            self._shielded = False
            if self.received is not None:
                signal.alarm(0)
        self._raise_once()

    def die(self) -> None:
        """End this process by the signal that was received."""
        if self.received is not None:
            _die_of(self.received)

    def _handle(self, number: int, frame: object) -> None:
        del frame
        if self.received is not None:
            _die_of(number)
        self.received = number
        if self._shielded:
            signal.alarm(GRACE)
        else:
            self._raise_once()

    def _expired(self, number: int, frame: object) -> None:
        del number, frame
        self._raise_once()

    def _raise_once(self) -> None:
        if self.received is not None and not self._raised:
            self._raised = True
            raise Signalled


def _die_of(number: int) -> None:
    signal.signal(number, signal.SIG_DFL)
    os.kill(os.getpid(), number)
