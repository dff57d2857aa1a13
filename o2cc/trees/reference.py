# SPDX-License-Identifier: Apache-2.0
"""What scikit-learn predicts, written again from its definition, to judge the integer tree by.

This shares no code with `o2cc.trees.thresholds` and `o2cc.trees.tree`: inputs are cast to float32 as numpy
does and compared with float64 thresholds, as `Tree._apply_dense` of sklearn's `tree/_tree.pyx` does.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class FloatTree:
    """A fitted tree as scikit-learn keeps it, arrays of shape (nodes,).

    `children_left[i] == children_right[i] == -1` makes node i a leaf; `label` is its class number (of tests:
    not read).  `n_features` is the width of the vectors.
    """

    children_left: NDArray[np.int64]
    children_right: NDArray[np.int64]
    feature: NDArray[np.int64]
    threshold: NDArray[np.float64]
    label: NDArray[np.int64]
    n_features: int

    def apply(self, vectors: NDArray[np.uint64]) -> NDArray[np.int64]:
        """Number of the leaf that each vector reaches; `vectors` is uint64 of shape (n, n_features)."""
        inputs = vectors.astype(np.float32)
        reached = np.zeros(len(inputs), dtype=np.int64)
        rows = np.flatnonzero(self.children_left[reached] != -1)
        while len(rows):
            at = reached[rows]
            goes_left = inputs[rows, self.feature[at]].astype(np.float64) <= self.threshold[at]
            reached[rows] = np.where(goes_left, self.children_left[at], self.children_right[at])
            rows = rows[self.children_left[reached[rows]] != -1]
        return reached

    def predict(self, vectors: NDArray[np.uint64]) -> NDArray[np.int64]:
        """Class number of each vector."""
        labels: NDArray[np.int64] = self.label[self.apply(vectors)]
        return labels
