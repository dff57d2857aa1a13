# SPDX-License-Identifier: Apache-2.0
"""What labels need of DWARF: which variables a function has, where they are, and what they point to.

Only the compile units that are asked for are walked, and in these only the functions that are: DIEs of types are read
when a variable refers to them. A location that is not understood is no location.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from o2cc.kernel.elf import ElfFile
from o2cc.profile.dwarf_entries import (
    ARRAY,
    ATOMIC,
    BASE,
    BYTE_SIZE,
    CONST,
    COUNT,
    DEPTH_LIMIT,
    ENUMERATION,
    FORMAL_PARAMETER,
    INLINED,
    LEXICAL_BLOCK,
    LOCATION,
    LOW_PC,
    MEMBER,
    MEMBER_AT,
    POINTER,
    RANGES,
    RESTRICT,
    STRUCTURE,
    SUBPROGRAM,
    SUBRANGE,
    TYPE,
    TYPEDEF,
    UNION,
    UPPER_BOUND,
    VARIABLE,
    VOLATILE,
    DwarfError,
    Entries,
    Entry,
    number,
    read_entries,
)

_MODIFIERS = frozenset({CONST, VOLATILE, RESTRICT, ATOMIC})

REGISTER_NUMBERS = (0, 2, 1, 3, 6, 7, 5, 4, 8, 9, 10, 11, 12, 13, 14, 15)
"""Our register (machine encoding) by DWARF's number (System V ABI, AMD64 supplement, figure 3.36)."""


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


