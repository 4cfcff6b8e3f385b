"""How many cores: the affinity, cut by the cgroup's quota."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest

from wuwan_worker import cores

if TYPE_CHECKING:
    from pathlib import Path

MINE = len(os.sched_getaffinity(0))


def _v1(root: Path, quota: str, period: str = "100000") -> None:
    (root / "cpu").mkdir()
    (root / "cpu/cpu.cfs_quota_us").write_text(quota)
    (root / "cpu/cpu.cfs_period_us").write_text(period)


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ("max 100000\n", MINE),
        ("100000 100000\n", 1),
        ("10000 100000\n", 1),
        ("50000 50000\n", 1),
        ("150000 100000\n", min(2, MINE)),
        ("6400000000 100000\n", MINE),
        ("", MINE),
        ("nonsense", MINE),
    ],
)
def test_version_2(tmp_path: Path, content: str, expected: int) -> None:
    """`cpu.max` is quota and period; a part of a core counts as one."""
    (tmp_path / "cpu.max").write_text(content)
    assert cores.available(tmp_path) == expected


@pytest.mark.parametrize(
    ("quota", "expected"),
    [("-1\n", MINE), ("100000\n", 1), ("150000\n", min(2, MINE)), ("x", MINE)],
)
def test_version_1(tmp_path: Path, quota: str, expected: int) -> None:
    """-1 is no quota."""
    _v1(tmp_path, quota)
    assert cores.available(tmp_path) == expected


def test_version_2_goes_before_version_1(tmp_path: Path) -> None:
    """Where both are mounted, a limit of version 1 is not this process's."""
    _v1(tmp_path, "100000")
    (tmp_path / "cpu.max").write_text("max 100000")
    assert cores.available(tmp_path) == MINE


def test_no_cgroup_at_all(tmp_path: Path) -> None:
    """Without cgroups the affinity counts."""
    assert cores.available(tmp_path / "nothing") == MINE


def test_affinity_counts(tmp_path: Path) -> None:
    """A process that is bound to one core has one."""
    before = os.sched_getaffinity(0)
    try:
        os.sched_setaffinity(0, {min(before)})
        assert cores.available(tmp_path) == 1
    finally:
        os.sched_setaffinity(0, before)
