"""Workers as commands leave and find them: how long they stay, and which are taken."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pathlib import Path


def _ttls(wuwan: Any) -> list[float]:
    return [json.loads(line)["ttl"] for line in wuwan("ps", "--json").stdout.splitlines()]


def test_a_run_leaves_a_warm_worker_its_ttl(wuwan: Any, photos: Path) -> None:
    """Whoever warms a worker for ten minutes means it; whoever names another TTL, too."""
    photo = photos / "rocket.jpg"
    assert wuwan("warm", "--runner", "local", "--ttl", 600).returncode == 0
    assert wuwan("tag", "--runner", "local", photo).returncode == 0
    assert _ttls(wuwan) == [600.0]
    assert wuwan("tag", "--runner", "local", "--ttl", 50, photo).returncode == 0
    assert _ttls(wuwan) == [50.0]


def test_a_new_worker_stays_for_half_a_minute(wuwan: Any, photos: Path) -> None:
    """The default, which `--help` names."""
    assert wuwan("tag", "--runner", "local", photos / "rocket.jpg").returncode == 0
    assert _ttls(wuwan) == [30.0]


def test_an_image_is_not_answered_by_a_local_worker(wuwan: Any, photos: Path) -> None:
    """A warm one is no reason to leave out what was asked for."""
    assert wuwan("warm", "--runner", "local").returncode == 0
    done = wuwan("tag", "--image", "wuwan-test-missing:1", photos / "rocket.jpg")
    assert (done.returncode, done.stdout) == (4, b"")


def test_no_name_is_nobodys(wuwan: Any) -> None:
    """As from a variable that is not set: the only worker stays."""
    assert wuwan("warm", "--runner", "local").returncode == 0
    assert wuwan("stop", "").returncode == 2
    assert len(_ttls(wuwan)) == 1
