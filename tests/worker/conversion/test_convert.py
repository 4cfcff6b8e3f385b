"""`wuwan_worker.conversion.convert`: what it takes and what it refuses. Skipped without torch."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

torch = pytest.importorskip("torch", reason="torch is not installed")
timm = pytest.importorskip("timm", reason="timm is not installed")
safetensors = pytest.importorskip("safetensors.torch", reason="safetensors is not installed")
onnx = pytest.importorskip("onnx", reason="onnx is not installed")

from wuwan_worker.conversion import convert as converting  # noqa: E402

if TYPE_CHECKING:
    from collections.abc import Callable

ARCHITECTURE, CLASSES = "resnest14d", 5


@pytest.fixture(scope="module")
def state() -> dict[str, Any]:
    """A checkpoint."""
    torch.manual_seed(0)
    return dict(timm.create_model(ARCHITECTURE, num_classes=CLASSES).state_dict())


@pytest.fixture
def convert(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> Callable[..., tuple[int, dict[str, Any]]]:
    """Runs the program on a file; its exit code and its answer."""

    def run(path: Path, *more: str, classes: int = CLASSES) -> tuple[int, dict[str, Any]]:
        arguments = ["--weights", path, "--arch", ARCHITECTURE, "--classes", classes]
        code = converting.main(list(map(str, [*arguments, "--out", tmp_path / "out", *more])))
        (line,) = capfd.readouterr().out.splitlines()
        return code, json.loads(line)

    return run


def _wrapped(state: dict[str, Any]) -> dict[str, Any]:
    """As DataParallel leaves it, inside and out."""
    return {f"module.{key.replace('layer1.', 'layer1.module.')}": state[key] for key in state}


FORMATS: dict[str, Callable[[dict[str, Any], Path], None]] = {
    "plain.pt": lambda state, path: torch.save(state, path),
    "wrapped.pt": lambda state, path: torch.save({"state_dict": _wrapped(state)}, path),
    "prefixed.pt": lambda state, path: torch.save(_wrapped(state), path),
    "before-1.6.pt": lambda state, path: torch.save(
        state, path, _use_new_zipfile_serialization=False
    ),
    "other-order.safetensors": lambda state, path: safetensors.save_file(
        dict(reversed(state.items())), path
    ),
}


@pytest.mark.parametrize("name", FORMATS)
def test_every_format_gives_the_same_weights(
    name: str, state: dict[str, Any], tmp_path: Path, convert: Any
) -> None:
    """In the architecture's order, readable by other users, with what the manifest needs."""
    FORMATS[name](state, tmp_path / name)
    code, answer = convert(tmp_path / name, "--no-onnx", "--activation", "sigmoid")
    assert code == 0
    assert answer == {
        "files": {"torch": "model.safetensors"},
        "input": {
            "name": "images",
            "size": 224,
            "resize": 256,
            "interpolation": "bilinear",
            "mean": [0.485, 0.456, 0.406],
            "std": [0.229, 0.224, 0.225],
        },
        "output_name": "logits",
        "classes": CLASSES,
        "activation": "sigmoid",
    }
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["model.safetensors"]
    found = safetensors.load_file(tmp_path / "out" / "model.safetensors")
    assert found.keys() == state.keys()
    assert all(torch.equal(found[key], state[key]) for key in state)
    assert (tmp_path / "out" / "model.safetensors").stat().st_mode & 0o777 == 0o644


def test_half_precision_is_widened(state: dict[str, Any], tmp_path: Path, convert: Any) -> None:
    """The graph and the CPU compute in float32."""
    half = {
        key: value.half() if value.is_floating_point() else value for key, value in state.items()
    }
    torch.save(half, tmp_path / "half.pt")
    assert convert(tmp_path / "half.pt", "--no-onnx")[0] == 0
    found = safetensors.load_file(tmp_path / "out" / "model.safetensors")
    assert found["fc.weight"].dtype == torch.float32
    assert torch.equal(found["fc.weight"], half["fc.weight"].float())


def test_the_graph_shares_the_weights(state: dict[str, Any], tmp_path: Path, convert: Any) -> None:
    """One copy on disk: the ONNX file is the graph alone, and is a whole model with the other."""
    torch.save(state, tmp_path / "plain.pt")
    code, answer = convert(tmp_path / "plain.pt")
    assert (code, answer["files"]["openvino"]) == (0, "model.onnx")
    path = tmp_path / "out" / "model.onnx"
    assert path.stat().st_size < 500_000
    onnx.checker.check_model(path, full_check=True)
    model = onnx.load(path)
    assert [value.name for value in model.graph.input] == ["images"]
    weights = {t.name: onnx.numpy_helper.to_array(t) for t in model.graph.initializer}
    assert torch.equal(torch.tensor(weights["fc.weight"]), state["fc.weight"])


class _Runs:
    """Pickled, it is code."""

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return os.mkdir, (os.environ["WUWAN_TEST_PICKLED"],)


def _without(state: dict[str, Any], key: str) -> dict[str, Any]:
    return {name: value for name, value in state.items() if name != key}


