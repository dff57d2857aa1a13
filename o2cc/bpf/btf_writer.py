# SPDX-License-Identifier: Apache-2.0
"""Writes BTF and BTF.ext sections.

Format: kernel Documentation/bpf/btf.rst (6.1).  Type numbers start at 1; 0 is void.  Equal types are
written once.  Instruction offsets in BTF.ext are in bytes from the start of their ELF section, as libbpf
expects them.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum

from o2cc.bpf.elf_writer import StringTable

MAGIC = 0xEB9F
MAXIMUM_LINE = (1 << 22) - 1
MAXIMUM_COLUMN = (1 << 10) - 1


class Kind(IntEnum):
    """BTF_KIND_*"""

    INT = 1
    PTR = 2
    ARRAY = 3
    STRUCT = 4
    FWD = 7
    FUNC = 12
    FUNC_PROTO = 13
    VAR = 14
    DATASEC = 15


class Linkage(IntEnum):
    """Of functions and variables."""

    STATIC = 0
    GLOBAL = 1
    EXTERN = 2


@dataclass(frozen=True, slots=True)
class LineInfo:
    """Where the code from a byte offset of its function on comes from.  ``line``, ``column`` count from 1."""

    offset: int
    file: str
    text: str
    line: int
    column: int


@dataclass(frozen=True, slots=True)
class Code:
    """What BTF.ext says about one function: its FUNC type, where it starts in its section, its lines.

    The first line has the offset 0, which the kernel demands.
    """

    offset: int
    function: int
    lines: Sequence[LineInfo]


class BtfWriter:
    """Collects types, strings and code information."""

    def __init__(self) -> None:
        self._strings = StringTable()
        self._types = bytearray()
        self._count = 0
        self._known: dict[bytes, int] = {}
        self._functions = bytearray()
        self._lines = bytearray()

    def _add(
        self, kind: Kind, name: str, size_or_type: int, tail: bytes = b"", vlen: int = 0, flag: int = 0
    ) -> int:
        head = struct.pack("<III", self._strings.add(name), flag << 31 | kind << 24 | vlen, size_or_type)
        key = head + tail
        number = self._known.get(key)
        if number is None:
            self._types += key
            self._count += 1
            number = self._known[key] = self._count
        return number

    def integer(self, name: str, size: int, encoding: int = 0) -> int:
        """An integer type (encoding 1: signed, 2: char)."""
        return self._add(Kind.INT, name, size, struct.pack("<I", encoding << 24 | size * 8))

    def unsigned(self, size: int) -> int:
        """C's unsigned type of 1, 2, 4 or 8 bytes."""
        names = {1: "unsigned char", 2: "unsigned short", 4: "unsigned int", 8: "unsigned long long"}
        return self.integer(names[size], size)

    def signed_int(self) -> int:
        """C's ``int``."""
        return self.integer("int", 4, 1)

    def pointer(self, target: int) -> int:
        """``target *``"""
        return self._add(Kind.PTR, "", target)

    def array(self, element: int, length: int) -> int:
        """``element[length]``"""
        index = self.integer("__ARRAY_SIZE_TYPE__", 4)
        return self._add(Kind.ARRAY, "", 0, struct.pack("<III", element, index, length))

    def forward(self, name: str) -> int:
        """``struct name;``"""
        return self._add(Kind.FWD, name, 0)

    def structure(self, name: str, size: int, members: Sequence[tuple[str, int, int]]) -> int:
        """A struct whose members are (name, type, offset in bytes)."""
        tail = b"".join(struct.pack("<III", self._strings.add(n), t, offset * 8) for n, t, offset in members)
        return self._add(Kind.STRUCT, name, size, tail, len(members))

    def prototype(self, result: int, parameters: Sequence[tuple[str, int]]) -> int:
        """A function type; every parameter has a name (the kernel refuses nameless ones)."""
        tail = b"".join(struct.pack("<II", self._strings.add(n), t) for n, t in parameters)
        return self._add(Kind.FUNC_PROTO, "", result, tail, len(parameters))

    def function(self, name: str, prototype: int, linkage: Linkage = Linkage.GLOBAL) -> int:
        """A function."""
        return self._add(Kind.FUNC, name, prototype, b"", linkage)

    def variable(self, name: str, type_: int, linkage: Linkage = Linkage.GLOBAL) -> int:
        """A variable."""
        return self._add(Kind.VAR, name, type_, struct.pack("<I", linkage))

    def data_section(self, name: str, size: int, variables: Sequence[tuple[int, int, int]]) -> int:
        """A section with its variables, each (type, offset, size), by offset."""
        tail = b"".join(struct.pack("<III", *entry) for entry in variables)
        return self._add(Kind.DATASEC, name, size, tail, len(variables))

    def add_code(self, section: str, codes: Sequence[Code]) -> None:
        """Says what the functions of one code section are, by offset."""
        name = self._strings.add(section)
        self._functions += struct.pack("<II", name, len(codes))
        self._lines += struct.pack("<II", name, sum(len(code.lines) for code in codes))
        add = self._strings.add
        for code in codes:
            self._functions += struct.pack("<II", code.offset, code.function)
            for line in code.lines:
                position = min(line.line, MAXIMUM_LINE) << 10 | min(line.column, MAXIMUM_COLUMN)
                place = code.offset + line.offset
                self._lines += struct.pack("<IIII", place, add(line.file), add(line.text), position)

    def btf(self) -> bytes:
        """The .BTF section."""
        strings = self._strings.data
        header = struct.pack(
            "<HBBIIIII", MAGIC, 1, 0, 24, 0, len(self._types), len(self._types), len(strings)
        )
        return header + bytes(self._types) + strings

    def btf_ext(self) -> bytes:
        """The .BTF.ext section."""
        functions = struct.pack("<I", 8) + bytes(self._functions)
        lines = struct.pack("<I", 16) + bytes(self._lines)
        header = struct.pack("<HBBIIIII", MAGIC, 1, 0, 24, 0, len(functions), len(functions), len(lines))
        return header + functions + lines
