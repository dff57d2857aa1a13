# SPDX-License-Identifier: Apache-2.0
"""The reference interpreter: what a module means, instruction by instruction.

It is the judge of the compiled code and the engine of policy tests, so it is written to be read: one short
method for each kind of instruction, no optimization.  It runs modules that the verifier accepts.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from o2cc.diagnostics import DiagnosticError, error
from o2cc.ir import nodes as ir
from o2cc.ir.machine import Event, Machine
from o2cc.ir.walk import MASK, Body

MAXIMUM_STEPS = 1_000_000
"""What the kernel's verifier lets a program be (BPF_COMPLEXITY_LIMIT_INSNS, include/linux/bpf.h)."""

_HANDLE_BASE = 0xFFFF_C900_0000_0000
_HANDLE_STRIDE = 4096


def signed(word: int) -> int:
    """A 64-bit word as a two's complement number."""
    return word - (1 << 64) if word >> 63 else word


_OPERATORS: dict[ir.BinaryOperator, Callable[[int, int], int]] = {
    ir.BinaryOperator.ADD: lambda a, b: (a + b) & MASK,
    ir.BinaryOperator.SUB: lambda a, b: (a - b) & MASK,
    ir.BinaryOperator.MUL: lambda a, b: (a * b) & MASK,
    ir.BinaryOperator.UDIV: lambda a, b: a // b if b else 0,
    ir.BinaryOperator.UMOD: lambda a, b: a % b if b else a,
    ir.BinaryOperator.AND: lambda a, b: a & b,
    ir.BinaryOperator.OR: lambda a, b: a | b,
    ir.BinaryOperator.XOR: lambda a, b: a ^ b,
    ir.BinaryOperator.SHL: lambda a, b: (a << (b & 63)) & MASK,
    ir.BinaryOperator.LSHR: lambda a, b: a >> (b & 63),
    ir.BinaryOperator.ASHR: lambda a, b: (signed(a) >> (b & 63)) & MASK,
    ir.BinaryOperator.EQ: lambda a, b: int(a == b),
    ir.BinaryOperator.NE: lambda a, b: int(a != b),
    ir.BinaryOperator.ULT: lambda a, b: int(a < b),
    ir.BinaryOperator.ULE: lambda a, b: int(a <= b),
    ir.BinaryOperator.UGT: lambda a, b: int(a > b),
    ir.BinaryOperator.UGE: lambda a, b: int(a >= b),
    ir.BinaryOperator.SLT: lambda a, b: int(signed(a) < signed(b)),
    ir.BinaryOperator.SLE: lambda a, b: int(signed(a) <= signed(b)),
    ir.BinaryOperator.SGT: lambda a, b: int(signed(a) > signed(b)),
    ir.BinaryOperator.SGE: lambda a, b: int(signed(a) >= signed(b)),
}


def evaluate(operator: ir.BinaryOperator, left: int, right: int) -> int:
    """The result of an operator on two 64-bit words."""
    return _OPERATORS[operator](left, right)


@dataclass(frozen=True)
class Outcome:
    """What a run gave: the returned word, how many instructions and terminators ran, and through which blocks.

    `path` names each block entered, as ``body.block``; `events` are those of this run.
    """

    value: int
    executed: int
    path: tuple[str, ...]
    events: tuple[Event, ...]

    @property
    def verdict(self) -> ir.Verdict:
        """The returned word as a verdict; raises IndexError if it is none."""
        return tuple(ir.Verdict)[self.value]


class _Frame:
    """What one invocation of a body sees: values, variables and its inputs."""

    __slots__ = ("arguments", "parameters", "registers", "values", "variables")

    def __init__(
        self, registers: Mapping[str, int], arguments: Sequence[int], parameters: Mapping[str, int]
    ) -> None:
        self.registers = registers
        self.arguments = arguments
        self.parameters = parameters
        self.values: dict[str, int] = {}
        self.variables: dict[str, int] = {}

    def word(self, operand: ir.Operand) -> int:
        if isinstance(operand, ir.Constant):
            return operand.value
        if isinstance(operand, ir.Value):
            return self.values[operand.name]
        return self.variables.get(operand.name, 0)

    def words(self, operands: tuple[ir.Operand, ...]) -> tuple[int, ...]:
        return tuple(map(self.word, operands))


