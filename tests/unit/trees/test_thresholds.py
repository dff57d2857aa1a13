# SPDX-License-Identifier: Apache-2.0
"""Integer thresholds decide as float32 against float64 does, for every word."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from o2cc.trees.thresholds import NEVER, WORD_MAX, float32_neighbours, integer_threshold, integer_thresholds
from tests.unit.trees.made_trees import THRESHOLDS, closed_form


def float32_of(word: int) -> int:
    """The float32 nearest to a word, ties to even, as an exact integer: from the definition, without floats."""
    excess = max(word.bit_length() - 24, 0)
    kept, rest, half = word >> excess, word & ((1 << excess) - 1), (1 << excess) >> 1
    if excess and (rest > half or (rest == half and kept & 1)):
        kept += 1
    return kept << excess


@given(THRESHOLDS, st.integers(0, WORD_MAX))
@settings(max_examples=300)
def test_a_word_passes_exactly_when_its_float_does(threshold: float, word: int) -> None:
    integer = integer_threshold(threshold)
    for w in (word, *float32_neighbours(integer)):
        assert (w <= integer) == (float32_of(w) <= threshold), (threshold, w)


@given(THRESHOLDS)
def test_the_words_next_to_the_threshold_fall_on_different_sides(threshold: float) -> None:
    integer = integer_threshold(threshold)
    if integer > NEVER:
        assert float32_of(integer) <= threshold
    if integer < WORD_MAX:
        assert float32_of(integer + 1) > threshold


@pytest.mark.parametrize(
    ("threshold", "expected"),
    [
        (-0.5, NEVER),
        (-0.0, 0),
        (0.0, 0),
        (0.5, 0),
        (2.0**24 - 0.5, 2**24 - 1),
        (2.0**24, 2**24 + 1),  # 2**24 + 1 is halfway and rounds down to the even float
        (2.0**24 + 2, 2**24 + 2),  # 2**24 + 3 is halfway and rounds up
        (2.0**63, 2**63 + 2**39),
        (2.0**64 - 2.0**40, 2**64 - 2**39 - 1),
        (2.0**64, WORD_MAX),
        (1e300, WORD_MAX),
    ],
)
def test_known_thresholds(threshold: float, expected: int) -> None:
    assert integer_threshold(threshold) == expected


@given(THRESHOLDS)
@settings(max_examples=300)
def test_the_search_finds_the_closed_form(threshold: float) -> None:
    assert integer_threshold(threshold) == closed_form(threshold)


def test_many_thresholds_at_once_are_as_one_by_one() -> None:
    source = np.array([-1.0, 0.25, 7.0, 2.0**40, 2.0**70])
    words, exists = integer_thresholds(source)
    each = [integer_threshold(float(t)) for t in source]
    assert [int(w) if e else NEVER for w, e in zip(words, exists, strict=True)] == each


@given(st.integers(0, WORD_MAX))
def test_neighbours_are_words_and_hold_the_word_itself(word: int) -> None:
    around = float32_neighbours(word)
    assert word in around
    assert all(0 <= w <= WORD_MAX for w in around)
    assert list(around) == sorted(set(around))
