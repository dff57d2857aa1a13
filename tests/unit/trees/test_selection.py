# SPDX-License-Identifier: Apache-2.0
"""Outcomes that are computed instead of jumped to: exact for every word, and only where nothing can overflow."""

from __future__ import annotations

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from o2cc.trees.compile import compile_tree
from o2cc.trees.interpret import Machine
from o2cc.trees.selection import selection_of, shift_of
from o2cc.trees.tree import Feature, FeatureKind, IntegerTree, Leaf, Test

WORD_MAX = 2**64 - 1
words = st.one_of(
    st.integers(0, WORD_MAX),
    st.builds(
        lambda bit, off: min(max((1 << bit) + off, 0), WORD_MAX), st.integers(0, 63), st.integers(-3, 3)
    ),
    st.builds(lambda low: 0xFFFF_8880_0000_0000 + low, st.integers(0, 2**40)),
)


def _chain(thresholds: list[int], labels: list[int], samples: list[int]) -> IntegerTree:
    """word <= t0 ? label : word <= t1 ? label : ..."""
    nodes: list[Test | Leaf] = []
    for index, threshold in enumerate(thresholds):
        nodes.append(Test(0, threshold, 2 * index + 1, 2 * index + 2, float(threshold)))
        nodes.append(Leaf(labels[index], 1.0, None, samples[index]))
    nodes.append(Leaf(labels[-1], 1.0, None, samples[-1]))
    classes = tuple(f"class {number}" for number in range(max(labels) + 1))
    return IntegerTree(tuple(nodes), classes, (Feature(FeatureKind.WORD, 0),))


@given(
    st.lists(words.filter(lambda w: w < WORD_MAX), min_size=1, max_size=4, unique=True),
    st.lists(st.integers(0, 9), min_size=5, max_size=5),
    st.lists(st.integers(0, 40), min_size=5, max_size=5),
    st.lists(words, max_size=6),
)
@example([2**63 - 1, 2**63], [0, 1, 2, 3, 4], [1] * 5, [])
@example([2**31 - 1], [3, 2, 0, 0, 0], [1] * 5, [2**32])
@example([0], [9, 0, 0, 0, 0], [1] * 5, [])
def test_every_word_gets_its_outcome(
    thresholds: list[int], labels: list[int], samples: list[int], others: list[int]
) -> None:
    """Catches a difference that overflows, a shift by a bit too many, and a mask of the wrong sign."""
    ordered = sorted(thresholds)
    tree = _chain(ordered, labels[: len(ordered) + 1], samples[: len(ordered) + 1])
    machine = Machine(compile_tree(tree, features=(0,)))
    near = {min(max(t + off, 0), WORD_MAX) for t in ordered for off in (-1, 0, 1)}
    for word in sorted({*near, 0, 2**63 - 1, 2**63, WORD_MAX, *others}):
        place = next((number for number, t in enumerate(ordered) if word <= t), len(ordered))
        assert machine.run([word])[0] == labels[place], hex(word)


def test_a_test_that_is_hard_to_predict_makes_no_jump() -> None:
    even = compile_tree(_chain([1023, 2047], [0, 1, 2], [8, 4, 4]), features=(0,))
    jumps = [i for i in even.subprograms[0].code.instructions if i.target is not None]
    assert len(jumps) == 1, "that of the first test"
    lopsided = compile_tree(_chain([1023, 2047], [0, 1, 2], [80, 100, 1]), features=(0,))
    assert len([i for i in lopsided.subprograms[0].code.instructions if i.target is not None]) == 2


@pytest.mark.parametrize(
    ("threshold", "interval", "possible"),
    [
        (5, (0, 2**63 - 1), True),
        (2**63 + 4, (2**63, WORD_MAX), True),
        (2**40 - 1, (0, WORD_MAX), True),  # shifted, so that the sign bit is free
        (2**40, (0, WORD_MAX), False),
        (4, (0, WORD_MAX), False),
    ],
)
def test_a_difference_that_could_overflow_is_not_made(
    threshold: int, interval: tuple[int, int], possible: bool
) -> None:
    assert (selection_of(threshold, interval, half=False, upper=False) is not None) == possible


def test_a_shift_keeps_the_answer() -> None:
    assert [shift_of(threshold) for threshold in (0, 1, 3, 2**40 - 1, 2**40)] == [0, 1, 2, 40, 0]
