"""The process that writes what a worker may not write."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

import wuwan_worker
from wuwan_worker.backends.openvino import compile_cache

if TYPE_CHECKING:
    from collections.abc import Callable

    from conftest import Worker

DEADLINE = 20.0  # seconds
PACKAGES = Path(wuwan_worker.__file__).parents[1]
_PREAMBLE = """
import os, sys, time
from wuwan_worker.serving import sandbox
from wuwan_worker.serving.keeper import Keeper
keeper = Keeper()
sandbox.enter(gpu=False)
"""


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The compiled networks' directory of a test's own."""
    monkeypatch.setenv(compile_cache.VARIABLE, str(tmp_path / "compiled"))
    monkeypatch.delenv("PYTHONDONTWRITEBYTECODE", raising=False)
    return tmp_path / "compiled"


def run(script: str, *paths: Path) -> None:
    """Run that script with a keeper, restricted; returns when both have ended."""
    done = subprocess.run(
        [sys.executable, "-c", _PREAMBLE + script],
        env=os.environ | {"PYTHONPATH": os.pathsep.join(map(str, (PACKAGES, *paths)))},
        capture_output=True,  # standard error is the keeper's, too: its end is waited for
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr


def test_a_network_is_kept(cache: Path) -> None:
    """The next start finds it, though this process could not have written it."""
    run("keeper.keep('key', b'network' * 100_000); assert keeper.settled.is_set(); keeper.close()")
    assert compile_cache.read("key") == b"network" * 100_000


@pytest.mark.parametrize("word", ["keeper.settle()", "keeper.keep('first', b'first')"])
def test_only_what_comes_first(cache: Path, word: str) -> None:
    """After that no network is taken: images are decoded by then."""
    run(f"{word}; keeper.keep('second', b'x'); os.write(keeper._pipe, bytes(99)); keeper.close()")
    assert compile_cache.read("second") is None


def test_a_worker_that_dies(cache: Path) -> None:
    """Half a network is none, and the keeper ends with its worker."""
    run("os.write(keeper._pipe, (3).to_bytes(8, 'little') * 2 + b'keyx'); os._exit(0)")
    run("os._exit(0)")
    assert not cache.exists()


def test_bytecode_is_kept(tmp_path: Path) -> None:
    """Of what was imported without any; of files that nothing could have imported there is none."""
    library, elsewhere = tmp_path / "library", tmp_path / "elsewhere"
    for root in (library, elsewhere):
        root.mkdir()
        (root / "module.py").write_text("X = 1\n")
    run(
        f"import module; os.write(keeper._pipe, bytes(16) + {str(elsewhere / 'module.py')!r}"
        ".encode() + b'\\n'); keeper.settled.set(); keeper.close()",
        library,
    )
    assert list(library.glob("__pycache__/module.*.pyc"))
    assert not (elsewhere / "__pycache__").exists()


def test_a_real_worker(worker: Callable[..., Worker], cache: Path) -> None:
    """Its first start leaves its network behind for the next one."""
    process = worker("--first-client-timeout", "600")
    deadline = time.monotonic() + DEADLINE
    while not list(cache.glob("*.blob")):
        assert time.monotonic() < deadline, process.stop()
        time.sleep(0.02)
    process.terminate()
    assert process.wait() == 0
    assert "not kept" not in process.stop()
