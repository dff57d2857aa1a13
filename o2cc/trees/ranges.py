# SPDX-License-Identifier: Apache-2.0
"""What the paths to each test say of the feature that it tests."""

from __future__ import annotations

from dataclasses import dataclass

from o2cc.trees.graph import Choice, DecisionGraph
from o2cc.trees.thresholds import WORD_MAX

Interval = tuple[int, int]
FULL: Interval = (0, WORD_MAX)


@dataclass(frozen=True)
class TreeRanges:
    """The interval of the tested feature at each test, over all paths to it.

    The compiler needs it to see that a narrower comparison decides the same.
    """

    def intervals(self, graph: DecisionGraph) -> list[Interval]:
        """By node; the full range for outcomes.  A node's paths are joined into one interval a feature."""
        result = [FULL] * len(graph.nodes)
        known: list[dict[int, Interval] | None] = [None] * len(graph.nodes)
        known[graph.root] = {}
        for number in range(graph.root, -1, -1):
            node, here = graph.nodes[number], known[number]
            known[number] = None
            if not isinstance(node, Choice) or here is None:
                continue
            low, high = here.get(node.feature, FULL)
            result[number] = (low, high)
            sides = (
                (node.low, (low, min(high, node.threshold))),
                (node.high, (max(low, node.threshold + 1), high)),
            )
            for child, interval in sides:
                if interval[0] <= interval[1]:
                    _join(known, child, {**here, node.feature: interval})
        return result


def _join(known: list[dict[int, Interval] | None], child: int, arriving: dict[int, Interval]) -> None:
    """Widen what is known at `child` by one more path."""
    before = known[child]
    if before is None:
        known[child] = arriving
        return
    known[child] = {
        feature: (min(before[feature][0], low), max(before[feature][1], high))
        for feature, (low, high) in arriving.items()
        if feature in before
    }
