"""What the tests of models share: a data directory of their own, a checkpoint, label files."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import pytest

from wuwan_runner.models import conversion
from wuwan_worker.shared import bundle, labels

FAKE = Path(__file__).with_name("fake")
OUTPUTS = 1000  # of the network that `fake_convert` gives


@pytest.fixture(autouse=True)
def data_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The user's models, none at first."""
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "data" / "wuwan" / "models"


@pytest.fixture(autouse=True)
def fake_convert(monkeypatch: pytest.MonkeyPatch) -> None:
    """Checkpoints are converted by `fake_convert`, here and in `wuwan` processes."""
    monkeypatch.setattr(conversion, "MODULE", "fake_convert")
    monkeypatch.setattr(conversion, "REQUIRED", ())
    before = os.environ.get("PYTHONPATH", "")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(filter(None, (str(FAKE), before))))
    monkeypatch.delitem(sys.modules, "fake_convert", raising=False)


@pytest.fixture
def download(tmp_path: Path) -> Path:
    """A directory as ModelScope downloads it, of 1,000 outputs: labels as in `imagenet-zh`."""
    directory = tmp_path / "download"
    directory.mkdir()
    write_checkpoint(directory / "pytorch_model.pt")
    plain = labels.read(bundle.load(bundle.find("imagenet-zh")))[""].labels
    lines = [
        f"{number}\t{label.broader[-1] if label.broader else label.label} \t{label.label}"
        f"\t{label.label}/{label.id}\t0.9\t1.0\n"
        for number, label in enumerate(plain)
    ]
    (directory / "meta_info.txt").write_text("".join(lines), encoding="utf-8")
    return directory


def write_checkpoint(path: Path, **content: object) -> Path:
    """A checkpoint for `fake_convert`."""
    path.write_text(json.dumps({"classes": OUTPUTS, **content}))
    return path
