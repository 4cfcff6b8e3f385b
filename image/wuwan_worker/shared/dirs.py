"""The user's directories, by the XDG Base Directory Specification."""

from __future__ import annotations

import os
from pathlib import Path

from wuwan_worker.shared import private_dir
from wuwan_worker.shared.private_dir import PrivateDir


def data() -> PrivateDir:
    """For what is kept: model bundles."""
    return PrivateDir(_base("XDG_DATA_HOME", ".local/share"), ("wuwan",))


def cache() -> PrivateDir:
    """For what can be had again: downloads."""
    return PrivateDir(_base("XDG_CACHE_HOME", ".cache"), ("wuwan",))


def state() -> PrivateDir:
    """For what may be of interest later: logs."""
    return PrivateDir(_base("XDG_STATE_HOME", ".local/state"), ("wuwan",))


def _base(variable: str, default: str) -> Path:
    named = os.environ.get(variable, "")
    if named.startswith("/"):  # the specification has relative paths ignored
        return Path(named)
    return private_dir.home() / default
