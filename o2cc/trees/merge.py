# SPDX-License-Identifier: Apache-2.0
"""Merge the equal subtrees of a decision graph, and drop tests whose two sides are the same."""

from __future__ import annotations

from dataclasses import dataclass, replace

from o2cc.trees.graph import Choice, DecisionGraph, Outcome


@dataclass(frozen=True)
class TreeMerge:
    """Number nodes by what they decide: equal decisions become one node with several parents.  Linear."""

    def apply(self, graph: DecisionGraph) -> DecisionGraph:
        """The same decisions with fewer nodes."""
        nodes: list[Choice | Outcome] = []
        known: dict[tuple[int, ...], int] = {}
        place: list[int] = []
        for node in graph.nodes:
            if isinstance(node, Outcome):
                key: tuple[int, ...] = (node.value,)
            else:
                low, high = place[node.low], place[node.high]
                if low == high:
                    place.append(low)
                    continue
                key = (node.feature, node.threshold, low, high)
                node = replace(node, low=low, high=high)
            if key in known:
                number = known[key]
                nodes[number] = _together(nodes[number], node)
            else:
                number = known[key] = len(nodes)
                nodes.append(node)
            place.append(number)
        return _reachable(nodes, place[graph.root])


def _together(one: Choice | Outcome, other: Choice | Outcome) -> Choice | Outcome:
    """One of two equal nodes, with the samples of both."""
    if isinstance(one, Choice) and isinstance(other, Choice):
        low_weight, high_weight = one.low_weight + other.low_weight, one.high_weight + other.high_weight
        return replace(one, low_weight=low_weight, high_weight=high_weight)
    assert isinstance(one, Outcome)
    return replace(one, weight=one.weight + other.weight)


def _reachable(nodes: list[Choice | Outcome], root: int) -> DecisionGraph:
    """The nodes that `root` leads to, renumbered; `root` becomes the last."""
    wanted = [False] * len(nodes)
    wanted[root] = True
    for number in range(root, -1, -1):
        node = nodes[number]
        if wanted[number] and isinstance(node, Choice):
            wanted[node.low] = wanted[node.high] = True
    place: dict[int, int] = {}
    kept: list[Choice | Outcome] = []
    for number in range(root + 1):
        if wanted[number]:
            node = nodes[number]
            place[number] = len(kept)
            kept.append(
                replace(node, low=place[node.low], high=place[node.high])
                if isinstance(node, Choice)
                else node
            )
    return DecisionGraph(tuple(kept))
