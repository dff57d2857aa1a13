# SPDX-License-Identifier: Apache-2.0
"""The exact integer decision tree: what the kernel runs.

Nodes are numbered; node 0 is the root.  A test sends a word at most its threshold to `low`, any other to
`high`.  Words are unsigned and 64 bits wide.  A word past the end of an object reads as `MISSING_WORD`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from functools import cached_property
from typing import TYPE_CHECKING, TypeAlias

from o2cc.trees.thresholds import NEVER, WORD_MAX

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

WORD_BITS = 64
MISSING_WORD = 0
"""Value of a raw word that lies past the end of the object, in training and in the kernel alike: what a
buffer that is cleared before the object is copied into it holds there."""

MAX_NODES = 100_000
"""Largest tree that is read.  The largest published one has 20,693 nodes; a BPF program has at most 1,000,000
instructions, of which a node takes up to four."""

MAX_FEATURES = 65_536
"""Most features that a tree may name: objects of 512 KiB."""

Words: TypeAlias = "NDArray[np.uint64]"
Indices: TypeAlias = "NDArray[np.int64]"


class FeatureKind(StrEnum):
    """What a feature measures of an object."""

    WORD = "word"  # the 8-byte word at 8 * index, raw
    WORD_CLASS = "word-class"  # its class, see `o2cc.trees.features.WordClass`
    SELF_OFFSET = "self-offset"  # where in the object it points to, see there
    LOW = "low"  # its lower 32 bits, large ones taken as one
    HIGH = "high"  # its upper 32 bits
    SIZE = "size"  # size of the object in bytes
    CACHE_FLAGS = "cache-flags"  # flags of its slab cache


@dataclass(frozen=True, slots=True)
class Feature:
    """One input of the tree.  `index` is the number of the word, 0 for features that are not of a word."""

    kind: FeatureKind
    index: int = 0

    def __str__(self) -> str:
        about_object = self.kind in (FeatureKind.SIZE, FeatureKind.CACHE_FLAGS)
        return str(self.kind) if about_object else f"{self.kind}[{self.index}]"


@dataclass(frozen=True, slots=True)
class Test:
    """`feature <= threshold` goes to node `low`, else to node `high`.

    `threshold` is from -1 (no word passes) to 2**64 - 1 (every word passes); `source_threshold` is the
    float64 that it stands for.
    """

    __test__ = False  # not a test of pytest

    feature: int
    threshold: int
    low: int
    high: int
    source_threshold: float

    def __post_init__(self) -> None:
        if not NEVER <= self.threshold <= WORD_MAX:
            raise ValueError(f"threshold {self.threshold} is not a 64-bit word")


@dataclass(frozen=True, slots=True)
class Leaf:
    """The answer.

    `label` is the number of the class; `confidence` the share of that class among the training samples that
    came here; `bound` the lower end of the 95% interval of its precision on held-out samples (None: never
    measured, so nothing may be denied here); `samples` the number of training samples.
    """

    label: int
    confidence: float = 1.0
    bound: float | None = None
    samples: int = 0


Node = Test | Leaf


@dataclass(frozen=True)
class TreeArrays:
    """A tree as parallel arrays of shape (nodes,), for vectorized evaluation.

    `low` and `high` of a leaf are the leaf itself.  A test that no word passes has `high` in both.
    """

    feature: Indices
    threshold: Words
    low: Indices
    high: Indices
    label: Indices
    depth: int


@dataclass(frozen=True)
class IntegerTree:
    """A valid tree: every node but the root is the child of exactly one test, and is reached from the root.

    Readers of files (`o2cc.trees.file`) check this before they build one.  `provenance` says where the tree
    comes from, in JSON types.
    """

    nodes: tuple[Node, ...]
    classes: tuple[str, ...]
    features: tuple[Feature, ...]
    provenance: Mapping[str, object] = field(default_factory=dict)

    @cached_property
    def depths(self) -> tuple[int, ...]:
        """Tests between the root and each node, by node."""
        depths = [0] * len(self.nodes)
        pending = [0]
        while pending:
            number = pending.pop()
            node = self.nodes[number]
            if isinstance(node, Test):
                depths[node.low] = depths[node.high] = depths[number] + 1
                pending += (node.low, node.high)
        return tuple(depths)

    @property
    def depth(self) -> int:
        """Most tests on a path."""
        return max(self.depths)

    @cached_property
    def used_features(self) -> tuple[int, ...]:
        """Numbers of the features that some test reads, ascending."""
        return tuple(sorted({node.feature for node in self.nodes if isinstance(node, Test)}))

    @cached_property
    def arrays(self) -> TreeArrays:
        """The tree as arrays."""
        import numpy as np  # late: a compilation has no use for it

        feature, threshold, low, high, label = [], [], [], [], []
        for number, node in enumerate(self.nodes):
            if isinstance(node, Test):
                feature.append(node.feature)
                threshold.append(max(node.threshold, 0))
                low.append(node.low if node.threshold != NEVER else node.high)
                high.append(node.high)
                label.append(-1)
            else:
                feature.append(0)
                threshold.append(0)
                low.append(number)
                high.append(number)
                label.append(node.label)
        return TreeArrays(
            np.array(feature, dtype=np.int64),
            np.array(threshold, dtype=np.uint64),
            np.array(low, dtype=np.int64),
            np.array(high, dtype=np.int64),
            np.array(label, dtype=np.int64),
            self.depth,
        )

    def apply(self, vectors: Words) -> Indices:
        """Number of the leaf that each vector reaches.  `vectors`: uint64 of shape (n, features)."""
        import numpy as np  # late: a compilation has no use for it

        if vectors.dtype != np.uint64 or vectors.ndim != 2 or vectors.shape[1] != len(self.features):
            raise ValueError(f"expected uint64 vectors of {len(self.features)} features")
        arrays = self.arrays
        reached = np.zeros(len(vectors), dtype=np.int64)
        active = np.arange(len(vectors))
        for _ in range(arrays.depth):
            at = reached[active]
            is_low = vectors[active, arrays.feature[at]] <= arrays.threshold[at]
            following = np.where(is_low, arrays.low[at], arrays.high[at])
            reached[active] = following
            active = active[arrays.label[following] < 0]
            if not len(active):
                break
        return reached

    def predict(self, vectors: Words) -> Indices:
        """Number of the class of each vector; shapes as those of `apply`."""
        labels: Indices = self.arrays.label[self.apply(vectors)]
        return labels
