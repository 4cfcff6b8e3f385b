"""`wuwan image build` and what is in the image."""

from __future__ import annotations

import io
import os
import subprocess
import sys
import tarfile
from typing import TYPE_CHECKING, Any

import pytest

from wuwan_runner.containers import image_build
from wuwan_runner.errors import UsageError

if TYPE_CHECKING:
    from pathlib import Path

REFUSING = {"DOCKER_HOST": "tcp://127.0.0.1:9"}


def test_the_context_is_deterministic_and_clean() -> None:
    """Docker's cache hits: no times, no owners, no bytecode, sorted."""
    first, second = io.BytesIO(), io.BytesIO()
    image_build.write_context(first)
    image_build.write_context(second)
    assert first.getvalue() == second.getvalue()
    first.seek(0)
    with tarfile.open(fileobj=first) as archive:
        members = archive.getmembers()
    names = [member.name for member in members]
    assert names == sorted(names)
    assert {"Dockerfile", "image/推理.py", "image/wuwan_worker/__main__.py"} <= set(names)
    assert {"image/requirements-cpu.txt", "image/requirements-gpu.txt"} <= set(names)
    assert "image/wuwan_worker/bundles/imagenet-zh/model.onnx" in names
    assert not [name for name in names if "__pycache__" in name or name.endswith(".pyc")]
    assert {(member.mtime, member.uid, member.mode) for member in members} == {(0, 0, 0o644)}


def test_the_variants_pin_the_same() -> None:
    """A GPU image has all of a CPU image, in the same versions; each pin is exact."""
    pins: dict[str, str] = {}
    for name in ("cpu", "gpu"):
        path = image_build.context_files()[f"image/requirements-{name}.txt"]
        lines = [line.partition("#")[0].strip() for line in path.read_text().splitlines()]
        if name == "gpu":
            assert "-r requirements-cpu.txt" in lines
        for line in lines:
            if line and not line.startswith("-r"):
                package, version = line.split("==")
                assert pins.setdefault(package, version) == version
    assert {"torch", "torchvision", "timm", "safetensors", "openvino"} <= set(pins)


def test_an_unknown_variant_is_a_usage_error(wuwan: Any) -> None:
    """Before any daemon is asked."""
    done = wuwan("image", "build", "--variant", "tpu", env=dict(os.environ) | REFUSING)
    assert done.returncode == 2
    assert b"cpu, gpu" in done.stderr


def test_build_arguments(monkeypatch: pytest.MonkeyPatch) -> None:
    """As docker build's: a name alone takes the environment's value, and only a named one does."""
    monkeypatch.setenv("PIP_INDEX_URL", "https://user:secret@example.org/simple")
    monkeypatch.delenv("PIP_CERT", raising=False)
    assert image_build.parse_arguments(["A=b=c", "PIP_CERT"]) == {"A": "b=c"}
    assert "PIP_INDEX_URL" in image_build.parse_arguments(["PIP_INDEX_URL"])
    with pytest.raises(UsageError):
        image_build.parse_arguments(["=x"])


def test_no_daemon_exits_with_4(wuwan: Any) -> None:
    """One line, and what to do."""
    done = wuwan("image", "build", env=dict(os.environ) | REFUSING)
    assert done.returncode == 4
    assert done.stderr.startswith(b"wuwan: no Docker daemon answers at tcp://127.0.0.1:9\n  hint: ")


@pytest.mark.docker
def test_a_second_build_is_all_cache(wuwan: Any, docker_image: str) -> None:
    """The result is on standard output, the builder's lines are on standard error."""
    base = os.environ.get("WUWAN_TEST_BASE_IMAGE", "")
    options = ["--base", base, "--network", "host"] if base else []
    done = wuwan("image", "build", "--tag", docker_image, *options)
    assert done.returncode == 0, done.stderr
    name, identity, size, unit = done.stdout.decode().split()
    assert (name, len(identity), unit) == (docker_image, 12, "MB")
    assert int(size) > 100
    assert b"Using cache" in done.stderr
    assert b"Running in" not in done.stderr


@pytest.mark.docker
def test_a_failing_step_is_explained(wuwan: Any, docker_image: str) -> None:
    """The error ends with the log's last lines."""
    done = wuwan("image", "build", "--tag", "wuwan-test-broken", "--base", docker_image)
    assert done.returncode == 1
    assert b"wuwan: the image was not built: " in done.stderr
    assert b"Step " in done.stderr


@pytest.mark.docker
def test_the_script_in_the_container(photos: Path, docker_image: str) -> None:
    """`python 推理.py --image /app/input.png`, as the image's user, prints the final result."""
    command = ["docker", "run", "--rm", "--network=none"]
    mount = ["-v", f"{photos / 'coffee.png'}:/app/input.png:ro"]
    script = ["python", "推理.py", "--image", "/app/input.png"]
    done = subprocess.run(
        [*command, *mount, docker_image, *script], capture_output=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.decode().startswith("Final result: 意式浓缩咖啡 (0.9")
    done = subprocess.run(
        [*command, docker_image, *script], capture_output=True, timeout=120, check=False
    )
    assert done.returncode == 1
    assert "cannot read /app/input.png" in done.stderr.decode()


def test_the_script_in_a_checkout(photos: Path) -> None:
    """It works without a container, too, and says what is wrong with a file."""
    script = photos.parents[1] / "image" / "推理.py"

    def run(path: object) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, str(script), "--image", str(path)]
        return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)

    assert run(photos / "coffee.png").stdout.startswith("Final result: 意式浓缩咖啡 (0.9")
    done = run(script)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.endswith("(not_an_image)\n")
