"""From probabilities to the labels of a record."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from wuwan_worker.shared.protocol import LabelScore

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from numpy.typing import NDArray

    from wuwan_worker.shared.labels import Label


def softmax(logits: NDArray[np.float32]) -> NDArray[np.float32]:
    """(…, classes), each row of the result sums to 1."""
    powers = np.exp(logits - logits.max(axis=-1, keepdims=True))
    probabilities: NDArray[np.float32] = powers / powers.sum(axis=-1, keepdims=True)
    return probabilities


def sigmoid(logits: NDArray[np.float32]) -> NDArray[np.float32]:
    """Each output for itself: for classes that do not exclude each other."""
    # By tanh, which does not overflow for outputs far below 0.
    probabilities: NDArray[np.float32] = 0.5 * np.tanh(0.5 * logits) + 0.5
    return probabilities


# Of a manifest's `output.activation`. Here and not in the graph, where it would run in bf16: three
# digits are too few for the sum of thousands of outputs.
ACTIVATIONS: dict[str, Callable[[NDArray[np.float32]], NDArray[np.float32]]] = {
    "none": lambda probabilities: probabilities,
    "softmax": softmax,
    "sigmoid": sigmoid,
}


def excludes(activation: str) -> bool:
    """Whether of all outputs one is true, so that probabilities of several may be added.

    Those of a sigmoid are each for itself: of several the likeliest one counts.
    """
    return activation != "sigmoid"


class GroupSum:
    """Sums columns that belong together.

    Several outputs may stand for one label (in `general-zh` outputs 0 to 63 are all 书籍), so a
    label's probability is the sum of theirs; or the largest, where they do not exclude each other.
    """

    def __init__(self, groups: Sequence[int], *, exclusive: bool = True) -> None:
        """`groups`: for each column its group; groups are numbered from 0 without gaps."""
        self._join = np.add if exclusive else np.maximum
        numbers = np.asarray(groups, np.intp)
        self.count = int(numbers.max()) + 1
        self._trivial = np.array_equal(numbers, np.arange(len(numbers)))
        # Columns in the order of their groups, and where each group begins: what `reduceat` wants.
        self._order = np.argsort(numbers, kind="stable")
        self._starts = np.searchsorted(numbers[self._order], np.arange(self.count))

    def __call__(self, values: NDArray[np.float32]) -> NDArray[np.float32]:
        """(…, columns) to (…, groups)."""
        if self._trivial:
            return values
        sums: NDArray[np.float32] = self._join.reduceat(
            values[..., self._order], self._starts, axis=-1
        )
        # Rounding (bf16) may sum to more than 1.
        return np.minimum(sums, 1.0, out=sums)

    def members(self, group: int) -> NDArray[np.intp]:
        """The columns of a group, in order."""
        end = self._starts[group + 1] if group + 1 < self.count else len(self._order)
        return self._order[self._starts[group] : end]


class Ranking:
    """Picks the best labels of one level."""

    def __init__(self, labels: Sequence[Label], *, exclusive: bool = True) -> None:
        """
        Args:
            labels: one for each row of the level, in order. Rows of equal labels become one.
            exclusive: see `excludes`.
        """
        groups: dict[str, int] = {}
        rows = [groups.setdefault(label.label, len(groups)) for label in labels]
        self._sum = GroupSum(rows, exclusive=exclusive)
        self._labels = labels

    def top(self, rows: NDArray[np.float32], top_k: int, min_score: float) -> list[LabelScore]:
        """The best labels of one image, best first.

        Args:
            rows: (rows,), a probability for each row of the level.
            top_k: at most so many labels.
            min_score: labels under this score are left out.

        Returns:
            The labels; scores are rounded to 4 decimals.
        """
        scores = self._sum(rows)
        count = min(top_k, len(scores))
        if count <= 0:
            return []
        # All that may be among the best: equal scores are common in bf16, and which of them come
        # first must not depend on how many are asked for.
        least = np.partition(scores, len(scores) - count)[len(scores) - count]
        best = np.flatnonzero(scores >= least)
        best = best[np.argsort(-scores[best], kind="stable")][:count]
        return [
            self._entry(rows, group, score)
            for group, score in zip(best.tolist(), scores[best].tolist(), strict=True)
            if score >= min_score
        ]

    def _entry(self, rows: NDArray[np.float32], group: int, score: float) -> LabelScore:
        members = self._sum.members(group)
        label = self._labels[members[0] if len(members) == 1 else members[rows[members].argmax()]]
        return LabelScore(label.label, round(score, 4), label.id, label.broader, label.synonyms)
