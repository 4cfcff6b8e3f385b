"""Adding and removing bundles: all or nothing."""

from __future__ import annotations

import fcntl
import os
import stat
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from tests.runner.models.conftest import write_checkpoint
from wuwan_runner.doctor import checks, orphans
from wuwan_runner.errors import LockedError, ModelError, UsageError, WorkerUnavailableError
from wuwan_runner.models import conversion, general_zh, store
from wuwan_runner.options import Timeouts
from wuwan_worker.shared import bundle, labels


def add(directory: Path, name: str = "mine") -> bundle.Bundle:
    """Add a download as a bundle, by a process of its own that converts it."""
    return store.add(general_zh.source(name, directory, lambda _: None), conversion.local)


def test_a_bundle_is_complete_and_readable_by_a_container(download: Path, data_home: Path) -> None:
    """Sums are right, levels are there, other users may read it whatever the umask is."""
    before = os.umask(0o077)
    try:
        added = add(download)
    finally:
        os.umask(before)
    assert added.root == bundle.find("mine") == data_home / "mine"
    added.verify()
    assert added.levels == ("coarse", "mid", "fine")
    assert added.default_level == "coarse"
    assert added.input.interpolation == "bilinear"  # general-zh's, not the architecture's own
    assert added.input.mean == (0.485, 0.456, 0.406)
    assert len(labels.read(added)["mid"].rows) == added.classes == 1000
    assert sorted(os.listdir(added.root)) == ["bundle.toml", "labels.tsv", "model.onnx"]
    modes = {stat.S_IMODE(path.stat().st_mode) for path in added.root.iterdir()}
    assert (modes, stat.S_IMODE(added.root.stat().st_mode)) == ({0o644}, 0o755)
    assert os.listdir(data_home) == ["mine"]
    assert bundle.installed() == ["imagenet-zh", "mine"]


def test_a_label_file_one_line_short_is_refused(download: Path, data_home: Path) -> None:
    """One line says both numbers; nothing is left behind."""
    path = download / "meta_info.txt"
    path.write_text("".join(path.read_text().splitlines(keepends=True)[:-1]))
    with pytest.raises(ModelError) as caught:
        add(download)
    message = "pytorch_model.pt with 999 labels: the head has 1000 outputs"
    assert str(caught.value) == message
    assert os.listdir(data_home) == []


@pytest.mark.parametrize(
    ("content", "error", "problem"),
    [
        ({"die": "Killed"}, WorkerUnavailableError, "broke off without a result .*\n(.|\n)*Killed"),
        ({"link": "/etc/passwd"}, ModelError, "wrote no file 'model.onnx'"),
        ({"say": {"files": {"torch": "../x"}}}, ModelError, "wrote no file '../x'"),
        ({"say": {"files": {"torch": "labels.tsv"}}}, ModelError, "wrote no file 'labels.tsv'"),
        ({"say": {"files": None}}, WorkerUnavailableError, "without a result"),
        ({"say": {"activation": "relu"}}, ModelError, "makes no valid bundle: bundle.toml: output"),
    ],
)
def test_a_conversion_that_fails_leaves_nothing(
    download: Path, data_home: Path, content: dict[str, Any], error: Any, problem: str
) -> None:
    """Whatever the conversion does; a link that it leaves is not followed."""
    write_checkpoint(download / "pytorch_model.pt", **content)
    with pytest.raises(error, match=problem):
        add(download)
    assert os.listdir(data_home) == []


def test_names(download: Path, data_home: Path) -> None:
    """A name leads nowhere else, hides nothing, and is not taken over."""
    for name in ("", ".", "..", "a/b", "../x", ".hidden", "x" * 65, "a\n", "imagenet-zh"):
        with pytest.raises(UsageError):
            add(download, name)
    assert not data_home.exists()
    add(download)
    with pytest.raises(UsageError, match="there is a model mine already"):
        add(download)
    outside = data_home.parent / "outside"
    outside.mkdir()
    for name in ("imagenet-zh", "nothing", "../outside", ".", ""):
        with pytest.raises(UsageError):
            store.remove(name)
    store.remove("mine")
    assert os.listdir(data_home) == []
    assert outside.exists()
    with pytest.raises(bundle.BundleError, match="no model named 'mine'; there is: imagenet-zh"):
        bundle.find("mine")


