# SPDX-License-Identifier: Apache-2.0
"""Is it a tree?  Checks of child numbers that hold for every form a tree is read from.

Work and memory are linear in the number of nodes; nothing recurses.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from o2cc.diagnostics import Diagnostic, DiagnosticError, error

SHOWN_PROBLEMS = 20
"""Problems of one file that are listed; the rest is only counted."""


@dataclass
class Problems:
    """Collects what is wrong with one file, at most `SHOWN_PROBLEMS` of them in full."""

    path: str
    found: list[Diagnostic] = field(default_factory=list)
    count: int = 0

    def add(self, code: str, message: str, *, help: str | None = None) -> None:
        """One more problem."""
        self.count += 1
        if self.count <= SHOWN_PROBLEMS:
            self.found.append(error(code, message, path=self.path, help=help))

    def raise_if_any(self) -> None:
        """Raise DiagnosticError if anything was added."""
        if not self.found:
            return
        if self.count > SHOWN_PROBLEMS:
            more = self.count - SHOWN_PROBLEMS
            last = self.found[-1]
            self.found[-1] = error(
                last.code,
                last.message,
                path=self.path,
                help=last.help,
                notes=(f"{more} more of this file not shown",),
            )
        raise DiagnosticError(self.found)


def check_structure(low: Sequence[int], high: Sequence[int], problems: Problems) -> None:
    """Report children that are missing, nodes with two parents, cycles, and nodes that are not reached.

    `low[i]` and `high[i]` are the children of node i, both -1 for a leaf.  Node 0 is the root.
    """
    count = len(low)
    parent: list[int | None] = [None] * count
    before = problems.count
    for number, children in enumerate(zip(low, high, strict=True)):
        if children == (-1, -1):
            continue
        for child in children:
            if not 0 <= child < count:
                problems.add(
                    "O2C0707", f"node {number} has a child {child}, but there are only nodes 0 to {count - 1}"
                )
            elif child == 0:
                problems.add(
                    "O2C0706", f"node {number} leads back to the root, so that a prediction may never end"
                )
            elif parent[child] is not None:
                problems.add(
                    "O2C0706", f"node {child} is a child of both node {parent[child]} and node {number}"
                )
            else:
                parent[child] = number
    if problems.count > before:
        return
    reached = [False] * count
    pending = [0]
    while pending:
        number = pending.pop()
        reached[number] = True
        pending += (child for child in (low[number], high[number]) if child != -1)
    for number in (n for n in range(count) if not reached[n]):
        if parent[number] is None:
            problems.add("O2C0708", f"node {number} cannot be reached from the root")
        elif _is_in_cycle(number, parent):
            problems.add("O2C0706", f"node {number} is its own ancestor, and the root does not lead to it")


def _is_in_cycle(number: int, parent: Sequence[int | None]) -> bool:
    """Whether following parents from a node that the root does not reach comes back to it.

    Every chain of parents ends at a node without one or enters a cycle; a cycle's nodes have each exactly
    one parent, so the walk is as long as the chain at most.
    """
    seen = {number}
    at = parent[number]
    while at is not None and at not in seen:
        seen.add(at)
        at = parent[at]
    return at == number
