"""`wuwan bench`: its figures are those of the real program."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest


@pytest.mark.timeout(300)
def test_figures_fit_together(wuwan: Any, photos: Path) -> None:
    """One small run: every figure is there, and none contradicts another one."""
    done = wuwan(
        "bench", photos, "--images", 100, "--repeats", 1, "--json", "--sizes", "--largest", 1000
    )
    assert done.returncode == 0, done.stderr.decode()
    report = json.loads(done.stdout)
    assert report["photos"] == 4
    assert (report["runner"], report["device"]) == ("local", "CPU (int8)")
    assert report["interpreter"] < report["help_start"] < report["cold_first"]
    assert report["warm_first"] < report["warm_total"]
    assert report["warm_first"] < report["cold_first"]
    expected = 1 / (1 / report["decode"] + 1 / report["infer"])
    assert report["limit"] == pytest.approx(expected)
    # The machine may be busy: what is certain is that the limit cannot be far exceeded.
    assert 0.1 < report["efficiency"] < 1.5
    assert 10 * 2**20 < report["client_memory"] < 100 * 2**20
    assert report["gpu"] is None
    assert 50 * 2**20 < report["worker_memory"] < 2 * 2**30
    assert [row["paths"] for row in report["sizes"]] == [100, 1000]
    for row in report["sizes"]:
        assert row["first"] > 0
        assert row["peak_memory"] < 100 * 2**20


def test_what_cannot_be_measured_is_refused(wuwan: Any, tmp_path: Path) -> None:
    """Usage errors, before anything is measured."""
    for arguments, reason in (
        (("--runner", "auto"), b"name the runner"),
        ((tmp_path,), b"holds no images"),
        ((tmp_path / "missing",), b"holds no images"),
        (("--plot", "x.txt"), b"ends in .svg or .png"),
        (("--plot", tmp_path / "missing" / "x.svg"), b"cannot be written to"),
    ):
        done = wuwan("bench", *arguments)
        assert done.returncode == 2
        assert reason in done.stderr
