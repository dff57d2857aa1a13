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
):
    """A tree of `tests` tests: random, or a chain as deep as it has tests."""
    random = np.random.default_rng(seed)
    left, right, feature, threshold, label = [-1], [-1], [-2], [-2.0], [0]
    open_leaves = [0]
    for _ in range(tests):
        at = open_leaves.pop(-1 if chain else int(random.integers(len(open_leaves))))
        for _side in range(2):
            left.append(-1)
            right.append(-1)
            feature.append(-2)
            threshold.append(-2.0)
            label.append(int(random.integers(classes)))
        left[at], right[at] = len(left) - 2, len(left) - 1
        feature[at] = int(random.integers(features))
        threshold[at] = float(random.choice(pool)) if pool else random_threshold(random)
        children = [left[at], right[at]]
        open_leaves += children[:: 1 if random.integers(2) else -1]
    reference = FloatTree(
        np.array(left),
        np.array(right),
        np.array(feature),
        np.array(threshold),
        np.array(label),
        features,
    )
    return Imported(tree_from_arrays(reference, [f"class {k}" for k in range(classes)]), reference)


def random_threshold(random: np.random.Generator) -> float:
    """As scikit-learn makes them: between two float32 casts of words."""
    words = random.integers(0, 2**64 - 1, 2, dtype=np.uint64) >> np.uint64(random.integers(0, 64))
    if random.integers(2):
        words |= np.uint64(0xFFFF_8000_0000_0000)
    a, b = words.astype(np.float32).astype(np.float64)
    return float(a / 2 + b / 2)
