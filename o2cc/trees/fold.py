# SPDX-License-Identifier: Apache-2.0
"""Remove the tests of a decision tree that the path to them has decided."""

from __future__ import annotations

from dataclasses import dataclass, replace

from o2cc.trees.graph import Choice, DecisionGraph, Outcome
from o2cc.trees.thresholds import WORD_MAX


@dataclass(frozen=True)
class TreeFold:
    """Keep for every path the interval of each feature; a test whose interval lies on one side goes away.

    Walks paths, so that it must run before `TreeMerge` makes paths many.  Linear in nodes.
    """

    def apply(self, graph: DecisionGraph) -> DecisionGraph:
        """The same decisions with fewer tests."""
        nodes: list[Choice | Outcome] = []
        built: list[int] = []  # numbers of finished subtrees, as a stack
        interval: dict[int, tuple[int, int]] = {}
        full = (0, WORD_MAX)
        work: list[tuple[str, int, tuple[int, int]]] = [("visit", graph.root, full)]
        while work:
            step, number, saved = work.pop()
            node = graph.nodes[number]
            if isinstance(node, Outcome):
                nodes.append(node)
                built.append(len(nodes) - 1)
                continue
            feature, threshold = node.feature, node.threshold
            low, high = interval.get(feature, full)
            if step == "visit":
                if high <= threshold:
                    work.append(("visit", node.low, full))
                elif low > threshold:
                    work.append(("visit", node.high, full))
                else:
                    interval[feature] = (low, threshold)
                    work.append(("between", number, (low, high)))
                    work.append(("visit", node.low, full))
            elif step == "between":
                interval[feature] = (threshold + 1, saved[1])
                work.append(("after", number, saved))
                work.append(("visit", node.high, full))
            else:
                interval[feature] = saved
                high_number, low_number = built.pop(), built.pop()
                nodes.append(replace(node, low=low_number, high=high_number))
                built.append(len(nodes) - 1)
        return DecisionGraph(tuple(nodes))