WRONG: dict[str, tuple[Callable[[dict[str, Any]], Any], str]] = {
    "a key missing": (
        lambda state: _without(state, "layer1.0.bn1.bias"),
        "the checkpoint is not a resnest14d: missing: layer1.0.bn1.bias",
    ),
    "a key too many": (
        lambda state: state | {"head.weight": torch.zeros(1)},
        "the checkpoint is not a resnest14d: unexpected: head.weight",
    ),
    "a shape off": (
        lambda state: state | {"layer1.0.bn1.bias": torch.zeros(3)},
        "the checkpoint is not a resnest14d: layer1.0.bn1.bias is 3, not 64",
    ),
    "another number of classes": (
        lambda state: state | {"fc.weight": torch.zeros(7, 2048), "fc.bias": torch.zeros(7)},
        "the checkpoint has 7 classes (fc.weight), not 5",
    ),
    "no numbers": (
        lambda state: state | {"fc.bias": torch.tensor([0.0, float("nan"), 0.0, 0.0, 0.0])},
        "the checkpoint holds values that are no numbers: fc.bias",
    ),
    "code": (
        lambda state: state | {"x": _Runs()},
        "wrong.pt is refused: it holds more than tensors",
    ),
    "a whole model": (
        lambda _: timm.create_model(ARCHITECTURE),
        "wrong.pt is refused: it holds more than tensors",
    ),
    "a number": (lambda state: state | {"epoch": 3}, "wrong.pt holds what is not a tensor: epoch"),
    "no state dict": (lambda _: [1, 2], "wrong.pt holds no state dict"),
    "nothing": (lambda _: {}, "wrong.pt holds no state dict"),
    "the same key twice": (
        lambda state: state | {"module.fc.bias": torch.zeros(5)},
        "wrong.pt has keys that differ in `module.` alone",
    ),
}


@pytest.mark.parametrize("what", WRONG)
def test_a_wrong_checkpoint_is_refused(
    what: str,
    state: dict[str, Any],
    tmp_path: Path,
    convert: Any,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """One line that names what is wrong, nothing left behind, and nothing in it was run."""
    trace = tmp_path / "it-ran"
    monkeypatch.setenv("WUWAN_TEST_PICKLED", str(trace))
    make, message = WRONG[what]
    torch.save(make(state), tmp_path / "wrong.pt")
    code, answer = convert(tmp_path / "wrong.pt")
    assert code == 65
    assert answer["error"].startswith(message)
    assert not trace.exists()
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("cut.pt", None, "cut.pt is not a whole checkpoint"),
        ("text.pt", b"hello, world\n", "text.pt is not a"),
        ("empty.pt", b"", "empty.pt is not a whole checkpoint"),
        ("cut.safetensors", b"\x10\0\0\0\0\0\0\0{}", "cut.safetensors is not a whole safetensors"),
    ],
)
def test_a_damaged_file_is_refused(
    name: str,
    content: bytes | None,
    message: str,
    state: dict[str, Any],
    tmp_path: Path,
    convert: Any,
) -> None:
    """Whatever its bytes are."""
    path = tmp_path / name
    if content is None:
        torch.save(state, path)
        content = path.read_bytes()[:-5000]
    path.write_bytes(content)
    code, answer = convert(path)
    assert code == 65
    assert message in answer["error"]
    assert "\n" not in answer["error"]


def test_what_is_not_there_is_named(tmp_path: Path, convert: Any) -> None:
    """A file, or an architecture: and those that it may have meant."""
    code, answer = convert(tmp_path / "none.pt")
    assert (code, answer) == (65, {"error": f"{tmp_path}/none.pt: No such file or directory"})
    code, answer = convert(tmp_path / "none.pt", "--arch", "resnest101")
    assert code == 65
    assert "no architecture 'resnest101'; did you mean resnest101e" in answer["error"]
    code, answer = convert(tmp_path / "none.pt", "--arch", "hf-hub:timm/resnest14d")
    assert "no architecture" in answer["error"]


def test_memory_stays_under_one_and_a_half_times_the_weights(tmp_path: Path) -> None:
    """Beyond the libraries: a large head (160 MB here, 443 MB in `general-zh`) is never copied."""
    torch.manual_seed(0)
    torch.save(timm.create_model(ARCHITECTURE, num_classes=20_000).state_dict(), tmp_path / "w.pt")
    program = (
        "import sys, timm, torch, onnx, safetensors.torch\n"
        "from wuwan_worker.conversion import convert, onnx_graph\n"
        "def peak():\n"
        "    lines = open('/proc/self/status').read().splitlines()\n"
        "    return next(int(l.split()[1]) for l in lines if l.startswith('VmHWM')) * 1024\n"
        "before = peak()\n"
        "code = convert.main(sys.argv[1:])\n"
        "print(peak() - before, file=sys.stderr)\n"
        "sys.exit(code)\n"
    )
    arguments = ["--weights", "w.pt", "--arch", ARCHITECTURE, "--classes", "20000", "--out", "out"]
    packages = str(Path(converting.__file__).parents[2])
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", program, *arguments],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": packages},
        capture_output=True,
        text=True,
        timeout=100,
        check=True,
    )
    weights = (tmp_path / "out" / "model.safetensors").stat().st_size
    assert int(done.stderr.splitlines()[-1]) < 1.5 * weights
