"""`general-zh` at its real size, with random weights: the whole way, where torch is."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from wuwan_runner.errors import ModelError
from wuwan_runner.models import conversion, general_zh, store
from wuwan_worker.shared import bundle

if TYPE_CHECKING:
    from collections.abc import Iterator

for library in ("torch", "torchvision", "timm", "safetensors", "onnx"):
    pytest.importorskip(library, reason=f"{library} is not installed: no checkpoint can be read")

pytestmark = pytest.mark.timeout(600)
OUTPUTS = 54092
IMAGE = os.environ.get("WUWAN_TEST_GPU_IMAGE", "")  # its name; "1" has other tests build one


@pytest.fixture(scope="module")
def network() -> Any:
    """A state dict of the right names and shapes, and a head that tells photos apart."""
    import timm
    import torch

    torch.manual_seed(0)
    state = timm.create_model("resnest101e", num_classes=OUTPUTS).state_dict()
    assert len(state) == 935
    # Features of such a network have a norm of about 2: logits then spread as trained ones do.
    state["fc.weight"].normal_(0, 2.5)
    state["fc.bias"].zero_()
    return state


@pytest.fixture(scope="module")
def checkpoints(network: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Directories as ModelScope downloads them; the bundles that are made from them."""
    import torch

    labels = Path(os.environ.get("WUWAN_TEST_DATA", "/nonexistent"), "general-zh/meta_info.txt")
    if not labels.is_file():
        pytest.skip("WUWAN_TEST_DATA names no directory with general-zh/meta_info.txt")
    root = tmp_path_factory.mktemp("general-zh")
    for name, content in {
        "plain": network,
        "wrapped": {"state_dict": {f"module.{key}": value for key, value in network.items()}},
    }.items():
        (root / name).mkdir()
        torch.save(content, root / name / general_zh.WEIGHTS)
        shutil.copy(labels, root / name)
    yield root
    shutil.rmtree(root)  # gigabytes, which pytest would keep for three runs


@pytest.fixture(autouse=True)
def data_home(checkpoints: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Bundles of 630 MB are made once and kept for the next test."""
    monkeypatch.setenv("XDG_DATA_HOME", str(checkpoints / "data"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(checkpoints / "cache"))
    return checkpoints / "data" / "wuwan" / "models"


@pytest.fixture(autouse=True)
def fake_convert() -> None:
    """The real one."""


def added(name: str, directory: Path) -> bundle.Bundle:
    """The bundle of that name, made if it is not there."""
    if name not in bundle.installed():
        said: list[str] = []
        store.add(general_zh.source(name, directory, said.append), conversion.local)
        assert said == []
    return bundle.load(bundle.find(name))


def test_both_forms_of_the_checkpoint_make_the_same_bundle(checkpoints: Path) -> None:
    """With `state_dict` and `module.` and without; all sums are right."""
    plain, wrapped = (added(name, checkpoints / name) for name in ("plain", "wrapped"))
    plain.verify()
    assert plain.files == wrapped.files
    assert set(plain.backends) == {"torch", "openvino"}
    assert plain.classes == OUTPUTS
    assert plain.activation == "softmax"
    if len(IMAGE) > 1:
        store.remove("wrapped")
        source = general_zh.source("wrapped", checkpoints / "wrapped", lambda _: None)
        assert store.add(source, conversion.InContainer(IMAGE)).files == plain.files
    store.remove("wrapped")


def test_the_same_labels_from_every_backend(
    wuwan: Any, checkpoints: Path, photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Local torch, local OpenVINO, and the GPU image on the CPU, if WUWAN_TEST_GPU_IMAGE names one.

    The photos differ in their labels, so it is not one answer for all.
    """
    added("plain", checkpoints / "plain")
    runs = {backend: ["--runner=local", "--backend", backend] for backend in ("torch", "openvino")}
    if len(IMAGE) > 1:
        docker = ["--runner=docker", "--gpus=none", "--image", IMAGE, "--backend"]
        runs |= {"docker torch": [*docker, "torch"], "docker openvino": [*docker, "openvino"]}
    answers, scores = {}, {}
    for name, options in runs.items():
        done = wuwan("tag", *options, "--model=plain", "--level=fine", photos, timeout=300)
        assert done.returncode == 0, (name, done.stderr)
        best = [json.loads(line)["labels"][0] for line in done.stdout.splitlines()]
        answers[name] = [label["label"] for label in best]
        scores[name] = [label["score"] for label in best]
    assert len(set(answers["torch"])) > 1
    assert all(answer == answers["torch"] for answer in answers.values()), answers
    assert min(scores["torch"]) > 0.01
    for found in scores.values():
        # OpenVINO computes in bf16 where the CPU has it.
        assert found == pytest.approx(scores["torch"], abs=0.03)


@pytest.mark.parametrize("fault", ["missing", "unexpected", "shape", "short", "code", "cut"])
def test_a_wrong_checkpoint_is_refused(
    fault: str, network: Any, checkpoints: Path, data_home: Path, tmp_path: Path
) -> None:
    """One clear line, nothing left behind, and nothing in the file was executed."""
    import torch

    directory, ran = tmp_path / "download", tmp_path / "ran"
    directory.mkdir()
    shutil.copy(checkpoints / "plain" / general_zh.LABELS, directory)
    weights = directory / general_zh.WEIGHTS
    small = {key: value for key, value in network.items() if not key.startswith("fc.")}
    # The head takes no space in the file: one number, seen 110 million times.
    head = torch.zeros(1).expand
    small |= {"fc.weight": head(OUTPUTS, 2048), "fc.bias": head(OUTPUTS)}
    match fault:
        case "missing":
            del small["layer1.0.conv1.weight"]
            problem = r"missing: layer1\.0\.conv1\.weight"
        case "unexpected":
            small["layer9.weight"] = torch.zeros(1)
            problem = r"unexpected: layer9\.weight"
        case "shape":
            small["layer1.0.conv1.weight"] = torch.zeros(64, 64, 1, 1)
            problem = r"layer1\.0\.conv1\.weight"
        case "short":
            path = directory / general_zh.LABELS
            path.write_text("".join(path.read_text().splitlines(keepends=True)[:-1]))
            problem = "54,091 labels: .*54092.*not 54091"
        case "code":
            small["evil"] = _Evil(f"touch {ran}")
            problem = "is refused: it holds more than tensors"
        case _:
            problem = "not a whole checkpoint"
    torch.save(small, weights)
    if fault == "cut":
        os.truncate(weights, weights.stat().st_size // 2)
    before = sorted(os.listdir(data_home)) if data_home.exists() else []
    with pytest.raises(ModelError, match=problem) as caught:
        store.add(general_zh.source("wrong", directory, lambda _: None), conversion.local)
    assert "\n" not in str(caught.value)
    assert sorted(os.listdir(data_home)) == before
    assert not ran.exists()


class _Evil:
    def __init__(self, command: str) -> None:
        self._command = command

    def __reduce__(self) -> Any:
        return os.system, (self._command,)
