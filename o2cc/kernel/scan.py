# SPDX-License-Identifier: Apache-2.0
"""Scans a module, or functions of the kernel itself, and describes them.

The result depends on the bytes of the files alone: the same input gives an equal description.
"""

import hashlib
from bisect import bisect_left
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from o2cc.kernel.description import Description, Function, Prototype, Section, StaticAddress, Symbol, Target
from o2cc.kernel.elf import SHN_LORESERVE, STT_FUNC, STT_OBJECT, ElfFile, read_elf
from o2cc.kernel.flow import Part, Unit, build_blocks, decode_functions, group
from o2cc.kernel.layout import PADDING_PREFIXES, SECTION_STRIDE_BITS, Layout, module_layout
from o2cc.kernel.machine import Flow, Instruction, Memory
from o2cc.kernel.patches import NOT_POINTERS_TO_DATA, Patches, read_patches, section_tables
from o2cc.kernel.sites import UnitFacts, describe_unit


def taken_addresses(layout: Layout, units: Sequence[Unit]) -> set[int]:
    """Addresses of code that data refers to, or code as a number; and jumps from other units into the middle of a function."""
    starts = {section.name: section.start for section in layout.sections}
    executable = {section.name for section in layout.sections if section.executable}
    taken: set[int] = set()
    for section in layout.sections:
        if section.executable or section.name in NOT_POINTERS_TO_DATA:
            continue
        addresses = layout.link_addresses
        position = bisect_left(addresses, section.start)
        while position < len(addresses) and addresses[position] < section.end:
            link = layout.links[addresses[position]]
            if link.address is not None:
                target = link.address + link.addend
                found = layout.section_at(target)
                if found is not None and found.executable:
                    taken.add(target)
            position += 1

    def add(place: StaticAddress | None) -> None:
        if place is not None and place.section in executable:
            taken.add(starts[place.section] + place.offset)

    unit_of = {part.start: index for index, unit in enumerate(units) for part in unit.parts}
    for part in (part for unit in units for part in unit.parts):
        for item in part.instructions:
            if item.place is not None:
                add(item.place)
            elif item.effect and len(item.effect) == 3 and isinstance(item.effect[2], StaticAddress):
                add(item.effect[2])
            goal = item.target
            if (
                goal is not None
                and item.flow in (Flow.JUMP, Flow.CONDITIONAL, Flow.CALL)
                and not part.start <= goal < part.end
            ):
                other = layout.function_at(goal)
                if other is None or other.start == goal:
                    continue
                if item.flow == Flow.CALL or unit_of.get(other.start) != unit_of[part.start]:
                    taken.add(goal)
    return taken
