# SPDX-License-Identifier: Apache-2.0
"""Where the kernel rewrites code when it loads it or later, from the sections that say so.

Layouts of the tables, as of 6.1 and 6.12 (all pointers are relative to their own field unless stated):

=============================  ===========================================================================
``.altinstructions``           instruction s32, replacement s32, flags u16 (6.1) or u32 (6.4 and later),
                               length u8, replacement's length u8 (``asm/alternative.h``)
``.retpoline_sites``           s32; ``call`` or ``jmp`` to an indirect thunk (``arch/x86/kernel/alternative.c``)
``.return_sites``              s32; ``jmp __x86_return_thunk``
``.call_sites``                s32; direct calls, for call-depth tracking (6.2 and later)
``.ibt_endbr_seal``            s32; ``endbr64`` that becomes a nop
``.smp_locks``                 s32; lock prefixes
``.static_call_sites``         instruction s32, key s32 (``linux/static_call_types.h``)
``__jump_table``               instruction s32, target s32, key s64 (``linux/jump_label.h``)
``__mcount_loc``               u64, absolute
``.parainstructions``          instruction u64, absolute; type u8, length u8, padded to 16 (6.1 only)
``__bug_table``                instruction s32, file s32, line u16, flags u16 (``asm-generic/bug.h``); not a patch
                               site, but a place that kprobes refuse; flag bit 0: a warning, execution goes on
``__ex_table``                 instruction s32, fixup s32, data s32 (``asm/extable.h``): hidden control flow
=============================  ===========================================================================
"""

from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np

from o2cc.kernel.description import PatchKind
from o2cc.kernel.layout import Layout, LayoutSection

NOT_POINTERS_TO_DATA = frozenset({
    ".altinstructions", ".retpoline_sites", ".return_sites", ".call_sites", ".ibt_endbr_seal", ".smp_locks",
    ".static_call_sites", "__jump_table", "__mcount_loc", ".parainstructions", "__bug_table", "__ex_table",
    ".orc_unwind_ip", ".orc_unwind", "__patchable_function_entries", "__ksymtab", "__ksymtab_gpl", "__kcrctab",
    "__kcrctab_gpl", ".altinstr_replacement", "__tracepoints_ptrs", "__versions", "__dyndbg", ".static_call.text",
    "_kprobe_blacklist", ".cfi_sites", ".discard.addressable",
})  # fmt: skip


@dataclass
class Patches:
    """All tables of one target, by address.

    ``sites`` maps the first byte to (kind, length; 0: that of the instruction there). ``replacements`` are
    (start, length, replacement's start, its length), ``jump_labels`` maps the instruction to its target,
    ``bugs`` the trap to whether execution goes on behind it, ``fixups`` an instruction that may fault to where
    control then goes. ``refused`` are functions that the target itself keeps free of kprobes.
    """

    sites: dict[int, tuple[PatchKind, int]] = field(default_factory=dict)
    replacements: list[tuple[int, int, int, int]] = field(default_factory=list)
    jump_labels: dict[int, int] = field(default_factory=dict)
    bugs: dict[int, bool] = field(default_factory=dict)
    fixups: dict[int, int] = field(default_factory=dict)
    refused: set[int] = field(default_factory=set)
    problems: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Table:
    """Bytes that hold one table, at ``start`` of the common address space."""

    start: int
    content: bytes


_SITE_TABLES: tuple[tuple[str, PatchKind, int], ...] = (
    (".retpoline_sites", "retpoline", 5),
    (".return_sites", "return", 5),
    (".call_sites", "call_thunk", 5),
    (".ibt_endbr_seal", "endbr", 4),
    (".smp_locks", "lock", 1),
)
"""Section, what its entries point to, and the length of that."""


