"""The user's directories, by the XDG Base Directory Specification."""

from __future__ import annotations

import errno
import os
from pathlib import Path


def data() -> Path:
    """For what is kept: model bundles."""
    return _base("XDG_DATA_HOME", ".local/share") / "wuwan"


def cache() -> Path:
    """For what can be had again: downloads."""
    return _base("XDG_CACHE_HOME", ".cache") / "wuwan"


def state() -> Path:
    """For what may be of interest later: logs."""
    return _base("XDG_STATE_HOME", ".local/state") / "wuwan"


def _base(variable: str, default: str) -> Path:
    named = os.environ.get(variable, "")
    if named.startswith("/"):  # the specification has relative paths ignored
        return Path(named)
    return _home() / default


def _home() -> Path:
    # Without a HOME it is in the user database, and a user may be in neither (in containers).
    home = os.path.expanduser("~")
    return Path(home if home.startswith("/") else "/nonexistent")


def make(directory: Path) -> None:
    """Make one of these directories, for this user alone; but never a home that is not there.

    Raises:
        OSError: if it cannot be made.
    """
    home = _home()
    if directory.is_relative_to(home) and not home.is_dir():
        raise FileNotFoundError(errno.ENOENT, "there is no home directory", str(home))
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
