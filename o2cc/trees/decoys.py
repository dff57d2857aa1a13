# SPDX-License-Identifier: Apache-2.0
"""Made-up foreign objects that make a tree look closer before it calls an object the compartment's own.

A profile has some types of objects, a kernel has thousands, and a tree that has seen one type of that size need not look
at what it holds: a decoy is a foreign object in the size of an own one.  Nor need it look at the size once a word has
told what it has seen: a misfit is an own object in the size of a foreign one, which its own type never has.  Both are cut
off where that size ends, or continued with words of another object.  They are only fitted on, never counted.
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
    foreign, owned = np.flatnonzero(~own[target]), np.flatnonzero(own[target])
    if not _can_be_made(features) or not len(foreign) or not len(owned):
        return vectors[:0], target[:0]
    random = np.random.default_rng(seed)
    begin, rest = random.choice(foreign, len(foreign)), random.choice(foreign, len(foreign))
    sizes = vectors[_evenly_by_class(target, owned, len(begin), random), _size_column(features)]
    return _resized(features, vectors[begin], vectors[rest], sizes), target[begin]


def misfits(
    features: Sequence[Feature],
    vectors: Words,
    target: Indices,
    own: NDArray[np.bool_],
    general: NDArray[np.bool_],
    seed: int,
) -> tuple[Words, Indices]:
    """Vectors and classes of at most as many misfits as there are foreign samples; a misfit has the class of the object
    whose size it has.

    ``own`` as for `decoys`; ``general`` says of each sample whether it is from one of kmalloc's caches.  Only such are
    taken: the size that kmalloc gives a struct hardly ever changes, that of a cache of its own does with every kernel.
    None where `decoys` has none.
    """
    foreign, owned = np.flatnonzero(~own[target]), np.flatnonzero(own[target] & general)
    if not _can_be_made(features) or not len(foreign) or not len(owned):
        return vectors[:0], target[:0]
    size = _size_column(features)
    random = np.random.default_rng(seed)
    around, begin = (
        random.choice(foreign, len(foreign)),
        _evenly_by_class(target, owned, len(foreign), random),
    )
    proper = {(int(target[row]), int(vectors[row, size])) for row in owned}
    kept = np.array(
        [(int(target[b]), int(vectors[a, size])) not in proper for a, b in zip(around, begin, strict=True)]
    )
    around, begin = around[kept], begin[kept]
    return _resized(features, vectors[begin], vectors[around], vectors[around, size]), target[around]


def _size_column(features: Sequence[Feature]) -> int:
    return list(features).index(Feature(FeatureKind.SIZE))


def _can_be_made(features: Sequence[Feature]) -> bool:
    """Whether the features say how large an object is and which words it has."""
    return Feature(FeatureKind.SIZE) in features and Feature(FeatureKind.WORD_CLASS) in features


def _resized(features: Sequence[Feature], begin: Words, rest: Words, sizes: Words) -> Words:
    """Objects in other sizes: cut off, or continued with the words of `rest`; a word that neither has is zero."""
    places = {feature: column for column, feature in enumerate(features)}
    made = begin.copy()
    made[:, _size_column(features)] = sizes
    for index, columns in _columns_of_words(places).items():
        kind = places[Feature(FeatureKind.WORD_CLASS, index)]
        has = (index + 1) * WORD_BYTES <= sizes
        lacks = made[:, kind] == int(WordClass.MISSING)
        for column in columns:
            made[lacks, column] = rest[lacks, column]
            made[~has, column] = 0
        made[has & (made[:, kind] == int(WordClass.MISSING)), kind] = int(WordClass.ZERO)
    return made


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


def _evenly_by_class(target: Indices, rows: Indices, count: int, random: np.random.Generator) -> Indices:
    """So many of the rows, every class as often."""
    by_class = [rows[target[rows] == number] for number in np.unique(target[rows])]
    drawn = random.integers(0, len(by_class), count)
    result = np.zeros(count, dtype=np.int64)
    for number, of_class in enumerate(by_class):
        chosen = drawn == number
        result[chosen] = random.choice(of_class, int(chosen.sum()))
    return result
