"""Where a container finds its model: in its image, or in a directory of this machine."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import TYPE_CHECKING

import pytest

from wuwan_runner.containers import image_ids, images, model_mount
from wuwan_runner.errors import WorkerUnavailableError
from wuwan_runner.launchers.docker import DockerLauncher
from wuwan_runner.options import WorkerSpec
from wuwan_runner.resolved import model, resolve
from wuwan_worker.shared import bundle
from wuwan_worker.shared.bundle import Bundle

if TYPE_CHECKING:
    from pathlib import Path

Add = Callable[..., Bundle]
REMOTE = "tcp://192.0.2.1:2375"


@pytest.fixture
def add(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Add:
    """`add(NAME, VERSION)`: a bundle of the user's, as far as it is looked at: its manifest."""
    monkeypatch.delenv("DOCKER_HOST", raising=False)
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path))
    manifest = (bundle.EMBEDDED / "imagenet-zh" / bundle.MANIFEST).read_text(encoding="utf-8")

    def make(name: str = "mine", version: str = "1", directory: str = "") -> Bundle:
        root = bundle.user_directory() / (directory or name)
        root.mkdir(parents=True, exist_ok=True)
        changed = re.sub(r'(?m)^name = "imagenet-zh"', f'name = "{name}"', manifest, count=1)
        changed = re.sub(r"(?m)^version = .*", f'version = "{version}"', changed, count=1)
        (root / bundle.MANIFEST).write_text(changed, encoding="utf-8")
        return bundle.load(root)

    return make


def test_one_that_comes_with_wuwan() -> None:
    """It is in every image, whatever the labels say."""
    assert model_mount.mount(model("imagenet-zh"), "image", {}) == ("imagenet-zh", None)


def test_one_of_the_users(add: Add) -> None:
    """It is mounted, by its name or by its path, unless the image has just that one."""
    added = add()
    baked = {images.LABEL_MODELS: model_mount.label([add("other"), added])}
    stale = {images.LABEL_MODELS: "mine=0123 other=4567"}
    assert model_mount.mount(model("mine"), "image", {}) == ("/models/mine", added.root)
    assert model_mount.mount(model("mine"), "image", stale) == ("/models/mine", added.root)
    assert model_mount.mount(model("mine"), "image", baked) == ("/models/mine", None)
    assert model_mount.mount(model(f"{added.root}/"), "image", {}) == ("/models/mine", added.root)


def test_one_that_is_not_here(add: Add) -> None:
    """The image may have it; if not, that is an error."""
    labels = {images.LABEL_MODELS: "nonsense other=4567"}
    assert model_mount.mount(model("other"), "image", labels) == ("/models/other", None)
    for name in ("missing", "nonsense"):
        with pytest.raises(WorkerUnavailableError, match=f"no model named '{name}'") as caught:
            model_mount.mount(model(name), "image", labels)
        assert "wuwan model list" in caught.value.hint


def test_a_daemon_elsewhere(add: Add, monkeypatch: pytest.MonkeyPatch) -> None:
    """It sees no directory of this machine: the image must hold the model, just as it is here."""
    baked = {images.LABEL_MODELS: model_mount.label([add()])}
    monkeypatch.setenv("DOCKER_HOST", REMOTE)
    assert model_mount.mount(model("mine"), "image", baked) == ("/models/mine", None)
    for labels, old in (({}, ""), ({images.LABEL_MODELS: "mine=0123"}, " as it is here")):
        with pytest.raises(WorkerUnavailableError) as caught:
            model_mount.mount(model("mine"), "image", labels)
        assert f"the image image does not hold the model mine{old}, and" in str(caught.value)
        assert caught.value.hint == "wuwan image build --model mine"
    with pytest.raises(WorkerUnavailableError) as caught:
        model_mount.mount(model("mine"), "image", {images.LABEL_VARIANT: "gpu"})
    assert caught.value.hint == "wuwan image build --variant gpu --model mine"


@pytest.mark.parametrize("name", ["../../etc", "a/b", "a b", "-rf", "a=b", "x" * 65])
def test_a_manifest_that_says_anything(add: Add, name: str) -> None:
    """A name is a part of a path and of a label only where it cannot be more than that."""
    found = add(name, directory="directory")
    assert model_mount.name(found) == "model"
    assert model_mount.mount(model(str(found.root)), "image", {}) == ("/models/model", found.root)
    assert model_mount.label([found, add()]).split()[0] == f"model={found.fingerprint}"


def test_workers_are_shared_by_what_the_model_is(add: Add, monkeypatch: pytest.MonkeyPatch) -> None:
    """One that was added anew under its old name, or is named by its path, has its own worker."""
    monkeypatch.setattr(image_ids, "quickly", lambda names: ["" for _ in names])

    def key(name: str) -> str:
        return DockerLauncher().key(resolve(WorkerSpec(model=name)))

    before = key("mine")
    root = add("mine").root
    first, path = key("mine"), key(str(root))
    add("mine", version="2")
    assert len({before, first, path, key("mine"), key(str(root))}) == 5
    add("mine")
    assert (key("mine"), key(str(root))) == (first, path)
