# SPDX-License-Identifier: Apache-2.0
"""Shows that the loops of a body end, in the only form that the IR allows.

The BPF verifier explores every round of a loop, so a loop must count.  A strongly connected part of the control
flow is bounded when one of its blocks leaves it by comparing a variable with a constant, the variable is only
changed inside the part by adding a positive constant to itself, and both the comparison and the addition happen
in each round (taking either block away breaks every cycle that holds it, recursively).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from o2cc.ir import nodes as ir
from o2cc.ir.walk import Body, reachable, successors

MAXIMUM_ROUNDS = 1 << 20
"""The largest constant that a loop may count to; the kernel's verifier gives up well before."""

_UP = (ir.BinaryOperator.ULT, ir.BinaryOperator.ULE)
_OUT = (ir.BinaryOperator.UGE, ir.BinaryOperator.UGT)


def unbounded_loop(body: Body) -> str | None:
    """Name of a block on a cycle that is not shown to end, or None if there is no such cycle."""
    by_name = {block.name: block for block in body.blocks}
    live = reachable(body.blocks)
    parts = [[name for name in by_name if name in live]]
    while parts:
        for part in components(parts.pop(), by_name):
            rest = _without_bound(part, by_name)
            if rest is None:
                return next(name for name in by_name if name in part)
            parts.append(rest)
    return None


def components(names: Iterable[str], by_name: Mapping[str, ir.Block]) -> list[frozenset[str]]:
    """The cycles among some blocks: strongly connected parts with an edge inside (Tarjan, without recursion)."""
    inside = set(names)
    index: dict[str, int] = {}
    low: dict[str, int] = {}
    stack: list[str] = []
    on_stack: set[str] = set()
    found: list[frozenset[str]] = []

    def targets(name: str) -> list[str]:
        return [t for t in successors(by_name[name].terminator) if t in inside]

    for root in [name for name in by_name if name in inside]:
        if root in index:
            continue
        index[root] = low[root] = len(index)
        stack.append(root)
        on_stack.add(root)
        work = [(root, iter(targets(root)))]
        while work:
            name, remaining = work[-1]
            target = next(remaining, None)
            if target is not None:
                if target not in index:
                    index[target] = low[target] = len(index)
                    stack.append(target)
                    on_stack.add(target)
                    work.append((target, iter(targets(target))))
                elif target in on_stack:
                    low[name] = min(low[name], index[target])
                continue
            work.pop()
            if work:
                low[work[-1][0]] = min(low[work[-1][0]], low[name])
            if low[name] == index[name]:
                part: set[str] = set()
                while name not in part:
                    member = stack.pop()
                    on_stack.discard(member)
                    part.add(member)
                if len(part) > 1 or name in targets(name):
                    found.append(frozenset(part))
    return found


def _without_bound(part: frozenset[str], by_name: Mapping[str, ir.Block]) -> list[str] | None:
    """The blocks left when the one that bounds this part is taken away; None if none does."""
    for name in by_name:
        if name not in part:
            continue
        counter = _exit_counter(by_name[name], part)
        if counter is None:
            continue
        steps = _step_blocks(counter, part, by_name)
        if not steps:
            continue
        missing = components(part - steps, by_name)
        if name not in steps and any(name in cycle for cycle in missing):
            continue  # A round that passes the comparison may miss the addition.
        return [n for n in part if n != name]
    return None


def _exit_counter(block: ir.Block, part: frozenset[str]) -> str | None:
    """The variable whose comparison with a constant decides whether this block leaves the part."""
    end = block.terminator
    if not isinstance(end, ir.Branch) or not isinstance(end.condition, ir.Value):
        return None
    stays = (end.if_true in part, end.if_false in part)
    if stays not in ((True, False), (False, True)):
        return None
    definitions = {i.result.name: i for i in block.instructions if isinstance(i, ir.Binary)}
    test = definitions.get(end.condition.name)
    if test is None or test.operator not in (_UP if stays[0] else _OUT):
        return None
    if not isinstance(test.right, ir.Constant) or test.right.value > MAXIMUM_ROUNDS:
        return None
    return _counted(test.left, definitions)


def _counted(operand: ir.Operand, definitions: Mapping[str, ir.Binary]) -> str | None:
    """The variable that an operand is, or to which it just adds a constant."""
    if isinstance(operand, ir.Variable):
        return operand.name
    if isinstance(operand, ir.Value):
        added = definitions.get(operand.name)
        if added is not None and _is_step(added):
            return added.left.name if isinstance(added.left, ir.Variable) else None
    return None


def _is_step(added: ir.Binary) -> bool:
    return (
        added.operator is ir.BinaryOperator.ADD
        and isinstance(added.left, ir.Variable)
        and isinstance(added.right, ir.Constant)
        and 1 <= added.right.value <= MAXIMUM_ROUNDS
    )


def _step_blocks(counter: str, part: frozenset[str], by_name: Mapping[str, ir.Block]) -> frozenset[str]:
    """The blocks of the part that add to the counter; none at all if one changes it in another way."""
    found: set[str] = set()
    for name in part:
        block = by_name[name]
        definitions = {i.result.name: i for i in block.instructions if isinstance(i, ir.Binary)}
        for instruction in block.instructions:
            if not isinstance(instruction, ir.Assign) or instruction.variable.name != counter:
                continue
            added = (
                definitions.get(instruction.value.name) if isinstance(instruction.value, ir.Value) else None
            )
            if added is None or name in found or _counted(added.result, definitions) != counter:
                return frozenset()
            found.add(name)
    return frozenset(found)
