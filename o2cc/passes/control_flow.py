# SPDX-License-Identifier: Apache-2.0
"""Makes the control flow of bodies as short as it is meant: no unreachable block, no block that only jumps."""

from __future__ import annotations

from dataclasses import dataclass, replace

from o2cc.ir import nodes as ir
from o2cc.ir.walk import Body, block_spans, map_targets, predecessors, reachable
from o2cc.passes.manager import BodyPass


@dataclass(frozen=True)
class SimplifyControlFlow(BodyPass):
    """Removes, skips and joins blocks.

    Unreachable blocks go, blocks that only jump are skipped, a block is joined with the only one that follows it.
    """

    def change(self, body: Body, module: ir.Module) -> tuple[ir.Block, ...]:
        blocks = body.blocks
        while True:
            new = _joined(_without_detours(_without_unreachable(blocks)))
            if new == blocks:
                return blocks
            blocks = new


def _without_unreachable(blocks: tuple[ir.Block, ...]) -> tuple[ir.Block, ...]:
    live = reachable(blocks)
    return tuple(block for block in blocks if block.name in live)


def _without_detours(blocks: tuple[ir.Block, ...]) -> tuple[ir.Block, ...]:
    """Lead targets past blocks that only jump; a ring of such blocks stays as it is."""
    onwards = {
        block.name: block.terminator.target
        for block in blocks
        if not block.instructions and isinstance(block.terminator, ir.Jump)
    }

    def final(name: str) -> str:
        seen = {name}
        while name in onwards and onwards[name] not in seen:
            name = onwards[name]
            seen.add(name)
        return name

    changed = []
    for block in blocks:
        end = map_targets(block.terminator, final)
        if isinstance(end, ir.Branch) and end.if_true == end.if_false:
            end = ir.Jump(end.if_true)
        changed.append(block if end == block.terminator else replace(block, terminator=end))
    return tuple(changed)


def _joined(blocks: tuple[ir.Block, ...]) -> tuple[ir.Block, ...]:
    """Append to each block the one it jumps to, where nothing else leads there."""
    before = predecessors(blocks)
    by_name = {block.name: block for block in blocks}
    first = blocks[0].name
    gone: set[str] = set()
    joined: list[ir.Block] = []
    for block in blocks:
        if block.name in gone:
            continue
        while isinstance(block.terminator, ir.Jump):
            target = block.terminator.target
            if target in (first, block.name) or before[target] != [block.name] or target in gone:
                break
            if any(done.name == target for done in joined):
                break
            following = by_name[target]
            spans = (*block_spans(block), *block_spans(following))
            block = ir.Block(
                block.name,
                block.instructions + following.instructions,
                following.terminator,
                spans if any(span is not None for span in spans) else (),
            )
            before = {
                name: [block.name if p == target else p for p in names] for name, names in before.items()
            }
            gone.add(target)
        joined.append(block)
    return tuple(joined)
