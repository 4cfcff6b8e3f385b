"""Ranking: sums of outputs that share a label, and the best of them."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from wuwan_worker.ranking import ACTIVATIONS, Ranking, excludes
from wuwan_worker.shared.labels import Label
from wuwan_worker.shared.protocol import LabelScore

DOG, CAT, BOOK, OTHER_BOOK = (
    Label("犬", "n1", ("动物",)),
    Label("猫", "n2", ("动物",)),
    Label("书籍", "b1", ()),
    Label("书籍", "b2", ()),
)


def _row(*values: float) -> np.ndarray:
    return np.array(values, np.float32)


def test_best_first_with_everything_a_record_needs() -> None:
    """Labels come best first, with score, id and broader terms."""
    found = Ranking([DOG, CAT]).top(_row(0.25, 0.75), top_k=5, min_score=0.0)
    assert found == [
        LabelScore("猫", 0.75, "n2", ("动物",)),
        LabelScore("犬", 0.25, "n1", ("动物",)),
    ]


def test_outputs_that_share_a_label_are_summed() -> None:
    """Two outputs for 书籍 together beat one likelier than either; the first one gives the id."""
    found = Ranking([BOOK, DOG, OTHER_BOOK]).top(_row(0.3, 0.4, 0.3), top_k=1, min_score=0.0)
    assert found == [LabelScore("书籍", 0.6, "b1")]


def test_outputs_that_do_not_exclude_each_other_are_not_summed() -> None:
    """Three that are sure by half do not make one that is sure."""
    assert excludes("softmax")
    assert not excludes("sigmoid")
    ranking = Ranking([BOOK, DOG, OTHER_BOOK], exclusive=False)
    found = ranking.top(_row(0.5, 0.25, 0.375), top_k=2, min_score=0.0)
    assert [(entry.label, entry.score) for entry in found] == [("书籍", 0.5), ("犬", 0.25)]


def test_sums_stay_probabilities() -> None:
    """Rounding in bf16 does not make a score of more than 1."""
    (found,) = Ranking([BOOK, OTHER_BOOK]).top(_row(0.75, 0.2539), top_k=1, min_score=0.0)
    assert found.score == 1.0


@pytest.mark.parametrize(("top_k", "count"), [(0, 0), (-1, 0), (1, 1), (2, 2), (10**9, 3)])
def test_top_k(top_k: int, count: int) -> None:
    """At most `top_k` labels, and never more than there are."""
    ranking = Ranking([DOG, CAT, BOOK])
    assert len(ranking.top(_row(0.1, 0.2, 0.7), top_k, 0.0)) == count


def test_min_score() -> None:
    """Labels under the limit are left out; one at the limit stays."""
    found = Ranking([DOG, CAT, BOOK]).top(_row(0.25, 0.5, 0.125), top_k=3, min_score=0.25)
    assert [label.label for label in found] == ["猫", "犬"]
    assert Ranking([DOG]).top(_row(0.5), top_k=3, min_score=0.6) == []


def test_equal_scores_come_in_the_order_of_the_outputs() -> None:
    """The order does not depend on the sorting's whims."""
    found = Ranking([BOOK, DOG, CAT]).top(_row(0.25, 0.25, 0.25), top_k=3, min_score=0.0)
    assert [label.id for label in found] == ["b1", "n1", "n2"]


def test_what_is_not_a_number_is_left_out() -> None:
    """A broken network gives fewer labels, not invalid JSON."""
    found = Ranking([DOG, CAT]).top(_row(float("nan"), 0.5), top_k=2, min_score=0.0)
    assert [label.label for label in found] == ["猫"]


@given(
    arrays.arrays(np.float32, 12, elements=st.floats(0, 1, width=32)),
    st.lists(st.integers(0, 5), min_size=12, max_size=12),
    st.integers(1, 8),
)
def test_against_the_obvious_way(row: np.ndarray, names: list[int], top_k: int) -> None:
    """Grouping and partial sorting give what summing and sorting everything would."""
    labels = [Label(str(name), str(place), ()) for place, name in enumerate(names)]
    sums: dict[str, float] = {}
    for label, value in zip(labels, row.tolist(), strict=True):
        sums[label.label] = sums.get(label.label, 0.0) + value
    expected = sorted((min(1.0, value) for value in sums.values()), reverse=True)[:top_k]
    found = Ranking(labels).top(row, top_k, 0.0)
    assert [item.score for item in found] == pytest.approx(expected, abs=2e-4)
    for item in found:
        assert item.score == pytest.approx(min(1.0, sums[item.label]), abs=2e-4)


def test_softmax_and_sigmoid_stand_any_output() -> None:
    """Outputs far outside of what exp can take give 0, 1 and what is between, never nan."""
    logits = np.array([[1000.0, 1000.0, -1000.0], [0.0, np.log(3.0), -1000.0]], np.float32)
    assert ACTIVATIONS["softmax"](logits) == pytest.approx(
        np.array([[0.5, 0.5, 0.0], [0.25, 0.75, 0.0]])
    )
    assert ACTIVATIONS["sigmoid"](logits) == pytest.approx(
        np.array([[1.0, 1.0, 0.0], [0.5, 0.75, 0.0]])
    )
    assert ACTIVATIONS["none"](logits) is logits
