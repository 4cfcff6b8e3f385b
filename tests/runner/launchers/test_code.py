"""The digest of the worker's code."""

from __future__ import annotations

import shutil
from pathlib import Path

import wuwan_worker
from wuwan_runner.launchers import code


def test_what_counts_as_code(tmp_path: Path) -> None:
    """Names and contents of modules, wherever they lie; not times, caches, models."""
    source = Path(wuwan_worker.__file__).parent
    copy = tmp_path / "copy"
    shutil.copytree(source, copy, ignore=shutil.ignore_patterns("__pycache__", "bundles"))
    same = code.of(str(source))
    assert code.digest() == code.of(str(copy)) == same
    (copy / "__pycache__").mkdir()
    (copy / "__pycache__/x.py").write_text("x")
    (copy / "notes.txt").write_text("x")
    (copy / "ranking.py").touch()
    assert code.of(str(copy)) == same
    ranking = (copy / "ranking.py").read_text()
    (copy / "ranking.py").write_text(f"{ranking}\n")
    changed = code.of(str(copy))
    (copy / "ranking.py").write_text(ranking)
    (copy / "cores.py").rename(copy / "kernels.py")
    assert len({same, changed, code.of(str(copy))}) == 3
