# SPDX-License-Identifier: Apache-2.0
"""Compiled trees in a real kernel: the verifier accepts them, and every prediction is the reference's."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "unit" / "trees"))

from made_trees import build, fitted

from o2cc.trees.check import InKernel, NotInKernel, check_tree
from o2cc.trees.compile import Form
from o2cc.trees.importer import Imported
from o2cc.trees.kernel import LoadedTree

TREES = {
    "ten nodes": (lambda: build(5, 3, 3, 1), Form.BRANCHES, 20_000),
    "a hundred nodes": (lambda: build(50, 6, 4, 2), Form.BRANCHES, 20_000),
    "a thousand nodes": (lambda: fitted(1100, 12, 6, 3), Form.BRANCHES, 100_000),
    "a chain of two hundred tests": (lambda: build(200, 8, 5, 4, chain=True), Form.BRANCHES, 20_000),
    "ten thousand nodes": (lambda: fitted(9900, 60, 9, 5), None, 10_000),
    "twenty-five thousand nodes, many features": (lambda: build(12_499, 400, 20, 6), Form.SPLIT, 5_000),
}


def outcome(imported: Imported, vectors: int, form: Form | None) -> InKernel:
    result = check_tree(imported, vectors, 1, in_kernel=True, form=form)
    if isinstance(result.kernel, NotInKernel):
        pytest.fail("\n".join([result.kernel.reason, *result.kernel.log]))
    assert result.all_agreed, result.kernel
    assert isinstance(result.kernel, InKernel)
    assert result.kernel.agreement.vectors == vectors
    return result.kernel


@pytest.mark.parametrize("name", TREES)
def test_the_kernel_predicts_as_scikit_learn_does(name: str) -> None:
    make, form, vectors = TREES[name]
    run = outcome(make(), vectors, form)
    print(
        f"{name}: verifier {run.effort.processed}, {run.effort.machine_bytes} bytes, {run.nanoseconds:.0f} ns"
    )


def test_the_table_predicts_as_scikit_learn_does() -> None:
    outcome(fitted(900, 12, 6, 3), 20_000, Form.TABLE)
    outcome(build(200, 8, 5, 4, chain=True), 5_000, Form.TABLE)


def test_a_wrong_tree_is_noticed_by_the_kernel_run() -> None:
    from o2cc.trees.compile import compile_tree

    right, other = build(50, 4, 3, 7), build(50, 4, 3, 8)
    vectors = np.random.default_rng(1).integers(0, 2**64 - 1, (2000, 4), dtype=np.uint64)
    compiled = compile_tree(other.tree)
    with LoadedTree(compiled, len(vectors)) as loaded:
        got = loaded.predict(np.ascontiguousarray(vectors[:, list(compiled.features)]))
    assert (got == other.tree.predict(vectors)).all()
    assert (got != right.tree.predict(vectors)).any()