class Interpreter:
    """Runs parts of a module on a machine, which keeps its state from run to run."""

    def __init__(self, machine: Machine, *, maximum_steps: int = MAXIMUM_STEPS) -> None:
        module = machine.module
        self.machine = machine
        self._maximum = maximum_steps
        self._functions = {f.name: f for f in module.functions}
        self._checks = {c.name: c for c in module.checks}
        self._hooks = {h.name: h for h in module.hooks}
        self._sites = {s.number: s for s in module.sites}
        self._handles: list[list[int]] = []
        self._executed = 0
        self._path: list[str] = []
        self._steps: dict[type, Callable[[Any, _Frame], int | None]] = {
            ir.Binary: self._binary,
            ir.Select: lambda i, f: f.word(i.if_true if f.word(i.condition) else i.if_false),
            ir.Assign: self._assign,
            ir.Register: lambda i, f: f.registers.get(i.register, 0) & MASK,
            ir.Argument: lambda i, f: f.arguments[i.index] & MASK if i.index < len(f.arguments) else 0,
            ir.Parameter: lambda i, f: f.parameters[i.name],
            ir.Symbol: lambda i, f: machine.symbols.get(i.name, 0),
            ir.Read: lambda i, f: machine.memory.read(f.word(i.address), i.size) or 0,
            ir.Load: lambda i, f: machine.tables[i.table].load(f.word(i.index), i.column),
            ir.Store: self._store,
            ir.FetchAdd: self._fetch_add,
            ir.CompareExchange: self._compare_exchange,
            ir.Lookup: self._lookup,
            ir.EntryLoad: lambda i, f: self._entry(i, f)[self._field(i)],
            ir.EntryStore: self._entry_store,
            ir.EntryFetchAdd: self._entry_fetch_add,
            ir.EntryCompareExchange: self._entry_compare_exchange,
            ir.Update: self._update,
            ir.Delete: lambda i, f: machine.maps[i.map].delete(f.words(i.key)),
            ir.Helper: self._helper,
            ir.Emit: self._emit,
            ir.Call: lambda i, f: self._call(i.function, f.words(i.arguments)),
        }
        self._field_numbers = {m.name: {name: n for n, name in enumerate(m.fields)} for m in module.maps}

    # --- what can be run ----------------------------------------------------------------------------------

    def run_site(self, number: int, registers: Mapping[str, int]) -> Outcome:
        """The check of a site, with the site's parameters.  Raises KeyError if there is no such site."""
        site = self._sites[number]
        return self.run_check(site.check, registers, dict(site.parameters))

    def run_check(self, name: str, registers: Mapping[str, int], parameters: Mapping[str, int]) -> Outcome:
        """A check by name.  Registers that are not given are 0."""
        return self._run(self._checks[name], _Frame(registers, (), parameters))

    def run_hook(
        self, name: str, *, registers: Mapping[str, int] | None = None, arguments: Sequence[int] = ()
    ) -> Outcome:
        """A hook by name, with the registers or the arguments that its kind has."""
        return self._run(self._hooks[name], _Frame(registers or {}, arguments, {}))

    def run_function(self, name: str, *arguments: int) -> Outcome:
        """A function by name."""
        return self._run(None, _Frame({}, arguments, {}), name)

    def _run(self, body: Body | None, frame: _Frame, function: str = "") -> Outcome:
        self._executed = 0
        self._path = []
        self._handles.clear()
        first = len(self.machine.events)
        if body is None:
            value = self._call(function, tuple(word & MASK for word in frame.arguments))
        else:
            value = self._body(body, frame)
        return Outcome(value, self._executed, tuple(self._path), tuple(self.machine.events[first:]))

    # --- bodies -------------------------------------------------------------------------------------------

    def _call(self, name: str, arguments: tuple[int, ...]) -> int:
        function = self._functions[name]
        frame = _Frame({}, (), {})
        frame.values.update(zip(function.parameters, arguments, strict=True))
        return self._body(function, frame)

    def _body(self, body: Body, frame: _Frame) -> int:
        blocks = {block.name: block for block in body.blocks}
        block = body.blocks[0]
        while True:
            self._path.append(f"{body.name}.{block.name}")
            self._executed += len(block.instructions) + 1
            if self._executed > self._maximum:
                raise DiagnosticError(
                    error(
                        "O2C0534", f"`{body.name}` runs for more than {self._maximum} instructions", body.span
                    )
                )
            for instruction in block.instructions:
                value = self._steps[type(instruction)](instruction, frame)
                if value is not None:
                    frame.values[instruction.result.name] = value  # type: ignore[union-attr]  # those that give one have it
            match block.terminator:
                case ir.Branch(condition, if_true, if_false):
                    block = blocks[if_true if frame.word(condition) else if_false]
                case ir.Jump(target):
                    block = blocks[target]
                case ir.Return(operand):
                    return frame.word(operand)
                case ir.Decide(verdict):
                    return verdict.code

    # --- instructions -------------------------------------------------------------------------------------

    def _binary(self, i: ir.Binary, frame: _Frame) -> int:
        return _OPERATORS[i.operator](frame.word(i.left), frame.word(i.right))

    def _assign(self, i: ir.Assign, frame: _Frame) -> None:
        frame.variables[i.variable.name] = frame.word(i.value)

    def _store(self, i: ir.Store, frame: _Frame) -> None:
        self.machine.tables[i.table].store(frame.word(i.index), i.column, frame.word(i.value))

    def _fetch_add(self, i: ir.FetchAdd, frame: _Frame) -> int:
        table = self.machine.tables[i.table]
        index = frame.word(i.index)
        old = table.load(index, i.column)
        table.store(index, i.column, old + frame.word(i.value))
        return old

    def _compare_exchange(self, i: ir.CompareExchange, frame: _Frame) -> int:
        table = self.machine.tables[i.table]
        index = frame.word(i.index)
        old = table.load(index, i.column)
        if old == frame.word(i.expected):
            table.store(index, i.column, frame.word(i.new))
        return old

    def _lookup(self, i: ir.Lookup, frame: _Frame) -> int:
        entry = self.machine.maps[i.map].lookup(frame.words(i.key))
        if entry is None:
            return 0
        self._handles.append(entry)
        return _HANDLE_BASE + _HANDLE_STRIDE * (len(self._handles) - 1)

    def _entry(
        self,
        i: ir.EntryLoad | ir.EntryStore | ir.EntryFetchAdd | ir.EntryCompareExchange,
        frame: _Frame,
    ) -> list[int]:
        return self._handles[(frame.word(i.entry) - _HANDLE_BASE) // _HANDLE_STRIDE]

    def _field(self, i: ir.EntryLoad | ir.EntryStore | ir.EntryFetchAdd | ir.EntryCompareExchange) -> int:
        return self._field_numbers[i.map][i.field]

    def _entry_store(self, i: ir.EntryStore, frame: _Frame) -> None:
        self._entry(i, frame)[self._field(i)] = frame.word(i.value)

    def _entry_fetch_add(self, i: ir.EntryFetchAdd, frame: _Frame) -> int:
        entry, number = self._entry(i, frame), self._field(i)
        old = entry[number]
        entry[number] = (old + frame.word(i.value)) & MASK
        return old

    def _entry_compare_exchange(self, i: ir.EntryCompareExchange, frame: _Frame) -> int:
        entry, number = self._entry(i, frame), self._field(i)
        old = entry[number]
        if old == frame.word(i.expected):
            entry[number] = frame.word(i.new)
        return old

    def _update(self, i: ir.Update, frame: _Frame) -> int:
        state = self.machine.maps[i.map]
        return state.update(frame.words(i.key), frame.words(i.fields), no_replace=i.no_replace)

    def _helper(self, i: ir.Helper, _frame: _Frame) -> int:
        machine = self.machine
        match i.kind:
            case ir.HelperKind.NOW:
                return machine.now & MASK
            case ir.HelperKind.CPU:
                return machine.cpu
            case ir.HelperKind.TASK:
                return machine.task & MASK
            case ir.HelperKind.PID_TGID:
                return machine.pid_tgid & MASK
            case ir.HelperKind.KILL:
                machine.killed.append(machine.pid_tgid)
                return machine.kill_result & MASK

    def _emit(self, i: ir.Emit, frame: _Frame) -> int:
        fields = frame.words(i.fields)
        if not self.machine.rings[i.map].emit(fields):
            return 0
        self.machine.events.append(Event(i.map, fields))
        return 1
