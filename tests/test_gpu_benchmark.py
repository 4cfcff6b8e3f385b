"""`benchmarks/gpu.py` says what it lacks, and goes its whole way on a CPU where torch is."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest

PROGRAM = Path(__file__).resolve().parent.parent / "benchmarks" / "gpu.py"
PACKAGES = ("onnx", "safetensors", "timm", "torch", "torchvision")
MISSING = [name for name in PACKAGES if importlib.util.find_spec(name) is None]


def _run(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, PROGRAM, *arguments],
        capture_output=True,
        text=True,
        timeout=280,
        check=False,
    )


def test_what_is_missing_is_named() -> None:
    """Packages, or else the GPU; no traceback, and no figures of something else."""
    if not MISSING:
        import torch

        if torch.cuda.is_available():
            pytest.skip("nothing is missing")
    done = _run()
    assert done.returncode == 1
    assert done.stdout == ""
    assert "Traceback" not in done.stderr
    expected = "not installed: " if MISSING else "torch finds no GPU that it can use"
    assert done.stderr.startswith(expected)
    assert all(name in done.stderr for name in MISSING if name != "onnx")


@pytest.mark.timeout(300)
@pytest.mark.skipif(bool(MISSING), reason=f"not installed: {', '.join(MISSING)}")
def test_the_whole_way_on_a_cpu() -> None:
    """A small network through the real worker: each row that needs no GPU is there."""
    done = _run("--device", "cpu")
    assert done.returncode == 0, done.stderr
    rows = dict(line.strip("| ").split(" | ")[:2] for line in done.stdout.splitlines()[2:])
    assert rows["model"] == "resnest14d"
    for name in ("cold start: the worker's process to its first label", "12 clients at once"):
        assert float(rows[name].split()[0]) > 0
    assert {"decode, CPU alone", "decode in batches alone", "compute alone"} <= rows.keys()
    assert "wake: what a parked worker's first photo takes longer" not in rows
    agree = rows["openvino, CPU: same top label as torch, CPU, f32"]
    assert float(agree.rstrip("%")) > 80  # bf16 or f32, as the CPU has it
