"""The error boundary: one line for the user, the traceback in a log file."""

from __future__ import annotations

import contextlib
import errno
import io
import os
import re
import sys
from typing import TYPE_CHECKING, TextIO

from wuwan_cli.shell.signals import Signals

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from wuwan_runner.errors import WuwanError
    from wuwan_worker.shared.private_dir import PrivateDir

KEPT_LOGS = 10
# The options of the library that have another name on the command line.
_ARGUMENTS = {"timeouts.batch": "timeout"}
_LOG_NAME = re.compile(r"\d{8}T\d{6}-\d+\.log")
closed: set[int] = set()  # which of the descriptors 0, 1 and 2 the caller had closed


def run(main: Callable[[Signals], None]) -> None:
    """Run `main`, report what goes wrong, and end the process with the right exit code."""
    _open_standard_streams()
    for stream in (sys.stdout, sys.stderr):
        # What people read must not fail on what their locale lacks; records are bytes already.
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    with Signals() as signals:
        code = _guarded(main, signals)
        code = _flush(code)
    signals.die()
    sys.exit(code)


def say(message: str) -> None:
    """Write one message for people to stderr; whatever is wrong with stderr is ignored."""
    with contextlib.suppress(OSError, ValueError):
        sys.stderr.write(f"wuwan: {message}\n")
        sys.stderr.flush()


def printable(text: str) -> str:
    """`text` without characters that would move a terminal's cursor, or cannot be encoded."""
    return "".join(
        char if char.isprintable() else char.encode("unicode_escape", "surrogatepass").decode()
        for char in text
    )


def _guarded(main: Callable[[Signals], None], signals: Signals) -> int:
    try:
        main(signals)
    except SystemExit as end:  # typer's way to end, usage errors included
        return end.code if isinstance(end.code, int) else int(end.code is not None)
    except KeyboardInterrupt:
        return 130
    except Exception as error:
        return _report(error, signals)
    return 0


def _text(error: WuwanError) -> str:
    """The message, in which an option has the name that the command line has for it."""
    from wuwan_runner.errors import OptionError

    if not isinstance(error, OptionError):
        return str(error)
    name = _ARGUMENTS.get(error.option) or error.option.rpartition(".")[2].replace("_", "-")
    return error.called(f"--{name}")


def _report(error: Exception, signals: Signals) -> int:
    from wuwan_runner.errors import WuwanError

    if isinstance(error, WuwanError):
        # Cleaning up after a signal may fail in its own way; the signal is what happened.
        if signals.received is None:
            say(_text(error))
            if error.hint:
                _write_line(f"  hint: {error.hint}")
        return int(error.exit_code)
    if isinstance(error, BrokenPipeError):
        return 0
    if isinstance(error, OSError) and error.errno == errno.ENOSPC:
        say(f"{os.strerror(errno.ENOSPC)}{_where(error)}")
        return 1
    summary = printable(f"{type(error).__name__}: {error}")
    path = _write_log(error)
    details = f"details in {path}" if path else "no place to write the details to"
    say(f"internal error: {summary}; {details}")
    return 1


def _where(error: OSError) -> str:
    return f": {printable(os.fsdecode(error.filename))}" if error.filename else ""


def _write_line(text: str) -> None:
    with contextlib.suppress(OSError, ValueError):
        sys.stderr.write(f"{text}\n")


def log_directories() -> list[PrivateDir]:
    """Where log files may go, best first."""
    import tempfile
    from pathlib import Path

    from wuwan_worker.shared import dirs
    from wuwan_worker.shared.private_dir import PrivateDir

    temporary = PrivateDir(Path(tempfile.gettempdir()), (f"wuwan-{os.getuid()}",))
    return [dirs.state() / "log", temporary / "log"]


def _write_log(error: Exception) -> Path | None:
    """Write a report of `error`; its path, or None if no directory can be written to."""
    import platform
    import time
    import traceback

    from wuwan_worker import __version__
    from wuwan_worker.shared import private_dir

    report = "\n".join(
        [
            f"wuwan {__version__}, Python {platform.python_version()}, {platform.platform()}",
            f"arguments: {sys.argv!r}",
            "",
            *traceback.format_exception(error),
        ]
    )
    # The process id: two runs may fail in the same second.
    name = f"{time.strftime('%Y%m%dT%H%M%S')}-{os.getpid()}.log"
    for directory in log_directories():
        try:
            with directory.opened(make=True) as descriptor:
                private_dir.write(name, descriptor, report.encode(errors="backslashreplace"))
                kept = filter(_LOG_NAME.fullmatch, os.listdir(descriptor))
                for old in sorted(kept)[:-KEPT_LOGS]:
                    with contextlib.suppress(FileNotFoundError):  # another run does the same
                        os.unlink(old, dir_fd=descriptor)
        except OSError:
            continue
        return directory.path / name
    return None


def _open_standard_streams() -> None:
    """Fill descriptors 0, 1 and 2 where the caller closed them.

    Otherwise the next file or socket that is opened becomes "standard output".
    """
    for descriptor, flags in ((0, os.O_RDONLY), (1, os.O_RDONLY), (2, os.O_WRONLY)):
        try:
            os.fstat(descriptor)
        except OSError:
            closed.add(descriptor)
            # Opened for reading, descriptor 1 refuses writes as a closed one would.
            opened = os.open(os.devnull, flags)
            if opened != descriptor:
                os.dup2(opened, descriptor)
                os.close(opened)
    if sys.stderr is None:
        sys.stderr = _devnull()
    if sys.stdout is None:
        sys.stdout = _devnull()


def _devnull() -> TextIO:
    return open(os.devnull, "w", encoding="utf-8")  # lives with the process


def _flush(code: int) -> int:
    """Flush what `print` wrote; at the interpreter's end a failure would be a traceback."""
    try:
        sys.stdout.flush()
    except BrokenPipeError:
        pass
    except OSError as error:
        say(f"cannot write to standard output: {error.strerror}")
        code = code or 1
    else:
        return code
    # The text stays in the stream's buffer and would be tried again.
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, 1)
    os.close(null)
    return code
