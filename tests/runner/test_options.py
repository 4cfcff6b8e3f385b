"""What an option may be, and that nothing else gets as far as a run."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import pytest

from wuwan_runner import Tagger
from wuwan_runner.errors import ExitCode, OptionError, UsageError
from wuwan_runner.options import (
    BACKENDS,
    CHANNELS,
    MAX_BATCH,
    RUNNERS,
    Selection,
    TagOptions,
    Timeouts,
    WorkerSpec,
)
from wuwan_worker.serving.server import CREDITS
from wuwan_worker.shared import protocol

NO_NUMBERS: list[Any] = ["1", None, b"1", [1], 1j, True, object()]
NO_TEXTS: list[Any] = [None, 1, b"x", ["x"], "a\0b", "\ud800", "x" * 5000]
NOT_WHOLE: list[Any] = [*NO_NUMBERS, 1.0, 2.5, math.nan, math.inf]
NO_FLAGS: list[Any] = [0, 1, None, "", "yes"]
NO_NAMES: list[Any] = ["", "AUTO", "auto ", "no such", None, 1, ["auto"]]
NO_SECONDS: list[Any] = [math.nan, math.inf, -math.inf, -1, -0.1, 1e300, 10**400]
NO_PATTERNS: list[Any] = ["*.jpg", ["*.jpg"], None, (1,), ("*.jpg", b"*.png"), {"a"}]


def _without(values: list[Any], *allowed: object) -> list[Any]:
    return [value for value in values if not any(value is one for one in allowed)]


# class -> option -> values that it must refuse. Each option of each class is here.
BAD: dict[type[Any], dict[str, list[Any]]] = {
    WorkerSpec: {
        "model": [*NO_TEXTS, ""],
        "backend": [*NO_NAMES, "tensorflow"],
        "gpus": ["", "some", "0,", "1,1", "-1", "0\n", "٣", 0, None, ["0"], True, "9" * 5000],
        "image": NO_TEXTS,
        "memory": ["", "lots", "0g", "-1g", "4 g", "4t", "1.5g", "٤g", "1٤g", 4, None, True],
    },
    Timeouts: {
        name: [*NO_NUMBERS, *NO_SECONDS, 0, 0.0, -0.0, 1_000_001]
        for name in ("start", "batch", "per_image", "open", "docker", "control")
    },
    Selection: {
        "recursive": NO_FLAGS,
        "hidden": NO_FLAGS,
        "include": NO_PATTERNS,
        "exclude": NO_PATTERNS,
    },
    TagOptions: {
        "spec": [None, "imagenet-zh", WorkerSpec],
        "runner": [*NO_NAMES, "podman"],
        "channel": [*NO_NAMES, "ssh"],
        "workers": [*_without(NOT_WHOLE, None), 0, -1, 10**6, 10**400],
        "top_k": [*NOT_WHOLE, 0, -1, 10**9, 2**64, 10**5000],
        "min_score": [*NO_NUMBERS, math.nan, math.inf, -math.inf, -0.1, 1.1, 2, -1],
        "exact": NO_FLAGS,
        "strict": NO_FLAGS,
        "level": NO_TEXTS,
        "batch_size": [*NOT_WHOLE, 0, -1, 33, 129, 200, 10**9],
        "ttl": [*_without(NO_NUMBERS, None), *NO_SECONDS],
        "selection": [None, "*.jpg", ("*.jpg",), Selection],
        "timeouts": [None, 30.0, Timeouts],
        "max_cached": [*NOT_WHOLE, 0, -1],
        "max_restarts": [*NOT_WHOLE, -1],
    },
}
PREFIXES = {Timeouts: "timeouts.", Selection: "selection."}


def test_no_option_is_left_out() -> None:
    """Whoever adds an option says here what it must not be."""
    for kind, options in BAD.items():
        assert list(options) == [one.name for one in dataclasses.fields(kind)]


@pytest.mark.parametrize(
    ("kind", "option", "value"),
    [
        pytest.param(kind, option, value, id=f"{option}-{number}")
        for kind, options in BAD.items()
        for option, values in options.items()
        for number, value in enumerate(values)
    ],
)
def test_what_is_out_of_bounds_is_refused(kind: type[Any], option: str, value: Any) -> None:
    """By the option itself, before there is anything that could start a worker."""
    with pytest.raises(UsageError) as caught:
        kind(**{option: value})
    error = caught.value
    assert isinstance(error, OptionError)
    assert error.exit_code == ExitCode.USAGE
    assert error.option == PREFIXES.get(kind, "") + option
    start, _, given = str(error).rpartition(", not ")
    assert start.startswith(f"{error.option} must be ")
    assert given.removesuffix("'") in (f"{value!r:.80}" if value != 10**5000 else "this int")
    assert error.called("--name").startswith("--name must be ")


GOOD: dict[type[Any], dict[str, list[Any]]] = {
    WorkerSpec: {
        "model": ["x", "./a b", "/照片", "\udcff"],
        "backend": list(BACKENDS),
        "gpus": ["auto", "all", "none", "0", "3,1"],
        "image": ["", "wuwan:0.1.0", "localhost:5000/a/b@sha256:00"],
        "memory": ["4g", "512m", "1", "100B", "8G"],
    },
    Timeouts: {"start": [1, 0.001, 1_000_000]},
    Selection: {"include": [(), ("*.jpg", "")], "exclude": [("[",)], "hidden": [True, False]},
    TagOptions: {
        "runner": list(RUNNERS),
        "channel": list(CHANNELS),
        "workers": [None, 1, 16],
        "top_k": [1, 1_000_000],
        "min_score": [0, 1, 0.5],
        "level": ["", "fine", "细"],
        "batch_size": [1, 32],
        "ttl": [None, 0, 0.5, 1_000_000_000],
        "max_cached": [1, 10**30],
        "max_restarts": [0, 10**30],
    },
}


@pytest.mark.parametrize(
    ("kind", "option", "value"),
    [
        (kind, option, value)
        for kind, options in GOOD.items()
        for option, values in options.items()
        for value in values
    ],
)
def test_what_is_within_bounds_is_taken(kind: type[Any], option: str, value: Any) -> None:
    """The bounds themselves belong to what is allowed."""
    assert getattr(kind(**{option: value}), option) == value


def test_replacing_is_checked_too() -> None:
    """There is no way around the checks."""
    with pytest.raises(OptionError):
        dataclasses.replace(TagOptions(), batch_size=0)


def test_a_batch_fits_into_a_frame_and_into_the_credits() -> None:
    """No worker is ever sent more at once than both sides have agreed on."""
    assert min(protocol.MAX_DESCRIPTORS, CREDITS) >= MAX_BATCH


def test_a_bad_level_is_found_before_any_worker_starts() -> None:
    """Where the model is known here, so are its levels."""
    with pytest.raises(UsageError, match="has no level 'no such'"):
        Tagger(TagOptions(level="no such"))
