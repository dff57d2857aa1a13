# SPDX-License-Identifier: Apache-2.0
"""Ten million vectors: integer tree against scikit-learn itself and against the independent reference.

Trees from 10 to 25,000 nodes and up to 200 tests deep, fitted ones and made ones. Half of the vectors sit on
thresholds. scikit-learn predicts for the fitted trees; made trees have only the reference.

With --kernel N, every tree is also compiled, and predicts N vectors in the running kernel (BPF_PROG_TEST_RUN, as root;
nothing is attached).

    python -m benchmarks.tree_exactness [--vectors 10000000] [--kernel 200000] [--seed 0]
"""

from __future__ import annotations

import argparse
import time
from dataclasses import dataclass
from typing import Any

import numpy as np
from sklearn.tree import DecisionTreeClassifier

from o2cc.trees.check import InKernel, check_tree
from o2cc.trees.importer import Imported, import_estimator
from o2cc.trees.vectors import make_vectors, random_vectors
from tests.unit.trees.made_trees import build

BATCH = 100_000


@dataclass(frozen=True)
class Case:
    """A tree and, where it was fitted, its model."""

    imported: Imported
    model: Any = None


def fit(samples: int, features: int, classes: int, seed: int, depth: int | None = None) -> Case:
    """A tree fitted to random words."""
    random = np.random.default_rng(seed)
    words = random_vectors(samples, features, random)
    model = DecisionTreeClassifier(max_depth=depth, random_state=seed).fit(
        words, random.integers(0, classes, samples)
    )
    return Case(import_estimator(model, "model"), model)


def cases(seed: int) -> list[Case]:
    """All trees."""
    return [
        fit(9, 3, 3, seed),
        fit(60, 6, 4, seed),
        fit(600, 12, 6, seed),
        fit(6000, 24, 8, seed),
        fit(15_000, 40, 12, seed),
        fit(4000, 2, 9, seed, depth=60),
        Case(build(5, 2, 3, seed)),
        Case(build(200, 8, 5, seed, chain=True)),
        Case(build(12_499, 60, 20, seed)),
        Case(build(3000, 4, 7, seed, pool=[2.0**k * (1 + 2.0**-23) for k in range(65)])),
    ]


def in_kernel(case: Case, vectors: int, seed: int) -> int:
    """Mismatches of the compiled tree in the running kernel; prints a line.  Exits when the kernel refuses it."""
    result = check_tree(case.imported, vectors, seed, in_kernel=True)
    kernel = result.kernel
    if not isinstance(kernel, InKernel):
        raise SystemExit(f"not in the kernel: {kernel.reason if kernel else ''}")
    wrong = kernel.agreement.vectors - kernel.agreement.agreed
    print(
        f"{'':>6} in {kernel.release}: {kernel.agreement.vectors:,} vectors, {wrong} mismatches, "
        f"{result.boundaries_tested:,} of {result.boundaries:,} words next to thresholds, form {result.compiled.form}, "
        f"{result.compiled.instruction_count:,} instructions, verifier {kernel.effort.processed:,}",
        flush=True,
    )
    return wrong


def main() -> None:
    """Print one line a tree; exit status 1 on any mismatch."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--vectors", type=int, default=10_000_000)
    parser.add_argument("--kernel", type=int, default=0, metavar="N", help="vectors of each tree")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    started, total, wrong = time.monotonic(), 0, 0
    chosen = cases(arguments.seed)
    each = -(-arguments.vectors // len(chosen))
    for case in chosen:
        tree = case.imported.tree
        mismatches = tested = pairs = done = 0
        while done < each:
            batch = done // BATCH
            vectors, tested, pairs = make_vectors(tree, min(BATCH, each - done), arguments.seed, batch)
            got = tree.apply(vectors)
            mismatches += int((got != case.imported.reference.apply(vectors)).sum())
            if case.model is not None:
                mismatches += int((got != case.model.apply(vectors)).sum())
            done += len(vectors)
        judge = "scikit-learn and reference" if case.model is not None else "reference"
        print(
            f"{len(tree.nodes):>6} nodes, depth {tree.depth:>3}: {done:,} vectors, {mismatches} mismatches with {judge}, "
            f"{tested:,} of {pairs:,} words next to thresholds",
            flush=True,
        )
        total, wrong = total + done, wrong + mismatches
        if arguments.kernel:
            wrong += in_kernel(case, arguments.kernel, arguments.seed)
    print(f"{wrong} mismatches in {total:,} vectors, {time.monotonic() - started:.0f} s")
    raise SystemExit(1 if wrong else 0)


if __name__ == "__main__":
    main()
