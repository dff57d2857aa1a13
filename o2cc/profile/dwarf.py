# SPDX-License-Identifier: Apache-2.0
"""Reads of DWARF 5 what labels need: which variables a function has, where they are, and what they point to.

Only the compile units that are asked for are walked, and in these only the functions that are: DIEs of types are read
when a variable refers to them.  Forms, location lists and range lists are those that gcc 12 writes for the kernel (no
split DWARF, no index forms); DWARF 5, sections 2.6, 2.17, 7.5, 7.25 and 7.29.  A form that is not known is an error, a
location that is not understood is no location.
"""

from __future__ import annotations

import struct
from bisect import bisect_right
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from o2cc.kernel.elf import ElfFile

ARRAY, ENUMERATION, MEMBER, POINTER, COMPILE_UNIT = 0x01, 0x04, 0x0D, 0x0F, 0x11
STRUCTURE, TYPEDEF, UNION, SUBRANGE, BASE = 0x13, 0x16, 0x17, 0x21, 0x24
FORMAL_PARAMETER, LEXICAL_BLOCK, INLINED, SUBPROGRAM, VARIABLE = 0x05, 0x0B, 0x1D, 0x2E, 0x34
CONST, VOLATILE, RESTRICT, ATOMIC = 0x26, 0x35, 0x37, 0x47
_MODIFIERS = frozenset({CONST, VOLATILE, RESTRICT, ATOMIC})

_SIBLING, _LOCATION, _NAME, _BYTE_SIZE, _LOW_PC, _HIGH_PC = 0x01, 0x02, 0x03, 0x0B, 0x11, 0x12
_UPPER_BOUND, _ORIGIN, _COUNT, _MEMBER_AT, _DECLARATION, _TYPE, _RANGES = (
    0x2F,
    0x31,
    0x37,
    0x38,
    0x3C,
    0x49,
    0x55,
)

_FIXED = {
    0x01: 8, 0x0B: 1, 0x05: 2, 0x06: 4, 0x07: 8, 0x1E: 16, 0x0C: 1, 0x11: 1, 0x12: 2, 0x13: 4, 0x14: 8, 0x0E: 4,
    0x17: 4, 0x19: 0, 0x1F: 4, 0x10: 4, 0x20: 8,
}  # fmt: skip
_STRING, _UDATA, _SDATA, _REF_UDATA, _EXPRLOC, _IMPLICIT = 0x08, 0x0F, 0x0D, 0x15, 0x18, 0x21
_BLOCKS = {0x0A: 1, 0x03: 2, 0x04: 4}
_STRP, _LINE_STRP, _FLAG_PRESENT, _SEC_OFFSET, _REF_ADDR = 0x0E, 0x1F, 0x19, 0x17, 0x10
_UNIT_REFERENCES = frozenset({0x11, 0x12, 0x13, 0x14, 0x15})
_DEPTH_LIMIT = 64

REGISTER_NUMBERS = (0, 2, 1, 3, 6, 7, 5, 4, 8, 9, 10, 11, 12, 13, 14, 15)
"""Our register (machine encoding) by DWARF's number (System V ABI, AMD64 supplement, figure 3.36)."""


class DwarfError(ValueError):
    """The debug information is not of the form that is read here."""


@dataclass(frozen=True, slots=True)
class Type:
    """What a pointer points to, or a member's type, without modifiers and typedefs.

    ``kind``: struct, union, pointer, array, scalar, void or other; ``name`` the tag, or the typedef of what has none;
    ``offset`` the place of its DIE, the same for the same type of one unit.
    """

    kind: str
    name: str
    size: int
    offset: int


@dataclass(frozen=True, slots=True)
class Place:
    """Where a variable is in ``[start, end)``: in a register."""

    start: int
    end: int
    register: int


@dataclass(frozen=True, slots=True)
class Variable:
    """A variable or parameter of a function or of one inlined into it, with the type that it points to."""

    name: str
    pointee: Type
    places: tuple[Place, ...]


@dataclass(frozen=True, slots=True)
class InlinedCall:
    """Code of another function inside of one.  ``result``: what that one returns a pointer to."""

    name: str
    ranges: tuple[tuple[int, int], ...]
    result: Type | None


@dataclass(frozen=True, slots=True)
class FunctionInfo:
    """What is known of one function's code.  ``result``: what it returns a pointer to."""

    name: str
    ranges: tuple[tuple[int, int], ...]
    variables: tuple[Variable, ...]
    inlined: tuple[InlinedCall, ...]
    result: Type | None


@dataclass(frozen=True, slots=True)
class _Abbreviation:
    tag: int
    children: bool
    attributes: tuple[tuple[int, int, int], ...]


@dataclass(slots=True)
class _Die:
    offset: int
    tag: int
    children: bool
    values: dict[int, int | bytes]
    end: int


