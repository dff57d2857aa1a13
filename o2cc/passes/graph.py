# SPDX-License-Identifier: Apache-2.0
"""Control flow of the target's units (a function and its ``.cold`` parts), as the site passes need it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

from o2cc.kernel.description import Block, Description, Function

Node = tuple[str, int]
"""A block: its function's name and its start."""


class Edge(NamedTuple):
    """Control may come from `source`: from its end, or (`at` not None) from before the instruction at that offset,
    which faulted."""

    source: Node
    at: int | None = None


@dataclass
class Graph:
    """Blocks of one unit with what leads to them.

    ``entries`` are blocks that may be entered from outside the unit, or that nothing seems to lead to: ``hidden``
    are those entries for which the description gives no way in at all.
    ``order`` numbers the blocks that entries reach in reverse postorder: along an edge to a block of the same or
    a smaller number, code may run again that ran before.
    """

    blocks: dict[Node, Block]
    incoming: dict[Node, list[Edge]]
    entries: frozenset[Node]
    hidden: frozenset[Node]
    order: Mapping[Node, int]


@dataclass
class UnitIndex:
    """All units of a description; passes share that of their context."""

    target: Description
    parts: dict[str, list[Function]] = field(init=False)
    _jumps_in: dict[str, set[tuple[str, int]]] = field(init=False)
    _graphs: dict[str, Graph | None] = field(init=False, default_factory=dict)

    def __post_init__(self) -> None:
        self.parts = {}
        self._jumps_in = {}
        for function in self.target.functions:
            owner = self.owner(function)
            self.parts.setdefault(owner, []).append(function)
            for block in function.blocks:
                for name, offset in block.jumps:
                    self._jumps_in.setdefault(name, set()).add((owner, offset))

    @staticmethod
    def owner(function: Function) -> str:
        """Name of the unit that a function is part of."""
        return function.parent or function.name

    def graph(self, owner: str) -> Graph | None:
        """The control flow of a unit; None if the description does not show all of it."""
        if owner not in self._graphs:
            self._graphs[owner] = self._graph(owner)
        return self._graphs[owner]

    def _graph(self, owner: str) -> Graph | None:
        parts = self.parts.get(owner, [])
        names = {part.name for part in parts}
        if len(names) != len(parts) or any(part.problems or not part.blocks for part in parts):
            return None
        blocks = {(part.name, block.start): block for part in parts for block in part.blocks}
        incoming: dict[Node, list[Edge]] = {node: [] for node in blocks}
        for node, block in blocks.items():
            edges = [((node[0], start), Edge(node)) for start in block.successors]
            edges += [((name, start), Edge(node)) for name, start in block.jumps if name in names]
            edges += [((node[0], start), Edge(node, at)) for at, start in block.faults]
            for goal, edge in edges:
                if goal not in incoming:
                    return None
                incoming[goal].append(edge)
        if any(self._hides_targets(part) for part in parts):
            return None
        entries = self._entries(owner, parts, blocks)
        if not entries <= blocks.keys():
            return None
        hidden = frozenset(node for node in blocks if not incoming[node]) - entries
        order = _reverse_postorder(entries | hidden, incoming)
        return Graph(blocks, incoming, entries | hidden, hidden, order)

    def unreachable(self, owner: str) -> frozenset[Node]:
        """Blocks of a unit that no known entry leads to; none if the unit's control flow is not fully known."""
        graph = self.graph(owner)
        if graph is None:
            return frozenset()
        reached = _reverse_postorder(graph.entries - graph.hidden, graph.incoming)
        return frozenset(graph.blocks.keys() - reached.keys())

    @staticmethod
    def _hides_targets(part: Function) -> bool:
        """Whether a jump may lead to any place of the unit: a jump table.  With nothing left on the stack it is a
        tail call instead, to the entry of a function."""
        for block in part.blocks:
            if not block.indirect:
                continue
            jumps = [
                s for s in part.sites if s.kind == "indirect_jump" and block.start <= s.offset < block.end
            ]
            if not jumps or any(site.stack_height != 0 for site in jumps):
                return True
        return False

    def _entries(
        self, owner: str, parts: Iterable[Function], blocks: Mapping[Node, Block]
    ) -> frozenset[Node]:
        entries = {node for node, block in blocks.items() if block.external}
        for part in parts:
            if part.parent is None:
                entries.add((part.name, 0))
            for source, offset in self._jumps_in.get(part.name, ()):
                if source != owner:
                    entries.add((part.name, offset))
        return frozenset(entries)


def _reverse_postorder(entries: frozenset[Node], incoming: Mapping[Node, list[Edge]]) -> dict[Node, int]:
    outgoing: dict[Node, list[Node]] = {node: [] for node in incoming}
    for node, edges in incoming.items():
        for edge in edges:
            outgoing[edge.source].append(node)
    finished: list[Node] = []
    seen: set[Node] = set()
    for root in sorted(entries):
        if root in seen:
            continue
        seen.add(root)
        stack = [(root, iter(outgoing[root]))]
        while stack:
            node, targets = stack[-1]
            target = next(targets, None)
            if target is None:
                finished.append(node)
                stack.pop()
            elif target not in seen:
                seen.add(target)
                stack.append((target, iter(outgoing[target])))
    return {node: number for number, node in enumerate(reversed(finished))}