class DebugInfo:
    """Functions, variables and types of one file."""

    def __init__(self, entries: Entries) -> None:
        self._entries = entries

    def units_by_address(self, addresses: Sequence[int]) -> dict[int, list[int]]:
        """The units, by offset, that ``.debug_aranges`` says have code at the addresses."""
        return self._entries.units_by_address(addresses)

    def functions(self, unit: int, addresses: Sequence[int]) -> Iterator[FunctionInfo]:
        """The functions of a unit whose code covers one of the addresses."""
        first, end, _ = self._entries.unit_headers[unit]
        root = self._entries.entry(unit, first)
        base = root.values.get(LOW_PC, 0)
        at = root.end
        while at < end:
            die = self._entries.entry(unit, at)
            if die.tag == 0:
                return
            if die.tag == SUBPROGRAM and (LOW_PC in die.values or RANGES in die.values):
                ranges = self._entries.ranges(die, number(base))
                if any(start <= address < stop for start, stop in ranges for address in addresses):
                    yield self._function(unit, die, ranges, number(base))
            at = self._entries.behind(unit, die)

    def _function(
        self, unit: int, die: Entry, ranges: tuple[tuple[int, int], ...], base: int
    ) -> FunctionInfo:
        variables: list[Variable] = []
        inlined: list[InlinedCall] = []
        at, depth = die.end, 1 if die.children else 0
        while depth:
            child = self._entries.entry(unit, at)
            at = child.end
            if child.tag == 0:
                depth -= 1
                continue
            if child.tag in (VARIABLE, FORMAL_PARAMETER):
                variable = self._variable(unit, child, ranges, base)
                if variable is not None:
                    variables.append(variable)
            elif child.tag == INLINED:
                result = self.pointee(unit, self._entries.origin(unit, child).values.get(TYPE))
                inlined.append(
                    InlinedCall(self._entries.name(unit, child), self._entries.ranges(child, base), result)
                )
            if child.children:
                if child.tag in (LEXICAL_BLOCK, INLINED, VARIABLE, FORMAL_PARAMETER):
                    depth += 1
                else:
                    at = self._entries.behind(unit, child)
        origin = self._entries.origin(unit, die)
        result = self.pointee(unit, origin.values.get(TYPE))
        return FunctionInfo(self._entries.name(unit, die), ranges, tuple(variables), tuple(inlined), result)

    def _variable(
        self, unit: int, die: Entry, ranges: tuple[tuple[int, int], ...], base: int
    ) -> Variable | None:
        location = die.values.get(LOCATION)
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
        origin = self._entries.origin(unit, die)
        pointee = self.pointee(unit, origin.values.get(TYPE))
        return None if pointee is None else Variable(self._entries.name(unit, origin), pointee, places)

    def _location_list(self, at: int, base: int) -> Iterator[Place]:
        for start, end, expression in self._entries.locations(at, base):
            register = _register(expression)
            if register is not None and start < end:
                yield Place(start, end, register)

    def pointee(self, unit: int, reference: int | bytes | None) -> Type | None:
        """What the type at an offset points to; None if it is no pointer."""
        found = self._stripped(unit, reference)
        if found is None or found[0].tag != POINTER:
            return None
        return self.type(unit, found[0].values.get(TYPE))

    def _stripped(self, unit: int, reference: int | bytes | None) -> tuple[Entry, str] | None:
        name = ""
        for _ in range(DEPTH_LIMIT):
            if not isinstance(reference, int):
                return None
            die = self._entries.entry(self._entries.unit_of(unit, reference), reference)
            if die.tag == TYPEDEF:
                name = name or self._entries.name(unit, die)
            elif die.tag not in _MODIFIERS:
                return die, name
            reference = die.values.get(TYPE)
        raise DwarfError("a type refers to itself")

    def type(self, unit: int, reference: int | bytes | None) -> Type:
        """The type at an offset; of a pointer and an array, ``name`` is that of what they lead to."""
        found = self._stripped(unit, reference)
        if found is None:
            return Type("void", "void", 0, 0)
        die, typedef = found
        name = self._entries.name(unit, die) or typedef
        size = number(die.values.get(BYTE_SIZE, 0))
        if die.tag in (STRUCTURE, UNION):
            return Type("struct" if die.tag == STRUCTURE else "union", name, size, die.offset)
        if die.tag == POINTER:
            inner = self._stripped(unit, die.values.get(TYPE))
            return Type("pointer", self._spelled(unit, inner), 8, die.offset)
        if die.tag == ARRAY:
            element = self.type(unit, die.values.get(TYPE))
            return Type("array", element.name, element.size * self._count(unit, die), die.offset)
        if die.tag in (BASE, ENUMERATION):
            return Type("scalar", typedef or name, size, die.offset)
        return Type("other", name, size, die.offset)

    def _spelled(self, unit: int, found: tuple[Entry, str] | None) -> str:
        """How a type that is pointed to is written."""
        if found is None:
            return "void"
        die, typedef = found
        name = self._entries.name(unit, die)
        if die.tag == POINTER:
            return f"{self._spelled(unit, self._stripped(unit, die.values.get(TYPE)))} *"
        keyword = {STRUCTURE: "struct ", UNION: "union "}.get(die.tag, "") if name else ""
        return f"{keyword}{name or typedef or 'anonymous'}"

    def _count(self, unit: int, die: Entry) -> int:
        count = 1
        for child in self._entries.children(unit, die):
            if child.tag == SUBRANGE:
                if COUNT in child.values:
                    count *= number(child.values[COUNT])
                else:
                    upper = child.values.get(UPPER_BOUND)
                    count *= upper + 1 if isinstance(upper, int) and upper < 1 << 31 else 0
        return count

    def members(self, type: Type) -> Iterator[tuple[str, int, Type, int]]:
        """(name, offset, type, offset of the type's DIE) of a struct's or union's members."""
        unit = self._entries.unit_of(self._entries.unit_starts[0], type.offset)
        for child in self._entries.children(unit, self._entries.entry(unit, type.offset)):
            if child.tag == MEMBER:
                reference = child.values.get(TYPE)
                yield (
                    self._entries.name(unit, child),
                    number(child.values.get(MEMBER_AT, 0)),
                    self.type(unit, reference),
                    number(reference or 0),
                )

    def member_pointee(self, reference: int) -> Type | None:
        """What a member points to, by the offset that `members` gives."""
        return self.pointee(self._entries.unit_of(self._entries.unit_starts[0], reference), reference)


def _register(expression: bytes) -> int | None:
    """The register that holds the variable: `DW_OP_regN`, or `DW_OP_bregN 0; DW_OP_stack_value`."""
    if len(expression) == 1 and 0x50 <= expression[0] < 0x60:
        return REGISTER_NUMBERS[expression[0] - 0x50]
    if len(expression) == 3 and 0x70 <= expression[0] < 0x80 and expression[1:] == b"\x00\x9f":
        return REGISTER_NUMBERS[expression[0] - 0x70]
    return None


def read_debug_info(elf: ElfFile, bases: Mapping[str, int] | None = None) -> DebugInfo:
    """The debug information of a kernel (linked: as it is) or of a module (``bases``: where its sections are, by
    name).  Raises DwarfError."""
    return DebugInfo(read_entries(elf, bases))
