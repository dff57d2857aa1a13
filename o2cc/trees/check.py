# SPDX-License-Identifier: Apache-2.0
"""Does the integer tree say what scikit-learn says?  Comparison over many vectors."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from o2cc.trees.importer import Imported
from o2cc.trees.tree import Indices, Words
from o2cc.trees.vectors import make_vectors

SHOWN_MISMATCHES = 5
VECTORS_AT_ONCE_CELLS = 16_000_000


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
class IntegerCheck:
    """The integer tree against the floating-point reference."""

    agreement: Agreement
    boundaries_tested: int
    boundaries: int


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


def check_integer_tree(imported: Imported, count: int, seed: int) -> IntegerCheck:
    """Compare over `count` vectors made from `seed`, in batches of bounded memory."""
    step = max(1000, VECTORS_AT_ONCE_CELLS // len(imported.tree.features))
    parts = []
    tested = boundaries = 0
    for batch in range(-(-count // step)):
        vectors, tested, boundaries = make_vectors(imported.tree, min(step, count), seed, batch)
        vectors = vectors[: count - batch * step]
        expected, predicted = imported.reference.predict(vectors), imported.tree.predict(vectors)
        parts.append(compare(imported, vectors, expected, predicted))
    return IntegerCheck(add_agreements(parts), tested, boundaries)
