"""Workers as commands leave and find them: how long they stay, and which are taken."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest

from wuwan_runner import Tagger, TagOptions

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


def test_one_path_is_no_list_of_letters(photos: Path) -> None:
    """Python's own trap: a text is a sequence, too."""
    photo = photos / "rocket.jpg"
    with Tagger(TagOptions(runner="local", ttl=5)) as tagger:
        for path in (photo, str(photo)):
            assert [record.path for record in tagger.tag(path)] == [str(photo)]
            (batch,) = tagger.tag_batches(path)
            assert [record.path for record in batch] == [str(photo)]


@pytest.mark.parametrize("seconds", ["nan", "inf", "-1"])
def test_stop_waits_for_a_usable_time(wuwan: Any, seconds: str) -> None:
    """Anything else is an error of usage, not one of the program."""
    done = wuwan("stop", "--all", f"--timeout={seconds}")
    assert done.returncode == 2
    assert b"--timeout must be a number of seconds" in done.stderr


def test_a_name_that_no_image_can_have(wuwan: Any) -> None:
    """It is said so, and not that there is no daemon."""
    done = wuwan("image", "build", "--tag", "BAD TAG")
    assert done.returncode == 2
    assert b"is no name for an image" in done.stderr
