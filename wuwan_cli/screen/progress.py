"""What people see on stderr while records go to stdout."""

from __future__ import annotations

import enum
import os
import sys
import threading
import time
from typing import TYPE_CHECKING, Any, Self

from wuwan_cli.shell.boundary import printable, say

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from wuwan_runner.records import Record

INTERVAL = 10.0  # seconds between plain lines
# A run that is over sooner shows no bar, and does not pay for importing it (80 ms).
BAR_AFTER = 0.5
SHOWN_FAILURES = 10


class Mode(enum.StrEnum):
    """The values of `--progress`."""

    AUTO = "auto"
    BAR = "bar"
    PLAIN = "plain"
    NONE = "none"


def resolve(mode: Mode, *, records_on_stdout: bool) -> Mode:
    """What `auto` means here.

    A bar is redrawn, so it needs a terminal of its own: neither a log file nor the terminal that
    the records go to.
    """
    if mode is not Mode.AUTO:
        return mode
    if not os.isatty(2):
        return Mode.PLAIN
    return Mode.NONE if records_on_stdout and os.isatty(1) else Mode.BAR


class Progress:
    """Counts records, shows how far the run is, and sums up at its end."""

    def __init__(
        self, mode: Mode, *, quiet: bool, countable: Callable[[], Iterator[object] | None]
    ) -> None:
        """Show nothing yet.

        Args:
            mode: not `AUTO`; see `resolve`.
            quiet: say nothing but errors.
            countable: gives an iterator over what will be tagged, if it can be counted ahead.
        """
        self.done = 0
        self.failed = 0
        self.warned = 0
        self._mode = Mode.NONE if quiet else mode
        self._quiet = quiet
        self._started = time.monotonic()
        self._shown_at = self._started
        self._bar: Any = None
        self._count = _Count(countable)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._count.stop()
        if self._bar is not None:
            self._bar.close()
            self._bar = None

    def notify(self, message: str) -> None:
        """Show a message of the runner; any thread may call this."""
        if not self._quiet:
            self._say(printable(message))

    def update(self, records: Sequence[Record]) -> None:
        """Count finished records."""
        for record in records:
            if record.error is not None:
                self.failed += 1
                self._show_failure(record)
            self.warned += record.warning is not None
        self.done += len(records)
        if self._mode is Mode.NONE:
            return
        now = time.monotonic()
        if now - self._started > BAR_AFTER:
            self._count.start()
        if self._mode is Mode.BAR:
            self._update_bar(len(records), now)
        elif now - self._shown_at >= INTERVAL:
            self._shown_at = now
            say(self._line(now))

    def summarize(self, passed_over: str = "") -> None:
        """Say what was done, and what was passed over on the way."""
        if self._bar is not None:
            self._bar.close()
            self._bar = None
        others = f"passed over: {passed_over}" if passed_over else ""
        if self._mode is not Mode.NONE:
            seconds = time.monotonic() - self._started
            rate = f"{self.done / seconds:,.0f} img/s" if self.done else "no images found"
            tail = f"; {others}" if others else ""
            say(f"{_images(self.done)} in {_duration(seconds)} ({rate}){tail}")
        elif others:
            self.notify(others)
        if self.failed:
            self._say(f"{self.failed:,} of {_images(self.done)} failed; their records say why")
        if self.warned and self._mode is not Mode.NONE:
            self._say(
                f"{self.warned:,} of {_images(self.done)} {'is' if self.warned == 1 else 'are'} "
                "damaged and labelled by what is there; their records have a warning"
            )

    def _show_failure(self, record: Record) -> None:
        if self._mode is Mode.NONE or record.error is None or self.failed > SHOWN_FAILURES + 1:
            return
        if self.failed == SHOWN_FAILURES + 1:
            self._say("more failed; their records say why")
        else:
            self._say(printable(f"{record.path}: {record.error.message} ({record.error.code})"))

    def _say(self, message: str) -> None:
        if self._bar is None:
            say(message)
        else:
            self._bar.write(f"wuwan: {message}", file=sys.stderr)

    def _line(self, now: float) -> str:
        total, rate = self._count.total, self.done / (now - self._started)
        of = f" of {total:,}" if total is not None else ""
        left = ""
        if total is not None and rate:
            left = f", {_duration(max(0, total - self.done) / rate)} left"
        failed = f", {self.failed:,} failed" if self.failed else ""
        return f"{self.done:,}{of} images, {rate:,.0f} img/s{left}{failed}"

    def _update_bar(self, new: int, now: float) -> None:
        if self._bar is None:
            if now - self._started < BAR_AFTER:
                return
            self._bar = _new_bar(now - self._started)
            new = self.done
        if self._bar.total is None and self._count.total is not None:
            self._bar.total = self._count.total
        if self.failed:
            self._bar.set_postfix_str(f"{self.failed:,} failed", refresh=False)
        self._bar.update(new)


class _Count:
    """Counts ahead, in a thread of its own, so that an ETA can be shown."""

    def __init__(self, source: Callable[[], Iterator[object] | None]) -> None:
        self.total: int | None = None  # None until it is known
        self._source = source
        self._stopped = threading.Event()
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        """Begin, once."""
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name="count", daemon=True)
            self._thread.start()

    def stop(self) -> None:
        """End, whether or not the total is known."""
        self._stopped.set()
        if self._thread is not None:
            # A network file system may hang in a call that cannot be cut short.
            self._thread.join(1.0)

    def _run(self) -> None:
        try:
            items = self._source()
            if items is None:
                return
            total = 0
            for _ in items:
                total += 1
                if self._stopped.is_set():
                    return
            self.total = total
        except Exception:  # the run itself meets the same trouble, and reports it
            return


def _new_bar(elapsed: float) -> Any:
    from tqdm import tqdm

    # No process and no watching thread of tqdm's own.
    tqdm.set_lock(threading.RLock())
    tqdm.monitor_interval = 0
    bar = tqdm(unit=" img", dynamic_ncols=True, file=sys.stderr, mininterval=0.2)
    bar.start_t -= elapsed
    return bar


def _images(count: int) -> str:
    return f"{count:,} image{'' if count == 1 else 's'}"


def _duration(seconds: float) -> str:
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02} min" if hours else f"{minutes} min {rest:02} s"
