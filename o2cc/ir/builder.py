# SPDX-License-Identifier: Apache-2.0
"""Makes bodies of the IR from Python, with fresh names for values and blocks.

    build = BodyBuilder()
    address = build.add(build.register("rbx"), build.parameter("displacement"))
    build.branch(build.call("owned", address), "allow", "slow")
    build.start("slow")
    ...
    check = build.check("store_rbx")

Operands may be given as Python numbers (negative ones become two's complement).  Wrong use (a block without
terminator, an instruction after one) is a programming error and raises `ValueError`.
"""

from __future__ import annotations

from collections.abc import Sequence

from o2cc.diagnostics import Span
from o2cc.ir import nodes as ir
from o2cc.ir.walk import MASK

Given = ir.Operand | int
"""What methods take as operand."""


def as_operand(given: Given) -> ir.Operand:
    """The operand for a Python number, or the operand itself."""
    return ir.Constant(given & MASK) if isinstance(given, int) else given


class BodyBuilder:
    """Collects blocks; instructions go to the block that was started last (at first ``entry``)."""

    def __init__(self, parameters: Sequence[str] = ()) -> None:
        self._parameters = tuple(parameters)
        self._used = set(parameters)
        self._block_names: set[str] = {"entry"}
        self._finished: list[ir.Block] = []
        self._current: str | None = "entry"
        self._instructions: list[ir.Instruction] = []
        self._spans: list[Span | None] = []
        self.span: Span | None = None
        """The span given to the instructions that follow."""

    # --- names and blocks ---------------------------------------------------------------------------------

    @property
    def is_open(self) -> bool:
        """Whether the current block still waits for its terminator."""
        return self._current is not None

    def argument_value(self, name: str) -> ir.Value:
        """The value of a parameter of the function that is built."""
        if name not in self._parameters:
            raise ValueError(f"there is no parameter {name}")
        return ir.Value(name)

    def fresh(self, hint: str = "v") -> ir.Value:
        """A value that is not used yet; the hint itself if that is free, else with a number."""
        return ir.Value(_unused(hint, self._used))

    def fresh_block(self, hint: str = "block") -> str:
        """A name for a block that is not used yet."""
        return _unused(hint, self._block_names)

    def start(self, name: str) -> None:
        """Begin the block of this name; the one before must have its terminator."""
        if self._current is not None:
            raise ValueError(f"block {self._current} has no terminator")
        if any(block.name == name for block in self._finished):
            raise ValueError(f"block {name} is there already")
        self._block_names.add(name)
        self._current = name

    def append(self, instruction: ir.Instruction) -> None:
        """Add any instruction as it is."""
        if self._current is None:
            raise ValueError("an instruction needs a block: start one")
        self._instructions.append(instruction)
        self._spans.append(self.span)

    def _end(self, terminator: ir.Terminator) -> None:
        if self._current is None:
            raise ValueError("the block has its terminator already")
        spans = tuple(self._spans) if any(span is not None for span in self._spans) else ()
        self._finished.append(ir.Block(self._current, tuple(self._instructions), terminator, spans))
        self._current = None
        self._instructions = []
        self._spans = []

    # --- values -------------------------------------------------------------------------------------------

    def binary(self, operator: ir.BinaryOperator, left: Given, right: Given, hint: str = "v") -> ir.Value:
        """``%r = add %a, %b`` for any operator."""
        value = self.fresh(hint)
        self.append(ir.Binary(value, operator, as_operand(left), as_operand(right)))
        return value

    def add(self, left: Given, right: Given, hint: str = "v") -> ir.Value:
        """The sum."""
        return self.binary(ir.BinaryOperator.ADD, left, right, hint)

    def sub(self, left: Given, right: Given, hint: str = "v") -> ir.Value:
        """The difference."""
        return self.binary(ir.BinaryOperator.SUB, left, right, hint)

    def band(self, left: Given, right: Given, hint: str = "v") -> ir.Value:
        """Bitwise and."""
        return self.binary(ir.BinaryOperator.AND, left, right, hint)

    def equal(self, left: Given, right: Given, hint: str = "v") -> ir.Value:
        """1 if equal, else 0."""
        return self.binary(ir.BinaryOperator.EQ, left, right, hint)

    def below(self, left: Given, right: Given, hint: str = "v") -> ir.Value:
        """1 if left < right, unsigned."""
        return self.binary(ir.BinaryOperator.ULT, left, right, hint)

    def select(self, condition: Given, if_true: Given, if_false: Given, hint: str = "v") -> ir.Value:
        """One of two values."""
        value = self.fresh(hint)
        self.append(ir.Select(value, as_operand(condition), as_operand(if_true), as_operand(if_false)))
        return value

    def register(self, name: str) -> ir.Value:
        """A register of the interrupted code."""
        value = self.fresh(name)
        self.append(ir.Register(value, name))
        return value

    def argument(self, index: int, hint: str = "arg") -> ir.Value:
        """An argument of a raw tracepoint."""
        value = self.fresh(hint)
        self.append(ir.Argument(value, index))
        return value

    def parameter(self, name: str) -> ir.Value:
        """A constant of the site."""
        value = self.fresh(name)
        self.append(ir.Parameter(value, name))
        return value

    def symbol(self, name: str) -> ir.Value:
        """The address of a kernel symbol."""
        value = self.fresh("symbol")
        self.append(ir.Symbol(value, name))
        return value

    def read(self, size: int, address: Given, hint: str = "v") -> ir.Value:
        """Kernel memory."""
        value = self.fresh(hint)
        self.append(ir.Read(value, size, as_operand(address)))
        return value

    def load(self, table: str, index: Given, column: str) -> ir.Value:
        """A word of a table."""
        value = self.fresh(column)
        self.append(ir.Load(value, table, as_operand(index), column))
        return value

    def helper(self, kind: ir.HelperKind) -> ir.Value:
        """A fact about the moment."""
        value = self.fresh(kind.value)
        self.append(ir.Helper(value, kind))
        return value

    def lookup(self, map_name: str, *key: Given, hint: str = "entry") -> ir.Value:
        """The handle of an entry; branch on it before use."""
        value = self.fresh(hint)
        self.append(ir.Lookup(value, map_name, tuple(map(as_operand, key))))
        return value

    def entry_load(self, entry: ir.Value, map_name: str, field: str) -> ir.Value:
        """A field of an entry."""
        value = self.fresh(field)
        self.append(ir.EntryLoad(value, entry, map_name, field))
        return value

    def call(self, function: str, *arguments: Given, hint: str = "v") -> ir.Value:
        """The result of a function."""
        value = self.fresh(hint)
        self.append(ir.Call(value, function, tuple(map(as_operand, arguments))))
        return value

    # --- effects ------------------------------------------------------------------------------------------

    def assign(self, variable: str, given: Given) -> ir.Variable:
        """``$variable = given``"""
        target = ir.Variable(variable)
        self.append(ir.Assign(target, as_operand(given)))
        return target

    def store(self, table: str, index: Given, column: str, given: Given) -> None:
        """Write a word of a table."""
        self.append(ir.Store(table, as_operand(index), column, as_operand(given)))

    def fetch_add(self, table: str, index: Given, column: str, given: Given) -> ir.Value:
        """Add to a word of a table atomically; the old word."""
        value = self.fresh("old")
        self.append(ir.FetchAdd(value, table, as_operand(index), column, as_operand(given)))
        return value

    def entry_store(self, entry: ir.Value, map_name: str, field: str, given: Given) -> None:
        """Write a field of an entry."""
        self.append(ir.EntryStore(entry, map_name, field, as_operand(given)))

    def entry_fetch_add(self, entry: ir.Value, map_name: str, field: str, given: Given) -> ir.Value:
        """Add to a field of an entry atomically; the old word."""
        value = self.fresh("old")
        self.append(ir.EntryFetchAdd(value, entry, map_name, field, as_operand(given)))
        return value

    def update(
        self, map_name: str, key: Sequence[Given], fields: Sequence[Given], *, no_replace: bool = False
    ) -> ir.Value:
        """Make or replace an entry; 0 or a negative error."""
        value = self.fresh("error")
        words = tuple(map(as_operand, key)), tuple(map(as_operand, fields))
        self.append(ir.Update(value, map_name, *words, no_replace))
        return value

    def delete(self, map_name: str, *key: Given) -> ir.Value:
        """Take an entry away; 0 or a negative error."""
        value = self.fresh("error")
        self.append(ir.Delete(value, map_name, tuple(map(as_operand, key))))
        return value

    def emit(self, map_name: str, *fields: Given) -> ir.Value:
        """Write a record to a ring buffer; 1, or 0 when it is full."""
        value = self.fresh("emitted")
        self.append(ir.Emit(value, map_name, tuple(map(as_operand, fields))))
        return value

    # --- terminators --------------------------------------------------------------------------------------

    def branch(self, condition: Given, if_true: str, if_false: str) -> None:
        """To `if_true` if the condition is not 0."""
        self._end(ir.Branch(as_operand(condition), if_true, if_false))

    def jump(self, target: str) -> None:
        """To a block."""
        self._end(ir.Jump(target))

    def ret(self, given: Given) -> None:
        """Return a word."""
        self._end(ir.Return(as_operand(given)))

    def verdict(self, verdict: ir.Verdict) -> None:
        """Return a verdict."""
        self._end(ir.Decide(verdict))

    # --- results ------------------------------------------------------------------------------------------

    def blocks(self) -> tuple[ir.Block, ...]:
        """Everything built so far."""
        if self._current is not None:
            raise ValueError(f"block {self._current} has no terminator")
        return tuple(self._finished)

    def check(self, name: str, span: Span | None = None) -> ir.Check:
        """The blocks as a check."""
        return ir.Check(name, self.blocks(), span)

    def function(self, name: str, span: Span | None = None, *, inline: bool = False) -> ir.Function:
        """The blocks as a function of the parameters that the builder was made with."""
        return ir.Function(name, self._parameters, self.blocks(), span, inline)

    def hook(self, name: str, kind: ir.HookKind, target: str, span: Span | None = None) -> ir.Hook:
        """The blocks as a hook."""
        return ir.Hook(name, kind, target, self.blocks(), span)


def _unused(hint: str, used: set[str]) -> str:
    name = hint
    number = 1
    while name in used:
        number += 1
        name = f"{hint}.{number}"
    used.add(name)
    return name
