# SPDX-License-Identifier: Apache-2.0
"""The entries of DWARF 5: units, debugging information entries (DIEs) with their attributes, range and location lists.

Forms, location lists and range lists are those that gcc 12 writes for the kernel (no split DWARF, no index forms);
DWARF 5, sections 2.6, 2.17, 7.5, 7.25 and 7.29. A form that is not known is an error.
"""

from __future__ import annotations

import struct
from bisect import bisect_right
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from o2cc.kernel.elf import ElfFile

ARRAY, ENUMERATION, MEMBER, POINTER = 0x01, 0x04, 0x0D, 0x0F
STRUCTURE, TYPEDEF, UNION, SUBRANGE, BASE = 0x13, 0x16, 0x17, 0x21, 0x24
FORMAL_PARAMETER, LEXICAL_BLOCK, INLINED, SUBPROGRAM, VARIABLE = 0x05, 0x0B, 0x1D, 0x2E, 0x34
CONST, VOLATILE, RESTRICT, ATOMIC = 0x26, 0x35, 0x37, 0x47

SIBLING, LOCATION, NAME, BYTE_SIZE, LOW_PC, HIGH_PC = 0x01, 0x02, 0x03, 0x0B, 0x11, 0x12
UPPER_BOUND, ORIGIN, COUNT, MEMBER_AT, TYPE, RANGES = 0x2F, 0x31, 0x37, 0x38, 0x49, 0x55

_FIXED = {
    0x01: 8, 0x0B: 1, 0x05: 2, 0x06: 4, 0x07: 8, 0x1E: 16, 0x0C: 1, 0x11: 1, 0x12: 2, 0x13: 4, 0x14: 8, 0x0E: 4,
    0x17: 4, 0x19: 0, 0x1F: 4, 0x10: 4, 0x20: 8,
}  # fmt: skip
_STRING, _UDATA, _SDATA, _REF_UDATA, _EXPRLOC, _IMPLICIT = 0x08, 0x0F, 0x0D, 0x15, 0x18, 0x21
_BLOCKS = {0x0A: 1, 0x03: 2, 0x04: 4}
_STRP, _LINE_STRP, _FLAG_PRESENT = 0x0E, 0x1F, 0x19
_UNIT_REFERENCES = frozenset({0x11, 0x12, 0x13, 0x14, 0x15})
DEPTH_LIMIT = 64


class DwarfError(ValueError):
    """The debug information is not of the form that is read here."""


@dataclass(frozen=True, slots=True)
class _Abbreviation:
    tag: int
    children: bool
    attributes: tuple[tuple[int, int, int], ...]


@dataclass(slots=True)
class Entry:
    """One DIE. ``tag`` is 0 for the end of a list of children, ``end`` where what follows begins."""

    offset: int
    tag: int
    children: bool
    values: dict[int, int | bytes]
    end: int


