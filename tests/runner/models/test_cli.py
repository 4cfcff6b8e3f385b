"""`wuwan model`, `wuwan labels`, `--level`: the whole program."""

from __future__ import annotations

import json
import os
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from tests.runner.models.conftest import write_checkpoint
from tests.runner.models.hub import Hub, serving
from wuwan_worker.shared import bundle


def lines(done: Any) -> list[dict[str, Any]]:
    """The JSON objects on standard output."""
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


def test_from_a_download_to_labels(
    wuwan: Any, download: Path, data_home: Path, photos: Path
) -> None:
    """Added, listed, verified, used at each level, damaged, removed."""
    done = wuwan("model", "add", "mine", "--from", download)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(b"mine is added: 1,000 outputs, for openvino, in ")
    assert b"meta_info.txt is not the list that is known (1,000 lines); using it" in done.stderr
    listed = lines(wuwan("model", "list", "--json"))
    assert [model["name"] for model in listed] == ["imagenet-zh", "mine"]
    (shown,) = lines(wuwan("model", "show", "mine", "--json"))
    assert shown == listed[1]
    assert (shown["levels"], shown["activation"]) == (["coarse", "mid", "fine"], "none")
    assert b"input          name images; size 224;" in wuwan("model", "show", "mine").stdout
    done = wuwan("model", "verify")
    assert done.stdout.decode().splitlines()[1] == "mine: 2 files are as they were, 1,000 outputs"

    tag = ("tag", "--runner=local", "--top-k=1", "-q", photos / "chelsea.png", "--model=mine")
    (record,) = lines(wuwan(*tag, "--level", "fine"))
    (label,) = record["labels"]
    assert record["model"] == "mine"
    name, identity = label["synonyms"]
    assert label["label"] == f"{name}/{identity}"
    assert label["broader"] == [name, "动物"]
    assert identity.startswith("n021")
    (record,) = lines(wuwan(*tag))
    assert record["labels"][0]["label"] == "动物"
    assert record["labels"][0]["score"] > 0.9  # the sum over all animals

    (data_home / "mine" / "labels.tsv").write_text("other")
    done = wuwan("model", "verify", "mine")
    assert done.returncode == 1
    assert b"wuwan: bundle mine: labels.tsv has sha256" in done.stderr
    checks = json.loads(wuwan("doctor", "--json").stdout)["checks"]
    (check,) = [check for check in checks if check["name"] == "model mine"]
    assert check["outcome"] == "fail"
    assert "wuwan model remove mine" in check["advice"]
    assert wuwan("model", "remove", "mine").stdout == b"mine is removed\n"
    assert wuwan(*tag).returncode == 4


def test_any_classifier(wuwan: Any, tmp_path: Path, photos: Path) -> None:
    """--arch, --weights, --labels, and nothing less; the labels are the file's."""
    checkpoint = write_checkpoint(tmp_path / "net.pth")
    labels = tmp_path / "labels.txt"
    labels.write_text("".join(f"标签 {number // 2}\n" for number in range(1000)))
    parts = ["--arch", "resnet18", "--weights", checkpoint, "--labels", labels]
    for missing in range(0, 6, 2):
        done = wuwan("model", "add", "mine", *parts[:missing], *parts[missing + 2 :])
        assert done.returncode == 2, done.stderr
    done = wuwan("model", "add", "mine", *parts, "--from", tmp_path)
    assert done.returncode == 2
    assert wuwan("model", "add", "mine", *parts, "--activation", "relu").returncode == 2
    done = wuwan("model", "add", "mine", *parts, "--activation", "sigmoid")
    assert done.returncode == 0, done.stderr
    coffee = photos / "coffee.png"  # espresso, output 967: the second one of its label
    (record,) = lines(wuwan("tag", "--runner=local", "-q", coffee, "--model=mine"))
    best = record["labels"][0]
    assert (best["label"], best["id"], best["broader"]) == ("标签 483", "966", [])
    done = wuwan("tag", "--runner=local", "--level=fine", photos, "--model=mine")
    assert (done.returncode, done.stdout) == (2, b"")
    assert (
        b"wuwan: model mine has no level 'fine'\n  hint: its labels have no levels" in done.stderr
    )


def test_what_is_refused_is_one_line(
    wuwan: Any, download: Path, data_home: Path, tmp_path: Path
) -> None:
    """A wrong checkpoint, a short or absent label file, a bad name: exit code, line, no remains."""
    short = tmp_path / "short"
    short.mkdir()
    write_checkpoint(short / "pytorch_model.pt", classes=54092)
    (short / "meta_info.txt").write_text("0\ta\tb\tc\t1\t1\n")
    cases = [
        (
            1,
            ("mine", "--from", short),
            "pytorch_model.pt with 1 labels: the head has 54092 outputs",
        ),
        (1, ("mine", "--from", tmp_path), f"{tmp_path} has no file pytorch_model.pt"),
        (2, ("a/b", "--from", download), "'a/b' cannot be a model's name"),
        (2, ("imagenet-zh", "--from", download), "the name of a model that comes with wuwan"),
        (2, ("mine",), "what is to be added?"),
    ]
    for code, arguments, problem in cases:
        done = wuwan("model", "add", *arguments)
        assert (done.returncode, done.stdout) == (code, b""), done.stderr
        said = [
            line
            for line in done.stderr.decode().splitlines()
            if not line.startswith("  hint") and "not the list" not in line
        ]
        assert problem in said[-1]
        assert len(said) <= 2  # where it is read, and what is wrong
    assert not data_home.exists() or os.listdir(data_home) == []


