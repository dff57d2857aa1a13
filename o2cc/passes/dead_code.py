# SPDX-License-Identifier: Apache-2.0
"""Takes away instructions whose result nobody uses and that change nothing."""

from __future__ import annotations

from dataclasses import dataclass, replace

from o2cc.ir import nodes as ir
from o2cc.ir.walk import Body, block_spans, calls, has_effect, instructions, operands, result
from o2cc.passes.manager import Pass, PassContext, SomeBody


@dataclass(frozen=True)
class DeadCode(Pass):
    """Removes what nobody uses and what changes nothing.

    These are unused values, assignments to variables that are never read, and unused calls of functions without
    effects.  What reads kernel memory goes as well: a read that faults has no effect.
    """

    def run(self, module: ir.Module, context: PassContext) -> ir.Module:
        pure = functions_without_effects(module)

        def cleaned(body: SomeBody) -> SomeBody:
            blocks = _without_dead(body, pure)
            return body if blocks == body.blocks else replace(body, blocks=blocks)

        return replace(
            module,
            functions=tuple(cleaned(f) for f in module.functions),
            checks=tuple(cleaned(c) for c in module.checks),
            hooks=tuple(cleaned(h) for h in module.hooks),
        )


def functions_without_effects(module: ir.Module) -> frozenset[str]:
    """Names of the functions that change no table and no map, emit nothing, kill nothing, in no callee either."""
    pure = {f.name for f in module.functions}
    changed = True
    while changed:
        changed = False
        for function in module.functions:
            if function.name not in pure:
                continue
            own = any(has_effect(i) for i in instructions(function) if not isinstance(i, ir.Assign | ir.Call))
            if own or not calls(function) <= pure:
                pure.discard(function.name)
                changed = True
    return frozenset(pure)


def _without_dead(body: Body, pure: frozenset[str]) -> tuple[ir.Block, ...]:
    blocks = body.blocks
    while True:
        read = {
            operand
            for block in blocks
            for node in (*block.instructions, block.terminator)
            for operand in operands(node)
            if not isinstance(operand, ir.Constant)
        }
        new = tuple(_kept(block, read, pure) for block in blocks)
        if new == blocks:
            return blocks
        blocks = new


def _kept(block: ir.Block, read: set[ir.Value | ir.Variable], pure: frozenset[str]) -> ir.Block:
    kept = [
        (instruction, span)
        for instruction, span in zip(block.instructions, block_spans(block), strict=True)
        if not _is_dead(instruction, read, pure)
    ]
    if len(kept) == len(block.instructions):
        return block
    spans = tuple(span for _, span in kept) if block.spans else ()
    return replace(block, instructions=tuple(i for i, _ in kept), spans=spans)


def _is_dead(instruction: ir.Instruction, read: set[ir.Value | ir.Variable], pure: frozenset[str]) -> bool:
    if isinstance(instruction, ir.Assign):
        return instruction.variable not in read
    if has_effect(instruction) and not (isinstance(instruction, ir.Call) and instruction.function in pure):
        return False
    return result(instruction) not in read
