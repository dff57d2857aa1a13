# SPDX-License-Identifier: Apache-2.0
"""Compiled trees answer as the tree does; forms, passes and sizes."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from o2cc.diagnostics import DiagnosticError
from o2cc.trees.bytecode import Op
from o2cc.trees.compile import LARGEST_SUBPROGRAM, CompiledTree, Form, compile_tree, optimize
from o2cc.trees.graph import Choice, Outcome
from o2cc.trees.importer import Imported
from o2cc.trees.interpret import Machine
from o2cc.trees.tree import Leaf
from o2cc.trees.vectors import make_vectors
from tests.unit.trees.made_trees import THRESHOLDS, build


def mismatches(imported: Imported, compiled: CompiledTree, count: int, seed: int) -> int:
    """Vectors on which the compiled program differs from the reference."""
    vectors, _, _ = make_vectors(imported.tree, count, seed)
    expected = imported.reference.predict(vectors).tolist()
    machine = Machine(compiled)
    got = [machine.run(row)[0] for row in vectors[:, list(compiled.features)].tolist()]
    return sum(a != b for a, b in zip(got, expected, strict=True))


@given(
    st.integers(0, 40),
    st.integers(1, 6),
    st.integers(1, 4),
    st.integers(0, 2**32),
    st.lists(THRESHOLDS, min_size=1, max_size=12),
    st.booleans(),
    st.sampled_from([None, Form.TABLE]),
)
@settings(max_examples=120)
def test_compiled_trees_agree(
    tests: int, features: int, classes: int, seed: int, pool: list[float], chain: bool, form: Form | None
) -> None:
    imported = build(tests, features, classes, seed, chain=chain, pool=pool)
    assert mismatches(imported, compile_tree(imported.tree, form=form), 200, seed) == 0


def test_a_chain_of_two_hundred_tests() -> None:
    imported = build(200, 12, 5, 2, chain=True)
    assert mismatches(imported, compile_tree(imported.tree), 1000, 2) == 0


def test_a_tree_whose_jumps_do_not_reach_is_split() -> None:
    imported = build(12_499, 300, 9, 4)
    compiled = compile_tree(imported.tree)
    assert compiled.form is Form.SPLIT
    assert all(part.code.position <= LARGEST_SUBPROGRAM for part in compiled.subprograms)
    assert mismatches(imported, compiled, 1000, 3) == 0
    for part in compiled.subprograms:
        part.code.encode(
            {other.name: 0 for other in compiled.subprograms}
        )  # raises when a jump does not reach


def test_the_budget_turns_branches_into_a_table_and_says_so() -> None:
    imported = build(100, 5, 3, 5)
    branches = compile_tree(imported.tree)
    assert branches.form is Form.BRANCHES
    table = compile_tree(imported.tree, budget=branches.instruction_count - 1)
    assert table.form is Form.TABLE
    assert table.instruction_count <= 30
    assert any(f"{branches.instruction_count - 1} are allowed" in step for step in table.steps)
    assert mismatches(imported, table, 500, 1) == 0
    assert compile_tree(imported.tree, budget=branches.instruction_count).form is Form.BRANCHES


def test_a_form_that_does_not_fit_is_refused() -> None:
    with pytest.raises(DiagnosticError, match="O2C0714"):
        compile_tree(build(10, 2, 2, 1).tree, form=Form.SPLIT)


def test_tests_that_the_path_decides_are_folded() -> None:
    imported = build(300, 1, 4, 8, pool=[3.0, 9.0, 2.0**40, -2.0, 1e30])
    graph, _ = optimize(imported.tree)
    # One feature and five thresholds, two of which no word or every word passes: three tests can be needed.
    assert sum(isinstance(node, Choice) for node in graph.nodes) <= 3


def test_equal_subtrees_are_merged() -> None:
    graph, _ = optimize(build(200, 3, 2, 8).tree)
    keys = [
        (n.feature, n.threshold, n.low, n.high) if isinstance(n, Choice) else n.value for n in graph.nodes
    ]
    assert len(set(keys)) == len(keys)
    assert sum(isinstance(node, Outcome) for node in graph.nodes) <= 2
    assert all(node.low != node.high for node in graph.nodes if isinstance(node, Choice))


def test_a_tree_of_one_answer_is_two_instructions() -> None:
    assert compile_tree(build(50, 3, 1, 8).tree).instruction_count == 2


def test_outcomes_can_be_other_than_classes() -> None:
    imported = build(30, 3, 4, 6)

    def is_class_one(leaf: Leaf) -> int:
        return int(leaf.label == 1)

    compiled = compile_tree(imported.tree, outcome=is_class_one)
    vectors, _, _ = make_vectors(imported.tree, 300, 1)
    machine = Machine(compiled)
    got = [machine.run(row)[0] for row in vectors[:, list(compiled.features)].tolist()]
    np.testing.assert_array_equal(got, imported.reference.predict(vectors) == 1)


def test_a_value_is_loaded_once_on_a_path_that_keeps_it() -> None:
    imported = build(8, 1, 9, 3, chain=True, pool=[float(10 * k) for k in range(20)])
    code = compile_tree(imported.tree).subprograms[0].code
    assert sum(i.op in (Op.LDX_U64, Op.LDX_U32) for i in code.instructions) == 1
