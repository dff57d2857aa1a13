# SPDX-License-Identifier: Apache-2.0
"""Makes the blocks of a check, a hook or a function instruction by instruction, with fresh value names.

    code = Builder()
    base = code.register("rbx")
    address = code.add(base, code.parameter("displacement"))
    code.decide(Verdict.ALLOW)
    blocks = code.finish()

A block begins with `start` and ends with one of the terminating methods; the first one, ``entry``, is begun
already.  Integers may stand for operands; they are taken modulo 2**64.
"""

from __future__ import annotations

from collections.abc import Sequence

from o2cc.diagnostics import Span
from o2cc.ir import nodes as ir
from o2cc.ir.walk import MASK

Operand = ir.Operand | int


def operand(value: Operand) -> ir.Operand:
    """The operand that a value or a Python integer stands for."""
    return ir.Constant(value & MASK) if isinstance(value, int) else value


class Builder:
    """Collects blocks in order.  ``span`` is that of every instruction added while it is set."""

    def __init__(self, span: Span | None = None) -> None:
        self.span = span
        self._blocks: list[ir.Block] = []
        self._name: str | None = "entry"
        self._instructions: list[ir.Instruction] = []
        self._spans: list[Span | None] = []
        self._values = 0
        self._labels = 0

    # --- structure ----------------------------------------------------------------------------------------

    def label(self, stem: str) -> str:
        """A block name that is not used yet."""
        self._labels += 1
        return f"{stem}{self._labels}"

    def start(self, block: str) -> None:
        """Begin a block; the one before must be terminated."""
        if self._name is not None:
            raise ValueError(f"block `{self._name}` is not terminated")
        self._name = block
        self._instructions = []
        self._spans = []

    @property
    def open(self) -> bool:
        """Whether a block is begun and not terminated."""
        return self._name is not None

    def finish(self) -> tuple[ir.Block, ...]:
        """All blocks; every one must be terminated."""
        if self._name is not None:
            raise ValueError(f"block `{self._name}` is not terminated")
        return tuple(self._blocks)

    def _add(self, instruction: ir.Instruction) -> None:
        if self._name is None:
            raise ValueError("no block is begun")
        self._instructions.append(instruction)
        self._spans.append(self.span)

    def _terminate(self, terminator: ir.Terminator) -> None:
        if self._name is None:
            raise ValueError("no block is begun")
        spans = tuple(self._spans) if any(span is not None for span in self._spans) else ()
        self._blocks.append(ir.Block(self._name, tuple(self._instructions), terminator, spans))
        self._name = None

    def _fresh(self) -> ir.Value:
        self._values += 1
        return ir.Value(f"v{self._values}")

    # --- instructions -------------------------------------------------------------------------------------

    def binary(self, operator: ir.BinaryOperator, left: Operand, right: Operand) -> ir.Value:
        result = self._fresh()
        self._add(ir.Binary(result, operator, operand(left), operand(right)))
        return result

    def add(self, left: Operand, right: Operand) -> ir.Operand:
        """Sum; adding the constant 0 adds nothing."""
        return operand(left) if right == 0 else self.binary(ir.BinaryOperator.ADD, left, right)

    def register(self, name: str) -> ir.Value:
        result = self._fresh()
        self._add(ir.Register(result, name))
        return result

    def parameter(self, name: str) -> ir.Value:
        result = self._fresh()
        self._add(ir.Parameter(result, name))
        return result

    def symbol(self, name: str) -> ir.Value:
        result = self._fresh()
        self._add(ir.Symbol(result, name))
        return result

    def read(self, size: int, address: Operand) -> ir.Value:
        result = self._fresh()
        self._add(ir.Read(result, size, operand(address)))
        return result

    def load(self, table: str, index: Operand, column: str) -> ir.Value:
        result = self._fresh()
        self._add(ir.Load(result, table, operand(index), column))
        return result

    def store(self, table: str, index: Operand, column: str, value: Operand) -> None:
        self._add(ir.Store(table, operand(index), column, operand(value)))

    def call(self, function: str, *arguments: Operand) -> ir.Value:
        result = self._fresh()
        self._add(ir.Call(result, function, tuple(operand(a) for a in arguments)))
        return result

    def lookup(self, map_name: str, *key: Operand) -> ir.Value:
        result = self._fresh()
        self._add(ir.Lookup(result, map_name, tuple(operand(k) for k in key)))
        return result

    def entry_load(self, entry: ir.Value, map_name: str, field: str) -> ir.Value:
        result = self._fresh()
        self._add(ir.EntryLoad(result, entry, map_name, field))
        return result

    def update(self, map_name: str, key: Sequence[Operand], fields: Sequence[Operand]) -> ir.Value:
        result = self._fresh()
        self._add(
            ir.Update(result, map_name, tuple(operand(k) for k in key), tuple(operand(f) for f in fields))
        )
        return result

    def delete(self, map_name: str, *key: Operand) -> ir.Value:
        result = self._fresh()
        self._add(ir.Delete(result, map_name, tuple(operand(k) for k in key)))
        return result

    def select(self, condition: Operand, if_true: Operand, if_false: Operand) -> ir.Value:
        result = self._fresh()
        self._add(ir.Select(result, operand(condition), operand(if_true), operand(if_false)))
        return result

    def assign(self, variable: str, value: Operand) -> ir.Variable:
        target = ir.Variable(variable)
        self._add(ir.Assign(target, operand(value)))
        return target

    def argument(self, index: int) -> ir.Value:
        result = self._fresh()
        self._add(ir.Argument(result, index))
        return result

    def helper(self, kind: ir.HelperKind) -> ir.Value:
        result = self._fresh()
        self._add(ir.Helper(result, kind))
        return result

    def fetch_add(self, table: str, index: Operand, column: str, value: Operand) -> ir.Value:
        result = self._fresh()
        self._add(ir.FetchAdd(result, table, operand(index), column, operand(value)))
        return result

    def entry_store(self, entry: ir.Value, map_name: str, field: str, value: Operand) -> None:
        self._add(ir.EntryStore(entry, map_name, field, operand(value)))

    def compare_exchange(
        self, table: str, index: Operand, column: str, expected: Operand, new: Operand
    ) -> ir.Value:
        result = self._fresh()
        self._add(ir.CompareExchange(result, table, operand(index), column, operand(expected), operand(new)))
        return result

    def entry_fetch_add(self, entry: ir.Value, map_name: str, field: str, value: Operand) -> ir.Value:
        result = self._fresh()
        self._add(ir.EntryFetchAdd(result, entry, map_name, field, operand(value)))
        return result

    def entry_compare_exchange(
        self, entry: ir.Value, map_name: str, field: str, expected: Operand, new: Operand
    ) -> ir.Value:
        result = self._fresh()
        self._add(ir.EntryCompareExchange(result, entry, map_name, field, operand(expected), operand(new)))
        return result

    def emit(self, map_name: str, *fields: Operand) -> ir.Value:
        result = self._fresh()
        self._add(ir.Emit(result, map_name, tuple(operand(f) for f in fields)))
        return result

    # --- terminators --------------------------------------------------------------------------------------

    def branch(self, condition: Operand, if_true: str, if_false: str) -> None:
        self._terminate(ir.Branch(operand(condition), if_true, if_false))

    def jump(self, target: str) -> None:
        self._terminate(ir.Jump(target))

    def give_back(self, value: Operand) -> None:
        """``return value``"""
        self._terminate(ir.Return(operand(value)))

    def decide(self, verdict: ir.Verdict) -> None:
        """``verdict allow``"""
        self._terminate(ir.Decide(verdict))
