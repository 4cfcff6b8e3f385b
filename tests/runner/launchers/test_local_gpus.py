"""Local workers on GPUs: each sees its own and no other. The GPUs' work is done by the CPU here."""

from __future__ import annotations

import os
import socket
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tests.starting import request_for
from wuwan_runner import Tagger, TagOptions
from wuwan_runner.errors import WorkerUnavailableError
from wuwan_runner.gpus import nvidia
from wuwan_runner.launchers import local
from wuwan_runner.launchers.local import LocalLauncher
from wuwan_runner.options import Timeouts, WorkerSpec
from wuwan_runner.resolved import resolve
from wuwan_runner.wire import address, control

if TYPE_CHECKING:
    from collections.abc import Callable

FAULT_WORKER = Path(__file__).parents[2] / "faults/fault_worker"
EMBEDDED = Path(__file__).parents[3] / "image/wuwan_worker/bundles/imagenet-zh"


@pytest.fixture
def model(tmp_path: Path) -> str:
    """A bundle with weights for GPUs, too."""
    root = tmp_path / "bundle"
    root.mkdir()
    for file in EMBEDDED.iterdir():
        (root / file.name).symlink_to(file)
    (root / "bundle.toml").unlink()
    manifest = (EMBEDDED / "bundle.toml").read_text()
    (root / "bundle.toml").write_text(manifest.replace("onnx = ", "torch = "))
    return str(root)


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """`machine(N)`: from now on it has N GPUs, and what torch needs is installed."""

    def make(total: int) -> None:
        monkeypatch.setattr(nvidia, "count", lambda: total)
        monkeypatch.setitem(local.NEEDED, "torch", local.NEEDED["openvino"])
        monkeypatch.delenv(nvidia.VISIBLE, raising=False)
        path = os.environ.get("PYTHONPATH", "")
        monkeypatch.setenv("PYTHONPATH", f"{FAULT_WORKER}{os.pathsep}{path}")
        monkeypatch.setenv("WUWAN_FAULT_GPU", "1")

    return make


def devices() -> list[str]:
    """What the workers that are up say they run on."""
    return sorted(seen.status.device for seen in control.survey(5.0) if seen.status)


def environment_of(spec: WorkerSpec, index: int = 0) -> tuple[dict[str, str], list[str], list[str]]:
    """Start a worker: its environment, its arguments, and what the user is told."""
    launcher, notes = LocalLauncher(), list[str]()
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
        listener.bind(address.private(launcher.key(resolve(spec))).name)
        listener.listen()
        started = launcher.start(
            request_for(launcher, spec, index=index, notify=notes.append),
            listener,
        )
        try:
            process = Path(f"/proc/{started._process.pid}")
            # Popen returns when its pipe closes, and the kernel does that just before it has these.
            deadline = time.monotonic() + 10
            while not (content := (process / "environ").read_text()):
                assert time.monotonic() < deadline
            entries = content.split("\0")
            arguments = (process / "cmdline").read_text().split("\0")
        finally:
            started.kill()
    pairs = (entry.partition("=") for entry in entries)
    return {name: value for name, _, value in pairs}, arguments, notes


@pytest.mark.parametrize(("choice", "expected"), [("0,1", 2), ("all", 3), ("1", 1), ("auto", 1)])
def test_one_worker_for_each_chosen_gpu(
    machine: Any, model: str, sample: Path, choice: str, expected: int
) -> None:
    """All of them share the work, and every photo has one record."""
    machine(3)
    options = TagOptions(spec=WorkerSpec(model=model, gpus=choice), runner="local", ttl=20)
    with Tagger(options) as tagger:
        records = list(tagger.tag([sample / "photos"]))
    assert len(records) == len({record.path for record in records}) == 200
    assert all(record.labels for record in records)
    first = int(choice) if choice.isdecimal() else 0
    assert devices() == [f"GPU {first + number}" for number in range(expected)]