def test_an_interrupted_add_leaves_nothing(download: Path, data_home: Path) -> None:
    """Ctrl-C while the checkpoint is read: no half bundle, no process that goes on reading."""
    write_checkpoint(download / "pytorch_model.pt", hang=True)
    command = [sys.executable, "-m", "wuwan_cli", "model", "add", "mine", "--from", str(download)]
    half, deadline = data_home / ".mine.staging" / "half", time.monotonic() + 30
    with subprocess.Popen(command, stderr=subprocess.DEVNULL) as process:
        while not (half.exists() and half.read_text()) and time.monotonic() < deadline:
            time.sleep(0.02)
        child = int(half.read_text())
        process.send_signal(signal.SIGINT)
    assert process.returncode == -signal.SIGINT
    assert os.listdir(data_home) == []
    with pytest.raises(ProcessLookupError):
        os.kill(child, 0)


def test_pull(wuwan: Any, download: Path, tmp_path: Path) -> None:
    """From the hub to a bundle: cut, resumed by a second run, added, and the download goes."""
    files = {path.name: path.read_bytes() for path in download.iterdir()}
    padded = json.loads(files["pytorch_model.pt"]) | {"padding": "x" * 3_000_000}
    files["pytorch_model.pt"] = json.dumps(padded).encode()
    cache = tmp_path / "cache" / "wuwan" / "downloads" / "general-zh"
    with serving(Hub(files, sums=False)) as hub:
        pull = ("model", "pull", "general-zh", "--endpoint", hub.endpoint)
        hub.errors = [403]
        assert wuwan(*pull).returncode == 1
        hub.cut_after, hub.cuts = 1_000_000, 99
        hub.honours_range = False  # so it comes no further than that
        done = wuwan(*pull)
        assert done.returncode == 1
        assert (
            b"the connection was cut\n  hint: the same command goes on with what is" in done.stderr
        )
        assert b"wuwan model add general-zh --from DIRECTORY" in done.stderr
        assert sorted(os.listdir(cache)) == ["meta_info.txt", "pytorch_model.pt.part"]
        hub.cuts, hub.honours_range = 0, True
        done = wuwan(*pull)
        assert done.returncode == 0, done.stderr
    assert hub.asked[-1] == ("pytorch_model.pt", "bytes=1000000-")
    said = done.stderr.decode()
    assert "the hub names no sha256 for pytorch_model.pt" in said
    assert "pytorch_model.pt: 3 of 3 MB" in said
    bundle.load(bundle.find("general-zh")).verify()
    assert not cache.exists()
    done = wuwan(*pull)
    assert done.returncode == 2
    assert b"there is a model general-zh already" in done.stderr


def test_pull_without_a_network(wuwan: Any) -> None:
    """One line, and what to do; only general-zh can be pulled."""
    done = wuwan("model", "pull", "general-zh", "--endpoint", "http://127.0.0.1:9")
    assert done.returncode == 1
    assert b"wuwan: cannot reach http://127.0.0.1:9: Connection refused\n  hint: " in done.stderr
    done = wuwan("model", "pull", "other")
    assert done.returncode == 2
    assert b"there is: general-zh" in done.stderr


def test_labels_are_listed_and_searched(wuwan: Any) -> None:
    """Columns for pipes; a search finds labels, broader terms and other names of these."""
    listed = wuwan("labels").stdout.decode().splitlines()
    assert len(listed) == 1000
    assert listed[0].split("\t") == ["丁鲷", "", "鱼|动物", "n01440764"]
    dogs = lines(wuwan("labels", "--grep", "狗", "--json"))
    assert {"吉娃娃", "金毛寻回犬"} <= {label["label"] for label in dogs}
    assert len(dogs) >= 119  # all that are 犬
    assert wuwan("labels", "--grep", "nothing at all").stdout == b""
    assert wuwan("labels", "--model", "nope").returncode == 1
    assert wuwan("labels", "--level", "fine").returncode == 2


def test_labels_of_general_zh(wuwan: Any, tmp_path: Path) -> None:
    """9,980 coarse labels within half a second; synonyms; width and case make no difference."""
    data = Path(os.environ.get("WUWAN_TEST_DATA", "/nonexistent"), "general-zh")
    if not (data / "meta_info.txt").is_file():
        pytest.skip("WUWAN_TEST_DATA names no directory with general-zh/meta_info.txt")
    (tmp_path / "meta_info.txt").write_bytes((data / "meta_info.txt").read_bytes())
    write_checkpoint(tmp_path / "pytorch_model.pt", classes=54092)
    done = wuwan("model", "add", "general-zh", "--from", tmp_path)
    assert done.returncode == 0, done.stderr
    assert b"is not the list" not in done.stderr
    times = []  # of the processor: how busy the machine is makes no difference
    for _ in range(3):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        done = wuwan("labels", "--model=general-zh")
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        times.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
    listed = done.stdout.decode().splitlines()
    assert len(listed) == len(set(listed)) == 9980
    assert min(times) < 0.5
    assert listed[0] == "书籍\t\t\tcoarse-0"
    found = lines(wuwan("labels", "--model=general-zh", "--grep", "ｐｏｌｏ衫", "--json"))
    assert [label["label"] for label in found] == ["POLO衫"]
    (plants,) = lines(wuwan("labels", "--model=general-zh", "--grep", "绿植/花卉", "--json"))
    assert plants["synonyms"] == ["绿植", "花卉"]
    fine = lines(wuwan("labels", "--model=general-zh", "--level=fine", "--grep=黑犀侠", "--json"))
    assert fine[0]["broader"] == ["铠甲勇士", "卡通形象"]
