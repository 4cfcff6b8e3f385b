"""The user's directories, by the XDG Base Directory Specification."""

from __future__ import annotations

import os
from pathlib import Path


def data() -> Path:
    """For what is kept: model bundles."""
    return _base("XDG_DATA_HOME", ".local/share") / "wuwan"


def cache() -> Path:
    """For what can be had again: downloads."""
    return _base("XDG_CACHE_HOME", ".cache") / "wuwan"


def _base(variable: str, default: str) -> Path:
    named = os.environ.get(variable, "")
    if named.startswith("/"):  # the specification has relative paths ignored
        return Path(named)
    # Without a HOME it is in the user database, and a user may be in neither (in containers).
    home = os.path.expanduser("~")
    return Path(home if home.startswith("/") else "/nonexistent", default)