class Entries:
    """The debug sections of one file, relocated."""

    def __init__(self, sections: Mapping[str, bytes]) -> None:
        self._info = sections.get(".debug_info", b"")
        self._sections = sections
        self._tables: dict[int, dict[int, _Abbreviation]] = {}

    @cached_property
    def unit_headers(self) -> dict[int, tuple[int, int, int]]:
        """(first DIE, end, abbreviations) by the offset of the unit."""
        found: dict[int, tuple[int, int, int]] = {}
        at, data = 0, self._info
        while at + 12 <= len(data):
            length, version, kind, address_size, table = struct.unpack_from("<IHBBI", data, at)
            if length >= 0xFFFFFFF0 or version != 5 or kind != 1 or address_size != 8:
                raise DwarfError(f"unit at {at:#x}: version {version}, kind {kind}, not what gcc 12 writes")
            found[at] = (at + 12, at + 4 + length, table)
            at += 4 + length
        return found

    @cached_property
    def unit_starts(self) -> Sequence[int]:
        """The offsets of all units, ascending."""
        return sorted(self.unit_headers)

    def units_by_address(self, addresses: Sequence[int]) -> dict[int, list[int]]:
        """The units, by offset, that ``.debug_aranges`` says have code at the addresses."""
        data = self._sections.get(".debug_aranges", b"")
        wanted = sorted(addresses)
        found: dict[int, list[int]] = {}
        at = 0
        while at + 16 <= len(data):
            length, _, unit, _, _ = struct.unpack_from("<IHIBB", data, at)
            end = at + 4 + length
            at += 16  # the header's 12 bytes, padded to a pair
            while at + 16 <= end:
                start, size = struct.unpack_from("<QQ", data, at)
                at += 16
                if not size:
                    continue
                position = bisect_right(wanted, start - 1)
                while position < len(wanted) and wanted[position] < start + size:
                    found.setdefault(unit, []).append(wanted[position])
                    position += 1
            at = end
        return found

    def unit_of(self, unit: int, offset: int) -> int:
        """The unit that a DIE is in; ``unit`` is looked at first."""
        if unit <= offset < self.unit_headers[unit][1]:
            return unit
        return self.unit_starts[bisect_right(self.unit_starts, offset) - 1]

    def origin(self, unit: int, die: Entry) -> Entry:
        """The DIE that a concrete or inlined one stands for (itself if it stands for none)."""
        for _ in range(DEPTH_LIMIT):
            origin = die.values.get(ORIGIN)
            if not isinstance(origin, int):
                break
            die = self.entry(self.unit_of(unit, origin), origin)
        return die

    def name(self, unit: int, die: Entry) -> str:
        """Its name or its origin's, empty if it has none."""
        name = self.origin(unit, die).values.get(NAME, b"")
        return name.decode("utf-8", "replace") if isinstance(name, bytes) else ""

    def children(self, unit: int, die: Entry) -> Iterator[Entry]:
        """The DIEs directly below."""
        if not die.children:
            return
        at = die.end
        while True:
            child = self.entry(unit, at)
            if child.tag == 0:
                return
            yield child
            at = self.behind(unit, child)

    def behind(self, unit: int, die: Entry) -> int:
        """Where the next DIE of the same level is."""
        if not die.children:
            return die.end
        sibling = die.values.get(SIBLING)
        if isinstance(sibling, int):
            return sibling
        at, depth = die.end, 1
        while depth:
            child = self.entry(unit, at)
            at = child.end
            if child.tag == 0:
                depth -= 1
            elif child.children:
                depth += 1
        return at

    def _abbreviations(self, at: int) -> dict[int, _Abbreviation]:
        found = self._tables.get(at)
        if found is not None:
            return found
        found = {}
        start, data = at, self._sections.get(".debug_abbrev", b"")
        while True:
            code, at = _uleb(data, at)
            if code == 0:
                break
            tag, at = _uleb(data, at)
            children = bool(data[at])
            at += 1
            attributes: list[tuple[int, int, int]] = []
            while True:
                name, at = _uleb(data, at)
                form, at = _uleb(data, at)
                constant = 0
                if form == _IMPLICIT:
                    constant, at = _sleb(data, at)
                if name == 0 and form == 0:
                    break
                attributes.append((name, form, constant))
            found[code] = _Abbreviation(tag, children, tuple(attributes))
        self._tables[start] = found
        return found

    def entry(self, unit: int, at: int) -> Entry:
        """The DIE at an offset. References within a unit come out as offsets in the section, a high pc as an address."""
        start, data = at, self._info
        code, at = _uleb(data, at)
        if code == 0:
            return Entry(start, 0, False, {}, at)
        abbreviation = self._abbreviations(self.unit_headers[unit][2]).get(code)
        if abbreviation is None:
            raise DwarfError(f"no abbreviation {code} at {start:#x}")
        values: dict[int, int | bytes] = {}
        for name, form, constant in abbreviation.attributes:
            value: int | bytes
            size = _FIXED.get(form)
            if size is not None:
                value = int.from_bytes(data[at : at + size], "little")
                at += size
                if form in _UNIT_REFERENCES:
                    value += unit
                elif name == NAME:
                    value = self._string(form, value)
                elif form == _FLAG_PRESENT:
                    value = 1
            elif form == _STRING:
                end = data.index(b"\0", at)
                value, at = data[at:end], end + 1
            elif form in (_UDATA, _REF_UDATA):
                value, at = _uleb(data, at)
                value += unit if form == _REF_UDATA else 0
            elif form == _SDATA:
                value, at = _sleb(data, at)
            elif form == _IMPLICIT:
                value = constant
            elif form == _EXPRLOC:
                size, at = _uleb(data, at)
                value, at = data[at : at + size], at + size
            elif form in _BLOCKS:
                width = _BLOCKS[form]
                size = int.from_bytes(data[at : at + width], "little")
                at += width
                value, at = data[at : at + size], at + size
            else:
                raise DwarfError(f"form {form:#x} at {start:#x}")
            if name == HIGH_PC and form != 0x01:
                value = number(values.get(LOW_PC, 0)) + number(value)
            values[name] = value
        return Entry(start, abbreviation.tag, abbreviation.children, values, at)

    def _string(self, form: int, at: int) -> bytes:
        section = {_STRP: ".debug_str", _LINE_STRP: ".debug_line_str"}.get(form)
        if section is None:
            raise DwarfError(f"a name has form {form:#x}")
        data = self._sections.get(section, b"")
        return data[at : data.find(b"\0", at)]

    def ranges(self, die: Entry, base: int) -> tuple[tuple[int, int], ...]:
        """(start, end) of the code that a DIE describes; ``base`` is the low pc of its unit."""
        at = die.values.get(RANGES)
        if not isinstance(at, int):
            low, high = die.values.get(LOW_PC), die.values.get(HIGH_PC)
            return ((low, high),) if isinstance(low, int) and isinstance(high, int) else ()
        data = self._sections.get(".debug_rnglists", b"")
        return tuple((start, end) for start, end, _ in _list(data, at, base, {5: 6, 4: 4, 6: 7, 7: 8}, False))

    def locations(self, at: int, base: int) -> Iterator[tuple[int, int, bytes]]:
        """(start, end, expression) of the location list at an offset."""
        data = self._sections.get(".debug_loclists", b"")
        return _list(data, at, base, {6: 6, 4: 4, 7: 7, 8: 8}, True)


