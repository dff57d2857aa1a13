# SPDX-License-Identifier: Apache-2.0
"""The tree compiler: integer tree -> BPF program, in the form that fits.

branches    one subprogram of comparisons and jumps
split       the same over several subprograms, when jumps would not reach
table       a loop that walks the tree as data, when the budget of instructions asks for it, or when
            subprograms would nest deeper than the kernel allows
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import StrEnum

from o2cc.diagnostics import DiagnosticError, error
from o2cc.trees.bytecode import Assembler
from o2cc.trees.codegen import Writer
from o2cc.trees.fold import TreeFold
from o2cc.trees.graph import Choice, DecisionGraph, Outcome, class_outcome, graph_of
from o2cc.trees.merge import TreeMerge
from o2cc.trees.ranges import Interval, TreeRanges
from o2cc.trees.table import table_of, walker
from o2cc.trees.tree import IntegerTree, Leaf

LARGEST_SUBPROGRAM = 32_000
"""Slots of one subprogram: conditional jumps reach 32,767 (16-bit offset), the rest is reserve."""

DEEPEST_NESTING = 5
"""Subprograms that may call one another in a row.  The kernel allows 8 frames (MAX_CALL_FRAMES,
include/linux/bpf_verifier.h, 6.1), of which the callers of the tree need up to 3."""

MOST_SUBPROGRAMS = 200
"""The kernel allows 256 (BPF_MAX_SUBPROGS, include/linux/bpf_verifier.h, 6.1)."""

MOST_FEATURES = 4095
"""Features that a program may read: loads have a signed 16-bit offset in bytes."""

SLOTS_OF_TEST = 4
SLOTS_OF_END = 2


class Form(StrEnum):
    """How the tree became a program."""

    BRANCHES = "branches"
    SPLIT = "split"
    TABLE = "table"


@dataclass(frozen=True)
class Subprogram:
    """One function: `name` is the label that calls refer to."""

    name: str
    code: Assembler


@dataclass(frozen=True)
class CompiledTree:
    """A program for one tree.

    `subprograms[0]` is the entry: it takes in r1 the address of one 8-byte word for each feature of
    `features`, in that order, and returns the outcome in r0.  `table` is empty but for the form `table`.
    `steps` say what the compiler did and why.
    """

    form: Form
    subprograms: tuple[Subprogram, ...]
    features: tuple[int, ...]
    table: bytes
    steps: tuple[str, ...]

    @property
    def instruction_count(self) -> int:
        """Slots of all subprograms; a 64-bit constant takes two, as the kernel counts."""
        return sum(subprogram.code.position for subprogram in self.subprograms)


def optimize(
    tree: IntegerTree, outcome: Callable[[Leaf], int] = class_outcome
) -> tuple[DecisionGraph, list[str]]:
    """The graph after all passes, and what each pass did in words."""
    graph = graph_of(tree, outcome)
    steps = [f"{_tests(graph)} tests in the tree"]
    graph = TreeFold().apply(graph)
    steps.append(f"{_tests(graph)} tests after folding those that the path decides")
    graph = TreeMerge().apply(graph)
    steps.append(f"{_tests(graph)} tests after merging equal subtrees")
    return graph, steps


def _tests(graph: DecisionGraph) -> int:
    return sum(isinstance(node, Choice) for node in graph.nodes)


def compile_tree(
    tree: IntegerTree,
    *,
    outcome: Callable[[Leaf], int] = class_outcome,
    budget: int | None = None,
    form: Form | None = None,
    features: Sequence[int] | None = None,
    selects: bool = True,
) -> CompiledTree:
    """Compile a tree.  `budget`: most instructions, above which the table is taken; `form`: insist on one;
    `features`: what the words given to the program are, in order, when they are not just those that it reads;
    `selects`: compute outcomes that are hard to predict instead of jumping to them.

    DiagnosticError when the tree reads too many features, or the form insisted on is not possible.
    """
    graph, steps = optimize(tree, outcome)
    read = {node.feature for node in graph.nodes if isinstance(node, Choice)}
    features = tuple(sorted(read)) if features is None else tuple(features)
    if len(features) > MOST_FEATURES:
        raise DiagnosticError(
            error(
                "O2C0714",
                f"the tree reads {len(features):,} features, a BPF program at most {MOST_FEATURES:,}",
            )
        )
    slots = {feature: slot for slot, feature in enumerate(features)}
    if form is not Form.TABLE:
        intervals = TreeRanges().intervals(graph)
        subprograms = _branches(graph, intervals, slots, selects)
        if subprograms is None:
            steps.append("subprograms would nest too deep or be too many")
        else:
            found = Form.BRANCHES if len(subprograms) == 1 else Form.SPLIT
            count = sum(subprogram.code.position for subprogram in subprograms)
            if found is Form.SPLIT:
                steps.append(f"{len(subprograms)} subprograms, since jumps reach 32,767 instructions")
            if budget is None or count <= budget or form is not None:
                if form is not None and form is not found:
                    raise DiagnosticError(
                        error("O2C0714", f"the tree has no form `{form}`: it fits `{found}`")
                    )
                steps.append(
                    f"form `{found}`: {count} instructions" + (f" of {budget} allowed" if budget else "")
                )
                return CompiledTree(found, subprograms, features, b"", tuple(steps))
            steps.append(f"as branches it takes {count} instructions, {budget} are allowed")
        if form is not None:
            raise DiagnosticError(error("O2C0714", f"the tree is too large for the form `{form}`"))
    table, depth = table_of(graph, slots)
    code = walker(len(table) // 16, depth, max(len(features) - 1, 0))
    steps.append(
        f"form `table`: {code.position} instructions, {len(table) // 16} rows, at most {depth} steps"
    )
    return CompiledTree(Form.TABLE, (Subprogram("tree", code),), features, table, tuple(steps))


def _branches(
    graph: DecisionGraph, intervals: Sequence[Interval], slots: dict[int, int], selects: bool
) -> tuple[Subprogram, ...] | None:
    """One subprogram if it is small enough, else several; None when they would nest too deep."""
    whole = Writer(graph, intervals, slots, {}, graph.root, selects).write()
    if whole.position <= LARGEST_SUBPROGRAM:
        return (Subprogram("tree", whole),)
    limit = LARGEST_SUBPROGRAM * 3 // 4
    while limit > 1000:
        cuts = cut_nodes(graph, limit)
        if len(cuts) + 1 > MOST_SUBPROGRAMS or nesting(graph, cuts) > DEEPEST_NESTING:
            return None
        calls = {number: f"part{number}" for number in cuts}
        parts = [Subprogram("tree", Writer(graph, intervals, slots, calls, graph.root, selects).write())]
        parts += [
            Subprogram(calls[n], Writer(graph, intervals, slots, calls, n, selects).write())
            for n in reversed(cuts)
        ]
        if all(part.code.position <= LARGEST_SUBPROGRAM for part in parts):
            return tuple(parts)
        limit = limit * 2 // 3
    return None


def cut_nodes(graph: DecisionGraph, limit: int) -> list[int]:
    """Nodes, ascending, to make subprograms of, so that each has about `limit` slots.

    Sizes are counted over a spanning tree, in which the first parent of a walk from the root owns a node.
    """
    owner = [-1] * len(graph.nodes)
    for number in range(graph.root, -1, -1):
        node = graph.nodes[number]
        if isinstance(node, Choice):
            for child in (node.low, node.high):
                if owner[child] == -1:
                    owner[child] = number
    size = [SLOTS_OF_END if isinstance(node, Outcome) else SLOTS_OF_TEST for node in graph.nodes]
    cuts = []
    for number in range(graph.root):
        if size[number] > limit // 2 and isinstance(graph.nodes[number], Choice):
            cuts.append(number)
            size[number] = SLOTS_OF_END
        size[owner[number]] += size[number]
    return cuts


def nesting(graph: DecisionGraph, cuts: Sequence[int]) -> int:
    """Most subprograms on a path, the entry included."""
    is_cut = set(cuts)
    height = [0] * len(graph.nodes)
    for number, node in enumerate(graph.nodes):
        if isinstance(node, Choice):
            height[number] = max(height[node.low], height[node.high]) + (number in is_cut)
    return height[graph.root] + 1
