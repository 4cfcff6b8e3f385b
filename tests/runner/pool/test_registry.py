"""Workers by their names."""

from __future__ import annotations

import pytest

from wuwan_runner.errors import UsageError
from wuwan_runner.options import Timeouts
from wuwan_runner.pool import registry
from wuwan_runner.pool.registry import RunningWorker


@pytest.fixture(autouse=True)
def workers(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of those that are up."""
    names = ["wuwan-a-1", "wuwan-a-12", "wuwan-b-3"]
    monkeypatch.setattr(
        registry, "members", lambda _: [RunningWorker(name, None, None) for name in names]
    )
    return names


@pytest.mark.parametrize(
    ("asked", "found"),
    [
        ("wuwan-a-1", "wuwan-a-1"),  # though another one's begins so
        ("wuwan-a-12", "wuwan-a-12"),
        ("wuwan-b", "wuwan-b-3"),
    ],
)
def test_a_name_or_its_beginning(asked: str, found: str) -> None:
    """Whichever is enough to tell it from the others."""
    assert registry.named(asked, Timeouts()).name == found


@pytest.mark.parametrize(
    ("asked", "problem"),
    [
        ("wuwan-a", "more than one worker is named 'wuwan-a'"),
        ("wuwan-c", "no worker is named 'wuwan-c'"),
        ("b-3", "no worker is named 'b-3'"),
        ("", "no worker is named ''"),
    ],
)
def test_no_name_that_is_one_workers(asked: str, problem: str) -> None:
    """It is said which names there are."""
    with pytest.raises(UsageError, match=problem) as caught:
        registry.named(asked, Timeouts())
    assert caught.value.hint == "there is: wuwan-a-1, wuwan-a-12, wuwan-b-3"


def test_no_worker(workers: list[str]) -> None:
    """Not even one is up."""
    workers.clear()
    with pytest.raises(UsageError) as caught:
        registry.named("wuwan", Timeouts())
    assert caught.value.hint == "there is: no worker is up"
