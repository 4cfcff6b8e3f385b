"""Which GPUs this machine has, and which of them a process sees."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

import pytest

from wuwan_runner.gpus import nvidia

if TYPE_CHECKING:
    from pathlib import Path

UUIDS = "GPU-8932f937-d72c-4106-c12f-20bd9faed9f6,MIG-1d0a3f2b-0000-5e6f-8a9b-c0d1e2f30415"


def test_counted_by_the_driver(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without NVML the kernel driver's directory tells; without the driver there is none."""
    monkeypatch.setitem(sys.modules, "pynvml", None)  # its import fails
    monkeypatch.setattr(nvidia, "_DRIVER", str(tmp_path / "gpus"))
    assert nvidia.count() == 0
    for address in ("0000:3b:00.0", "0000:d8:00.0"):
        (tmp_path / "gpus" / address).mkdir(parents=True)
    assert nvidia.count() == 2


def test_nvml_without_a_driver(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the package is there and the driver is not, nothing is raised."""
    pytest.importorskip("pynvml")
    monkeypatch.setattr(nvidia, "_SIGNS", (str(tmp_path),))  # as if there were one
    with nvidia.nvml() as library:
        assert (library is None) == (nvidia.count() == 0)


@pytest.mark.parametrize(
    ("listed", "expected"),
    [
        (None, ("0", "1", "2")),
        ("", ()),
        ("-1", ()),
        ("NoDevFiles", ()),
        ("1", ("1",)),
        ("2,0", ("2", "0")),
        (" 2 , 0", ("2", "0")),
        ("1,3,0", ("1",)),  # there is no GPU 3: CUDA ignores it, and what comes after
        ("0,-1,1", ("0",)),
        (UUIDS, tuple(UUIDS.split(","))),
    ],
)
def test_what_is_visible(listed: str | None, expected: tuple[str, ...]) -> None:
    """CUDA's own rule for CUDA_VISIBLE_DEVICES, on a machine with three GPUs."""
    environment = {} if listed is None else {"CUDA_VISIBLE_DEVICES": listed}
    assert nvidia.visible(environment, 3) == expected


@pytest.mark.parametrize("listed", ["0", UUIDS])
def test_without_a_driver_nothing_is_visible(listed: str) -> None:
    """Whatever the variable says."""
    assert nvidia.visible({"CUDA_VISIBLE_DEVICES": listed}, 0) == ()


def test_a_process_sees_its_own() -> None:
    """And no other; indices are nvidia-smi's unless the user has numbered the GPUs."""
    base = {"HOME": "/root"}
    ordered = base | {"CUDA_DEVICE_ORDER": "PCI_BUS_ID"}
    assert nvidia.environment(base, "1") == ordered | {"CUDA_VISIBLE_DEVICES": "1"}
    assert nvidia.environment(base, None) == ordered | {"CUDA_VISIBLE_DEVICES": ""}
    listed = {"CUDA_VISIBLE_DEVICES": "2,1"}
    assert nvidia.environment(listed, "1") == {"CUDA_VISIBLE_DEVICES": "1"}
    chosen = {"CUDA_DEVICE_ORDER": "FASTEST_FIRST"}
    assert nvidia.environment(chosen, "0") == chosen | {"CUDA_VISIBLE_DEVICES": "0"}
