"""The secret: made once, this user's alone, and nothing depends on its being kept."""

from __future__ import annotations

import subprocess
import sys
import threading
from typing import TYPE_CHECKING

import pytest

from wuwan_runner.wire import proof

if TYPE_CHECKING:
    from pathlib import Path

NAME = "\0wuwan/1000/key/0"
ASK = f"from wuwan_runner.wire import proof; print(proof.token({NAME!r}))"


@pytest.fixture
def state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The directory of the secret, which is not there yet."""
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    return tmp_path / "wuwan"


def _elsewhere() -> str:
    """Another run's token."""
    done = subprocess.run([sys.executable, "-c", ASK], capture_output=True, text=True, check=True)
    return done.stdout.strip()


def test_later_runs_know_it(state: Path) -> None:
    """Once it is kept; to look for it makes nothing."""
    before = proof.token(NAME)
    assert _elsewhere() != before
    assert not state.exists()
    assert proof.keep()
    kept = proof.token(NAME)
    assert kept not in ("", before)
    assert proof.keep()
    assert proof.token(NAME) == kept == _elsewhere()
    assert [path.name for path in state.iterdir()] == ["secret"]
    assert (state / "secret").stat().st_mode & 0o777 == 0o600


def test_each_worker_has_a_token_of_its_own(state: Path) -> None:
    """Hostile code in one learns nothing about the next."""
    assert proof.keep()
    assert len({proof.token(f"{NAME}{number}") for number in range(10)}) == 10
    assert (state / "secret").read_bytes().hex() not in proof.token(NAME)


def test_many_at_once_make_one_secret(state: Path) -> None:
    """Of runs that start together."""
    tokens: list[str] = []

    def make() -> None:
        assert proof.keep()
        tokens.append(proof.token(NAME))

    threads = [threading.Thread(target=make) for _ in range(20)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(10)
    assert len(tokens) == 20
    assert len(set(tokens)) == 1
    assert [path.name for path in state.iterdir()] == ["secret"]


def test_half_a_secret_is_made_anew(state: Path) -> None:
    """A crash of the machine may leave an empty file."""
    assert proof.keep()
    (state / "secret").write_bytes(b"")
    empty = proof.token(NAME)
    assert proof.keep()
    assert proof.token(NAME) != empty


@pytest.mark.parametrize("spoil", ["link", "writable", "no directory"])
def test_without_a_place_it_is_this_processs_own(state: Path, spoil: str) -> None:
    """Nothing is taken from, or put into, a directory that is not this user's alone."""
    if spoil == "link":
        (state.parent / "elsewhere").mkdir()
        state.symlink_to("elsewhere")
        (state / "secret").write_bytes(bytes(32))
    elif spoil == "writable":
        state.mkdir()
        state.chmod(0o777)
        (state / "secret").write_bytes(bytes(32))
    else:
        state.touch()
    before = sorted(state.parent.rglob("*"))
    assert not proof.keep()
    assert proof.token(NAME) != _elsewhere()
    assert sorted(state.parent.rglob("*")) == before
