"""The main job on 200 real photos: every runner gives the right labels, and the same ones."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path
    from subprocess import CompletedProcess

TOP_1, TOP_5 = 0.84, 0.95


def tagged(
    wuwan: Callable[..., CompletedProcess[bytes]], sample: Path, *options: str
) -> list[dict[str, Any]]:
    """The records of all photos, with the file's name in place of its path."""
    done = wuwan("tag", sample / "photos", "--quiet", *options)
    assert done.returncode == 0, done.stderr.decode()
    records = [json.loads(line) for line in done.stdout.splitlines()]
    return [record | {"path": record["path"].rpartition("/")[2]} for record in records]


def check(records: list[dict[str, Any]], sample: Path) -> None:
    """One record for each photo, in order, and as accurate as the network is."""
    rows = [line.split("\t") for line in (sample / "photos.tsv").read_text().splitlines()]
    truth = {name: wordnet_id for name, wordnet_id, _ in rows}
    assert [record["path"] for record in records] == sorted(truth)
    ids = {r["path"]: [label["id"] for label in r["labels"]] for r in records}
    assert sum(ids[name][0] == right for name, right in truth.items()) >= TOP_1 * len(truth)
    assert sum(right in ids[name] for name, right in truth.items()) >= TOP_5 * len(truth)


def test_local_labels(wuwan: Callable[..., CompletedProcess[bytes]], sample: Path) -> None:
    """A local worker labels 200 photos of known classes right."""
    check(tagged(wuwan, sample, "--runner", "local"), sample)


def test_fast_and_exact_agree(wuwan: Callable[..., CompletedProcess[bytes]], sample: Path) -> None:
    """The fast preprocessing gives the reference's top label for at least 99 % of the photos."""
    fast = tagged(wuwan, sample, "--runner", "local")
    exact = tagged(wuwan, sample, "--runner", "local", "--exact")
    same = [a["labels"][0]["id"] == b["labels"][0]["id"] for a, b in zip(fast, exact, strict=True)]
    assert sum(same) >= 0.99 * len(same)
    check(exact, sample)


@pytest.mark.docker
@pytest.mark.parametrize("channel", ["socket", "exec"])
def test_docker_gives_the_same(
    wuwan: Callable[..., CompletedProcess[bytes]], sample: Path, docker_image: str, channel: str
) -> None:
    """A container gives the labels that a local process gives, by either channel."""
    options = ("--runner", "docker", "--image", docker_image, "--channel", channel)
    contained = tagged(wuwan, sample, *options)
    check(contained, sample)
    local = tagged(wuwan, sample, "--runner", "local")
    for one, other in zip(contained, local, strict=True):
        assert one["path"] == other["path"]
        assert [e["label"] for e in one["labels"]] == [e["label"] for e in other["labels"]]
