# SPDX-License-Identifier: Apache-2.0
"""Other model families beside the tree: how good they are, and what they would cost in BPF.

They are only compared, never shipped.  BPF has no floating point, so costs assume weights as 64-bit integers
and are estimates: what each step takes at least, without the checks that the verifier may ask for.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from o2cc.trees.features import WordClass
from o2cc.trees.tree import Feature, FeatureKind, IntegerTree, Leaf, Words

MULTIPLY_ADD = 3
"""Instructions of one product in a sum: load or move, multiply, add."""
TABLE_ADD = 4
"""Instructions of one weight chosen by a word's class: scale the class, add the base, load, add."""
COMPARE = 3
"""Instructions to keep the larger of two scores and its number."""


@dataclass(frozen=True)
class FamilyResult:
    """Predictions of one family on held-out rows, and its estimated cost in BPF instructions.

    `confidence` is the share or probability that the model gives its answer; `trust` is what decides whether
    the answer may be acted on: for trees the leaf's held-out bound, for other families the confidence.
    """

    predicted: NDArray[np.int64]
    confidence: NDArray[np.float64]
    trust: NDArray[np.float64]
    instructions: int


def dense_inputs(features: Sequence[Feature], vectors: Words) -> NDArray[np.float32]:
    """Inputs for models that multiply: one-hot classes of words, logarithms of everything else."""
    columns = []
    for column, feature in enumerate(features):
        values = vectors[:, column]
        if feature.kind is FeatureKind.WORD_CLASS:
            columns.append((values[:, None] == np.arange(len(WordClass), dtype=np.uint64)).astype(np.float32))
        else:
            columns.append((np.log2(values.astype(np.float64) + 1) / 64).astype(np.float32)[:, None])
    return np.concatenate(columns, axis=1)


def _sum_cost(features: Sequence[Feature], outputs: int) -> int:
    """Cost of `outputs` weighted sums over the dense inputs."""
    per_output = sum(TABLE_ADD if f.kind is FeatureKind.WORD_CLASS else MULTIPLY_ADD for f in features)
    return outputs * per_output


def run_forest(
    vectors: Words, target: NDArray[np.int64], held_out: Words, cost_of_tree: Any, depth: int, seed: int
) -> FamilyResult:
    """A random forest of 25 trees; `cost_of_tree` gives the instructions of a fitted scikit-learn tree."""
    from sklearn.ensemble import RandomForestClassifier

    model = RandomForestClassifier(
        25, max_depth=depth, class_weight="balanced_subsample", random_state=seed, n_jobs=1
    ).fit(vectors, target)
    shares = model.predict_proba(held_out)
    cost = sum(cost_of_tree(tree) + MULTIPLY_ADD for tree in model.estimators_) + COMPARE * len(
        model.classes_
    )
    confidence = shares.max(axis=1)
    return FamilyResult(model.classes_[shares.argmax(axis=1)], confidence, confidence, cost)


def run_linear(
    features: Sequence[Feature], vectors: Words, target: NDArray[np.int64], held_out: Words, seed: int
) -> FamilyResult:
    """Multinomial logistic regression."""
    from sklearn.linear_model import LogisticRegression

    model = LogisticRegression(max_iter=60, class_weight="balanced", random_state=seed)
    model.fit(dense_inputs(features, vectors), target)
    shares = model.predict_proba(dense_inputs(features, held_out))
    outputs = len(model.classes_) if len(model.classes_) > 2 else 1
    cost = _sum_cost(features, outputs) + COMPARE * outputs
    confidence = shares.max(axis=1)
    return FamilyResult(model.classes_[shares.argmax(axis=1)], confidence, confidence, cost)


def run_network(
    features: Sequence[Feature], vectors: Words, target: NDArray[np.int64], held_out: Words, seed: int
) -> FamilyResult:
    """A neural net with one hidden layer of 32."""
    from sklearn.neural_network import MLPClassifier

    hidden = 32
    model = MLPClassifier((hidden,), max_iter=30, random_state=seed)
    model.fit(dense_inputs(features, vectors), target)
    shares = model.predict_proba(dense_inputs(features, held_out))
    outputs = len(model.classes_)
    cost = _sum_cost(features, hidden) + hidden * (2 + outputs * MULTIPLY_ADD) + COMPARE * outputs
    confidence = shares.max(axis=1)
    return FamilyResult(model.classes_[shares.argmax(axis=1)], confidence, confidence, cost)


def run_tree(tree: IntegerTree, held_out: Words, instructions: int) -> FamilyResult:
    """What a trained tree says; a leaf without a bound is never trusted."""
    reached = tree.apply(held_out)
    confidence = np.array([node.confidence if isinstance(node, Leaf) else 0.0 for node in tree.nodes])
    trust = np.array([node.bound or 0.0 if isinstance(node, Leaf) else 0.0 for node in tree.nodes])
    return FamilyResult(tree.arrays.label[reached], confidence[reached], trust[reached], instructions)
