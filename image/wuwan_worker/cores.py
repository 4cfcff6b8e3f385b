"""How many cores this process really has."""

from __future__ import annotations

import math
import os
from pathlib import Path


def available(root: Path = Path("/sys/fs/cgroup")) -> int:
    """Cores that this process may use: its affinity, cut by its cgroup's CPU quota (v2 or v1).

    A quota of 1.5 cores counts as 2: threads beyond a quota are throttled, threads below waste it.
    """
    cores = len(os.sched_getaffinity(0))
    quota = _quota(root)
    return max(1, min(cores, math.ceil(quota))) if quota else cores


def _quota(root: Path) -> float | None:
    try:
        limit, period = (root / "cpu.max").read_text().split()
        return None if limit == "max" else int(limit) / int(period)
    except (OSError, ValueError):
        pass
    try:
        limit_us = int((root / "cpu/cpu.cfs_quota_us").read_text())
        period_us = int((root / "cpu/cpu.cfs_period_us").read_text())
    except (OSError, ValueError):
        return None
    return limit_us / period_us if limit_us > 0 else None
