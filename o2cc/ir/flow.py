# SPDX-License-Identifier: Apache-2.0
"""Data flow that the verifier rests on: values are defined before use, entries of maps are shown to be present.

Both are forward problems over sets of bits, where a fact holds at a block if it holds on every path to it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import NamedTuple, Protocol

from o2cc.diagnostics import Span, did_you_mean
from o2cc.ir import nodes as ir
from o2cc.ir.printer import print_instruction, print_terminator
from o2cc.ir.walk import (
    Body,
    block_spans,
    instructions,
    operands,
    predecessors,
    reachable,
    result,
    successors,
)

_TERMINATORS = (ir.Branch, ir.Jump, ir.Return, ir.Decide)
_ENTRY_USERS = (ir.EntryLoad, ir.EntryStore, ir.EntryFetchAdd, ir.EntryCompareExchange)


class Place(NamedTuple):
    """Where a message is about: a body, and a line in it (printed only when there is a message)."""

    body: Body
    block: str = ""
    node: ir.Instruction | ir.Terminator | None = None
    span: Span | None = None

    def note(self) -> str:
        kind = type(self.body).__name__.lower()
        where = f"in {kind} `{self.body.name}`"
        if self.block:
            where += f", block `{self.block}`"
        return where + (f": `{_text(self.node)}`" if self.node is not None else "")


class Report(Protocol):
    """Takes a message about a place: code, text, place, help."""

    def __call__(self, code: str, message: str, place: Place, help: str | None = None) -> None: ...


def check_definitions(body: Body, report: Report) -> None:
    """Each value is assigned once, and before each use on every path."""
    numbers: dict[str, int] = {}
    parameters = body.parameters if isinstance(body, ir.Function) else ()
    for name in parameters:
        numbers[name] = len(numbers)
    start = (1 << len(numbers)) - 1
    own: dict[str, int] = {}
    for block in body.blocks:
        bits = 0
        for instruction, span in zip(block.instructions, block_spans(block), strict=False):
            defined = result(instruction)
            if defined is None:
                continue
            if defined.name in numbers:
                place = Place(body, block.name, instruction, span)
                report("O2C0502", f"`%{defined.name}` is assigned twice", place)
            numbers.setdefault(defined.name, len(numbers))
            bits |= 1 << numbers[defined.name]
        own[block.name] = bits
    everything = (1 << len(numbers)) - 1
    at_start = {body.blocks[0].name: start}
    if len(body.blocks) > 1:
        at_start = _forward(
            body,
            start,
            everything,
            lambda block, known: dict.fromkeys(successors(block.terminator), known | own[block.name]),
        )
    for block in body.blocks:
        known = at_start[block.name]
        steps: list[tuple[ir.Instruction | ir.Terminator, Span | None]] = [
            *zip(block.instructions, block_spans(block), strict=False),
            (block.terminator, None),
        ]
        for node, span in steps:
            for operand in operands(node):
                if isinstance(operand, ir.Value) and not known >> numbers.get(operand.name, len(numbers)) & 1:
                    _undefined(operand, Place(body, block.name, node, span), numbers, report)
            defined = None if isinstance(node, _TERMINATORS) else result(node)
            if defined is not None:
                known |= 1 << numbers[defined.name]


def _undefined(value: ir.Value, place: Place, numbers: dict[str, int], report: Report) -> None:
    if value.name in numbers:
        report("O2C0504", f"`%{value.name}` is used before it is assigned on some path", place)
    else:
        report("O2C0503", f"nothing assigns `%{value.name}`", place, did_you_mean(value.name, numbers))


def check_handles(body: Body, report: Report) -> None:
    """Handles of entries are compared with 0, and used where a branch has shown that they are not."""
    handles = {i.result.name: i.map for i in instructions(body) if isinstance(i, ir.Lookup)}
    if not handles and not any(isinstance(i, _ENTRY_USERS) for i in instructions(body)):
        return
    numbers = {name: number for number, name in enumerate(handles)}
    tests = {
        i.result.name: found
        for i in instructions(body)
        if isinstance(i, ir.Binary) and (found := _zero_test(i, handles)) is not None
    }

    def edges(block: ir.Block, known: int) -> dict[str, int]:
        end = block.terminator
        out = dict.fromkeys(successors(end), known)
        if isinstance(end, ir.Branch) and isinstance(end.condition, ir.Value) and len(out) == 2:
            name = end.condition.name
            handle, when_true = tests.get(name, (name, True))
            if handle in numbers:
                out[end.if_true if when_true else end.if_false] |= 1 << numbers[handle]
        return out

    at_start = _forward(body, 0, (1 << len(numbers)) - 1, edges)
    for block in body.blocks:
        for instruction, span in zip(block.instructions, block_spans(block), strict=False):
            place = Place(body, block.name, instruction, span)
            _handle_use(instruction, handles, numbers, at_start[block.name], place, report)
        end = block.terminator
        if isinstance(end, ir.Return) and isinstance(end.value, ir.Value) and end.value.name in handles:
            place = Place(body, block.name, end)
            report("O2C0506", "the handle of an entry cannot be returned", place)


def _handle_use(
    instruction: ir.Instruction,
    handles: dict[str, str],
    numbers: dict[str, int],
    known: int,
    place: Place,
    report: Report,
) -> None:
    used: Iterable[ir.Operand] = operands(instruction)
    if isinstance(instruction, _ENTRY_USERS):
        name = instruction.entry.name
        used = operands(instruction)[1:]
        if name not in handles:
            report("O2C0506", f"`%{name}` is not the result of a lookup", place)
        elif handles[name] != instruction.map:
            message = f"`%{name}` is an entry of map `{handles[name]}`, not of `{instruction.map}`"
            report("O2C0506", message, place)
        elif not known >> numbers[name] & 1:
            message = f"`%{name}` may be absent here: no branch has shown that it is not 0"
            report("O2C0506", message, place, f"branch on it first: `br %{name}, found, missing`")
    elif isinstance(instruction, ir.Binary) and _zero_test(instruction, handles) is not None:
        return
    for operand in used:
        if isinstance(operand, ir.Value) and operand.name in handles:
            message = f"the handle `%{operand.name}` of an entry can only be compared with 0"
            report("O2C0506", message, place)


def _text(node: ir.Instruction | ir.Terminator) -> str:
    return print_terminator(node) if isinstance(node, _TERMINATORS) else print_instruction(node)


def _zero_test(instruction: ir.Binary, handles: dict[str, str]) -> tuple[str, bool] | None:
    """The handle that a comparison tests, and whether a true result means that it is not 0."""
    if instruction.operator not in (ir.BinaryOperator.EQ, ir.BinaryOperator.NE):
        return None
    for one, other in ((instruction.left, instruction.right), (instruction.right, instruction.left)):
        if (
            isinstance(one, ir.Value)
            and one.name in handles
            and isinstance(other, ir.Constant)
            and not other.value
        ):
            return one.name, instruction.operator is ir.BinaryOperator.NE
    return None


def _forward(
    body: Body, start: int, everything: int, flow: Callable[[ir.Block, int], dict[str, int]]
) -> dict[str, int]:
    """Bits that hold at the start of each block on every path (unreachable blocks: all bits)."""
    by_name = {block.name: block for block in body.blocks}
    live = reachable(body.blocks)
    before = predecessors(body.blocks)
    first = body.blocks[0].name
    state = dict.fromkeys(by_name, everything)
    work = [block.name for block in reversed(body.blocks) if block.name in live]
    queued = set(work)
    while work:
        name = work.pop()
        queued.discard(name)
        bits = start if name == first else everything
        for predecessor in before[name]:
            if predecessor in live:
                bits &= flow(by_name[predecessor], state[predecessor])[name]
        if bits != state[name]:
            state[name] = bits
            for target in successors(by_name[name].terminator):
                if target not in queued:
                    queued.add(target)
                    work.append(target)
    return state
