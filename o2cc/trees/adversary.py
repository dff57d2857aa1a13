# SPDX-License-Identifier: Apache-2.0
"""How many forged objects a tree takes for the compartment's own, by the confidence that an audition requires."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from o2cc.trees.dataset import Profile
from o2cc.trees.features import extract
from o2cc.trees.tree import IntegerTree, Leaf

REQUIRED = (0.0, 0.9, 0.99, 0.999)


@dataclass(frozen=True, slots=True)
class Accepts:
    """Of ``objects`` forged ones in these caches, ``accepted`` reach a leaf of an own class with that confidence.

    ``caches``: "all", or a prefix of their names.  A policy accepts nothing from kmalloc's caches on content alone unless it
    names them (`accept payload`), so that what counts by default is the rate outside of them.
    """

    caches: str
    required: float
    objects: int
    accepted: int

    @property
    def rate(self) -> float:
        """Share that is accepted; 0 when there are none."""
        return self.accepted / self.objects if self.objects else 0.0


LEAST_SHARED = 2
"""Words that an object has in common with real ones to count as their copy, and at least half of those that are large."""

LARGE = 2**32


def copied(objects: Profile, real: Profile) -> NDArray[np.bool_]:
    """Which objects hold words of real objects of the same boot, so that they are copies and no other payload.

    Large words count, most of which are addresses: they are rare enough to be told by.
    """
    result = np.zeros(len(objects), dtype=np.bool_)
    for boot in np.unique(objects.boot.astype(str)):
        theirs = real.objects.words[real.boot == boot]
        known = np.unique(theirs[theirs >= LARGE])
        rows = np.flatnonzero(objects.boot == boot)
        words = objects.objects.words[rows]
        large = (words >= LARGE) & objects.objects.present[rows]
        shared = (np.isin(words, known) & large).sum(axis=1)
        result[rows] = (shared >= LEAST_SHARED) & (2 * shared >= large.sum(axis=1))
    return result


def accepts(tree: IntegerTree, forged: Profile, own: frozenset[str]) -> tuple[Accepts, ...]:
    """Rates for all caches, for kmalloc's plain ones, for its accounted ones, and for the rest."""
    if not len(forged):
        return ()
    reached = [tree.nodes[number] for number in tree.apply(extract(tree.features, forged.objects)).tolist()]
    leaves = [node for node in reached if isinstance(node, Leaf)]
    is_own = np.array([tree.classes[leaf.label] in own for leaf in leaves])
    confidence = np.array([leaf.confidence for leaf in leaves])
    accounted = _named(forged.cache, ("kmalloc-cg-",))
    plain = _named(forged.cache, ("kmalloc-",)) & ~accounted
    groups = {
        "all": np.ones(len(leaves), dtype=np.bool_),
        "kmalloc": plain,
        "kmalloc-cg": accounted,
        "others": ~plain & ~accounted,
    }
    return tuple(
        Accepts(name, required, int(rows.sum()), int((rows & is_own & (confidence >= required)).sum()))
        for name, rows in groups.items()
        for required in REQUIRED
    )


def _named(caches: NDArray[np.object_], prefixes: tuple[str, ...]) -> NDArray[np.bool_]:
    return np.array([name.startswith(prefixes) for name in caches], dtype=np.bool_)


def accepts_as_text(lines: Sequence[Accepts]) -> Iterator[str]:
    """Lines of a report."""
    yield "payload filled with bytes of real objects, called own (never seen in training)"
    yield f"  {'caches':<12}{'confidence':>11}{'objects':>9}{'accepted':>10}{'rate':>9}"
    for line in lines:
        yield f"  {line.caches:<12}{line.required:>11}{line.objects:>9}{line.accepted:>10}{line.rate:>9.4f}"
