# SPDX-License-Identifier: Apache-2.0
"""How good predictions are, class by class.  Pure arithmetic on arrays; nothing here trains."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from o2cc.trees.tree import Indices

Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class ClassQuality:
    """Quality of one class: `samples` are the true ones, `predicted` those that were called so."""

    name: str
    samples: int
    predicted: int
    correct: int

    @property
    def precision(self) -> float:
        """Share of those called so that are so; 0 when none was."""
        return self.correct / self.predicted if self.predicted else 0.0

    @property
    def recall(self) -> float:
        """Share of the true ones that were called so; 0 when there are none."""
        return self.correct / self.samples if self.samples else 0.0

    @property
    def f1(self) -> float:
        """Harmonic mean of precision and recall."""
        total = self.samples + self.predicted
        return 2 * self.correct / total if total else 0.0


@dataclass(frozen=True, slots=True)
class Interval:
    """An estimate with the ends of its 95% interval."""

    value: float
    low: float
    high: float


@dataclass(frozen=True, slots=True)
class CalibrationBin:
    """Samples whose leaf confidence is in [low, high): mean confidence, and how many were right."""

    low: float
    high: float
    samples: int
    confidence: float
    accuracy: float


@dataclass(frozen=True, slots=True)
class Operating:
    """What happens when only leaves whose held-out bound (or whose confidence) is at least `limit` may decide.

    `coverage` is the share of samples that are decided.  `unsafe_accepts` is the share of foreign samples
    that are called own, `false_rejects` the share of own samples that are called foreign.
    """

    limit: float
    coverage: float
    unsafe_accepts: float
    false_rejects: float


@dataclass(frozen=True)
class Quality:
    """Everything about one set of predictions; `confusion[i][j]`: samples of class i that were called j."""

    classes: tuple[ClassQuality, ...]
    macro_precision: Interval
    macro_recall: Interval
    macro_f1: Interval
    accuracy: float
    confusion: tuple[tuple[int, ...], ...]
    calibration: tuple[CalibrationBin, ...]
    operating: tuple[Operating, ...]
    by_confidence: tuple[Operating, ...]
    samples: int


def confusion_matrix(true: Indices, predicted: Indices, classes: int) -> NDArray[np.int64]:
    """Counts of shape (classes, classes), rows true, columns predicted."""
    matrix = np.zeros((classes, classes), dtype=np.int64)
    np.add.at(matrix, (true, predicted), 1)
    return matrix


def _macro(matrix: NDArray[np.int64], least: int) -> tuple[float, float, float]:
    """Macro precision, recall and F1 over classes with at least `least` true samples."""
    samples, predicted, correct = matrix.sum(axis=1), matrix.sum(axis=0), np.diag(matrix)
    counted = samples >= max(least, 1)
    if not counted.any():
        return 0.0, 0.0, 0.0
    precision = correct / np.maximum(predicted, 1)
    recall = correct / np.maximum(samples, 1)
    f1 = 2 * correct / np.maximum(samples + predicted, 1)
    return float(precision[counted].mean()), float(recall[counted].mean()), float(f1[counted].mean())


def evaluate(
    true: Indices,
    predicted: Indices,
    confidence: Floats,
    trust: Floats,
    groups: Sequence[object] | NDArray[np.object_],
    names: Sequence[str],
    *,
    own: frozenset[str] = frozenset(),
    least: int = 1,
    repeats: int = 500,
    seed: int = 0,
) -> Quality:
    """Quality of predictions; arrays of shape (n,), `groups` are the boots that the bootstrap draws.

    `confidence` is held against accuracy, `trust` decides at the operating points.
    Macro figures are over classes with at least `least` samples.  Intervals are percentiles of `repeats`
    draws of whole boots with replacement, since samples of one boot are not independent.
    """
    size = len(names)
    matrix = confusion_matrix(true, predicted, size)
    _, group = np.unique(np.asarray(groups, dtype=str), return_inverse=True)
    count = int(group.max()) + 1 if len(group) else 0
    by_group = np.zeros((count, size, size), dtype=np.int64)
    np.add.at(by_group, (group, true, predicted), 1)
    random = np.random.default_rng(seed)
    draws = np.array(
        [
            _macro(by_group[random.integers(0, count, count)].sum(axis=0), least)
            for _ in range(repeats if count else 0)
        ]
    ).reshape(-1, 3)
    centre = _macro(matrix, least)
    intervals = [
        Interval(centre[k], float(np.percentile(draws[:, k], 2.5)), float(np.percentile(draws[:, k], 97.5)))
        if len(draws)
        else Interval(centre[k], 0.0, 1.0)
        for k in range(3)
    ]
    return Quality(
        tuple(
            ClassQuality(name, int(matrix[k].sum()), int(matrix[:, k].sum()), int(matrix[k, k]))
            for k, name in enumerate(names)
        ),
        macro_precision=intervals[0],
        macro_recall=intervals[1],
        macro_f1=intervals[2],
        accuracy=float(np.trace(matrix) / max(len(true), 1)),
        confusion=tuple(tuple(row) for row in matrix.tolist()),
        calibration=calibration(true == predicted, confidence),
        operating=operating_points(true, predicted, trust, names, own),
        by_confidence=operating_points(true, predicted, confidence, names, own),
        samples=len(true),
    )


def calibration(correct: NDArray[np.bool_], confidence: Floats) -> tuple[CalibrationBin, ...]:
    """Confidence against accuracy in ten bins; empty bins are left out."""
    edges = np.linspace(0.0, 1.0, 11)
    place = np.clip(np.digitize(confidence, edges) - 1, 0, 9)
    return tuple(
        CalibrationBin(
            float(edges[k]),
            float(edges[k + 1]),
            int((place == k).sum()),
            float(confidence[place == k].mean()),
            float(correct[place == k].mean()),
        )
        for k in range(10)
        if (place == k).any()
    )


OPERATING_LIMITS = (0.0, 0.5, 0.8, 0.9, 0.95, 0.99, 0.999, 1.0)


def operating_points(
    true: Indices, predicted: Indices, trust: Floats, names: Sequence[str], own: frozenset[str]
) -> tuple[Operating, ...]:
    """Unsafe accepts and false rejects at several limits of trust.

    With `own` empty each class is the own one in turn and the rates are over all such turns.
    """
    owns = [np.array([name in own for name in names])] if own else list(np.eye(len(names), dtype=np.bool_))
    points = []
    for limit in OPERATING_LIMITS:
        decided = trust >= limit
        accepts = foreign = rejects = mine = 0
        for is_own in owns:
            truly, called = is_own[true], is_own[predicted]
            foreign += int((~truly).sum())
            mine += int(truly.sum())
            accepts += int((~truly & called & decided).sum())
            rejects += int((truly & ~called & decided).sum())
        coverage = float(decided.mean()) if len(decided) else 0.0
        points.append(Operating(limit, coverage, accepts / max(foreign, 1), rejects / max(mine, 1)))
    return tuple(points)


def precision_lower_bound(correct: NDArray[np.int64], total: NDArray[np.int64]) -> Floats:
    """Lower end of the exact (Clopper-Pearson) 95% interval of correct/total; 0 where total is 0."""
    from scipy.stats import beta

    bound = beta.ppf(0.025, np.maximum(correct, 1), total - correct + 1)
    return np.where(correct > 0, bound, 0.0).astype(np.float64)
