# SPDX-License-Identifier: Apache-2.0
"""Writes a relocatable ELF file for BPF: sections, symbols and relocations, nothing else.

Offsets, sizes and alignments are in bytes.  The output depends only on the calls made, in their order.
Layout of the structures: System V ABI, "Object Files"; e_machine and relocation types: kernel
Documentation/bpf/llvm_reloc.rst (6.1).
"""

from __future__ import annotations

import struct
from collections.abc import Iterable
from dataclasses import dataclass
from enum import IntEnum

MACHINE_BPF = 247
MAXIMUM_SECTIONS = 0xFF00  # SHN_LORESERVE: more would need extended numbering, which libbpf does not read

_HEADER = struct.Struct("<16sHHIQQQIHHHHHH")
_SECTION = struct.Struct("<IIQQQQIIQQ")
_SYMBOL = struct.Struct("<IBBHQQ")
_RELOCATION = struct.Struct("<QQ")


class SectionType(IntEnum):
    """sh_type."""

    PROGBITS = 1
    SYMTAB = 2
    STRTAB = 3
    NOBITS = 8
    REL = 9


class SectionFlag(IntEnum):
    """sh_flags."""

    WRITE = 1
    ALLOC = 2
    EXECUTE = 4
    INFO_LINK = 0x40


class Binding(IntEnum):
    """Upper half of st_info."""

    LOCAL = 0
    GLOBAL = 1
    WEAK = 2


class SymbolType(IntEnum):
    """Lower half of st_info."""

    NOTYPE = 0
    OBJECT = 1
    FUNC = 2


class RelocationType(IntEnum):
    """R_BPF_64_64 patches a 64-bit immediate load, R_BPF_64_32 a call."""

    R_BPF_64_64 = 1
    R_BPF_64_32 = 10


@dataclass(frozen=True, slots=True)
class _Section:
    name: int
    type: int
    flags: int
    data: bytes | bytearray
    size: int
    link: int
    info: int
    alignment: int
    entry_size: int


class StringTable:
    """A NUL-separated string table in which every string is there once."""

    def __init__(self) -> None:
        self._offsets: dict[str, int] = {"": 0}
        self._data = bytearray(1)

    def add(self, text: str) -> int:
        """The offset of a string."""
        offset = self._offsets.get(text)
        if offset is None:
            offset = len(self._data)
            self._offsets[text] = offset
            self._data += text.encode() + b"\0"
        return offset

    def add_with_suffix(self, prefix: str, text: str) -> tuple[int, int]:
        """Offsets of ``prefix + text`` and of ``text``, which share their bytes."""
        whole = self.add(prefix + text)
        return whole, self._offsets.setdefault(text, whole + len(prefix.encode()))

    @property
    def data(self) -> bytes:
        """The table's bytes."""
        return bytes(self._data)


