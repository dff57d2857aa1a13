# SPDX-License-Identifier: Apache-2.0
"""The tree as IR classifies objects in memory as the tree over extracted features does."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from o2cc.diagnostics import DiagnosticError, SourceFile
from o2cc.ir import nodes as ir
from o2cc.ir.interpreter import Interpreter
from o2cc.ir.machine import Machine
from o2cc.ir.parser import parse_module
from o2cc.ir.printer import print_module
from o2cc.ir.verifier import require_valid
from o2cc.trees.features import LAYOUT_FIELDS, Layout, Objects, WordClass, extract
from o2cc.trees.lower import lower_tree
from o2cc.trees.tree import Feature, FeatureKind, IntegerTree, Leaf, Test
from tests.unit.trees.made_trees import build

ADDRESS = 0xFF11_0000_0000_1000
KERNEL = {
    "stext": 0xFFFF_FFFF_8100_0000,
    "etext": 0xFFFF_FFFF_8200_0000,
    "end": 0xFFFF_FFFF_8400_0000,
    "page_offset": 0xFF11_0000_0000_0000,
    "vmalloc": 0xFFA0_0000_0000_0000,
    "vmemmap": 0xFFD4_0000_0000_0000,
    "max_pfn": 1 << 20,
}
OWN = {
    "own_text": 0xFFFF_FFFF_C010_0000,
    "own_text_end": 0xFFFF_FFFF_C012_0000,
    "own_constants": 0xFFFF_FFFF_C012_0000,
    "own_constants_end": 0xFFFF_FFFF_C013_0000,
    "own_data": 0xFFFF_FFFF_C014_0000,
    "own_data_end": 0xFFFF_FFFF_C015_0000,
}
LAYOUT = dataclasses.replace(Layout.of_kernel(**KERNEL), **OWN)
FEATURES = (
    Feature(FeatureKind.SIZE),
    Feature(FeatureKind.CACHE_FLAGS),
    *(Feature(FeatureKind.WORD_CLASS, index) for index in range(5)),
    *(
        Feature(kind, index)
        for kind in (FeatureKind.WORD, FeatureKind.SELF_OFFSET, FeatureKind.LOW, FeatureKind.HIGH)
        for index in range(5)
    ),
)
BOUNDS = dataclasses.astuple(LAYOUT)
WORDS = st.one_of(
    st.integers(0, 2**64 - 1),
    st.sampled_from([0, 1, 2**16 - 1, 2**16, 2**64 - 4095, 2**64 - 4096, ADDRESS, ADDRESS + 8, ADDRESS + 40]),
    st.sampled_from([0xDEAD_0000_0000_0100, 0xDEAD_0000_0000_0122, 2**48 - 1, 5 << 32 | 7]),
    st.sampled_from(BOUNDS).flatmap(lambda bound: st.integers(bound - 1, bound + 1)),
    st.binary(min_size=8, max_size=8).map(
        lambda text: int.from_bytes(bytes(b & 0x7F | 0x20 for b in text), "little")
    ),
)


def interpreter(tree: IntegerTree, **options: Any) -> Interpreter:
    own = {name: ir.Constant(bound) for name, bound in OWN.items()}
    lowered = lower_tree(tree, own=lambda code: own, **options)
    module = ir.Module("m", (), tables=lowered.tables, functions=lowered.functions)
    require_valid(module)
    text = print_module(module)
    assert parse_module(SourceFile("m.ir", text)) == module
    places = {name: 0xFFFF_FFFF_8300_0000 + 8 * number for number, name in enumerate(KERNEL)}
    symbols = {"_stext": KERNEL["stext"], "_etext": KERNEL["etext"], "_end": KERNEL["end"]}
    for symbol, key in (
        ("page_offset_base", "page_offset"),
        ("vmalloc_base", "vmalloc"),
        ("vmemmap_base", "vmemmap"),
        ("max_pfn", "max_pfn"),
    ):
        symbols[symbol] = places[key]
    machine = Machine(module, symbols=symbols)
    for key, place in places.items():
        machine.memory.write_word(place, KERNEL[key])
    return Interpreter(machine)


def put(run: Interpreter, words: list[int]) -> None:
    for number, word in enumerate(words):
        run.machine.memory.write_word(ADDRESS + 8 * number, word)


def objects(words: list[int], size: int, flags: int) -> Objects:
    return Objects(
        np.array([words], dtype=np.uint64),
        np.array([[8 * k + 8 <= size for k in range(len(words))]]),
        np.array([ADDRESS], dtype=np.uint64),
        np.array([size], dtype=np.uint64),
        np.array([flags], dtype=np.uint64),
        np.array([BOUNDS], dtype=np.uint64),
    )


@given(
    st.integers(1, 25),
    st.integers(0, 2**32),
    st.lists(
        st.tuples(st.lists(WORDS, min_size=5, max_size=5), st.integers(1, 48), st.integers(0, 2**33)),
        max_size=12,
    ),
)
@settings(max_examples=60)
def test_the_ir_classifies_as_the_tree(
    tests: int, seed: int, samples: list[tuple[list[int], int, int]]
) -> None:
    pool = [
        0.5,
        1.5,
        2.5,
        4.5,
        5.5,
        7.5,
        9.5,
        11.5,
        16.0,
        30.0,
        2.0**16,
        2.0**40,
        float(ADDRESS),
        1.8446744e19,
    ]
    made = build(tests, len(FEATURES), 4, seed, pool=pool).tree
    tree = IntegerTree(made.nodes, made.classes, FEATURES)
    run = interpreter(tree)
    for words, size, flags in samples:
        put(run, words)
        expected = int(tree.predict(extract(FEATURES, objects(words, size, flags)))[0])
        assert run.run_function("tree", ADDRESS, size, flags).value == expected


@given(WORDS, st.integers(0, 6), st.integers(0, 60))
@settings(max_examples=300)
def test_the_class_of_any_word(word: int, index: int, size: int) -> None:
    nodes = (Test(0, 0, 1, 2, 0.5), Leaf(0), Leaf(1))
    tree = IntegerTree(nodes, ("a", "b"), (Feature(FeatureKind.WORD_CLASS, index),))
    run = interpreter(tree)
    words = [word] * 7
    put(run, words)
    expected = extract((Feature(FeatureKind.WORD_CLASS, index),), objects(words, size, 0))[0, 0]
    assert run.run_function("word_class", ADDRESS, size, index).value == expected


def test_areas_are_resolved_as_the_layout_is() -> None:
    tree = IntegerTree(
        (Test(0, 3, 1, 2, 3.5), Leaf(0), Leaf(1)), ("a", "b"), (Feature(FeatureKind.WORD_CLASS, 0),)
    )
    run = interpreter(tree)
    run.run_function("resolve_areas", 0)
    assert [run.machine.tables["areas"].load(0, name) for name in LAYOUT_FIELDS] == list(BOUNDS)


def test_a_raw_tree_needs_no_areas() -> None:
    made = build(20, 3, 3, 1).tree
    assert not lower_tree(made).tables


def test_a_large_tree_becomes_several_functions() -> None:
    made = build(6000, 5, 4, 3).tree
    tree = IntegerTree(
        made.nodes, made.classes, tuple(Feature(FeatureKind.WORD, index) for index in range(5))
    )
    run = interpreter(tree)
    assert len(run.machine.module.functions) > 2
    vectors = np.random.default_rng(1).integers(0, 2**64 - 1, (50, 5), dtype=np.uint64)
    for words, expected in zip(vectors.tolist(), tree.predict(vectors).tolist(), strict=True):
        put(run, words)
        assert run.run_function("tree", ADDRESS, 40, 0).value == expected


def test_a_chain_that_would_nest_too_deep_is_refused() -> None:
    with pytest.raises(DiagnosticError, match="O2C0714"):
        lower_tree(build(9000, 4000, 4, 3, chain=True).tree)


def test_a_policy_says_what_a_leaf_answers() -> None:
    nodes = (
        Test(0, 7, 1, 2, 7.5),
        Leaf(1, 0.999, 0.9),
        Test(0, 9, 3, 4, 9.5),
        Leaf(1, 0.5, None),
        Leaf(0, 1.0, None),
    )
    tree = IntegerTree(nodes, ("a", "b"), (Feature(FeatureKind.WORD, 0),))

    def sure(leaf: Leaf) -> int:
        return leaf.label + 1 if leaf.confidence >= 0.99 else 0

    run = interpreter(tree, outcome=sure)
    for word, expected in ((3, 2), (8, 0), (20, 1)):
        put(run, [word])
        assert run.run_function("tree", ADDRESS, 8, 0).value == expected


def test_every_class_has_a_number_of_its_own_block() -> None:
    tree = IntegerTree(
        (Test(0, 3, 1, 2, 3.5), Leaf(0), Leaf(1)), ("a", "b"), (Feature(FeatureKind.WORD_CLASS, 0),)
    )
    function = next(f for f in lower_tree(tree).functions if f.name == "word_class")
    given_back = {
        block.terminator.value.value
        for block in function.blocks
        if isinstance(block.terminator, ir.Return) and isinstance(block.terminator.value, ir.Constant)
    }
    assert given_back == set(map(int, WordClass))
