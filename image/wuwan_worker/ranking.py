"""From probabilities to the labels of a record."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from wuwan_worker.bundle import Label


class Ranking:
    """Sums the probabilities of outputs that share a label, and picks the best.

    Several outputs may stand for one label (in `general-zh` classes 0-63 are all 书籍), so a
    label's probability is the sum of theirs.
    """

    def __init__(self, labels: Sequence[Label]) -> None:
        """`labels`: one for each output, in order."""
        first: dict[str, int] = {}
        groups = [first.setdefault(label.label, len(first)) for label in labels]
        unique: dict[int, Label] = {}
        for group, label in zip(groups, labels, strict=True):
            unique.setdefault(group, label)
        self.labels = [unique[index] for index in range(len(first))]
        # Outputs sorted by group, and where each group begins: what `add.reduceat` wants.
        self._order = np.argsort(np.asarray(groups), kind="stable")
        self._starts = np.searchsorted(np.asarray(groups)[self._order], np.arange(len(first)))
        self._one_to_one = len(first) == len(labels)

    def top(
        self, probabilities: NDArray[np.float32], top_k: int, min_score: float
    ) -> list[dict[str, Any]]:
        """The best labels of one image, best first.

        Args:
            probabilities: (outputs,).
            top_k: at most so many labels.
            min_score: labels under this score are left out.

        Returns:
            ``[{"label", "score", "id", "broader"}, …]``; scores are rounded to 4 decimals.
        """
        scores = probabilities
        if not self._one_to_one:
            # Rounding (bf16), or outputs that do not exclude each other, may sum to more than 1.
            scores = np.minimum(np.add.reduceat(probabilities[self._order], self._starts), 1.0)
        count = min(top_k, len(scores))
        if count <= 0:
            return []
        # All that may be among the best: equal scores are common in bf16, and which of them come
        # first must not depend on how many are asked for.
        least = np.partition(scores, len(scores) - count)[len(scores) - count]
        best = np.flatnonzero(scores >= least)
        best = best[np.argsort(-scores[best], kind="stable")][:count]
        return [
            {
                "label": label.label,
                "score": round(score, 4),
                "id": label.id,
                "broader": list(label.broader),
            }
            for label, score in (
                (self.labels[index], float(scores[index])) for index in best.tolist()
            )
            if score >= min_score
        ]
