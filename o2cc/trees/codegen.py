# SPDX-License-Identifier: Apache-2.0
"""Decision graph -> BPF instructions: every test as one comparison where that is exact.

A subprogram gets the address of the features' words in r1 (`slots` says which word a feature is) and returns
the outcome in r0.  It writes nothing and calls nothing but its own further parts.

How a test `w <= t` is made, the first of these that is exact:

    immediate   t or t + 1 is a sign-extended 32-bit immediate: compare the whole word
    32-bit      the paths here leave w one upper half: compare the lower halves, any immediate
    upper half  t ends in 32 ones: load the upper half only and compare it with t >> 32
    shift       w is not needed again and t + 1 ends in zeros: shift w right and compare it with an immediate
    register    load t into a register (two slots) and compare the whole word

A value that further tests of the same region need stays in a register.  A region ends where paths join:
there, nothing but r1 is assumed.

A test between two outcomes that is hard to predict is computed without a jump (`o2cc.trees.selection`).

An outcome that a jump leads to is put into r0 before the comparison, and the jump goes to the one exit: a jump
to a block that sets r0 and then leaves would be two jumps in machine code.  Outcomes that few samples reach
have such a block, so that the usual path is spared the instruction.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum

from o2cc.trees.bytecode import Assembler, Op, fits_immediate
from o2cc.trees.graph import Choice, DecisionGraph, Outcome
from o2cc.trees.ranges import Interval
from o2cc.trees.selection import (
    LOWER_HALF,
    PREDICTABLE,
    load_constant,
    selection_of,
    shift_of,
    write_choice,
)

OUTCOME = 0
VECTOR = 1
CONSTANT = 5
KEPT = (2, 3, 4)
"""Registers for values, kept while they are needed again.  Those from 6 on would be saved and restored by every call, which
costs more than the loads that they spare (measured)."""

RARE = 4
"""An outcome is rare where less than one in so many samples goes there; from 3 to 16 time is the same, instructions are not
(measured)."""

EXIT = "exit"
WORD_BYTES = 8

Value = tuple[int, bool]
"""What a register may hold: a feature, and whether only its upper half."""

Values = frozenset[Value]
NO_VALUES: Values = frozenset()


class Form(StrEnum):
    """How a test compares; see the module's docstring."""

    LOWER = "lower"
    IMMEDIATE = "immediate"
    UPPER = "upper"
    REGISTER = "register"


@dataclass(frozen=True, slots=True)
class Comparison:
    """A test ready to be written: what is loaded of the feature, and what it is compared with."""

    form: Form
    feature: int
    threshold: int

    @property
    def value(self) -> Value:
        """What must be in a register."""
        return self.feature, self.form is Form.UPPER


def comparison_of(node: Choice, interval: Interval) -> Comparison:
    """The cheapest exact comparison for a test whose feature is in `interval`."""
    low, high = interval
    threshold = node.threshold
    if fits_immediate(threshold) or fits_immediate(threshold + 1):
        form = Form.IMMEDIATE
    elif low >> 32 == high >> 32:
        form = Form.LOWER
    elif threshold & LOWER_HALF == LOWER_HALF:
        form = Form.UPPER
    else:
        form = Form.REGISTER
    return Comparison(form, node.feature, threshold)


@dataclass
class _Registers:
    """What registers hold on the path that is being written."""

    values: dict[Value, int]
    constant: int | None = None
    outcome: int | None = None

    def copy(self) -> _Registers:
        return _Registers(dict(self.values), self.constant, self.outcome)


