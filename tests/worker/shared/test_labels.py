"""Labels at several levels, and what is asked for at each."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest

from tests.worker.shared.test_bundle import MANIFEST
from wuwan_worker.ranking import GroupSum, Ranking
from wuwan_worker.shared import bundle, labels
from wuwan_worker.shared.bundle import BundleError
from wuwan_worker.shared.labels import Label, Level

if TYPE_CHECKING:
    from pathlib import Path

LEVELS = """
[labels]
levels = ["coarse", "mid", "fine"]
default = "coarse"
[files]
"""
TABLE = [
    ("水果", "苹果", "红苹果"),
    ("水果", "苹果", "青苹果"),
    ("电子产品", "苹果", "手机"),
    ("绿植/花卉", "绿植/花卉", "玫瑰"),
    ("水果", "梨", "梨"),
]


@pytest.fixture
def levels(tmp_path: Path) -> dict[str, Level]:
    """A bundle with three levels, one ambiguous term, one of synonyms, one its own broader term."""
    manifest = MANIFEST.replace("[files]", LEVELS).replace("classes = 2", "classes = 5")
    (tmp_path / "bundle.toml").write_text(manifest)
    lines = ["\t".join((str(index), *row)) for index, row in enumerate(TABLE)]
    (tmp_path / "labels.tsv").write_text("\n".join(["index\tcoarse\tmid\tfine", *lines, ""]))
    return labels.read(bundle.load(tmp_path))


def test_each_level_has_its_labels_with_their_broader_terms(levels: dict[str, Level]) -> None:
    """Equal ways down share a row; equal labels share an id, whichever way led to them."""
    assert list(levels) == ["coarse", "mid", "fine"]
    assert levels["coarse"] == Level(
        [0, 0, 1, 2, 0],
        [
            Label("水果", "coarse-0"),
            Label("电子产品", "coarse-2"),
            Label("绿植/花卉", "coarse-3", (), ("绿植", "花卉")),
        ],
    )
    assert levels["mid"] == Level(
        [0, 0, 1, 2, 3],
        [
            Label("苹果", "mid-0", ("水果",)),
            Label("苹果", "mid-0", ("电子产品",)),
            Label("绿植/花卉", "mid-3", (), ("绿植", "花卉")),
            Label("梨", "mid-4", ("水果",)),
        ],
    )
    assert levels["fine"].rows == [0, 1, 2, 3, 4]
    assert levels["fine"].labels[2] == Label("手机", "fine-2", ("苹果", "电子产品"))
    assert levels["fine"].labels[4] == Label("梨", "fine-4", ("水果",))


def test_a_broader_term_is_named_once(tmp_path: Path) -> None:
    """Where two levels above have the same name; and one level alone is read as all are."""
    manifest = MANIFEST.replace("[files]", LEVELS).replace("classes = 2", "classes = 1")
    (tmp_path / "bundle.toml").write_text(manifest)
    (tmp_path / "labels.tsv").write_text("index\tcoarse\tmid\tfine\n0\t木舟\t木舟\t龙舟\n")
    model = bundle.load(tmp_path)
    fine = labels.read_level(model, "fine")
    assert fine == labels.read(model)["fine"]
    assert fine.labels[0].broader == ("木舟",)


@pytest.mark.parametrize(
    ("scores", "broader"),
    [((0.2, 0.2, 0.3), "水果"), ((0.1, 0.1, 0.3), "电子产品")],
)
def test_an_ambiguous_label_has_the_broader_term_of_its_likeliest_way(
    levels: dict[str, Level], scores: tuple[float, float, float], broader: str
) -> None:
    """苹果 is summed over fruit and electronics, and is a fruit where the fruit weighs more."""
    outputs = np.array([*scores, 0.05, 0.05], np.float32)
    level = levels["mid"]
    (best,) = Ranking(level.labels).top(GroupSum(level.rows)(outputs), 1, 0.0)
    assert best.label == "苹果"
    assert best.score == pytest.approx(sum(scores), abs=1e-4)
    assert best.broader == (broader,)


def test_synonyms_come_with_their_label(levels: dict[str, Level]) -> None:
    """One label with several names is one label."""
    outputs = np.array([0, 0, 0, 1, 0], np.float32)
    level = levels["coarse"]
    best = Ranking(level.labels).top(GroupSum(level.rows)(outputs), 2, 0.5)
    assert [(label.label, label.synonyms) for label in best] == [("绿植/花卉", ("绿植", "花卉"))]


def test_sums_over_a_batch() -> None:
    """(n, columns) to (n, groups), whatever the order of the columns."""
    sums = GroupSum([1, 0, 1, 2])
    values = np.array([[0.1, 0.2, 0.3, 0.4], [0.9, 0.0, 0.9, 0.0]], np.float32)
    assert sums(values) == pytest.approx(np.array([[0.2, 0.4, 0.4], [0.0, 1.0, 0.0]]))
    assert [sums.members(group).tolist() for group in range(3)] == [[1], [0, 2], [3]]


def test_columns_must_be_those_of_the_manifest(tmp_path: Path) -> None:
    """A file for other levels is refused."""
    (tmp_path / "bundle.toml").write_text(MANIFEST.replace("[files]", LEVELS))
    (tmp_path / "labels.tsv").write_text("index\tlabel\tid\tbroader\n0\ta\tb\t\n1\tc\td\t\n")
    with pytest.raises(BundleError, match="index coarse mid fine"):
        labels.read(bundle.load(tmp_path))
