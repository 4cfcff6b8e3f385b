"""A user's model in containers: mounted, baked in, and made there."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tests.runner.models.conftest import FAKE, write_checkpoint
from wuwan_runner.containers import container, images
from wuwan_runner.errors import ModelError, WorkerUnavailableError
from wuwan_runner.models import conversion, general_zh, store
from wuwan_runner.wire import address
from wuwan_worker.shared import bundle
from wuwan_worker.shared.private_dir import PrivateDir

if TYPE_CHECKING:
    from collections.abc import Iterator

BAKED = "wuwan-test-baked:latest"


def add(download: Path, name: str = "mine") -> bundle.Bundle:
    """A bundle of the user's."""
    return store.add(general_zh.source(name, download, lambda _: None), conversion.local)


def docker(*arguments: str) -> str:
    """What the docker command says."""
    done = subprocess.run(["docker", *arguments], capture_output=True, timeout=60, check=True)
    return done.stdout.decode()


def mounts() -> list[dict[str, Any]]:
    """Of the one container of this test, which is removed."""
    (found_id,) = docker(
        "ps", "-q", "--filter", f"label={container.LABEL_NAMESPACE}={address.namespace()}"
    ).split()
    found: list[dict[str, Any]] = json.loads(docker("inspect", "-f", "{{json .Mounts}}", found_id))
    docker("rm", "-f", found_id)
    return found


def gone(image: str) -> bool:
    """Whether no container of that image is left; the daemon removes them in its own time."""
    deadline = time.monotonic() + 10
    while found := docker("ps", "-aq", "--filter", f"ancestor={image}"):
        if time.monotonic() > deadline:
            break
        time.sleep(0.1)
    return not found


@pytest.mark.docker
def test_a_mounted_model(wuwan: Any, download: Path, docker_image: str, photos: Path) -> None:
    """The container reads it, whatever the umask was, and cannot write to it."""
    umask = os.umask(0o077)
    try:
        added = add(download)
    finally:
        os.umask(umask)
    tag = ["tag", "--runner=docker", "--image", docker_image, "--model=mine", "-q", "--top-k=1"]
    done = wuwan(*tag, "--level=mid", photos / "coffee.png")
    assert done.returncode == 0, done.stderr
    (record,) = map(json.loads, done.stdout.splitlines())
    assert record["labels"][0]["label"] == "意式浓缩咖啡"
    assert record["labels"][0]["broader"] == ["饮料"]
    (mount,) = [mount for mount in mounts() if mount["Destination"] == "/models/mine"]
    assert (mount["Source"], mount["RW"]) == (str(added.root), False)


@pytest.fixture
def no_image() -> Iterator[None]:
    """The image of these tests is not there after them."""
    yield
    subprocess.run(["docker", "rmi", BAKED], capture_output=True, timeout=60, check=False)


@pytest.mark.docker
@pytest.mark.usefixtures("no_image")
def test_a_baked_model(
    wuwan: Any, download: Path, docker_image: str, photos: Path, data_home: Path
) -> None:
    """`wuwan image build --model` puts it into the image, where no mount and no file is needed."""
    added = add(download)
    base = os.environ.get("WUWAN_TEST_BASE_IMAGE", "")
    options = ["--base", base, "--network", "host"] if base else []
    build = ("image", "build", "--tag", BAKED, *options, "--model")
    done = wuwan(*build, "nothing")
    assert (done.returncode, done.stdout) == (1, b"")
    assert b"wuwan: no model named 'nothing'" in done.stderr
    done = wuwan(*build, "mine")
    assert done.returncode == 0, done.stderr
    assert b"Using cache" in done.stderr  # the worker's layers are not built anew
    label = docker("inspect", "-f", f'{{{{index .Config.Labels "{images.LABEL_MODELS}"}}}}', BAKED)
    assert label.strip() == f"mine={added.fingerprint}"
    added.root.rename(data_home / ".away")
    tag = ["tag", "--runner=docker", "--image", BAKED, "--model=mine", "-q", "--channel=exec"]
    done = wuwan(*tag, photos / "coffee.png", "--level=fine")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["labels"][0]["label"] == "意式浓缩咖啡/n07920052"
    done = wuwan(*tag, photos / "coffee.png", "--level=finest")
    assert done.returncode == 2
    assert b"has no level 'finest' (it has: coarse, mid, fine)" in done.stderr
    assert mounts() == []


@pytest.fixture(scope="module")
def converting_image(docker_image: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The image with `fake_convert` in it."""
    (directory := tmp_path_factory.mktemp("convert")).joinpath("Dockerfile").write_text(
        f"FROM {docker_image}\nCOPY fake_convert.py /app/\n"
    )
    shutil.copy(FAKE / "fake_convert.py", directory)
    name = "wuwan-test-convert:latest"
    docker("build", "-q", "-t", name, str(directory))
    yield name
    subprocess.run(["docker", "rmi", name], capture_output=True, timeout=60, check=False)


@pytest.mark.docker
def test_a_checkpoint_is_read_in_a_container(
    wuwan: Any, download: Path, converting_image: str, data_home: Path
) -> None:
    """Without torch here: the container writes into the bundle's directory, as us."""
    add = ("model", "add", "mine", "--from", download, "--runner=docker", "--image")
    done = wuwan(*add, converting_image)
    assert done.returncode == 0, done.stderr
    reference = converting_image.encode()
    assert b"reading the checkpoint in a container from " + reference in done.stderr
    added = bundle.load(bundle.find("mine"))
    added.verify()
    assert {path.stat().st_uid for path in added.root.iterdir()} == {os.getuid()}
    store.remove("mine")
    write_checkpoint(download / "pytorch_model.pt", classes=7)
    done = wuwan(*add, converting_image)
    assert done.returncode == 1
    assert b"wuwan: pytorch_model.pt with 1,000 labels: the head has 7 outputs" in done.stderr
    done = wuwan(*add, "wuwan-test-no-such-image")
    assert done.returncode == 4
    assert os.listdir(data_home) == []
    assert gone(converting_image)


@pytest.mark.docker
def test_a_container_that_takes_too_long(
    download: Path, converting_image: str, data_home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is removed at the deadline; one that dies shows its last words."""
    source = general_zh.source("mine", download, lambda _: None)
    convert = conversion.InContainer(converting_image)
    write_checkpoint(download / "pytorch_model.pt", die="the last words")
    with pytest.raises(WorkerUnavailableError, match=r"without a result .*\n(.|\n)*the last words"):
        store.add(source, convert)
    monkeypatch.setattr(conversion, "DEADLINE", 1.0)
    monkeypatch.setattr(conversion, "_arguments", lambda *_: ["-c", "import time; time.sleep(60)"])
    with pytest.raises(WorkerUnavailableError, match="was not done within"):
        store.add(source, convert)
    write_checkpoint(download / "pytorch_model.pt", link="/etc/passwd")
    monkeypatch.undo()
    monkeypatch.setattr(conversion, "MODULE", "fake_convert")
    monkeypatch.setattr(bundle.dirs, "data", lambda: PrivateDir(data_home.parent))
    with pytest.raises(ModelError, match=r"wrote no file 'model\.onnx'"):
        store.add(source, convert)
    assert os.listdir(data_home) == []
    assert gone(converting_image)