class ElfWriter:
    """Collects sections and symbols and writes the file.

    All symbols that relocations name are global, weak or undefined; the null symbol is the only local one.
    """

    def __init__(self) -> None:
        self._strings = StringTable()
        self._sections: list[_Section] = [_Section(0, 0, 0, b"", 0, 0, 0, 0, 0)]
        self._symbols = bytearray(_SYMBOL.size)
        self._symbol_count = 1
        self._string_section = self._append(".strtab", SectionType.STRTAB, 0, b"", 1)
        self._symbol_section = self._append(".symtab", SectionType.SYMTAB, 0, b"", 8)

    def _append(self, name: str, type_: SectionType, flags: int, data: bytes | bytearray, align: int) -> int:
        self._sections.append(
            _Section(self._strings.add(name), type_, flags, data, len(data), 0, 0, align, 0)
        )
        return len(self._sections) - 1

    @property
    def section_count(self) -> int:
        """Sections so far, the null section included."""
        return len(self._sections)

    def add_section(
        self,
        name: str,
        data: bytes | bytearray,
        *,
        flags: int = 0,
        alignment: int = 8,
        type_: SectionType = SectionType.PROGBITS,
    ) -> int:
        """Adds a section and returns its number."""
        return self._append(name, type_, flags, data, alignment)

    def add_zero_section(self, name: str, size: int, *, flags: int, alignment: int = 8) -> int:
        """Adds a section of zeros that takes no room in the file."""
        self._sections.append(
            _Section(self._strings.add(name), SectionType.NOBITS, flags, b"", size, 0, 0, alignment, 0)
        )
        return len(self._sections) - 1

    def add_code(
        self, name: str, data: bytes | bytearray, relocations: Iterable[tuple[int, int, int]]
    ) -> int:
        """Adds an executable section with its relocations, each (offset, symbol, type); returns its number."""
        packed = b"".join(
            _RELOCATION.pack(offset, symbol << 32 | type_) for offset, symbol, type_ in relocations
        )
        if packed:
            relocation_name, name_offset = self._strings.add_with_suffix(".rel", name)
        else:
            name_offset = self._strings.add(name)
        flags = SectionFlag.ALLOC | SectionFlag.EXECUTE
        self._sections.append(_Section(name_offset, SectionType.PROGBITS, flags, data, len(data), 0, 0, 8, 0))
        index = len(self._sections) - 1
        if packed:
            self._sections.append(
                _Section(
                    relocation_name,
                    SectionType.REL,
                    SectionFlag.INFO_LINK,
                    packed,
                    len(packed),
                    self._symbol_section,
                    index,
                    8,
                    _RELOCATION.size,
                )
            )
        return index

    def add_symbol(
        self,
        name: str,
        section: int,
        value: int,
        size: int,
        type_: SymbolType,
        binding: Binding = Binding.GLOBAL,
    ) -> int:
        """Adds a symbol (section 0: undefined) and returns its number."""
        self._symbols += _SYMBOL.pack(self._strings.add(name), binding << 4 | type_, 0, section, value, size)
        self._symbol_count += 1
        return self._symbol_count - 1

    def reserve_symbols(self, count: int) -> int:
        """Room for symbols whose place is not known yet; returns the number of the first."""
        first = self._symbol_count
        self._symbols += bytes(_SYMBOL.size * count)
        self._symbol_count += count
        return first

    def set_symbol(
        self, number: int, name: str, section: int, value: int, size: int, type_: SymbolType
    ) -> None:
        """Fills a reserved symbol, which becomes a global one."""
        _SYMBOL.pack_into(
            self._symbols,
            number * _SYMBOL.size,
            self._strings.add(name),
            Binding.GLOBAL << 4 | type_,
            0,
            section,
            value,
            size,
        )

    def write(self) -> bytes:
        """The file."""
        strings = self._strings.data
        out = bytearray(_HEADER.size)
        headers = bytearray()
        for index, section in enumerate(self._sections):
            data: bytes | bytearray = section.data
            size, link, info, entry = section.size, section.link, section.info, section.entry_size
            if index == self._string_section:
                data, size = strings, len(strings)
            elif index == self._symbol_section:
                data, size = self._symbols, len(self._symbols)
                link, info, entry = self._string_section, 1, _SYMBOL.size
            offset = 0
            if index:
                out += bytes(-len(out) % max(section.alignment, 1))
                offset = len(out)
                out += data
            headers += _SECTION.pack(
                section.name,
                section.type,
                section.flags,
                0,
                offset,
                size,
                link,
                info,
                section.alignment,
                entry,
            )
        out += bytes(-len(out) % 8)
        identification = b"\x7fELF" + bytes((2, 1, 1)) + bytes(9)
        _HEADER.pack_into(
            out,
            0,
            identification,
            1,  # ET_REL
            MACHINE_BPF,
            1,
            0,
            0,
            len(out),
            0,
            _HEADER.size,
            0,
            0,
            _SECTION.size,
            len(self._sections),
            self._string_section,
        )
        return bytes(out + headers)
