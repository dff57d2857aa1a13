# SPDX-License-Identifier: Apache-2.0
"""Decoys and misfits: foreign objects in own sizes, and own ones in foreign sizes, so that neither size nor content alone
convinces a tree."""

from __future__ import annotations

import numpy as np

from o2cc.trees.decoys import decoys, misfits
from o2cc.trees.features import WordClass, feature_set
from o2cc.trees.tree import Feature, FeatureKind, Words

FEATURES = feature_set("classes", 3)
OWN, FOREIGN = 0, 1


def row(size: int, low: int) -> list[int]:
    """An object of that many bytes whose words are all small and equal."""
    has = [8 * index + 8 <= size for index in range(3)]
    kinds = [int(WordClass.SMALL) if there else 0 for there in has]
    lows = [low if there else 0 for there in has]
    return [size, *kinds, 0, 0, 0, *lows, 0, 0, 0]


def vectors(*rows: list[int]) -> Words:
    return np.array(rows, dtype=np.uint64)


def column(feature: Feature) -> int:
    return FEATURES.index(feature)


def test_a_decoy_has_an_own_size_and_foreign_words() -> None:
    """Catches decoys that keep their size, or that keep words past their end."""
    made, target = decoys(
        FEATURES,
        vectors(row(16, 1), row(24, 7), row(8, 9)),
        np.array([OWN, FOREIGN, FOREIGN]),
        np.array([True, False]),
        3,
    )
    assert target.tolist() == [FOREIGN, FOREIGN]
    for decoy in made.tolist():
        assert decoy[0] == 16
        assert decoy[column(Feature(FeatureKind.WORD_CLASS, 2))] == int(WordClass.MISSING)
        assert decoy[column(Feature(FeatureKind.WORD_CLASS, 0))] == int(WordClass.SMALL)
        assert decoy[column(Feature(FeatureKind.LOW, 0))] in (7, 9)
        assert decoy[column(Feature(FeatureKind.LOW, 2))] == 0
        assert decoy[column(Feature(FeatureKind.WORD_CLASS, 1))] != int(WordClass.MISSING)


def test_without_own_samples_or_words_there_are_none() -> None:
    only = vectors(row(24, 7))
    assert len(decoys(FEATURES, only, np.array([FOREIGN]), np.array([True, False]), 1)[0]) == 0
    sizes = feature_set("size", 3)
    both = vectors([8, 0], [16, 0])
    assert len(decoys(sizes, both, np.array([OWN, FOREIGN]), np.array([True, False]), 1)[0]) == 0


def test_a_misfit_has_own_words_and_a_size_that_its_type_never_has() -> None:
    """Catches misfits in a size that the own type does have, and those made of objects of caches of their own."""
    objects = vectors(row(8, 1), row(16, 2), row(24, 3), row(24, 7), row(16, 8))
    target = np.array([OWN, OWN, OWN, FOREIGN, FOREIGN])
    made, classes = misfits(
        FEATURES,
        np.repeat(objects, 20, axis=0),
        np.repeat(target, 20),
        np.array([True, False]),
        np.repeat([True, True, False, True, True], 20),
        3,
    )
    assert len(made), "24 bytes is a size that no own object of kmalloc's caches has"
    assert set(classes.tolist()) == {FOREIGN}
    assert {int(misfit[0]) for misfit in made} == {24}
    first, last = (column(Feature(FeatureKind.LOW, index)) for index in (0, 2))
    assert {int(misfit[first]) for misfit in made} == {1, 2}, "words of own objects from kmalloc's caches"
    assert {int(misfit[last]) for misfit in made} == {7}, "continued with the object whose size it has"


def test_there_is_no_misfit_where_every_size_is_an_own_one() -> None:
    both = vectors(row(16, 1), row(16, 2))
    made, _ = misfits(
        FEATURES, both, np.array([OWN, FOREIGN]), np.array([True, False]), np.array([True, True]), 1
    )
    assert len(made) == 0
