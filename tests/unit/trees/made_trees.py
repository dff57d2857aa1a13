# SPDX-License-Identifier: Apache-2.0
"""Trees for tests: of any shape, without fitting anything."""

from __future__ import annotations

import numpy as np
from hypothesis import strategies as st

from o2cc.trees.importer import Imported, tree_from_arrays
from o2cc.trees.reference import FloatTree

# Thresholds of every magnitude: between floats, at powers of two, negative, above every word.
THRESHOLDS = st.one_of(
    st.floats(min_value=0, max_value=2.0**65, allow_nan=False),
    st.floats(min_value=-10, max_value=10, allow_nan=False),
    st.integers(0, 64).flatmap(
        lambda bit: st.sampled_from([2.0**bit, 2.0**bit - 0.5, 2.0**bit * (1 + 2.0**-24)])
    ),
    st.integers(0, 2**64 - 1).map(float),
    st.integers(0, 2**64 - 1).map(lambda word: float(np.float32(word))),
    st.integers(2**64 - 2**42, 2**64 - 1).map(float),
    st.integers(0xFFFF_8000_0000_0000, 0xFFFF_FFFF_FFFF_FFFF).map(float),
)


def build(
    tests: int,
    features: int,
    classes: int,
    seed: int,
    *,
    chain: bool = False,
    pool: list[float] | None = None,
) -> Imported:
    """A tree of `tests` tests: random, or a chain as deep as it has tests.

    Thresholds come from `pool`; without one they lie where the path leaves words on both sides, so that no
    test is decided by the path.
    """
    random = np.random.default_rng(seed)
    left, right, feature, threshold, label = [-1], [-1], [-2], [-2.0], [0]
    open_leaves: list[tuple[int, dict[int, tuple[int, int]]]] = [(0, {})]
    for _ in range(tests):
        at, intervals = open_leaves.pop(-1 if chain else int(random.integers(len(open_leaves))))
        for _side in range(2):
            left.append(-1)
            right.append(-1)
            feature.append(-2)
            threshold.append(-2.0)
            label.append(int(random.integers(classes)))
        left[at], right[at] = len(left) - 2, len(left) - 1
        feature[at] = int(random.integers(features))
        low, high = intervals.get(feature[at], (0, 2**64 - 1))
        threshold[at] = float(random.choice(pool)) if pool else _threshold_within(low, high, random)
        split = min(max(closed_form(threshold[at]), low), high)
        children = [
            (left[at], {**intervals, feature[at]: (low, split)}),
            (right[at], {**intervals, feature[at]: (min(split + 1, high), high)}),
        ]
        # A chain goes on where more words are left, so that it can become long.
        longer_first = high - split > split - low if chain else bool(random.integers(2))
        open_leaves += children if longer_first else children[::-1]
    reference = FloatTree(
        np.array(left), np.array(right), np.array(feature), np.array(threshold), np.array(label), features
    )
    return Imported(tree_from_arrays(reference, [f"class {k}" for k in range(classes)]), reference)


def closed_form(threshold: float) -> int:
    """The integer threshold without a search: for making trees fast, and to hold the search against."""
    if threshold < 0:
        return -1
    if threshold < 2**24:
        return int(threshold)  # words up to there are floats themselves
    if threshold >= 2**64:
        return 2**64 - 1
    below = np.float32(threshold)
    if float(below) > threshold:
        below = np.nextafter(below, np.float32(0))
    ulp = int(np.nextafter(below, np.float32(np.inf))) - int(below)
    is_even = int(below) // ulp % 2 == 0
    return min(int(below) + ulp // 2 - (not is_even), 2**64 - 1)


def _threshold_within(low: int, high: int, random: np.random.Generator) -> float:
    """As scikit-learn makes them, between two float32 casts of words; of any magnitude that the interval has."""
    for _ in range(20):
        bits = int(random.integers(high.bit_length() + 1))
        word = int(random.integers(0, 2**64 - 1, dtype=np.uint64)) >> (64 - bits) if bits else 0
        if random.integers(3) == 0:
            word |= 0xFFFF_8000_0000_0000
        if random.integers(3) == 0:
            word = low + int(random.integers(0, 2**64 - 1, dtype=np.uint64)) % (high - low + 1)
        a = float(np.float32(word))
        candidate = a / 2 + float(np.nextafter(np.float32(a), np.float32(np.inf))) / 2
        if low <= closed_form(candidate) < high:
            return candidate
    return float(low)


def fitted(samples: int, features: int, classes: int, seed: int) -> Imported:
    """A tree that scikit-learn fits to random words and classes; it has more nodes than there are samples."""
    from sklearn.tree import DecisionTreeClassifier

    from o2cc.trees.importer import import_estimator
    from o2cc.trees.vectors import random_vectors

    random = np.random.default_rng(seed)
    words = random_vectors(samples, features, random)
    model = DecisionTreeClassifier(random_state=seed).fit(words, random.integers(0, classes, samples))
    return import_estimator(model, "fitted")