def test_a_users_bundle_does_not_replace_the_embedded_one(data_home: Path, download: Path) -> None:
    """Even if somebody puts one there by hand."""
    add(download).root.rename(data_home / "imagenet-zh")
    assert bundle.find("imagenet-zh").parent == bundle.EMBEDDED
    assert bundle.installed() == ["imagenet-zh"]


def test_two_adds_of_one_name(download: Path, data_home: Path) -> None:
    """The second is told at once; the first is not disturbed."""
    source = general_zh.source("mine", download, lambda _: None)
    inside, go_on = threading.Event(), threading.Event()

    def slow(*arguments: Any) -> conversion.Converted:
        inside.set()
        assert go_on.wait(20)
        return conversion.local(*arguments)

    first = threading.Thread(target=store.add, args=(source, slow))
    first.start()
    assert inside.wait(20)
    with pytest.raises(LockedError):
        add(download)
    assert store.unfinished() == []
    store.discard(data_home / ".mine.staging")  # somebody works in it
    go_on.set()
    first.join(30)
    bundle.load(bundle.find("mine")).verify()


def test_a_killed_run_leaves_a_staging_directory_only(download: Path, data_home: Path) -> None:
    """`kill -9` in the midst: no bundle is found, doctor finds the rest, the next add takes it."""
    code = (
        "import os, sys, time, pathlib; from wuwan_runner.models import general_zh, store\n"
        "def hang(_, directory):\n"
        "    (directory / 'half').write_text('x'); (directory / 'sub').mkdir()\n"
        "    print('inside', flush=True); time.sleep(60)\n"
        "store.add(general_zh.source('mine', pathlib.Path(sys.argv[1]), print), hang)\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code, str(download)], stdout=subprocess.PIPE, text=True
    )
    with process:
        assert process.stdout is not None
        while "inside" not in process.stdout.readline():
            assert process.poll() is None
        process.kill()
    assert os.listdir(data_home) == [".mine.staging"]
    assert bundle.installed() == ["imagenet-zh"]
    (found,) = orphans.unfinished_models()
    assert found in checks.all_orphans(Timeouts(control=1.0))
    assert found.name == str(data_home / ".mine.staging")
    added = add(download)
    assert sorted(os.listdir(added.root)) == ["bundle.toml", "labels.tsv", "model.onnx"]
    (data_home / ".mine.abcd.removed").mkdir()
    (data_home / ".other.staging").mkdir()
    for left in orphans.unfinished_models():
        orphans.remove(left, Timeouts())
    assert os.listdir(data_home) == ["mine"]


def test_the_lock_is_not_taken_on_a_directory_that_has_gone(tmp_path: Path) -> None:
    """Between opening and locking, the other run may have finished."""
    path = tmp_path / ".mine.staging"
    path.mkdir()
    holder = os.open(path, os.O_RDONLY)
    fcntl.flock(holder, fcntl.LOCK_EX)
    assert store._lock(path) is None
    path.rename(tmp_path / "mine")
    os.close(holder)
    assert store._lock(path) is None


def test_a_conversion_that_takes_too_long(
    download: Path, data_home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is ended, with its children, and nothing is left."""
    monkeypatch.setattr(conversion, "DEADLINE", 0.5)
    monkeypatch.setattr(conversion, "_arguments", lambda *_: ["-c", "import time; time.sleep(60)"])
    began = time.monotonic()
    with pytest.raises(WorkerUnavailableError, match="was not done within"):
        add(download)
    assert time.monotonic() - began < 10
    assert os.listdir(data_home) == []


def test_where_to_convert(monkeypatch: pytest.MonkeyPatch) -> None:
    """Here if torch is here; otherwise both ways to have it are named."""
    said: list[str] = []
    assert conversion.choose("auto", "", said.append) is conversion.local
    monkeypatch.setattr(conversion, "REQUIRED", ("no_such_library",))
    monkeypatch.setenv("DOCKER_HOST", "unix:///nonexistent.sock")
    with pytest.raises(WorkerUnavailableError, match="no_such_library") as caught:
        conversion.choose("auto", "", said.append)
    assert "pip install" in caught.value.hint
    assert "wuwan image build" in caught.value.hint
    with pytest.raises(WorkerUnavailableError, match="no_such_library"):
        conversion.choose("local", "", said.append)
    monkeypatch.setenv("DOCKER_HOST", "tcp://127.0.0.1:9")
    with pytest.raises(WorkerUnavailableError, match="on another machine"):
        conversion.choose("docker", "", said.append)
