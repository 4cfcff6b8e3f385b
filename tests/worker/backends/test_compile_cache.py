"""Compiled networks on disk: the same labels, sooner, and never from a file that does not fit."""

from __future__ import annotations

import hashlib
import logging
from typing import TYPE_CHECKING

import numpy as np
import pytest

from wuwan_worker import backends
from wuwan_worker.backends.openvino import compile_cache
from wuwan_worker.shared import bundle, labels

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache directory."""
    monkeypatch.setenv(compile_cache.VARIABLE, str(tmp_path / "compiled"))
    return tmp_path / "compiled"


def _scores() -> NDArray[np.float32]:
    model = bundle.load(bundle.find("imagenet-zh"))
    backend = backends.load("openvino", model, labels.read(model), device="cpu", threads=1)
    assert backend.device == "CPU (int8)"
    pixels = np.random.default_rng(0).integers(0, 256, (3, 224, 224, 3), np.uint8)
    return np.array(backend.infer(pixels, [""])[""])


def test_the_kept_network_gives_the_same_scores(
    cache: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Also in the layers whose precision has to be asked for again; a spoilt file is made anew."""
    compiled = _scores()
    (file,) = cache.iterdir()
    before = file.stat().st_mtime_ns
    assert np.array_equal(_scores(), compiled)
    assert file.stat().st_mtime_ns == before

    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)
    assert np.array_equal(_scores(), compiled)
    assert file.stat().st_mtime_ns != before

    # As another CPU would have written it, and whole.
    blob = file.read_bytes()[32:].replace(b"isa=", b"isa=Z80 ", 1)
    file.write_bytes(hashlib.sha256(blob).digest() + blob)
    caplog.set_level(logging.INFO)
    assert np.array_equal(_scores(), compiled)
    assert "compiling anew" in caplog.text


def test_a_cache_that_cannot_be_written_holds_up_nobody(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In a container every directory is read-only."""
    (tmp_path / "file").touch()
    monkeypatch.setenv(compile_cache.VARIABLE, str(tmp_path / "file" / "below"))
    compile_cache.write("key", b"data")
    assert compile_cache.read("key") is None


def test_a_home_that_is_not_there_is_not_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Services run without one, and root could make it."""
    monkeypatch.delenv(compile_cache.VARIABLE, raising=False)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    compile_cache.write("key", b"data")
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "home").mkdir()
    compile_cache.write("key", b"data")
    assert compile_cache.read("key") == b"data"


def test_old_files_go(cache: Path) -> None:
    """The directory does not grow with each version."""
    for number in range(compile_cache.KEPT + 3):
        compile_cache.write(str(number), b"data %d" % number)
    assert len(list(cache.iterdir())) == compile_cache.KEPT
    assert compile_cache.read(str(compile_cache.KEPT + 2)) == b"data 10"
    compile_cache.write("large", bytes(compile_cache.MAX_BYTES + 1))
    assert compile_cache.read("large") is None
