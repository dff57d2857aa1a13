# SPDX-License-Identifier: Apache-2.0
"""The integer tree, the independent reference and scikit-learn agree on every vector."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.tree import DecisionTreeClassifier

from o2cc.trees.check import check_tree
from o2cc.trees.importer import Imported, import_estimator, reference_of
from o2cc.trees.tree import IntegerTree, Leaf, Test
from o2cc.trees.vectors import boundary_words, make_vectors, random_vectors
from tests.unit.trees.made_trees import THRESHOLDS, build


@given(
    st.integers(1, 30), st.integers(1, 4), st.integers(0, 2**32), st.lists(THRESHOLDS, min_size=1, max_size=8)
)
@settings(max_examples=60)
def test_integers_agree_with_floats_on_boundaries(
    tests: int, features: int, seed: int, pool: list[float]
) -> None:
    imported = build(tests, features, 3, seed, pool=pool)
    vectors, _, _ = make_vectors(imported.tree, 400, seed)
    np.testing.assert_array_equal(imported.tree.apply(vectors), imported.reference.apply(vectors))


@pytest.mark.parametrize(("samples", "depth"), [(20, None), (400, None), (3000, 12)])
def test_all_three_agree_on_fitted_trees(samples: int, depth: int | None) -> None:
    random = np.random.default_rng(samples)
    words = random_vectors(samples, 6, random)
    model = DecisionTreeClassifier(max_depth=depth, random_state=1).fit(words, random.integers(0, 5, samples))
    imported = import_estimator(model, "model")
    vectors, _, _ = make_vectors(imported.tree, 20_000, 7)
    expected = model.predict(vectors)
    np.testing.assert_array_equal(imported.reference.predict(vectors), expected)
    np.testing.assert_array_equal(imported.tree.predict(vectors), expected)
    np.testing.assert_array_equal(imported.tree.apply(vectors), model.apply(vectors))


@pytest.mark.parametrize(("tests", "chain"), [(200, True), (12_499, False)])
def test_deep_and_large_trees_agree(tests: int, chain: bool) -> None:
    imported = build(tests, 10, 7, 3, chain=chain)
    assert imported.tree.depth == 200 or not chain
    assert check_tree(imported, 5000, 1, in_kernel=False).all_agreed


def test_a_wrong_threshold_is_found() -> None:
    imported = build(40, 3, 4, 9)
    nodes = list(imported.tree.nodes)
    depths = imported.tree.depths
    at = next(
        n for n, node in enumerate(nodes) if isinstance(node, Test) and node.threshold > 0 and depths[n] == 0
    )
    node = nodes[at]
    assert isinstance(node, Test)
    nodes[at] = Test(node.feature, node.threshold - 1, node.low, node.high, node.source_threshold)
    wrong = IntegerTree(tuple(nodes), imported.tree.classes, imported.tree.features)
    result = check_tree(Imported(wrong, reference_of(wrong)), 4000, 1, in_kernel=False)
    assert not result.all_agreed
    assert result.integers.mismatches


def test_steered_vectors_reach_the_test_that_they_are_for() -> None:
    imported = build(60, 40, 4, 11)  # many features: hardly any path contradicts itself
    nodes, _ = boundary_words(imported.tree)
    vectors, tested, pairs = make_vectors(imported.tree, 2 * len(nodes), 5)
    assert tested == pairs == len(nodes)
    reached = set(imported.tree.apply(vectors).tolist())
    leaves = {number for number, node in enumerate(imported.tree.nodes) if isinstance(node, Leaf)}
    assert len(reached) > 0.9 * len(leaves)


def test_vectors_of_the_wrong_shape_or_type_are_refused() -> None:
    tree = build(3, 2, 2, 1).tree
    with pytest.raises(ValueError, match="2 features"):
        tree.apply(np.zeros((4, 3), dtype=np.uint64))
    with pytest.raises(ValueError, match="uint64"):
        tree.apply(np.zeros((4, 2), dtype=np.int64))
