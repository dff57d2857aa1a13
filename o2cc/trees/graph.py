# SPDX-License-Identifier: Apache-2.0
"""The decision graph: what the tree passes work on, between the integer tree and BPF.

A node decides by one feature or gives an outcome.  Children have smaller numbers than their parents, so that
one sweep up or down the numbers visits everything in order and nothing recurses.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from o2cc.trees.tree import IntegerTree, Leaf, Test


@dataclass(frozen=True, slots=True)
class Choice:
    """`feature <= threshold` goes to node `low`, else to `high`; so many samples went each way, a leaf counting as one."""

    feature: int
    threshold: int
    low: int
    high: int
    low_weight: int = 1
    high_weight: int = 1

    @property
    def weight(self) -> int:
        """How many samples came here."""
        return self.low_weight + self.high_weight

    def weight_of(self, child: int) -> int:
        """How many of them went to this child."""
        return self.low_weight if child == self.low else self.high_weight


@dataclass(frozen=True, slots=True)
class Outcome:
    """The answer, an unsigned 31-bit number: a class, or whatever the policy makes of a leaf."""

    value: int
    weight: int = 1

    def __post_init__(self) -> None:
        if not 0 <= self.value < 2**31:
            raise ValueError(f"outcome {self.value} does not fit the result of a program")


@dataclass(frozen=True)
class DecisionGraph:
    """Nodes with their children before them; the last node is the root."""

    nodes: tuple[Choice | Outcome, ...]

    @property
    def root(self) -> int:
        """Number of the root."""
        return len(self.nodes) - 1

    def parent_counts(self) -> list[int]:
        """By node, how many edges lead to it."""
        counts = [0] * len(self.nodes)
        for node in self.nodes:
            if isinstance(node, Choice):
                counts[node.low] += 1
                counts[node.high] += 1
        return counts


def class_outcome(leaf: Leaf) -> int:
    """The outcome of a leaf when only its class matters."""
    return leaf.label


def graph_of(tree: IntegerTree, outcome: Callable[[Leaf], int] = class_outcome) -> DecisionGraph:
    """The tree as graph, nothing changed; `outcome` says what each leaf answers."""
    order = []
    pending = [0]
    while pending:
        number = pending.pop()
        order.append(number)
        node = tree.nodes[number]
        if isinstance(node, Test):
            pending += (node.high, node.low)
    place: dict[int, int] = {}
    nodes: list[Choice | Outcome] = []
    for number in reversed(order):
        node = tree.nodes[number]
        if isinstance(node, Test):
            low, high = place[node.low], place[node.high]
            weights = nodes[low].weight, nodes[high].weight
            nodes.append(Choice(node.feature, node.threshold, low, high, *weights))
        else:
            nodes.append(Outcome(outcome(node), max(node.samples, 1)))
        place[number] = len(nodes) - 1
    return DecisionGraph(tuple(nodes))
