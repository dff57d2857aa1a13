# SPDX-License-Identifier: Apache-2.0
"""Made-up foreign objects that make a tree look closer before it calls an object the compartment's own.

A profile has some types of objects, a kernel has thousands, and a tree that has seen one type of that size need not look
at what it holds.  A decoy is a foreign object in the size of an own one: cut off where that ends, or continued with words
of another foreign object.  Decoys are only fitted on, never counted.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from o2cc.trees.features import WordClass
from o2cc.trees.tree import Feature, FeatureKind, Indices, Words

WORD_BYTES = 8


def decoys(
    features: Sequence[Feature], vectors: Words, target: Indices, own: NDArray[np.bool_], seed: int
) -> tuple[Words, Indices]:
    """Vectors and classes of as many decoys as there are foreign samples; a decoy has the class of the object it begins
    with.  ``own`` says of each class whether it is the compartment's.  None without own or foreign samples, or where
    the features do not say which words an object has."""
    is_own = own[target]
    foreign, owned = np.flatnonzero(~is_own), np.flatnonzero(is_own)
    places = {feature: column for column, feature in enumerate(features)}
    size = places.get(Feature(FeatureKind.SIZE))
    if size is None or Feature(FeatureKind.WORD_CLASS) not in places or not len(foreign) or not len(owned):
        return vectors[:0], target[:0]
    random = np.random.default_rng(seed)
    begin = random.choice(foreign, len(foreign))
    made, rest = vectors[begin], vectors[random.choice(foreign, len(foreign))]
    made[:, size] = _sizes_of_own(vectors[:, size], target, owned, len(made), random)
    for index, columns in _columns_of_words(places).items():
        kind = places[Feature(FeatureKind.WORD_CLASS, index)]
        has = (index + 1) * WORD_BYTES <= made[:, size]
        lacks = made[:, kind] == int(WordClass.MISSING)
        for column in columns:
            made[lacks, column] = rest[lacks, column]
            made[~has, column] = 0
        made[has & (made[:, kind] == int(WordClass.MISSING)), kind] = int(WordClass.ZERO)
    return made, target[begin]


def _columns_of_words(places: Mapping[Feature, int]) -> dict[int, list[int]]:
    """Columns by the word they are about, of words whose class is a feature."""
    columns: dict[int, list[int]] = {}
    for feature, column in places.items():
        if Feature(FeatureKind.WORD_CLASS, feature.index) in places and feature.kind not in (
            FeatureKind.SIZE,
            FeatureKind.CACHE_FLAGS,
        ):
            columns.setdefault(feature.index, []).append(column)
    return columns


def _sizes_of_own(
    sizes: Words, target: Indices, owned: Indices, count: int, random: np.random.Generator
) -> Words:
    """Sizes of own objects, every own class as often."""
    by_class = [owned[target[owned] == number] for number in np.unique(target[owned])]
    drawn = random.integers(0, len(by_class), count)
    result = np.zeros(count, dtype=np.uint64)
    for number, rows in enumerate(by_class):
        chosen = drawn == number
        result[chosen] = sizes[random.choice(rows, int(chosen.sum()))]
    return result