def test_a_lost_gpu_is_not_replaced_by_the_cpu(
    machine: Any, model: str, sample: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After a poisoned worker the next one is on a chosen GPU again (fault 9 of docs/faults.md)."""
    machine(2)
    monkeypatch.setenv("WUWAN_FAULT_INFER_AFTER", "30")
    told: list[str] = []
    options = TagOptions(spec=WorkerSpec(model=model, gpus="1"), runner="local", ttl=20)
    with Tagger(options, notify=told.append) as tagger:
        records = list(tagger.tag([sample / "photos"]))
    assert all(record.labels for record in records)
    assert any("illegal memory access" in line for line in told)
    assert set(devices()) == {"GPU 1"}


@pytest.mark.parametrize(
    ("visible", "choice", "index", "seen"),
    [
        (None, "1", 0, "1"),
        (None, "0,2", 1, "2"),
        ("2,1", "all", 0, "2"),
        ("2,1", "1", 0, "1"),
        ("GPU-aa,MIG-bb", "all", 1, "MIG-bb"),
        ("GPU-aa,MIG-bb", "auto", 0, "GPU-aa"),
    ],
)
def test_indices_are_into_what_the_user_sees(
    machine: Any,
    model: str,
    monkeypatch: pytest.MonkeyPatch,
    visible: str | None,
    choice: str,
    index: int,
    seen: str,
) -> None:
    """CUDA_VISIBLE_DEVICES is respected, with indices and with UUIDs."""
    machine(3)
    if visible is not None:
        monkeypatch.setenv(nvidia.VISIBLE, visible)
    environment, arguments, notes = environment_of(WorkerSpec(model=model, gpus=choice), index)
    assert environment[nvidia.VISIBLE] == seen
    assert "--device=cuda" in arguments
    assert notes == []


@pytest.mark.parametrize("choice", ["none", "auto"])
def test_a_worker_on_the_cpu_sees_no_gpu(machine: Any, choice: str) -> None:
    """The embedded model has no weights for one; only who has not said `none` is told."""
    machine(2)
    environment, arguments, notes = environment_of(WorkerSpec(gpus=choice))
    assert environment[nvidia.VISIBLE] == ""
    assert "--device=cpu" in arguments
    assert len(notes) == (choice == "auto")
    assert all("using the CPU, although there is a GPU" in note for note in notes)


def test_torch_is_not_installed(machine: Any, model: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """By name that is an error; `auto` says it and takes the CPU."""
    machine(1)
    monkeypatch.setitem(local.NEEDED, "torch", ("wuwan_no_such_package",))
    launcher = LocalLauncher()
    with pytest.raises(WorkerUnavailableError, match="needs wuwan_no_such_package") as caught:
        launcher.placement(resolve(WorkerSpec(model=model, gpus="0")), Timeouts())
    assert "pip install 'wuwan[gpu]'" in caught.value.hint
    placement = launcher.placement(resolve(WorkerSpec(model=model)), Timeouts())
    assert placement.devices == ()
    assert "pip install 'wuwan[gpu]'" in placement.note


@pytest.mark.parametrize("choice", ["all", "0"])
def test_no_gpu_is_visible(
    wuwan: Any, photos: Path, monkeypatch: pytest.MonkeyPatch, choice: str
) -> None:
    """One line of cause, one of advice, exit 4, nothing is started (fault 10 of docs/faults.md)."""
    monkeypatch.setenv(nvidia.VISIBLE, "")
    done = wuwan("tag", photos, "--runner", "local", "--gpus", choice)
    assert (done.returncode, done.stdout) == (4, b"")
    cause, advice = done.stderr.decode().splitlines()
    assert cause == f"wuwan: --gpus {choice}: no NVIDIA GPU is visible here"
    assert "CUDA_VISIBLE_DEVICES" in advice
    assert "--gpus none" in advice
    assert devices() == []


def test_the_key_names_what_differs(machine: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs that see other GPUs do not share workers; on the CPU they do."""
    machine(2)
    launcher = LocalLauncher()
    choices = ("none", "auto", "all", "0", "1")
    free = {choice: launcher.key(resolve(WorkerSpec(gpus=choice))) for choice in choices}
    monkeypatch.setenv(nvidia.VISIBLE, "1")
    bound = {choice: launcher.key(resolve(WorkerSpec(gpus=choice))) for choice in choices}
    assert free.pop("none") == bound.pop("none")
    assert len(set(free.values()) | set(bound.values())) == 8
