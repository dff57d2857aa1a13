# SPDX-License-Identifier: Apache-2.0
"""The text form of the intermediate representation; `o2cc.ir.parser` reads it back to an equal module.

Printing is deterministic: it depends on the module alone.  The grammar is in docs/ir.md.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from o2cc.diagnostics import SourceFile, Span
from o2cc.ir import nodes as ir
from o2cc.ir.walk import Body, block_spans

NAME_PATTERN = re.compile(r"[A-Za-z_][A-Za-z0-9_.$]*\Z")
"""What may stand without quotes as the name of a function, a symbol, a map and so on."""

CONSTANT_PATTERN = re.compile(r"(?:offset|size|const)\([^()\n;]*\)\Z")
"""What may stand as the name of a constant."""


def print_module(module: ir.Module, sources: Mapping[str, SourceFile] | None = None) -> str:
    """The whole module as text, ending in a line end.

    With `sources` (by name), sites carry a comment that tells the line and column of their span.
    """
    numbers = {name: number for number, name in enumerate(sorted(_source_names(module)))}
    writer = _Writer(numbers, sources or {})
    parts = [writer.header(module)]
    parts += [f"source {number} {_quoted(name)}\n" for name, number in numbers.items()]
    parts += [writer.map(m) for m in module.maps]
    parts += [writer.table(t) for t in module.tables]
    parts += [writer.function(f) for f in module.functions]
    parts += [writer.check(c) for c in module.checks]
    parts += [writer.hook(h) for h in module.hooks]
    parts += [writer.site(s) for s in module.sites]
    parts += [writer.discharged(d) for d in module.discharged]
    return "".join(parts)


def print_operand(operand: ir.Operand) -> str:
    """``%name``, ``$name``, ``5`` or ``offset(slab.slab_cache)=8``."""
    if isinstance(operand, ir.Value):
        return "%" + operand.name
    if isinstance(operand, ir.Variable):
        return "$" + operand.name
    number = print_number(operand.value)
    return f"{operand.name}={number}" if operand.name else number


def print_number(value: int) -> str:
    """A word as people read it: small ones decimal, small negative ones (two's complement) signed, others hex."""
    if value < 1024:
        return str(value)
    if value >= (1 << 64) - 4096:
        return str(value - (1 << 64))
    return hex(value)


def print_instruction(instruction: ir.Instruction) -> str:
    """One instruction without indentation and span."""
    return _INSTRUCTIONS[type(instruction)](instruction)


def print_terminator(terminator: ir.Terminator) -> str:
    """One terminator without indentation."""
    match terminator:
        case ir.Branch(condition, if_true, if_false):
            return f"br {print_operand(condition)}, {if_true}, {if_false}"
        case ir.Jump(target):
            return f"jump {target}"
        case ir.Return(value):
            return f"return {print_operand(value)}"
        case ir.Decide(verdict):
            return f"verdict {verdict.value}"


def _list(operands: Iterable[ir.Operand]) -> str:
    return ", ".join(map(print_operand, operands))


def _cell(instruction: ir.Load | ir.Store | ir.FetchAdd | ir.CompareExchange) -> str:
    return f"{instruction.table}[{print_operand(instruction.index)}].{instruction.column}"


def _entry(
    instruction: ir.EntryLoad | ir.EntryStore | ir.EntryFetchAdd | ir.EntryCompareExchange,
) -> str:
    return f"{print_operand(instruction.entry)} {instruction.map}.{instruction.field}"


def _update(i: ir.Update) -> str:
    tail = ", noexist" if i.no_replace else ""
    return f"%{i.result.name} = update {i.map}, [{_list(i.key)}], [{_list(i.fields)}]{tail}"


_INSTRUCTIONS: dict[type, Callable[[Any], str]] = {
    ir.Binary: lambda i: (
        f"%{i.result.name} = {i.operator.value} {print_operand(i.left)}, {print_operand(i.right)}"
    ),
    ir.Select: lambda i: f"%{i.result.name} = select {_list((i.condition, i.if_true, i.if_false))}",
    ir.Assign: lambda i: f"${i.variable.name} = {print_operand(i.value)}",
    ir.Register: lambda i: f"%{i.result.name} = reg {i.register}",
    ir.Argument: lambda i: f"%{i.result.name} = arg {i.index}",
    ir.Parameter: lambda i: f"%{i.result.name} = param {i.name}",
    ir.Symbol: lambda i: f"%{i.result.name} = symbol {_name(i.name)}",
    ir.Read: lambda i: f"%{i.result.name} = read {i.size} {print_operand(i.address)}",
    ir.Load: lambda i: f"%{i.result.name} = load {_cell(i)}",
    ir.Store: lambda i: f"store {_cell(i)} = {print_operand(i.value)}",
    ir.FetchAdd: lambda i: f"%{i.result.name} = fetch_add {_cell(i)}, {print_operand(i.value)}",
    ir.CompareExchange: lambda i: f"%{i.result.name} = cmpxchg {_cell(i)}, {_list((i.expected, i.new))}",
    ir.Lookup: lambda i: f"%{i.result.name} = lookup {i.map}, {_list(i.key)}",
    ir.EntryLoad: lambda i: f"%{i.result.name} = entry {_entry(i)}",
    ir.EntryStore: lambda i: f"entry {_entry(i)} = {print_operand(i.value)}",
    ir.EntryFetchAdd: lambda i: f"%{i.result.name} = entry_fetch_add {_entry(i)}, {print_operand(i.value)}",
    ir.EntryCompareExchange: lambda i: (
        f"%{i.result.name} = entry_cmpxchg {_entry(i)}, {_list((i.expected, i.new))}"
    ),
    ir.Update: _update,
    ir.Delete: lambda i: f"%{i.result.name} = delete {i.map}, [{_list(i.key)}]",
    ir.Helper: lambda i: f"%{i.result.name} = {i.kind.value}",
    ir.Emit: lambda i: f"%{i.result.name} = emit {i.map}, [{_list(i.fields)}]",
    ir.Call: lambda i: f"%{i.result.name} = call {i.function}({_list(i.arguments)})",
}


def _quoted(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)


def _name(text: str) -> str:
    """A name, in quotes when it is not one that the parser takes without them."""
    return text if NAME_PATTERN.match(text) else _quoted(text)


def _source_names(module: ir.Module) -> set[str]:
    spans: list[Span | None] = []
    bodies: list[Body] = [*module.functions, *module.checks, *module.hooks]
    for body in bodies:
        spans.append(body.span)
        for block in body.blocks:
            spans.extend(block.spans)
    spans.extend(s.span for s in module.sites)
    spans.extend(d.span for d in module.discharged)
    return {span.source for span in spans if span is not None}


class _Writer:
    """Prints what carries spans, which are written with the number of their source."""

    def __init__(self, numbers: Mapping[str, int], sources: Mapping[str, SourceFile]) -> None:
        self._numbers = numbers
        self._sources = sources

    def _at(self, span: Span | None) -> str:
        return f" at {self._numbers[span.source]}:{span.start}..{span.end}" if span is not None else ""

    def _comment(self, span: Span | None) -> str:
        if span is None or span.source not in self._sources:
            return ""
        line, column = self._sources[span.source].position(span.start)
        return f"  ; {span.source}:{line}:{column}"

    def header(self, module: ir.Module) -> str:
        lines = "".join(f"  {_name(key)} {_quoted(value)}\n" for key, value in module.identity)
        return f"module {_name(module.name)} {{\n{lines}}}\n"

    def map(self, map_: ir.Map) -> str:
        kind = map_.kind.value
        return f"map {map_.name} {kind} ({', '.join(map_.key)}) -> ({', '.join(map_.fields)}) capacity {map_.capacity}\n"

    def table(self, table: ir.Table) -> str:
        columns = ", ".join(f"{name} {size}" for name, size in table.columns)
        writable = " writable" if table.writable else ""
        resizable = " resizable" if table.resizable else ""
        head = f"table {table.name} ({columns}) length {table.length}{writable}{resizable} {{"
        if not table.rows:
            return head + "}\n"
        rows = "".join("  " + " ".join(map(print_number, row)) + "\n" for row in table.rows)
        return f"{head}\n{rows}}}\n"

    def _blocks(self, blocks: Iterable[ir.Block]) -> str:
        lines: list[str] = []
        for block in blocks:
            lines.append(f"{block.name}:")
            for instruction, span in zip(block.instructions, block_spans(block), strict=True):
                lines.append(f"  {print_instruction(instruction)}{self._at(span)}")
            lines.append(f"  {print_terminator(block.terminator)}")
        return "\n".join(lines)

    def function(self, function: ir.Function) -> str:
        inline = " inline" if function.inline else ""
        head = (
            f"function {function.name}({', '.join(function.parameters)}){inline}{self._at(function.span)} {{"
        )
        return f"{head}\n{self._blocks(function.blocks)}\n}}\n"

    def check(self, check: ir.Check) -> str:
        return f"check {check.name}{self._at(check.span)} {{\n{self._blocks(check.blocks)}\n}}\n"

    def hook(self, hook: ir.Hook) -> str:
        head = f"hook {hook.name} {hook.kind.value} {_name(hook.target)}{self._at(hook.span)} {{"
        return f"{head}\n{self._blocks(hook.blocks)}\n}}\n"

    def site(self, site: ir.Site) -> str:
        parameters = ", ".join(f"{name} = {print_number(value)}" for name, value in site.parameters)
        place = f"{_name(site.function)}+{site.offset:#x}"
        probe = f" probe {site.probe_offset:#x}" if site.probe_offset is not None else ""
        covered = f" covered {site.covered_by}" if site.covered_by is not None else ""
        note = f" note {_quoted(site.note)}" if site.note else ""
        return (
            f"site {site.number} {place} {site.kind.value} {site.check}({parameters}){probe}{covered}"
            f"{self._at(site.span)}{note}{self._comment(site.span)}\n"
        )

    def discharged(self, site: ir.Discharged) -> str:
        place = f"{_name(site.function)}+{site.offset:#x}"
        premises = f" premises ({', '.join(map(_quoted, site.premises))})" if site.premises else ""
        return (
            f"discharged {place} {site.kind.value} {site.reason} {_quoted(site.proof)}{premises}"
            f"{self._at(site.span)}{self._comment(site.span)}\n"
        )
