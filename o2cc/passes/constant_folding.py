# SPDX-License-Identifier: Apache-2.0
"""Computes at compile time what does not depend on the moment, and simplifies what is left.

Words of constant tables at constant places count as constants.  Values only: what a variable holds may change
between two reads, so a variable never stands for a value.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from o2cc.ir import nodes as ir
from o2cc.ir.interpreter import evaluate
from o2cc.ir.walk import MASK, Body, block_spans, instructions, map_operands, result
from o2cc.passes.manager import BodyPass

_Op = ir.BinaryOperator
_COMPARISONS = (_Op.EQ, _Op.NE, _Op.ULT, _Op.ULE, _Op.UGT, _Op.UGE, _Op.SLT, _Op.SLE, _Op.SGT, _Op.SGE)
_OPPOSITE = {
    _Op.EQ: _Op.NE,
    _Op.NE: _Op.EQ,
    _Op.ULT: _Op.UGE,
    _Op.UGE: _Op.ULT,
    _Op.ULE: _Op.UGT,
    _Op.UGT: _Op.ULE,
    _Op.SLT: _Op.SGE,
    _Op.SGE: _Op.SLT,
    _Op.SLE: _Op.SGT,
    _Op.SGT: _Op.SLE,
}
_COMMUTATIVE = (_Op.ADD, _Op.MUL, _Op.AND, _Op.OR, _Op.XOR, _Op.EQ, _Op.NE)
# x op 0 is x, and x op 1 is x.
_ZERO_KEEPS = (_Op.ADD, _Op.SUB, _Op.OR, _Op.XOR, _Op.SHL, _Op.LSHR, _Op.ASHR, _Op.UMOD)
_ONE_KEEPS = (_Op.MUL, _Op.UDIV)
# x op x, and what it is.
_SAME = {
    _Op.SUB: 0,
    _Op.XOR: 0,
    _Op.EQ: 1,
    _Op.NE: 0,
    _Op.ULT: 0,
    _Op.UGT: 0,
    _Op.ULE: 1,
    _Op.UGE: 1,
    _Op.SLT: 0,
    _Op.SGT: 0,
    _Op.SLE: 1,
    _Op.SGE: 1,
}


@dataclass(frozen=True)
class ConstantFolding(BodyPass):
    """Computes constants and simplifies expressions, to a fixed point."""

    def change(self, body: Body, module: ir.Module) -> tuple[ir.Block, ...]:
        tables = {t.name: t for t in module.tables if not t.writable and not t.resizable}
        blocks = body.blocks
        while True:
            folder = _Folder(replace(body, blocks=blocks), tables)
            new = folder.fold()
            if new == blocks:
                return folder.without_known()
            blocks = new


class _Folder:
    """One round over a body: collects what values are known to be, then rewrites their uses.

    Definitions stay until nothing changes any more, since a block may stand before those that it follows.
    """

    def __init__(self, body: Body, tables: Mapping[str, ir.Table]) -> None:
        self._blocks = body.blocks
        self._tables = tables
        self._known: dict[str, ir.Operand] = {}
        self._definitions: dict[str, ir.Binary] = {
            i.result.name: i for i in instructions(body) if isinstance(i, ir.Binary)
        }
        for instruction in instructions(body):
            simple = self._simplified(instruction)
            if isinstance(simple, ir.Constant | ir.Value):
                self._known[defined(instruction)] = simple

    def fold(self) -> tuple[ir.Block, ...]:
        """The blocks with operands and instructions simplified."""
        return tuple(self._block(block) for block in self._blocks)

    def without_known(self) -> tuple[ir.Block, ...]:
        """The blocks without the definitions that no use is left of."""
        return tuple(self._without_known(block) for block in self._blocks)

    def _without_known(self, block: ir.Block) -> ir.Block:
        pairs = zip(block.instructions, block_spans(block), strict=True)
        kept = [(i, span) for i, span in pairs if result(i) is None or defined(i) not in self._known]
        if len(kept) == len(block.instructions):
            return block
        spans = tuple(span for _, span in kept) if block.spans else ()
        return replace(block, instructions=tuple(i for i, _ in kept), spans=spans)

    def _operand(self, operand: ir.Operand) -> ir.Operand:
        while isinstance(operand, ir.Value) and operand.name in self._known:
            operand = self._known[operand.name]
        return operand

    def _block(self, block: ir.Block) -> ir.Block:
        changed = tuple(self._instruction(i) for i in block.instructions)
        end = self._end(map_operands(block.terminator, self._operand))
        if changed == block.instructions and end == block.terminator:
            return block  # comparing it with itself again takes no time
        return replace(block, instructions=changed, terminator=end)

    def _instruction(self, instruction: ir.Instruction) -> ir.Instruction:
        changed = map_operands(instruction, self._operand)
        simple = self._simplified(changed)
        return changed if isinstance(simple, ir.Constant | ir.Value) else simple

    def _end(self, end: ir.Terminator) -> ir.Terminator:
        if not isinstance(end, ir.Branch):
            return end
        if end.if_true == end.if_false:
            return ir.Jump(end.if_true)
        if isinstance(end.condition, ir.Constant):
            return ir.Jump(end.if_true if end.condition.value else end.if_false)
        if isinstance(end.condition, ir.Value):
            test = self._definitions.get(end.condition.name)
            if test is not None and _is_number(test.right, 0) and isinstance(test.left, ir.Value):
                if test.operator is _Op.NE:
                    return ir.Branch(test.left, end.if_true, end.if_false)
                if test.operator is _Op.EQ:
                    return ir.Branch(test.left, end.if_false, end.if_true)
        return end

    def _simplified(self, instruction: ir.Instruction) -> ir.Instruction | ir.Constant | ir.Value:
        match instruction:
            case ir.Binary():
                return self._binary(instruction)
            case ir.Select(_, ir.Constant(condition), if_true, if_false):
                chosen = if_true if condition else if_false
                return chosen if not isinstance(chosen, ir.Variable) else instruction
            case ir.Select(_, _, if_true, if_false) if if_true == if_false and not isinstance(
                if_true, ir.Variable
            ):
                return if_true
            case ir.Load(_, table, ir.Constant(index), column) if table in self._tables:
                return ir.Constant(_cell(self._tables[table], index, column))
        return instruction

    def _binary(self, i: ir.Binary) -> ir.Instruction | ir.Constant | ir.Value:
        left, right = i.left, i.right
        if isinstance(left, ir.Constant) and isinstance(right, ir.Constant):
            return ir.Constant(evaluate(i.operator, left.value, right.value))
        if isinstance(left, ir.Constant) and i.operator in _COMMUTATIVE:
            left, right = right, left
            i = replace(i, left=left, right=right)
        if left == right and i.operator in _SAME:
            return ir.Constant(_SAME[i.operator])
        if isinstance(right, ir.Constant):
            return self._with_constant(i, right.value)
        return i

    def _with_constant(self, i: ir.Binary, number: int) -> ir.Instruction | ir.Constant | ir.Value:
        """`left op number`, where left is no constant."""
        keeps = (
            (number == 0 and i.operator in _ZERO_KEEPS)
            or (number == 1 and i.operator in _ONE_KEEPS)
            or (number == MASK and i.operator is _Op.AND)
        )
        if keeps and isinstance(i.left, ir.Value):
            return i.left
        if number == 0 and i.operator in (_Op.MUL, _Op.AND, _Op.UDIV, _Op.ULT):
            return ir.Constant(0)
        if number == 0 and i.operator is _Op.UGE:
            return ir.Constant(1)
        if number == 1 and i.operator is _Op.UMOD:
            return ir.Constant(0)
        before = self._definitions.get(i.left.name) if isinstance(i.left, ir.Value) else None
        if before is None:
            return i
        if (
            number == 0
            and i.operator is _Op.NE
            and before.operator in _COMPARISONS
            and isinstance(i.left, ir.Value)
        ):
            return i.left
        if not isinstance(before.left, ir.Value):
            return i  # A variable may hold another word by now.
        if number == 0 and i.operator is _Op.EQ and before.operator in _COMPARISONS:
            if isinstance(before.right, ir.Variable):
                return i
            return replace(before, result=i.result, operator=_OPPOSITE[before.operator])
        if isinstance(before.right, ir.Constant) and i.operator is before.operator:
            if i.operator is _Op.ADD:
                return replace(i, left=before.left, right=ir.Constant((before.right.value + number) & MASK))
            if i.operator is _Op.AND:
                return replace(i, left=before.left, right=ir.Constant(before.right.value & number))
        return i


def _cell(table: ir.Table, index: int, column: str) -> int:
    """A word of a constant table; 0 out of bounds and where no row is given."""
    number = [name for name, _ in table.columns].index(column)
    return table.rows[index][number] if index < len(table.rows) else 0


def defined(instruction: ir.Instruction) -> str:
    """Name of the value that an instruction defines; it must define one."""
    value = result(instruction)
    if value is None:
        raise ValueError("this instruction defines no value")
    return value.name


def _is_number(operand: ir.Operand, number: int) -> bool:
    return isinstance(operand, ir.Constant) and operand.value == number