def read_patches(layout: Layout, tables: dict[str, Table]) -> Patches:
    """Read the tables that are there, by section name (`section_tables`). Entries that point outside are problems."""
    patches = Patches()
    reader = _Reader(layout, patches)
    for name, kind, length in _SITE_TABLES:
        for address in reader.pointers(tables.get(name), 4, 0):
            # A call site can also be a static call; the more specific table is read later and wins.
            patches.sites[address] = (kind, length)
    for address in reader.pointers(tables.get(".static_call_sites"), 8, 0):
        patches.sites[address] = ("static_call", 5)
    for address in reader.pointers(tables.get("__mcount_loc"), 8, 0, absolute=True):
        patches.sites[address] = ("ftrace", 5)
    for address in reader.pointers(tables.get("_kprobe_blacklist"), 8, 0, absolute=True):
        patches.refused.add(address)
    table = tables.get("__jump_table")
    if table is not None:
        codes, targets = reader.pointers(table, 16, 0), reader.pointers(table, 16, 4)
        for address, target in zip(codes, targets, strict=True):
            patches.sites[address] = ("jump_label", 0)
            patches.jump_labels[address] = target
    table = tables.get("__ex_table")
    if table is not None:
        codes, targets = reader.pointers(table, 12, 0), reader.pointers(table, 12, 4)
        patches.fixups.update(zip(codes, targets, strict=True))
    table = tables.get("__bug_table")
    if table is not None:
        for address, position in zip(
            reader.pointers(table, 12, 0), range(0, len(table.content), 12), strict=False
        ):
            flags = int.from_bytes(table.content[position + 10 : position + 12], "little")
            patches.bugs[address] = bool(flags & 1)
    table = tables.get(".parainstructions")
    if table is not None:
        for address, position in zip(
            reader.pointers(table, 16, 0, absolute=True), range(0, len(table.content), 16), strict=False
        ):
            patches.sites[address] = ("alternative", table.content[position + 9])
    _alternatives(reader, tables.get(".altinstructions"), patches)
    return patches


def section_tables(layout: Layout) -> dict[str, Table]:
    """The tables that are sections of their own."""
    return {
        section.name: Table(section.start, section.content)
        for section in layout.sections
        if section.name in NOT_POINTERS_TO_DATA
    }


class _Reader:
    def __init__(self, layout: Layout, patches: Patches) -> None:
        self.layout = layout
        self.patches = patches

    def pointers(self, table: Table | None, step: int, at: int, absolute: bool = False) -> list[int]:
        """The addresses in the field at ``at`` of every entry of ``step`` bytes."""
        if table is None:
            return []
        if self.layout.absolute is not None:
            return self._stored(table, step, at, absolute)
        return list(self._pointers(table, step, at))

    def _pointers(self, table: Table, step: int, at: int) -> Iterator[int]:
        links = self.layout.links
        for position in range(0, len(table.content) - step + 1, step):
            address = table.start + position + at
            link = links.get(address)
            yield link.address + link.addend if link is not None and link.address is not None else -1

    @staticmethod
    def _stored(table: Table, step: int, at: int, absolute: bool) -> list[int]:
        """The addresses as the kernel's image has them; a kernel has hundreds of thousands."""
        count = len(table.content) // step
        width = "<u8" if absolute else "<i4"
        offsets = at + step * np.arange(count, dtype=np.int64)
        rows = np.frombuffer(table.content, np.uint8, count * step).reshape(count, step)
        values = rows[:, at : at + (8 if absolute else 4)].copy().view(width).reshape(count)
        if absolute:
            return [int(value) for value in values.tolist()]
        return [
            table.start + offset + value
            for offset, value in zip(offsets.tolist(), values.tolist(), strict=True)
        ]


def _alternatives(reader: _Reader, table: Table | None, patches: Patches) -> None:
    if table is None or not table.content:
        return
    for step in (14, 12):
        if len(table.content) % step:
            continue
        starts, replacements = reader.pointers(table, step, 0), reader.pointers(table, step, 4)
        sections = [reader.layout.section_at(address) for address in starts]
        if not all(section is not None and section.executable for section in sections):
            continue
        for index, (start, replacement) in enumerate(zip(starts, replacements, strict=True)):
            length, other = table.content[index * step + step - 2 : index * step + step]
            patches.sites.setdefault(start, ("alternative", length))
            kind, known = patches.sites[start]
            if known < length:
                patches.sites[start] = ("alternative" if kind == "call_thunk" else kind, length)
            patches.replacements.append((start, length, replacement, other))
        return
    patches.problems.append("the table of alternatives cannot be read: neither of the known entry sizes fits")


def section_of(layout: Layout, name: str) -> LayoutSection | None:
    """The first section of that name."""
    return next((section for section in layout.sections if section.name == name), None)