class DebugInfo:
    """The debug sections of one file, relocated."""

    def __init__(self, sections: Mapping[str, bytes]) -> None:
        self._info = sections.get(".debug_info", b"")
        self._sections = sections
        self._tables: dict[int, dict[int, _Abbreviation]] = {}

    def _text(self, section: str, at: int) -> str:
        data = self._sections.get(section, b"")
        return data[at : data.find(b"\0", at)].decode("utf-8", "replace")

    @cached_property
    def _unit_headers(self) -> dict[int, tuple[int, int, int]]:
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
    def _unit_starts(self) -> Sequence[int]:
        return sorted(self._unit_headers)

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

    def functions(self, unit: int, addresses: Sequence[int]) -> Iterator[FunctionInfo]:
        """The functions of a unit whose code covers one of the addresses."""
        first, end, _ = self._unit_headers[unit]
        root = self._die(unit, first)
        base = root.values.get(_LOW_PC, 0)
        at = root.end
        while at < end:
            die = self._die(unit, at)
            if die.tag == 0:
                return
            if die.tag == SUBPROGRAM and (_LOW_PC in die.values or _RANGES in die.values):
                ranges = self._ranges(die, _number(base))
                if any(start <= address < stop for start, stop in ranges for address in addresses):
                    yield self._function(unit, die, ranges, _number(base))
            at = self._behind(unit, die)

    def _function(self, unit: int, die: _Die, ranges: tuple[tuple[int, int], ...], base: int) -> FunctionInfo:
        variables: list[Variable] = []
        inlined: list[InlinedCall] = []
        at, depth = die.end, 1 if die.children else 0
        while depth:
            child = self._die(unit, at)
            at = child.end
            if child.tag == 0:
                depth -= 1
                continue
            if child.tag in (VARIABLE, FORMAL_PARAMETER):
                variable = self._variable(unit, child, ranges, base)
                if variable is not None:
                    variables.append(variable)
            elif child.tag == INLINED:
                result = self.pointee(unit, self._origin(unit, child).values.get(_TYPE))
                inlined.append(InlinedCall(self._name(unit, child), self._ranges(child, base), result))
            if child.children:
                if child.tag in (LEXICAL_BLOCK, INLINED, VARIABLE, FORMAL_PARAMETER):
                    depth += 1
                else:
                    at = self._behind(unit, child)
        origin = self._origin(unit, die)
        result = self.pointee(unit, origin.values.get(_TYPE))
        return FunctionInfo(self._name(unit, die), ranges, tuple(variables), tuple(inlined), result)

    def _variable(
        self, unit: int, die: _Die, ranges: tuple[tuple[int, int], ...], base: int
    ) -> Variable | None:
        location = die.values.get(_LOCATION)
        if location is None:
            return None
        if isinstance(location, bytes):
            register = _register(location)
            places = (
                tuple(Place(start, end, register) for start, end in ranges) if register is not None else ()
            )
        else:
            places = tuple(self._location_list(location, base))
        if not places:
            return None
        origin = self._origin(unit, die)
        pointee = self.pointee(unit, origin.values.get(_TYPE))
        return None if pointee is None else Variable(self._name(unit, origin), pointee, places)

    def _origin(self, unit: int, die: _Die) -> _Die:
        for _ in range(_DEPTH_LIMIT):
            origin = die.values.get(_ORIGIN)
            if not isinstance(origin, int):
                break
            die = self._die(self._unit_of(unit, origin), origin)
        return die

    def _unit_of(self, unit: int, offset: int) -> int:
        if unit <= offset < self._unit_headers[unit][1]:
            return unit
        return self._unit_starts[bisect_right(self._unit_starts, offset) - 1]

    def _name(self, unit: int, die: _Die) -> str:
        name = self._origin(unit, die).values.get(_NAME, b"")
        return name.decode("utf-8", "replace") if isinstance(name, bytes) else ""

    def pointee(self, unit: int, reference: int | bytes | None) -> Type | None:
        """What the type at an offset points to; None if it is no pointer."""
        found = self._stripped(unit, reference)
        if found is None or found[0].tag != POINTER:
            return None
        return self.type(unit, found[0].values.get(_TYPE))

    def _stripped(self, unit: int, reference: int | bytes | None) -> tuple[_Die, str] | None:
        name = ""
        for _ in range(_DEPTH_LIMIT):
            if not isinstance(reference, int):
                return None
            die = self._die(self._unit_of(unit, reference), reference)
            if die.tag == TYPEDEF:
                name = name or self._name(unit, die)
            elif die.tag not in _MODIFIERS:
                return die, name
            reference = die.values.get(_TYPE)
        raise DwarfError("a type refers to itself")

    def type(self, unit: int, reference: int | bytes | None) -> Type:
        """The type at an offset; of a pointer and an array, ``name`` is that of what they lead to."""
        found = self._stripped(unit, reference)
        if found is None:
            return Type("void", "void", 0, 0)
        die, typedef = found
        name = self._name(unit, die) or typedef
        size = _number(die.values.get(_BYTE_SIZE, 0))
        if die.tag in (STRUCTURE, UNION):
            return Type("struct" if die.tag == STRUCTURE else "union", name, size, die.offset)
        if die.tag == POINTER:
            inner = self._stripped(unit, die.values.get(_TYPE))
            return Type("pointer", self._spelled(unit, inner), 8, die.offset)
        if die.tag == ARRAY:
            element = self.type(unit, die.values.get(_TYPE))
            return Type("array", element.name, element.size * self._count(unit, die), die.offset)
        if die.tag in (BASE, ENUMERATION):
            return Type("scalar", typedef or name, size, die.offset)
        return Type("other", name, size, die.offset)

    def _spelled(self, unit: int, found: tuple[_Die, str] | None) -> str:
        """How a type that is pointed to is written."""
        if found is None:
            return "void"
        die, typedef = found
        name = self._name(unit, die)
        if die.tag == POINTER:
            return f"{self._spelled(unit, self._stripped(unit, die.values.get(_TYPE)))} *"
        keyword = {STRUCTURE: "struct ", UNION: "union "}.get(die.tag, "") if name else ""
        return f"{keyword}{name or typedef or 'anonymous'}"

    def _count(self, unit: int, die: _Die) -> int:
        count = 1
        for child in self._children(unit, die):
            if child.tag == SUBRANGE:
                if _COUNT in child.values:
                    count *= _number(child.values[_COUNT])
                else:
                    upper = child.values.get(_UPPER_BOUND)
                    count *= upper + 1 if isinstance(upper, int) and upper < 1 << 31 else 0
        return count

    def members(self, type: Type) -> Iterator[tuple[str, int, Type, int]]:
        """(name, offset, type, offset of the type's DIE) of a struct's or union's members."""
        unit = self._unit_of(self._unit_starts[0], type.offset)
        for child in self._children(unit, self._die(unit, type.offset)):
            if child.tag == MEMBER:
                reference = child.values.get(_TYPE)
                yield (
                    self._name(unit, child),
                    _number(child.values.get(_MEMBER_AT, 0)),
                    self.type(unit, reference),
                    _number(reference or 0),
                )

    def member_pointee(self, reference: int) -> Type | None:
        """What a member points to, by the offset that `members` gives."""
        return self.pointee(self._unit_of(self._unit_starts[0], reference), reference)

    def _children(self, unit: int, die: _Die) -> Iterator[_Die]:
        if not die.children:
            return
        at = die.end
        while True:
            child = self._die(unit, at)
            if child.tag == 0:
                return
            yield child
            at = self._behind(unit, child)

    def _behind(self, unit: int, die: _Die) -> int:
        """Where the next DIE of the same level is."""
        if not die.children:
            return die.end
        sibling = die.values.get(_SIBLING)
        if isinstance(sibling, int):
            return sibling
        at, depth = die.end, 1
        while depth:
            child = self._die(unit, at)
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

    def _die(self, unit: int, at: int) -> _Die:
        start, data = at, self._info
        code, at = _uleb(data, at)
        if code == 0:
            return _Die(start, 0, False, {}, at)
        abbreviation = self._abbreviations(self._unit_headers[unit][2]).get(code)
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
                elif name == _NAME:
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
            if name == _HIGH_PC and form != 0x01:
                value = _number(values.get(_LOW_PC, 0)) + _number(value)
            values[name] = value
        return _Die(start, abbreviation.tag, abbreviation.children, values, at)

    def _string(self, form: int, at: int) -> bytes:
        section = {_STRP: ".debug_str", _LINE_STRP: ".debug_line_str"}.get(form)
        if section is None:
            raise DwarfError(f"a name has form {form:#x}")
        return self._text(section, at).encode()

    def _ranges(self, die: _Die, base: int) -> tuple[tuple[int, int], ...]:
        at = die.values.get(_RANGES)
        if not isinstance(at, int):
            low, high = die.values.get(_LOW_PC), die.values.get(_HIGH_PC)
            return ((low, high),) if isinstance(low, int) and isinstance(high, int) else ()
        data = self._sections.get(".debug_rnglists", b"")
        return tuple((start, end) for start, end, _ in _list(data, at, base, {5: 6, 4: 4, 6: 7, 7: 8}, False))

    def _location_list(self, at: int, base: int) -> Iterator[Place]:
        data = self._sections.get(".debug_loclists", b"")
        for start, end, expression in _list(data, at, base, {6: 6, 4: 4, 7: 7, 8: 8}, True):
            register = _register(expression)
            if register is not None and start < end:
                yield Place(start, end, register)


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


def _register(expression: bytes) -> int | None:
    """The register that holds the variable: `DW_OP_regN`, or `DW_OP_bregN 0; DW_OP_stack_value`."""
    if len(expression) == 1 and 0x50 <= expression[0] < 0x60:
        return REGISTER_NUMBERS[expression[0] - 0x50]
    if len(expression) == 3 and 0x70 <= expression[0] < 0x80 and expression[1:] == b"\x00\x9f":
        return REGISTER_NUMBERS[expression[0] - 0x70]
    return None


def _number(value: int | bytes) -> int:
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


def read_debug_info(elf: ElfFile, bases: Mapping[str, int] | None = None) -> DebugInfo:
    """The debug information of a kernel (linked: as it is) or of a module (``bases``: where its sections are, by
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
    return DebugInfo(sections)


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
