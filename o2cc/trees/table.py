# SPDX-License-Identifier: Apache-2.0
"""The tree as a table that a short loop walks: few instructions, more time for each test.

A row takes 16 bytes: u64 threshold, u32 the row of the high side (of an outcome: its value), u16 the byte
offset of the feature's word (`LEAF_OFFSET` for an outcome), u16 zero.  The low side is the next row.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping

from o2cc.trees.bytecode import MAP_VALUE, Assembler, Op
from o2cc.trees.graph import Choice, DecisionGraph

ROW = struct.Struct("<QIHH")
LEAF_OFFSET = 0xFFFF
BROKEN = -1
"""What the walk returns when the table leads nowhere; a correct table never does."""


def table_of(graph: DecisionGraph, slots: Mapping[int, int]) -> tuple[bytes, int]:
    """The rows, root first, and the number of tests on the longest path.

    Shared nodes are repeated for every parent, so the table has at most as many rows as the tree has nodes.
    """
    rows: list[tuple[int, int, int]] = []
    high_row: dict[int, int] = {}
    deepest = 0
    work = [(graph.root, -1, 0)]
    while work:
        number, parent, depth = work.pop()
        if parent >= 0:
            high_row[parent] = len(rows)
        node = graph.nodes[number]
        deepest = max(deepest, depth)
        if isinstance(node, Choice):
            work += ((node.high, len(rows), depth + 1), (node.low, -1, depth + 1))
            rows.append((node.threshold, 0, slots[node.feature] * 8))
        else:
            rows.append((0, node.value, LEAF_OFFSET))
    encoded = b"".join(
        ROW.pack(threshold, high_row.get(row, value), offset, 0)
        for row, (threshold, value, offset) in enumerate(rows)
    )
    return encoded, deepest


def walker(rows: int, depth: int, last_slot: int) -> Assembler:
    """The loop over a table map, whose file descriptor takes the place of the label-less map load.

    r1 is the address of the features' words, `last_slot` the number of the last one.
    """
    code = Assembler()
    code.emit(Op.LD_IMM64, 2, MAP_VALUE)
    code.emit(Op.MOV_IMM, 3, immediate=0)
    code.emit(Op.MOV_IMM, 5, immediate=0)
    code.label("loop")
    code.emit(Op.JGT_IMM, 3, immediate=rows - 1, target="broken")
    code.emit(Op.MOV_REG, 4, 3)
    code.emit(Op.LSH_IMM, 4, immediate=4)
    code.emit(Op.ADD_REG, 4, 2)
    code.emit(Op.LDX_U16, 0, 4, 12)
    code.emit(Op.JGT_IMM, 0, immediate=last_slot * 8, target="leaf")
    code.emit(Op.ADD_REG, 0, 1)
    code.emit(Op.LDX_U64, 0, 0, 0)
    code.emit(Op.ADD_IMM, 3, immediate=1)
    code.emit(Op.ADD_IMM, 5, immediate=1)
    code.emit(Op.LDX_U64, 6, 4, 0)
    code.emit(Op.JLE_REG, 0, 6, target="next")
    code.emit(Op.LDX_U32, 3, 4, 8)
    code.label("next")
    code.emit(Op.JLE_IMM, 5, immediate=depth, target="loop")
    code.label("broken")
    code.emit(Op.MOV_IMM, 0, immediate=BROKEN)
    code.emit(Op.EXIT)
    code.label("leaf")
    code.emit(Op.LDX_U32, 0, 4, 8)
    code.emit(Op.EXIT)
    return code
