# SPDX-License-Identifier: Apache-2.0
"""Test vectors for trees: random ones, and ones that sit on the thresholds of tests that they reach.

Random words alone hardly ever come near a threshold, and hardly ever reach a deep node.  So half of the
vectors are steered: for a chosen test, every feature is drawn from the interval that the path to it leaves,
and the tested feature is set to a word at which the decision may turn.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from o2cc.trees.thresholds import WORD_MAX, float32_neighbours
from o2cc.trees.tree import IntegerTree, Test, Words

CELLS_AT_ONCE = 4_000_000
"""Words of steered vectors made at one time; bounds the memory of wide trees."""


def random_vectors(count: int, features: int, random: np.random.Generator) -> Words:
    """Words of the sizes that kernel objects hold, uint64 of shape (count, features).

    A quarter each: any word; any bit length; a kernel address; a power of two or a word next to it.
    """
    shape = (count, features)
    any_word = random.integers(0, WORD_MAX, size=shape, dtype=np.uint64, endpoint=True)
    length = random.integers(0, 64, size=shape, dtype=np.uint64)
    kind = random.integers(0, 4, size=shape)
    kernel = any_word | np.uint64(0xFFFF_8000_0000_0000)
    step = random.integers(0, 3, size=shape, dtype=np.uint64) - np.uint64(1)  # -1, 0 or 1, modulo 2**64
    power = (np.uint64(1) << length) + step
    return np.where(
        kind == 0, any_word, np.where(kind == 1, any_word >> length, np.where(kind == 2, kernel, power))
    )


def boundary_words(tree: IntegerTree) -> tuple[NDArray[np.int64], Words]:
    """Every (test, word) at which a decision may turn: arrays of node numbers and of words, shape (m,)."""
    known: dict[int, tuple[int, ...]] = {}
    nodes: list[int] = []
    words: list[int] = []
    for number, node in enumerate(tree.nodes):
        if isinstance(node, Test):
            around = known.setdefault(node.threshold, float32_neighbours(node.threshold))
            nodes += [number] * len(around)
            words += around
    return np.array(nodes, dtype=np.int64), np.array(words, dtype=np.uint64)


def steered_vectors(
    tree: IntegerTree, nodes: NDArray[np.int64], words: Words, random: np.random.Generator
) -> Words:
    """Vectors that reach each test of `nodes` where its path allows it, with `words` as the tested feature.

    `nodes` and `words` have shape (n,); returns uint64 of shape (n, features).
    """
    width = len(tree.features)
    parent = np.full(len(tree.nodes), -1, dtype=np.int64)
    arrays = tree.arrays
    for number, node in enumerate(tree.nodes):
        if isinstance(node, Test):
            parent[node.low] = parent[node.high] = number
    low = np.zeros((len(nodes), width), dtype=np.uint64)
    high = np.full((len(nodes), width), WORD_MAX, dtype=np.uint64)
    rows, at = np.arange(len(nodes)), nodes.copy()
    while len(rows):
        above = parent[at]
        inner = above >= 0
        rows, at, above = rows[inner], at[inner], above[inner]
        feature, threshold = arrays.feature[above], arrays.threshold[above]
        is_low = arrays.low[above] == at
        low_rows, low_features = rows[is_low], feature[is_low]
        high[low_rows, low_features] = np.minimum(high[low_rows, low_features], threshold[is_low])
        high_rows, high_features = rows[~is_low], feature[~is_low]
        past = np.minimum(threshold[~is_low], np.uint64(WORD_MAX - 1)) + np.uint64(1)
        low[high_rows, high_features] = np.maximum(low[high_rows, high_features], past)
        at = above
    high = np.maximum(low, high)
    span = high - low
    offset = random.integers(0, WORD_MAX, size=span.shape, dtype=np.uint64, endpoint=True)
    bounded = np.where(span == WORD_MAX, offset, offset % np.maximum(span + np.uint64(1), np.uint64(1)))
    edge = random.integers(0, 4, size=span.shape)
    vectors = low + np.where(edge == 0, np.uint64(0), np.where(edge == 1, span, bounded))
    vectors[np.arange(len(nodes)), arrays.feature[nodes]] = words
    return vectors


def make_vectors(tree: IntegerTree, count: int, seed: int, batch: int = 0) -> tuple[Words, int, int]:
    """`count` vectors, half of them steered, in a random order.

    Batches 0, 1, ... of equal `count` and `seed` go through the pairs of `boundary_words` one after the other.
    Returns the vectors, how many pairs the batches so far have used, and how many pairs there are.
    """
    random = np.random.default_rng((seed, batch))
    width = len(tree.features)
    nodes, words = boundary_words(tree)
    steered_count = count - count // 2 if len(nodes) else 0
    parts = [random_vectors(count - steered_count, width, random)]
    if steered_count:
        permutation = np.random.default_rng(seed).permutation(len(nodes))
        order = permutation[(batch * steered_count + np.arange(steered_count)) % len(nodes)]
        step = max(1, CELLS_AT_ONCE // width)
        for start in range(0, steered_count, step):
            chosen = order[start : start + step]
            parts.append(steered_vectors(tree, nodes[chosen], words[chosen], random))
    vectors = np.concatenate(parts)
    return vectors[random.permutation(len(vectors))], min((batch + 1) * steered_count, len(nodes)), len(nodes)
