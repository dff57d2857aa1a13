# SPDX-License-Identifier: Apache-2.0
"""Prints descriptions: for a person as text, for tools as JSON."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any

from o2cc.kernel.description import (
    Argument,
    Description,
    Function,
    Operand,
    Probe,
    Site,
    StaticAddress,
    ValueSource,
)
from o2cc.kernel.summary import all_problems, summarize
from o2cc.kernel.type_table import Prototype

_SHOWN_PROBLEMS = 20


def as_json(item: Any) -> Any:
    """Any part of a description as JSON values; sets become sorted lists."""
    if dataclasses.is_dataclass(item):
        return {field.name: as_json(getattr(item, field.name)) for field in dataclasses.fields(item)}
    if isinstance(item, Mapping):
        return {key: as_json(value) for key, value in sorted(item.items())}
    if isinstance(item, frozenset):
        return sorted(item)
    if isinstance(item, tuple):
        return [as_json(part) for part in item]
    return item


def overview(description: Description) -> Iterator[str]:
    """The whole target, a few lines for each subject and one for each function."""
    summary = summarize(description)
    target = description.target
    yield f"{target.kind} {target.name} of {description.release}"
    if target.patterns:
        yield f"  functions   {', '.join(target.patterns)}"
    yield f"  build id    {target.build_id or '(none)'}"
    yield f"  sha256      {target.sha256}"
    yield f"  functions   {summary.functions}, and {summary.cold_parts} cold parts; {summary.instructions} instructions"
    kinds = ", ".join(f"{kind.replace('_', ' ')} {count}" for kind, count in summary.kinds.items())
    yield f"  sites       {summary.sites}: {kinds}"
    places = ", ".join(
        f"{place.replace('_', ' ')} {count}" for place, count in summary.stores_by_place.items()
    )
    yield f"  writes      {summary.stores}: {places}"
    yield (
        f"  probes      {summary.probe_places} sites have a place ({summary.moved_probes} before the site), "
        f"{summary.jump_optimizable} can be optimized to a jump"
    )
    yield f"  imports     {len(description.imports)}, exports {len(description.exports)}"
    yield f"  types       {summary.structs} structs, {len(description.types.prototypes)} prototypes"
    yield "sections"
    for section in description.sections:
        flags = "".join(
            letter if on else "-"
            for letter, on in (
                ("w", section.writable),
                ("x", section.executable),
                ("r", section.after_init_readonly),
                ("p", section.per_cpu),
                ("i", section.initial),
            )
        )
        anchor = (
            f"{section.anchor_symbol}-{section.anchor_offset:#x}" if section.anchor_symbol else "(no anchor)"
        )
        yield f"  {flags} {section.size:>8} {section.name:<28} {anchor}"
    if description.ops_tables:
        yield "tables of functions"
        for table in description.ops_tables:
            kind = f"struct {table.type}" if table.type else "(struct not known)"
            yield f"  {table.symbol}: {kind}, {len(table.slots)} functions"
    yield "functions (instructions, sites, name)"
    for function in description.functions:
        marks = "".join(
            f" [{mark}]"
            for mark, on in (
                ("ambiguous", function.ambiguous),
                ("address taken", function.address_taken),
                ("exported", function.exported),
                ("init", function.initial),
                (f"{len(function.problems)} problems", bool(function.problems)),
            )
            if on
        )
        yield f"  {function.instructions:>5} {len(function.sites):>5}  {function.name}{marks}"
    problems = all_problems(description)
    if problems:
        yield f"not understood: {len(problems)}"
        yield from (f"  {problem}" for problem in problems[:_SHOWN_PROBLEMS])
        if len(problems) > _SHOWN_PROBLEMS:
            yield f"  ... {len(problems) - _SHOWN_PROBLEMS} more (all in the JSON form)"


def function_lines(function: Function) -> Iterator[str]:
    """One function: its prototype, frame, blocks and sites."""
    yield f"{function.name}  {function.section}+{function.offset:#x}, {_bytes(function.size)}"
    if function.parent is not None:
        yield f"  part of     {function.parent}"
    if function.prototype is not None:
        yield f"  prototype   {prototype_text(function.prototype)}"
    saved = ", ".join(f"{register} at {offset:+#x}" for register, offset in function.saved)
    yield f"  frame       {function.frame} bytes of saved registers{': ' + saved if saved else ''}"
    for problem in function.problems:
        yield f"  problem     {problem}"
    sites = list(function.sites)
    for block in function.blocks:
        following = ", ".join(f"+{start:#x}" for start in block.successors)
        outside = ", ".join(f"{name}+{offset:#x}" for name, offset in block.jumps)
        goals = ", ".join(part for part in (following, outside, "indirect" if block.indirect else "") if part)
        yield f"  block +{block.start:#x}..+{block.end:#x}{' -> ' + goals if goals else ''}"
        for site in sites:
            if block.start <= site.offset < block.end:
                yield f"    {site_line(site)}"


def site_line(site: Site) -> str:
    """One site on one line."""
    text = f"+{site.offset:#x} {site.kind.replace('_', ' ')}"
    if site.target is not None:
        text += f" {site.target}"
    if site.operand is not None:
        size = f" {site.size}" if site.size else ""
        text += f" ({site.mnemonic}{_repeat(site)}){size} {operand_text(site.operand)}"
    if site.frame_offset is not None:
        text += f"  frame {site.frame_offset:+#x}"
    elif site.frame_range is not None:
        text += f"  frame {site.frame_range[0]:+#x}..{site.frame_range[1]:+#x}"
    elif site.value is not None:
        text += f"  v{site.value}{_plus(site.value_offset)}"
    return text + f"  {probe_text(site, site.probe)}"


def site_lines(function: Function, site: Site) -> Iterator[str]:
    """Everything that is known of one site."""
    yield f"{function.name}+{site.offset:#x}  {site.kind.replace('_', ' ')} ({site.mnemonic}), {_bytes(site.length)}"
    if site.operand is not None:
        yield f"  operand     {operand_text(site.operand)}"
    if site.target is not None:
        yield f"  target      {site.target}"
    if site.writes:
        each = " in each repetition" if site.rep else ""
        yield f"  writes      {_bytes(site.size) if site.size else 'an unknown number of bytes'}{each}"
    height = "not known" if site.stack_height is None else f"{site.stack_height:#x}"
    yield f"  stack       height {height}"
    if site.value is not None:
        yield f"  value       v{site.value}{_plus(site.value_offset)} = {source_text(site.value_source)}{_plus(site.value_offset)}"
    for index, argument in enumerate(site.arguments):
        if argument is not None:
            yield f"  argument {index}  {argument_text(argument)}"
    if site.patched is not None:
        yield f"  rewritten   by the kernel ({site.patched.replace('_', ' ')})"
    yield f"  probe       {probe_text(site, site.probe)}"
    if site.earlier is not None:
        yield f"  or          {probe_text(site, site.earlier)}"
    yield f"  code hash   {site.code_hash:08x}"


def operand_text(operand: Operand) -> str:
    """An operand as an assembler would write it."""
    if not operand.is_memory:
        return operand.base or "?"
    parts = [operand.base] if operand.base else []
    if operand.index:
        parts.append(f"{operand.index}*{operand.scale}" if operand.scale > 1 else operand.index)
    if operand.static is not None:
        parts.append(static_text(operand.static))
    if operand.displacement or not parts:
        parts.append(f"{operand.displacement:#x}")
    segment = f"{operand.segment}:" if operand.segment else ""
    return f"{segment}[{' + '.join(parts)}]".replace("+ -", "- ")


def static_text(address: StaticAddress) -> str:
    """A fixed address by name."""
    name = address.section or address.symbol or "?"
    return f"{name}{_plus(address.offset)}" if address.offset else name


def source_text(source: ValueSource | None) -> str:
    """Where a value comes from, in words."""
    if source is None:
        return "?"
    where = f"{source.function or ''}+{source.site:#x}"
    match source.kind:
        case "argument":
            return f"argument {source.number}"
        case "call":
            return f"result of {source.callee or 'an indirect call'} at {where}"
        case "load":
            base = f"v{source.value}{_plus(source.offset)}" if source.value is not None else "memory"
            if source.address is not None:
                base = static_text(source.address)
            return f"{_bytes(source.size)} loaded from [{base}] at {where}"
        case "static":
            return static_text(source.address) if source.address is not None else "?"
        case "stack":
            return "the return address slot"
        case "aligned_stack":
            return f"the frame at {source.offset:+#x}, rounded down to {source.number}"
        case "constant":
            return f"{source.number:#x}"
        case "per_cpu":
            return f"per-CPU {static_text(source.address)}" if source.address is not None else "?"
        case "merge":
            return f"what meets at the block {where}"
        case _:
            return f"not followed (made at {where})"


def argument_text(argument: Argument) -> str:
    """What an argument register holds."""
    return (
        f"v{argument.value}{_plus(argument.offset)} = {source_text(argument.source)}{_plus(argument.offset)}"
    )


def probe_text(site: Site, probe: Probe) -> str:
    """Where the probe goes and of which kind it is."""
    if probe.offset is None:
        return f"no probe: {probe.reason}"
    place = "probe here" if probe.offset == site.offset else f"probe at +{probe.offset:#x}"
    kind = "jump" if probe.jump_optimizable else "int3"
    return f"{place}, {kind}{' (' + probe.reason + ')' if probe.reason else ''}"


def prototype_text(prototype: Prototype) -> str:
    """A prototype as in C."""
    parameters = [
        f"{parameter.type} {parameter.name}".replace("* ", "*") for parameter in prototype.parameters
    ]
    if prototype.variadic:
        parameters.append("...")
    return f"{prototype.returns} {prototype.name}({', '.join(parameters) or 'void'})"


def _repeat(site: Site) -> str:
    if not site.rep:
        return ""
    return f" rep {site.count}" if site.count is not None else " rep"


def _plus(offset: int) -> str:
    return f"{offset:+#x}" if offset else ""


def _bytes(count: int) -> str:
    return "1 byte" if count == 1 else f"{count} bytes"
