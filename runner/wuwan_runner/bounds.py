"""What an option may be: checked where the option is made, so that no run begins with one that is
wrong. Each check returns the value, or raises an OptionError that says what is allowed."""

from __future__ import annotations

import os
import re
from typing import TYPE_CHECKING, TypeVar

from wuwan_runner.errors import OptionError

if TYPE_CHECKING:
    from collections.abc import Sequence

T = TypeVar("T")
MAX_TEXT = 4096  # bytes; Linux takes no longer path (PATH_MAX)

# Four digits: a longer number is no GPU, and Python turns no text of any length into an int.
_INDICES = re.compile(r"\d{1,4}(,\d{1,4})*", re.ASCII)
_MEMORY = re.compile(r"[1-9]\d*[bkmg]?", re.ASCII | re.IGNORECASE)


def whole(option: str, value: int, least: int, most: int | None = None) -> int:
    """A whole number; a bool is none, though Python takes it for one."""
    is_whole = isinstance(value, int) and not isinstance(value, bool)
    if not is_whole or value < least or (most is not None and value > most):
        span = f"from {least:,} to {most:,}" if most is not None else f"of at least {least:,}"
        raise OptionError(option, value, f"a whole number {span}")
    return value


def number(
    option: str, value: float, least: float, most: float, *, unit: str = "", over: bool = False
) -> float:
    """A number of that unit between `least` and `most`; with `over` not `least` itself."""
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    # In this order nan fails, too.
    if not is_number or not least <= value <= most or (over and value == least):
        of_unit = f" of {unit}" if unit else ""
        span = f"over {least:,} and at most {most:,}" if over else f"from {least:,} to {most:,}"
        raise OptionError(option, value, f"a number{of_unit} {span}")
    return value


def of_kind(option: str, value: T, kind: type[T], what: str) -> T:
    """An object of that class."""
    if not isinstance(value, kind):
        raise OptionError(option, value, what)
    return value


def text(option: str, value: str, *, path: bool = False) -> str:
    """A text that can be sent, and be an argument of a program.

    Args:
        option: whose value it is.
        value: to be checked.
        path: whether it may be a path: then it is not empty, and bytes that are no UTF-8 may be in
            it as `os.fsdecode` puts them.
    """
    allowed = "a text that is not empty" if path else "a text"
    try:
        raw = os.fsencode(value) if path else value.encode()
    except (AttributeError, TypeError, UnicodeEncodeError):
        raise OptionError(option, value, allowed) from None
    if not isinstance(value, str) or b"\0" in raw or (path and not raw):
        raise OptionError(option, value, allowed)
    if len(raw) > MAX_TEXT:
        raise OptionError(option, value, f"{allowed}, of at most {MAX_TEXT} bytes")
    return value


def one_of(option: str, value: str, known: Sequence[str]) -> str:
    """One of some names."""
    if not isinstance(value, str) or value not in known:
        raise OptionError(option, value, f"one of {', '.join(known)}")
    return value


def patterns(option: str, value: tuple[str, ...]) -> tuple[str, ...]:
    """A tuple of texts; one text alone would be a list of letters."""
    if not isinstance(value, tuple) or not all(isinstance(one, str) for one in value):
        raise OptionError(option, value, "a tuple of patterns, each a text")
    return value


def memory(option: str, value: str) -> str:
    """An amount as Docker takes it."""
    if not isinstance(value, str) or not _MEMORY.fullmatch(value):
        raise OptionError(option, value, "an amount such as 512m or 4g")
    return value


def gpus(option: str, value: str) -> str:
    """auto, all, none, or indices; these without leading zeros, so that equal choices are equal."""
    if isinstance(value, str) and value in ("auto", "all", "none"):
        return value
    if isinstance(value, str) and _INDICES.fullmatch(value):
        indices = [int(index) for index in value.split(",")]
        if len(set(indices)) == len(indices):  # each has one worker
            return ",".join(map(str, indices))
    raise OptionError(option, value, "auto, all, none, or indices such as 0,1, none of them twice")
