# SPDX-License-Identifier: Apache-2.0
"""What every part of the compiler asks of an instruction: its operands, its result, its effects, its targets.

One table says for each kind of instruction which of its fields hold operands, so that printers, verifiers and
passes need no case for each kind.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import fields as dataclass_fields
from dataclasses import replace
from operator import attrgetter
from typing import Any, TypeVar

from o2cc.ir.nodes import (
    Argument,
    Assign,
    Binary,
    Block,
    Branch,
    Call,
    Check,
    CompareExchange,
    Decide,
    Delete,
    Emit,
    EntryCompareExchange,
    EntryFetchAdd,
    EntryLoad,
    EntryStore,
    FetchAdd,
    Function,
    Helper,
    HelperKind,
    Hook,
    Instruction,
    Jump,
    Load,
    Lookup,
    Operand,
    Parameter,
    Read,
    Register,
    Return,
    Select,
    Store,
    Symbol,
    Terminator,
    Update,
    Value,
    Variable,
)

Body = Function | Check | Hook
"""Anything that has blocks."""

MASK = (1 << 64) - 1

# Fields that hold one operand, and fields that hold a tuple of operands, in textual order.
_OPERAND_FIELDS: dict[type, tuple[str, ...]] = {
    Binary: ("left", "right"),
    Select: ("condition", "if_true", "if_false"),
    Assign: ("value",),
    Register: (),
    Argument: (),
    Parameter: (),
    Symbol: (),
    Read: ("address",),
    Load: ("index",),
    Store: ("index", "value"),
    FetchAdd: ("index", "value"),
    CompareExchange: ("index", "expected", "new"),
    Lookup: ("key",),
    EntryLoad: ("entry",),
    EntryStore: ("entry", "value"),
    EntryFetchAdd: ("entry", "value"),
    EntryCompareExchange: ("entry", "expected", "new"),
    Update: ("key", "fields"),
    Delete: ("key",),
    Helper: (),
    Emit: ("fields",),
    Call: ("arguments",),
    Branch: ("condition",),
    Jump: (),
    Return: ("value",),
    Decide: (),
}

_EFFECTS = (
    Assign,
    Store,
    FetchAdd,
    CompareExchange,
    EntryStore,
    EntryFetchAdd,
    EntryCompareExchange,
    Update,
    Delete,
    Emit,
    Call,
)

Node = TypeVar("Node", bound=Instruction | Terminator)


_TUPLE_FIELDS = frozenset(("key", "fields", "arguments"))


def _reader(names: tuple[str, ...]) -> Callable[[Any], tuple[Operand, ...]]:
    """What collects the operands of one kind of node."""
    if not names:
        return lambda node: ()
    get: Callable[[Any], Any] = attrgetter(*names)
    if _TUPLE_FIELDS.isdisjoint(names):
        return get if len(names) > 1 else lambda node: (get(node),)
    if len(names) == 1:
        return get
    return lambda node: tuple(
        operand
        for name, held in zip(names, get(node), strict=True)
        for operand in (held if name in _TUPLE_FIELDS else (held,))
    )


_READERS = {kind: _reader(names) for kind, names in _OPERAND_FIELDS.items()}


def operands(node: Instruction | Terminator) -> tuple[Operand, ...]:
    """Every operand that an instruction or a terminator reads, in textual order."""
    return _READERS[type(node)](node)


def map_operands(node: Node, change: Callable[[Operand], Operand]) -> Node:
    """The same node with every operand replaced by what `change` makes of it (the same object if unchanged)."""
    changed: dict[str, Any] = {}
    for name in _OPERAND_FIELDS[type(node)]:
        held = getattr(node, name)
        new = tuple(change(o) for o in held) if isinstance(held, tuple) else change(held)
        if new != held:
            changed[name] = new
    return replace(node, **changed) if changed else node


def result(instruction: Instruction) -> Value | None:
    """The value that an instruction defines; None for assignments and stores."""
    return getattr(instruction, "result", None)


_DEFINED = ("result", "variable")
_PROPERTIES: dict[type, tuple[str, ...]] = {
    kind: tuple(f.name for f in dataclass_fields(kind) if f.name not in (*names, *_DEFINED))
    for kind, names in _OPERAND_FIELDS.items()
}


def properties(instruction: Instruction) -> tuple[object, ...]:
    """What an instruction says beside its operands and what it defines: sizes, names of tables, operators, ..."""
    return tuple(getattr(instruction, name) for name in _PROPERTIES[type(instruction)])


def has_effect(instruction: Instruction) -> bool:
    """Whether an instruction does more than define its result, so that it stays when that is not used."""
    if isinstance(instruction, Helper):
        return instruction.kind is HelperKind.KILL
    return isinstance(instruction, _EFFECTS)


def successors(terminator: Terminator) -> tuple[str, ...]:
    """Names of the blocks that may follow, each once."""
    if isinstance(terminator, Branch):
        if terminator.if_true == terminator.if_false:
            return (terminator.if_true,)
        return (terminator.if_true, terminator.if_false)
    if isinstance(terminator, Jump):
        return (terminator.target,)
    return ()


def map_targets(terminator: Terminator, change: Callable[[str], str]) -> Terminator:
    """The same terminator with its target blocks renamed."""
    if isinstance(terminator, Branch):
        if_true, if_false = change(terminator.if_true), change(terminator.if_false)
        same = if_true == terminator.if_true and if_false == terminator.if_false
        return terminator if same else replace(terminator, if_true=if_true, if_false=if_false)
    if isinstance(terminator, Jump):
        target = change(terminator.target)
        return terminator if target == terminator.target else replace(terminator, target=target)
    return terminator


def predecessors(blocks: tuple[Block, ...]) -> dict[str, list[str]]:
    """For each block the blocks that may come before it, in the order of the text."""
    before: dict[str, list[str]] = {block.name: [] for block in blocks}
    for block in blocks:
        for target in successors(block.terminator):
            if target in before:
                before[target].append(block.name)
    return before


def reachable(blocks: tuple[Block, ...]) -> frozenset[str]:
    """Names of the blocks that the first one reaches, itself included."""
    if not blocks:
        return frozenset()
    by_name = {block.name: block for block in blocks}
    seen = {blocks[0].name}
    work = [blocks[0].name]
    while work:
        for target in successors(by_name[work.pop()].terminator):
            if target in by_name and target not in seen:
                seen.add(target)
                work.append(target)
    return frozenset(seen)


def instructions(body: Body) -> Iterator[Instruction]:
    """Every instruction of a body in the order of the text."""
    for block in body.blocks:
        yield from block.instructions


def calls(body: Body) -> frozenset[str]:
    """Names of the functions that a body calls."""
    return frozenset(i.function for i in instructions(body) if isinstance(i, Call))


def block_spans(block: Block) -> tuple[Any, ...]:
    """The spans of a block's instructions, None for each that has none (always as long as the instructions)."""
    return block.spans or (None,) * len(block.instructions)


def variables(body: Body) -> frozenset[str]:
    """Names of the variables that a body assigns or reads."""
    names: set[str] = set()
    for block in body.blocks:
        for node in (*block.instructions, block.terminator):
            names.update(o.name for o in operands(node) if isinstance(o, Variable))
            if isinstance(node, Assign):
                names.add(node.variable.name)
    return frozenset(names)
