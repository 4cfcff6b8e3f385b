"""The container image for GPUs: its size, what is in it, and that it works where no GPU is.

Building it takes gigabytes of wheels, so these tests run only where WUWAN_TEST_GPU_IMAGE asks for
them: with 1 the image is built from this checkout, otherwise the variable names one that is there.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from collections.abc import Callable

WANTED = os.environ.get("WUWAN_TEST_GPU_IMAGE", "")
BASE_IMAGE = os.environ.get("WUWAN_TEST_BASE_IMAGE", "")
LIMIT = 4.2e9  # bytes: what a gateway's image was published to take (docs/performance.md)
PACKAGES = "/opt/wuwan/lib/python3.11/site-packages"

pytestmark = [
    pytest.mark.gpu_image,
    pytest.mark.timeout(1800),
    pytest.mark.skipif(not WANTED, reason="downloads 4 GB; set WUWAN_TEST_GPU_IMAGE=1 to run it"),
]

# torchvision's libraries name torch's but not their place: torch is imported first, always.
LOADER = f"""
cd {PACKAGES}
for file in torch/lib/*.so* torch/*.so nvidia/*/lib/*.so*; do ldd "$file" | sed "s|^|$file|"; done
export LD_LIBRARY_PATH=$PWD/torch/lib:$PWD/nvidia/cu13/lib
for file in torchvision/*.so torchvision.libs/*.so*; do ldd "$file" | sed "s|^|$file|"; done
"""

# cuDNN loads its parts by name when the first network runs, and so does torch with NVRTC.
BY_NAME = f"""
import ctypes, glob, torch
for path in sorted(glob.glob("{PACKAGES}/nvidia/*/lib/lib*.so*")):
    ctypes.CDLL(path)
print(torch.backends.cudnn.version())
"""

NETWORK = """
import io, json, sys
import numpy, openvino, timm, torch, torchvision
from torchvision.io import ImageReadMode, decode_jpeg

torch.manual_seed(0)
network = timm.create_model("resnest14d", num_classes=10).eval()
image = torch.frombuffer(bytearray(sys.stdin.buffer.read()), dtype=torch.uint8)
pixels = decode_jpeg(image, mode=ImageReadMode.RGB)[None, :, :224, :224] / 255
with torch.inference_mode():
    expected = network(pixels).numpy()
file = io.BytesIO()
torch.onnx.export(network, (pixels,), file, input_names=["x"], output_names=["y"], dynamo=False)
core = openvino.Core()
compiled = core.compile_model(core.read_model(file.getvalue()), "CPU")
found = compiled([pixels.numpy()])[0]
print(json.dumps({
    "cuda": torch.version.cuda,
    "gpu": torch.cuda.is_available(),
    "nvjpeg": hasattr(torch.ops.image, "decode_jpegs_cuda"),
    "off": float(numpy.abs(found - expected).max()),
    "spread": float(expected.max() - expected.min()),
}))
"""


@pytest.fixture(scope="module")
def gpu_image(request: pytest.FixtureRequest) -> str:
    """The image's name, built from this checkout if need be."""
    if WANTED != "1":
        return WANTED
    command = [sys.executable, "-m", "wuwan_cli", "image", "build", "--variant", "gpu"]
    command += ["--tag", "wuwan-test:gpu"]
    if BASE_IMAGE:
        command += ["--base", BASE_IMAGE, "--network", "host"]
    started = time.monotonic()
    done = subprocess.run(command, capture_output=True, text=True, timeout=1700, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    with request.config.pluginmanager.getplugin("capturemanager").global_and_fixture_disabled():
        print(f"\nthe GPU image was built in {time.monotonic() - started:.0f} s")  # noqa: T201
    return "wuwan-test:gpu"


@pytest.fixture
def inside(gpu_image: str) -> Callable[..., str]:
    """`inside(PROGRAM…, data=…)` runs a program in it, locked down as a worker; its output."""

    def run(*command: str, data: bytes = b"") -> str:
        options = ["--network=none", "--read-only", "--user=10001:10001", "--cap-drop=ALL"]
        done = subprocess.run(
            ["docker", "run", "--rm", "-i", *options, gpu_image, *command],
            input=data,
            capture_output=True,
            timeout=300,
            check=False,
        )
        assert done.returncode == 0, done.stderr.decode()[-3000:]
        return done.stdout.decode()

    return run


def test_it_is_smaller_than_the_original(
    gpu_image: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """At most 4.2 GB, and it says which variant it is."""
    command = ["docker", "image", "inspect", gpu_image]
    (found,) = json.loads(subprocess.run(command, capture_output=True, check=True).stdout)
    with capsys.disabled():
        print(f"\nthe GPU image has {found['Size'] / 1e6:,.0f} MB")  # noqa: T201
    assert found["Size"] <= LIMIT
    assert found["Config"]["Labels"]["io.wuwan.variant"] == "gpu"


def test_nothing_that_only_builds(inside: Callable[..., str]) -> None:
    """No compiler, no headers, no static libraries, no tests, no package manager of its own."""
    files = inside("find", "/opt/wuwan", "-type", "f").splitlines()
    assert len(files) > 5000
    unwanted = (".h", ".hpp", ".cuh", ".a", ".bc", ".pyi", ".cc")
    assert not [name for name in files if name.endswith(unwanted)]
    top = {name.removeprefix(f"{PACKAGES}/").partition("/")[0] for name in files}
    assert not top & {"triton", "pip", "setuptools", "cuda", "huggingface_hub", "networkx"}
    assert not [name for name in files if "/tests/" in name]
    assert not [name for name in files if "cusolver" in name.lower() and ".so" in name]
    assert not inside("sh", "-c", "command -v gcc cc ld nvcc ptxas make || true")


def test_the_loader_finds_every_library(inside: Callable[..., str]) -> None:
    """All but the driver's, which comes with the GPU."""
    lines = inside("bash", "-c", LOADER).splitlines()
    missing = [line for line in lines if "not found" in line]
    assert any("libtorch_cuda.so" in line and "libcublasLt.so.13 => /" in line for line in lines)
    assert [line for line in missing if "libcuda.so.1 " not in line] == []
    assert inside("python", "-c", BY_NAME).strip() == "92000"


def test_torch_runs_without_a_gpu(inside: Callable[..., str], photos: Path) -> None:
    """A photo decoded, a network run, exported, and run by openvino: the same scores."""
    data = (photos / "rocket.jpg").read_bytes()
    found = json.loads(inside("python", "-W", "ignore", "-c", NETWORK, data=data))
    assert found["cuda"].startswith("13.")
    assert not found["gpu"]
    assert found["nvjpeg"]
    assert found["off"] < 0.05 * found["spread"]


def test_it_tags_on_the_cpu(wuwan: Any, gpu_image: str, photos: Path) -> None:
    """The openvino backend is in it, too, and gives what a local worker gives."""
    records = []
    for runner in (["docker", "--image", gpu_image], ["local"]):
        done = wuwan("tag", photos, "--gpus=none", "--ttl=0", "--runner", *runner)
        assert done.returncode == 0, done.stderr.decode()
        records.append([json.loads(line) for line in done.stdout.splitlines()])
    names = [[record["labels"][0]["id"] for record in run] for run in records]
    assert len(names[0]) == 4
    assert names[0] == names[1]
