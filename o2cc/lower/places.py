# SPDX-License-Identifier: Apache-2.0
"""Where the compartment's code and data are: the tables that turn run-time addresses into offsets and back.

*Flat* offsets count through all executable sections of the target laid end to end, from 1, so that one number
names any place of the code and 0 names none.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from o2cc.ir import nodes as ir
from o2cc.ir.builder import Builder
from o2cc.kernel.description import Description, Function, Section, Site, StaticAddress, Target

UNKNOWN_HEIGHT = 0xFFFF
BY_FRAME_POINTER = 0xFFFE
REALIGNED = 0xFFFD
KIND_DATA = 1
KIND_TEXT = 2
KIND_CONSTANT = 3
HASH_MULTIPLIER = 2654435769  # as in library/store.ir; Knuth's multiplicative hash, 2**32 / golden ratio


def flat_starts(description: Description) -> dict[str, int]:
    """Flat offset of the start of each executable section that stays in memory."""
    starts: dict[str, int] = {}
    position = 0
    for section in description.sections:
        if section.executable and not section.initial:
            starts[section.name] = position
            position += section.size
    return starts


def section_kind(section: Section, target: Target) -> int:
    """Kind of a row of the table `layout`: own data that may be written, own constants, own code, or neither.

    Data is what the module's authors declared: ``.data*`` and ``.bss*``.  Sections that the kernel's own machinery
    writes (``__bug_table``, ``.gnu.linkonce.this_module`` ...) are not the compartment's to change.  The sections of
    built-in code are those of the whole kernel: no data there is own but what the policy names.
    """
    if section.executable:
        return KIND_TEXT
    if target.kind != "module":
        return 0
    if section.name.startswith(".rodata") or section.after_init_readonly:
        return KIND_CONSTANT
    declared = section.name.startswith((".data", ".bss")) and section.writable
    return KIND_DATA if declared else 0


class Frame(NamedTuple):
    """What the stack walk needs at a place, see ``in_own_frames`` in library/store.ir."""

    height: int
    saved: int
    bp_slot: int


def frame_at(function: Function, site: Site | None, functions: Mapping[str, Function]) -> Frame:
    """The frame at a site (None: at the function's first instruction); a ``.cold`` part has its parent's saved
    registers."""
    owner = functions.get(function.parent, function) if function.parent else function
    kept = owner.stack_kept
    bp_offset = next((-offset for register, offset in owner.saved if register == "rbp"), 0)
    height = site.stack_height if site is not None else 0
    if height is not None and 0 <= height < REALIGNED:
        # Before the prologue has pushed a register, it still is where the caller left it.
        pushed = min(owner.frame, height)
        return Frame(height, pushed, bp_offset // 8 if bp_offset <= height else 0)
    if height is None and site is not None and site.frame_pointer:
        if kept is not None:
            return Frame(REALIGNED, owner.frame, -kept // 8)
        return Frame(BY_FRAME_POINTER, owner.frame, bp_offset // 8)
    return Frame(UNKNOWN_HEIGHT, 0, 0)


def hash_table(
    name: str, rows: Mapping[int, tuple[int, ...]], columns: tuple[tuple[str, int], ...]
) -> tuple[ir.Table, int]:
    """A constant open-addressing table keyed by its first column, and the longest probe sequence in it.

    The text of ``return_record`` in library/store.ir is the reader: hash ``(key * HASH_MULTIPLIER) >> 16`` in
    64 bits, linear probing, a power of two of rows, free rows are zero.
    """
    size = 16
    while size < 2 * len(rows):
        size *= 2
    slots: list[tuple[int, ...] | None] = [None] * size
    longest = 1
    for key in sorted(rows):
        place = ((key * HASH_MULTIPLIER) & (2**64 - 1)) >> 16
        probes = 1
        while slots[place & (size - 1)] is not None:
            place += 1
            probes += 1
        slots[place & (size - 1)] = (key, *rows[key])
        longest = max(longest, probes)
    empty = (0,) * len(columns)
    return ir.Table(name, columns, tuple(slot or empty for slot in slots), size), longest


def return_table(description: Description) -> tuple[ir.Table, int]:
    """Frames by the flat return address of every call in the compartment."""
    starts = flat_starts(description)
    rows: dict[int, tuple[int, ...]] = {}
    for function in description.functions:
        if function.section not in starts:
            continue
        for site in function.sites:
            if site.kind in ("call", "indirect_call"):
                frame = frame_at(function, site, description.function_by_name)
                flat = starts[function.section] + function.offset + site.offset + site.length + 1
                rows[flat] = (frame.height, frame.saved, frame.bp_slot)
    return hash_table("returns", rows, (("flat", 4), ("height", 2), ("saved", 1), ("bp_slot", 1)))


def target_table(description: Description, scopes: Mapping[str, int]) -> tuple[ir.Table, int]:
    """Flat start of each of the compartment's functions in ``scopes``, with the scope classes that may call it.

    Functions that come from a header can be there several times, under one name.
    """
    starts = flat_starts(description)
    rows: dict[int, tuple[int, ...]] = {}
    for function in description.functions:
        if function.name not in scopes or function.section not in starts:
            continue
        first = description.function_by_name[function.name] is function
        if first or function.address_taken or function.exported:
            rows[starts[function.section] + function.offset + 1] = (scopes[function.name],)
    return hash_table("targets", rows, (("flat", 4), ("scopes", 8)))


def layout_table(description: Description) -> ir.Table:
    """One row a section, filled by ``resolve_symbols`` at run time."""
    return ir.Table(
        "layout",
        (("start", 8), ("end", 8), ("kind", 8), ("flat", 8)),
        (),
        len(description.sections),
        writable=True,
    )


def emit_layout(code: Builder, description: Description) -> None:
    """Instructions that fill the table `layout`."""
    starts = flat_starts(description)
    for row, section in enumerate(description.sections):
        kind = section_kind(section, description.target)
        if section.anchor_symbol is None or section.initial or section.per_cpu or kind == 0:
            continue
        anchor = code.symbol(section.anchor_symbol)
        start = code.binary(ir.BinaryOperator.SUB, anchor, section.anchor_offset)
        present = code.binary(ir.BinaryOperator.NE, anchor, 0)
        start = code.select(present, start, 0)
        end = code.add(start, section.size)
        end = code.select(present, end, 0)
        code.store("layout", row, "start", start)
        code.store("layout", row, "end", end)
        code.store("layout", row, "kind", kind)
        code.store("layout", row, "flat", starts.get(section.name, 0))


def own_bounds(code: Builder, description: Description) -> dict[str, ir.Operand]:
    """Bounds of the compartment's code, constants and data, by their names in `o2cc.trees.features.Layout`: from the
    first to the last section of each kind, as far as they are in memory.  Built-in code has none of its own."""
    if description.target.kind != "module":
        return {}
    bounds: dict[str, ir.Operand] = {}
    for kind, name in ((KIND_TEXT, "own_text"), (KIND_CONSTANT, "own_constants"), (KIND_DATA, "own_data")):
        low: ir.Operand = ir.Constant(2**64 - 1)
        high: ir.Operand = ir.Constant(0)
        for section in description.sections:
            if section_kind(section, description.target) != kind or section.anchor_symbol is None:
                continue
            if section.initial or section.per_cpu:
                continue
            anchor = code.symbol(section.anchor_symbol)
            present = code.binary(ir.BinaryOperator.NE, anchor, 0)
            start = code.binary(ir.BinaryOperator.SUB, anchor, section.anchor_offset)
            end = code.add(start, section.size)
            lower = code.binary(ir.BinaryOperator.ULT, start, low)
            upper = code.binary(ir.BinaryOperator.UGT, end, high)
            low = code.select(code.binary(ir.BinaryOperator.AND, present, lower), start, low)
            high = code.select(code.binary(ir.BinaryOperator.AND, present, upper), end, high)
        bounds |= {name: low, f"{name}_end": high}
    return bounds


def static_address(code: Builder, description: Description, address: StaticAddress) -> ir.Operand | None:
    """Instructions that compute an address fixed at link time; None when nothing anchors its section."""
    if address.section is not None:
        section = description.section_by_name.get(address.section)
        if section is not None and section.anchor_symbol is not None:
            return code.add(code.symbol(section.anchor_symbol), address.offset - section.anchor_offset)
        return None
    if address.symbol is not None:
        return code.add(code.symbol(address.symbol), address.offset)
    return None


def symbol_address(code: Builder, description: Description, name: str) -> ir.Operand | None:
    """Instructions that give the address of a symbol of the target, else of the kernel."""
    symbol = description.symbol_by_name.get(name)
    if symbol is not None:
        return static_address(code, description, StaticAddress(symbol.section, None, symbol.offset))
    return code.symbol(name)