@dataclass
class Writer:
    """Writes one subprogram: everything that `root` leads to, up to the nodes in `calls`.

    `calls` maps nodes that are subprograms of their own to the labels of these.  `selects`: compute outcomes that are hard
    to predict.
    """

    graph: DecisionGraph
    intervals: Sequence[Interval]
    slots: Mapping[int, int]
    calls: Mapping[int, str]
    root: int
    selects: bool = True

    def __post_init__(self) -> None:
        self.code = Assembler()
        self.joins = [count > 1 for count in self.graph.parent_counts()]
        self.needs, self.surely = self._needs()
        self.written: set[int] = set()
        self.pending: list[tuple[int, _Registers]] = []
        self.wanted: dict[int, None] = {}  # ends that some jump wants and that are not written yet, in order

    def _is_end(self, number: int) -> bool:
        """Whether the path ends here: an outcome, or a call of another subprogram."""
        return isinstance(self.graph.nodes[number], Outcome) or (number in self.calls and number != self.root)

    def _starts_region(self, number: int) -> bool:
        return self.joins[number] or self._is_end(number)

    def _needs(self) -> tuple[list[Values], list[Values]]:
        """By node: the values that its region tests from there on, on some path and on every path."""
        some: list[Values] = []
        every: list[Values] = []
        for number, node in enumerate(self.graph.nodes):
            if isinstance(node, Outcome):
                some.append(NO_VALUES)
                every.append(NO_VALUES)
                continue
            own = frozenset({comparison_of(node, self.intervals[number]).value})
            sides = [NO_VALUES if self._starts_region(c) else some[c] for c in (node.low, node.high)]
            some.append(own | sides[0] | sides[1])
            sides = [NO_VALUES if self._starts_region(c) else every[c] for c in (node.low, node.high)]
            every.append(own | sides[0] & sides[1])
        return some, every

    def write(self) -> Assembler:
        """The subprogram."""
        self.pending.append((self.root, _Registers({})))
        while self.pending:
            number, registers = self.pending.pop()
            if number not in self.written:
                self._write_chain(number, registers)
        for number in self.wanted:
            if number not in self.written:
                self._write_end(number, _Registers({}))
        if EXIT not in self.code.labels:
            self._write_exit()
        return self.code

    def _name(self, number: int) -> str:
        return f"n{number}"

    def _write_exit(self) -> None:
        if EXIT not in self.code.labels:
            self.code.label(
                EXIT
            )  # the JIT writes the epilogue at the first exit, and jumps to it from others
        self.code.emit(Op.EXIT)

    def _write_end(self, number: int, registers: _Registers) -> None:
        """End a path: set r0 unless it is set already, or call; leave."""
        node = self.graph.nodes[number]
        if number in self.calls:
            self._label_end(number)
            self.code.emit(Op.CALL, src=1, target=self.calls[number])
        else:
            assert isinstance(node, Outcome)
            if registers.outcome != node.value:
                self._label_end(number)
            self._set_outcome(node.value, registers)
        self._write_exit()

    def _label_end(self, number: int) -> None:
        if number not in self.written:
            self.code.label(self._name(number))
            self.written.add(number)

    def _set_outcome(self, value: int, registers: _Registers) -> None:
        if registers.outcome != value:
            self.code.emit(Op.MOV_IMM, OUTCOME, immediate=value)
            registers.outcome = value

    def _write_chain(self, number: int, registers: _Registers) -> None:
        """Write tests one under the other until a path ends; other sides become pending."""
        while True:
            if self._is_end(number):
                self._write_end(number, registers)
                return
            if number in self.written:
                self.code.emit(Op.JA, target=self._name(number))
                return
            self.code.label(self._name(number))
            self.written.add(number)
            if self.joins[number]:
                registers = _Registers({})
            node = self.graph.nodes[number]
            assert isinstance(node, Choice)
            if self.selects and self._select(number, node, registers):
                return
            following, aside = self._sides(node, registers)
            self._write_test(number, node, aside, registers)
            if not self._is_end(aside) and aside not in self.written:
                self.pending.append((aside, registers.copy()))
            number = following

    def _select(self, number: int, node: Choice, registers: _Registers) -> bool:
        """Compute the outcome, where both sides are one and neither is rare; whether it was done.  The path ends."""
        low, high = self._outcome(node.low), self._outcome(node.high)
        rarer = min(node.low_weight, node.high_weight)
        if low is None or high is None or rarer * PREDICTABLE < node.weight:
            return False
        comparison = comparison_of(node, self.intervals[number])
        upper = comparison.form is Form.UPPER
        half = upper or comparison.form is Form.LOWER
        selection = selection_of(node.threshold, self.intervals[number], half=half, upper=upper)
        if selection is None:
            return False
        register = registers.values.get((node.feature, upper)) if upper or not half else None
        if register is None:
            register = OUTCOME if selection.below else CONSTANT
            offset = self.slots[node.feature] * WORD_BYTES + (4 if upper else 0)
            self.code.emit(Op.LDX_U32 if half else Op.LDX_U64, register, VECTOR, offset)
        selection.write(self.code, OUTCOME, register)
        if selection.below:
            write_choice(self.code, OUTCOME, otherwise=high, negative=low)
        else:
            write_choice(self.code, OUTCOME, otherwise=low, negative=high)
        self._write_exit()
        return True

    def _sides(self, node: Choice, registers: _Registers) -> tuple[int, int]:
        """The child that follows in line, and the one that is jumped to."""
        low, high = node.low, node.high
        if self._is_end(low) and self._is_end(high):
            # Jump to the outcome that r0 holds already, if it does.
            held = [self._outcome(child) == registers.outcome for child in (low, high)]
            return (high, low) if held[0] and registers.outcome is not None else (low, high)
        if self._is_end(low) or self._is_end(high):
            inner, end = (high, low) if self._is_end(low) else (low, high)
            # An inner node that is written already costs a jump; then the end may as well follow.
            return (end, inner) if inner in self.written else (inner, end)
        if (low in self.written) != (high in self.written):
            return (high, low) if low in self.written else (low, high)
        return (low, high) if node.low_weight >= node.high_weight else (high, low)

    def _outcome(self, number: int) -> int | None:
        """The outcome that a path ends with at this node; None when it does not, or calls."""
        node = self.graph.nodes[number]
        return node.value if isinstance(node, Outcome) else None

    def _target(self, node: Choice, aside: int, registers: _Registers) -> str:
        """Label for the jump aside, after setting r0 when the path ends there."""
        value = self._outcome(aside)
        if value is None:
            if self._is_end(aside):
                self.wanted.setdefault(aside)
            return self._name(aside)
        is_rare = node.weight_of(aside) * RARE < node.weight
        if is_rare and registers.outcome != value:
            self.wanted.setdefault(aside)
            return self._name(aside)
        self._set_outcome(value, registers)
        return EXIT

    def _write_test(self, number: int, node: Choice, aside: int, registers: _Registers) -> None:
        comparison = comparison_of(node, self.intervals[number])
        inner = [child for child in (node.low, node.high) if not self._starts_region(child)]
        below = NO_VALUES.union(*(self.needs[child] for child in inner))
        register = self._load(comparison, below, registers)
        if len(inner) == 2:
            self._load_early(self.surely[node.low] & self.surely[node.high], registers, register)
        jumps_high = aside == node.high
        threshold, form = comparison.threshold, comparison.form
        shift = 0 if register in registers.values.values() else shift_of(threshold)
        is_shifted = form is Form.REGISTER and shift > 0 and fits_immediate(threshold >> shift)
        if is_shifted:
            self.code.emit(Op.RSH_IMM, register, immediate=shift)
        elif form is Form.REGISTER:
            self._load_constant(threshold, registers)
        target = self._target(node, aside, registers)
        if is_shifted:
            op = Op.JGT_IMM if jumps_high else Op.JLE_IMM
            self.code.emit(op, register, immediate=threshold >> shift, target=target)
        elif form is Form.REGISTER:
            self.code.emit(Op.JGT_REG if jumps_high else Op.JLE_REG, register, CONSTANT, target=target)
        elif form is Form.IMMEDIATE and not fits_immediate(threshold):
            op = Op.JGE_IMM if jumps_high else Op.JLT_IMM
            self.code.emit(op, register, immediate=threshold + 1, target=target)
        elif form is Form.IMMEDIATE:
            op = Op.JGT_IMM if jumps_high else Op.JLE_IMM
            self.code.emit(op, register, immediate=threshold, target=target)
        else:
            half = threshold >> 32 if form is Form.UPPER else threshold & LOWER_HALF
            op = Op.JGT32_IMM if jumps_high else Op.JLE32_IMM
            self.code.emit(op, register, immediate=half, target=target)
        for value in [value for value in registers.values if value not in below]:
            del registers.values[value]

    def _free(self, registers: _Registers) -> list[int]:
        taken = set(registers.values.values())
        return [register for register in KEPT if register not in taken]

    def _load(self, comparison: Comparison, below: Values, registers: _Registers) -> int:
        """Register that holds the comparison's value; kept for the tests below where a register is free."""
        value = comparison.value
        if value in registers.values:
            return registers.values[value]
        free = self._free(registers)
        if free:
            register = free[0]
        elif comparison.form is not Form.REGISTER:
            register, registers.constant = CONSTANT, None
        else:
            register = registers.values.pop(max(registers.values))
        if value in below and register in KEPT:
            registers.values[value] = register
        self._emit_load(value, register)
        return register

    def _load_early(self, values: Values, registers: _Registers, busy: int) -> None:
        """Load what both sides of a test need before it: once instead of twice, and sooner; not into `busy`."""
        for value in sorted(values - registers.values.keys()):
            free = [register for register in self._free(registers) if register != busy]
            if not free:
                return
            registers.values[value] = free[0]
            self._emit_load(value, free[0])

    def _emit_load(self, value: Value, register: int) -> None:
        feature, is_upper_half = value
        offset = self.slots[feature] * WORD_BYTES
        if is_upper_half:
            self.code.emit(Op.LDX_U32, register, VECTOR, offset + 4)
        else:
            self.code.emit(Op.LDX_U64, register, VECTOR, offset)

    def _load_constant(self, threshold: int, registers: _Registers) -> None:
        """Make CONSTANT hold the threshold: reused or moved from what it held where that is shorter."""
        held = registers.constant
        if held is None or (held != threshold and not -(2**31) <= threshold - held < 2**31):
            load_constant(self.code, CONSTANT, threshold)
        elif held != threshold:
            self.code.emit(Op.ADD_IMM, CONSTANT, immediate=threshold - held)
        registers.constant = threshold
