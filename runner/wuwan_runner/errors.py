"""Every error that ends a run, each with its exit code and what to do about it."""

from __future__ import annotations

import enum


class ExitCode(enum.IntEnum):
    """The exit codes of `wuwan`; a run that a signal ends has 128 + its number, as in a shell."""

    OK = 0
    FATAL = 1
    USAGE = 2
    PARTIAL = 3  # finished, some images have an error record
    UNAVAILABLE = 4  # no worker could be had: Docker, the image, a GPU, the model
    LOCKED = 5  # another run holds the output
    ABSENT = 6  # a directory that was named gave nothing, and the output was kept


class WuwanError(Exception):
    """What happened, in one sentence, and in `hint` what to do."""

    exit_code = ExitCode.FATAL

    def __init__(self, message: str, *, hint: str = "") -> None:
        super().__init__(message)
        self.hint = hint


class UsageError(WuwanError):
    """The arguments do not make sense together."""

    exit_code = ExitCode.USAGE


class OptionError(UsageError):
    """An option has a value that it cannot have."""

    def __init__(self, option: str, value: object, allowed: str) -> None:
        """
        Args:
            option: its name in the library, such as "batch_size" or "timeouts.batch".
            value: what was given.
            allowed: what it must be instead, to follow the words "must be".
        """
        self.option = option
        try:
            given = f"{value!r:.80}"
        except Exception:  # of any object: an int of 5,000 digits has no text, for one
            given = f"this {type(value).__name__}"
        self._must = f"must be {allowed}, not {given}"
        super().__init__(self.called(option))

    def called(self, name: str) -> str:
        """The message, for those who know the option by another name."""
        return f"{name} {self._must}"


class WorkerUnavailableError(WuwanError):
    """No worker can be had, or none that lives."""

    exit_code = ExitCode.UNAVAILABLE


class ModelError(WuwanError):
    """A model cannot be had or made; or one that is there is not as it should be."""


class EndedByHandError(WorkerUnavailableError):
    """Somebody ended the worker while it was starting; another one can be started."""


class NoSharedFilesError(WorkerUnavailableError):
    """Descriptors cannot be passed to the daemon's containers; the exec channel still can."""


class LockedError(WuwanError):
    """Another run is writing the same output."""

    exit_code = ExitCode.LOCKED


class AbsentError(WuwanError):
    """What was named is not there or is empty; what an earlier run has found is kept."""

    exit_code = ExitCode.ABSENT
