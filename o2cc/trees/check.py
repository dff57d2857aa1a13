# SPDX-License-Identifier: Apache-2.0
"""Do the integer tree and its compiled program say what scikit-learn says?  Comparison over many vectors."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import dataclass

import numpy as np

from o2cc.trees.compile import CompiledTree, Form, compile_tree
from o2cc.trees.importer import Imported, only_used_features
from o2cc.trees.interpret import Machine
from o2cc.trees.kernel import Effort, KernelRunError, LoadedTree
from o2cc.trees.tree import Indices, Words
from o2cc.trees.vectors import make_vectors

SHOWN_MISMATCHES = 5
VECTORS_AT_ONCE_CELLS = 16_000_000
INTERPRETED_VECTORS = 1000


@dataclass(frozen=True)
class Mismatch:
    """One vector on which two predictions differ; `words` are the features that the tree uses."""

    expected: str
    predicted: str
    words: tuple[tuple[str, int], ...]


@dataclass(frozen=True)
class Agreement:
    """Result of comparing predictions over `vectors` vectors."""

    vectors: int
    agreed: int
    mismatches: tuple[Mismatch, ...] = ()

    @property
    def is_complete(self) -> bool:
        """Whether every prediction agreed (and there was one)."""
        return 0 < self.vectors == self.agreed


@dataclass(frozen=True)
class InKernel:
    """The compiled tree in the running kernel against the reference."""

    agreement: Agreement
    release: str
    nanoseconds: float
    effort: Effort


@dataclass(frozen=True)
class NotInKernel:
    """Why the kernel did not run the tree; `log` holds the verifier's last lines when it rejected it."""

    reason: str
    log: tuple[str, ...] = ()


@dataclass(frozen=True)
class Check:
    """Everything that was compared with the reference.

    `interpreted` is the compiled program run by `o2cc.trees.interpret` over some of the vectors, `executed`
    the mean number of instructions that it took, `path` the mean number of tests.
    """

    integers: Agreement
    boundaries_tested: int
    boundaries: int
    compiled: CompiledTree
    interpreted: Agreement
    executed: float
    path: float
    kernel: InKernel | NotInKernel | None

    @property
    def all_agreed(self) -> bool:
        """Whether every comparison that was made agreed."""
        agreements = [self.integers, self.interpreted]
        if isinstance(self.kernel, InKernel):
            agreements.append(self.kernel.agreement)
        return all(agreement.is_complete for agreement in agreements)


def compare(imported: Imported, vectors: Words, expected: Indices, predicted: Indices) -> Agreement:
    """Agreement of two predictions of the same vectors, with the first mismatches."""
    tree = imported.tree
    differing = np.flatnonzero(expected != predicted)
    mismatches = []
    for row in differing[:SHOWN_MISMATCHES].tolist():
        words = tuple((str(tree.features[f]), int(vectors[row, f])) for f in tree.used_features[:8])
        mismatches.append(
            Mismatch(_name(tree.classes, expected[row]), _name(tree.classes, predicted[row]), words)
        )
    return Agreement(len(vectors), len(vectors) - len(differing), tuple(mismatches))


def _name(classes: tuple[str, ...], label: np.int64) -> str:
    return classes[label] if 0 <= label < len(classes) else f"no class ({label})"


def add_agreements(parts: list[Agreement]) -> Agreement:
    """Sum over batches."""
    mismatches = tuple(m for part in parts for m in part.mismatches)[:SHOWN_MISMATCHES]
    return Agreement(sum(p.vectors for p in parts), sum(p.agreed for p in parts), mismatches)


def check_tree(
    imported: Imported,
    count: int,
    seed: int,
    *,
    in_kernel: bool,
    form: Form | None = None,
    budget: int | None = None,
) -> Check:
    """Compare over `count` vectors made from `seed`, in batches of bounded memory.

    DiagnosticError when the tree cannot be compiled.
    """
    compile_tree(
        imported.tree, form=form, budget=budget
    )  # refuses trees of too many features before any vector
    imported = only_used_features(imported)
    tree = imported.tree
    compiled = compile_tree(tree, form=form, budget=budget)
    columns = list(compiled.features)
    step = max(1000, VECTORS_AT_ONCE_CELLS // len(tree.features))
    loaded, refusal = _load(compiled, min(step, count)) if in_kernel else (None, None)
    integers, kernel, interpreted = [], [], None
    tested = boundaries = 0
    executed = path = 0.0
    with loaded or nullcontext():
        for batch in range(-(-count // step)):
            vectors, tested, boundaries = make_vectors(tree, min(step, count), seed, batch)
            vectors = vectors[: count - batch * step]
            expected = imported.reference.predict(vectors)
            integers.append(compare(imported, vectors, expected, tree.predict(vectors)))
            words = np.ascontiguousarray(vectors[:, columns])
            if loaded:
                kernel.append(compare(imported, vectors, expected, loaded.predict(words)))
            if interpreted is None:
                some = slice(INTERPRETED_VECTORS)
                predicted, executed = _interpret(compiled, words[some])
                interpreted = compare(imported, vectors[some], expected[some], predicted)
                path = float(np.array(tree.depths)[tree.apply(vectors[some])].mean())
        assert interpreted is not None
        outcome: InKernel | NotInKernel | None = refusal
        if loaded:
            outcome = InKernel(add_agreements(kernel), loaded.release, loaded.nanoseconds(), loaded.effort())
    return Check(add_agreements(integers), tested, boundaries, compiled, interpreted, executed, path, outcome)


def _load(compiled: CompiledTree, batch: int) -> tuple[LoadedTree | None, NotInKernel | None]:
    try:
        return LoadedTree(compiled, batch), None
    except (KernelRunError, OSError) as problem:
        return None, NotInKernel(str(problem), getattr(problem, "log", ()))


def _interpret(compiled: CompiledTree, words: Words) -> tuple[Indices, float]:
    machine = Machine(compiled)
    results = [machine.run(row) for row in words.tolist()]
    return np.array([outcome for outcome, _ in results], dtype=np.int64), float(
        np.mean([n for _, n in results])
    )