def _list(
    data: bytes, at: int, base: int, kinds: Mapping[int, int], located: bool
) -> Iterator[tuple[int, int, bytes]]:
    """Entries of a range or location list; ``kinds`` gives the location list's kind of each kind of entry."""
    while True:
        raw = data[at]
        at += 1
        if raw == 0:
            return
        if located and raw == 9:  # DW_LLE_GNU_view_pair: of the entry that follows
            _, at = _uleb(data, at)
            _, at = _uleb(data, at)
            continue
        kind = kinds.get(raw)
        if kind == 6:
            (base,) = struct.unpack_from("<Q", data, at)
            at += 8
            continue
        if kind == 4:
            start, at = _uleb(data, at)
            end, at = _uleb(data, at)
            start, end = base + start, base + end
        elif kind == 7:
            start, end = struct.unpack_from("<QQ", data, at)
            at += 16
        elif kind == 8:
            (start,) = struct.unpack_from("<Q", data, at)
            length, at = _uleb(data, at + 8)
            end = start + length
        else:
            raise DwarfError(f"list entry of kind {raw}")
        expression = b""
        if located:
            size, at = _uleb(data, at)
            expression, at = data[at : at + size], at + size
        yield start, end, expression


def number(value: int | bytes) -> int:
    """An attribute's value as a number, 0 for a block."""
    return value if isinstance(value, int) else 0


def _uleb(data: bytes, at: int) -> tuple[int, int]:
    byte = data[at]
    at += 1
    if byte < 128:
        return byte, at
    value, shift = byte & 127, 7
    while byte >= 128:
        byte = data[at]
        at += 1
        value |= (byte & 127) << shift
        shift += 7
    return value, at


def _sleb(data: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = data[at]
        at += 1
        value |= (byte & 127) << shift
        shift += 7
        if byte < 128:
            return value - (1 << shift) if byte & 64 else value, at


_SECTIONS = (
    ".debug_info", ".debug_abbrev", ".debug_str", ".debug_line_str", ".debug_loclists", ".debug_rnglists",
    ".debug_aranges",
)  # fmt: skip
_R_64, _R_32 = 1, 10


def read_entries(elf: ElfFile, bases: Mapping[str, int] | None = None) -> Entries:
    """The debug sections of a kernel (linked: as it is) or of a module (``bases``: where its sections are, by
    name).  Raises DwarfError."""
    sections: dict[str, bytes] = {}
    for name in _SECTIONS:
        section = elf.section_by_name.get(name)
        if section is None:
            continue
        content = elf.content(section)
        if bases is not None and elf.relocatable:
            content = _relocated(elf, content, name, bases)
        sections[name] = content
    return Entries(sections)


def _relocated(elf: ElfFile, content: bytes, name: str, bases: Mapping[str, int]) -> bytes:
    section = elf.section_by_name[name]
    data = bytearray(content)
    origins = np.array([bases.get(item.name, 0) for item in elf.sections], np.uint64).tolist()
    symbols = elf.symbols
    for relocation in elf.relocations(section):
        symbol = symbols[relocation.symbol]
        origin = origins[symbol.section] if symbol.section < len(origins) else 0
        value = origin + symbol.value + relocation.addend
        if relocation.type == _R_64:
            struct.pack_into("<Q", data, relocation.offset, value & (1 << 64) - 1)
        elif relocation.type == _R_32:
            struct.pack_into("<I", data, relocation.offset, value & 0xFFFFFFFF)
        else:
            raise DwarfError(f"relocation type {relocation.type} in {name}")
    return bytes(data)
