# SPDX-License-Identifier: Apache-2.0
"""Reads 64-bit little-endian x86-64 ELF files: kernel modules (relocatable) and the kernel itself.

Only what a scan needs, and strict: every offset and index is checked against the file before use, so that a
truncated or inconsistent file is a `DiagnosticError` (O2C0401, O2C0402) and nothing else.
"""

import struct
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from operator import itemgetter
from typing import NamedTuple

from o2cc.kernel.errors import BROKEN_ELF, NOT_ELF, failure

SHT_SYMTAB = 2
SHT_RELA = 4
SHT_NOTE = 7
SHT_NOBITS = 8
SHF_WRITE = 1
SHF_ALLOC = 2
SHF_EXECINSTR = 4
SHN_UNDEF = 0
SHN_LORESERVE = 0xFF00
STT_OBJECT = 1
STT_FUNC = 2
STT_SECTION = 3
STB_LOCAL = 0

R_X86_64_NONE = 0
R_X86_64_64 = 1
R_X86_64_PC32 = 2
R_X86_64_PLT32 = 4
R_X86_64_32 = 10
R_X86_64_32S = 11
R_X86_64_PC64 = 24

_HEADER = struct.Struct("<16sHHIQQQIHHHHHH")
_SECTION = struct.Struct("<IIQQQQIIQQ")
_NOTE = struct.Struct("<III")
_SYMBOL = struct.Struct("<IBBHQQ")
_RELA = struct.Struct("<QIIq")


@dataclass(frozen=True, slots=True)
class ElfSection:
    """One section header; ``address`` is 0 in relocatable files, ``offset`` that in the file."""

    index: int
    name: str
    type: int
    flags: int
    address: int
    offset: int
    size: int
    link: int
    info: int

    @property
    def allocated(self) -> bool:
        return bool(self.flags & SHF_ALLOC)

    @property
    def executable(self) -> bool:
        return bool(self.flags & SHF_EXECINSTR)

    @property
    def writable(self) -> bool:
        return bool(self.flags & SHF_WRITE)


@dataclass(frozen=True, slots=True)
class ElfSymbol:
    """One symbol; ``section`` is an index into the section table (0: undefined, >= 0xff00: special)."""

    name: str
    value: int
    size: int
    section: int
    type: int
    binding: int


class Relocation(NamedTuple):
    """One RELA entry: at ``offset`` of the section that it is for, ``symbol`` indexes the symbol table."""

    offset: int
    type: int
    symbol: int
    addend: int


@dataclass(frozen=True)
class ElfFile:
    """A checked ELF file. ``data`` is the whole (uncompressed) file, ``path`` only for messages."""

    data: bytes
    path: str
    relocatable: bool
    sections: tuple[ElfSection, ...]

    @cached_property
    def section_by_name(self) -> Mapping[str, ElfSection]:
        """By name; the first of several with one name."""
        found: dict[str, ElfSection] = {}
        for section in self.sections:
            found.setdefault(section.name, section)
        return found

    @cached_property
    def relocation_sections(self) -> Mapping[int, ElfSection]:
        """The RELA section of each section that has one, by the latter's index."""
        return {section.info: section for section in self.sections if section.type == SHT_RELA}

    def content(self, section: ElfSection) -> bytes:
        """The section's bytes; zeros for one without (``.bss``)."""
        if section.type == SHT_NOBITS:
            return b""
        return self.data[section.offset : section.offset + section.size]

    @cached_property
    def symbols(self) -> tuple[ElfSymbol, ...]:
        """The symbol table; empty if stripped. Raises DiagnosticError if it is inconsistent."""
        table = next((section for section in self.sections if section.type == SHT_SYMTAB), None)
        if table is None:
            return ()
        if table.link >= len(self.sections):
            raise self._broken("the symbol table names a string table that is not there")
        strings = self.content(self.sections[table.link])
        content = self.content(table)
        if len(content) % _SYMBOL.size:
            raise self._broken("the symbol table's size is not a multiple of its entries' size")
        count = len(self.sections)
        names = [section.name for section in self.sections]
        symbols = []
        for name, info, _, shndx, value, size in _SYMBOL.iter_unpack(content):
            if shndx >= count and shndx < SHN_LORESERVE:
                raise self._broken("a symbol names a section that is not there")
            kind = info & 15
            text = names[shndx] if kind == STT_SECTION and shndx < count else _string(strings, name)
            if text is None:
                raise self._broken("a symbol's name lies outside the string table")
            symbols.append(ElfSymbol(text, value, size, shndx, kind, info >> 4))
        return tuple(symbols)

    def relocations(self, section: ElfSection) -> tuple[Relocation, ...]:
        """The relocations for ``section``, by offset. Raises DiagnosticError for one out of bounds."""
        table = self.relocation_sections.get(section.index)
        if table is None:
            return ()
        content = self.content(table)
        if len(content) % _RELA.size:
            raise self._broken(f"the size of `{table.name}` is not a multiple of its entries' size")
        rows = sorted(map(Relocation._make, _RELA.iter_unpack(content)), key=itemgetter(0))
        count = len(self.symbols)
        if rows and (rows[-1].offset >= section.size or any(row.symbol >= count for row in rows)):
            raise self._broken(f"a relocation in `{table.name}` points outside")
        return tuple(rows)

    def note(self, owner: bytes, type: int, section_name: str | None = None) -> bytes | None:
        """The description of the first note of that owner and type (``b"GNU"``, 3: the build id)."""
        for section in self.sections:
            if section.type != SHT_NOTE or (section_name is not None and section.name != section_name):
                continue
            content = self.content(section)
            position = 0
            while position + _NOTE.size <= len(content):
                name_size, size, kind = _NOTE.unpack_from(content, position)
                name_at = position + _NOTE.size
                at = name_at + (name_size + 3 & ~3)
                if at + size > len(content):
                    break
                if kind == type and content[name_at : name_at + name_size].rstrip(b"\0") == owner:
                    return content[at : at + size]
                position = at + (size + 3 & ~3)
        return None

    @property
    def build_id(self) -> str:
        """Hex of the GNU build id, empty if there is none."""
        found = self.note(b"GNU", 3)
        return found.hex() if found is not None else ""

    def module_info(self) -> Mapping[str, str]:
        """The ``key=value`` strings of ``.modinfo``; the first of several with one key."""
        section = self.section_by_name.get(".modinfo")
        found: dict[str, str] = {}
        if section is not None:
            for item in self.content(section).split(b"\0"):
                key, separator, value = item.decode("utf-8", "replace").partition("=")
                if separator:
                    found.setdefault(key, value)
        return found

    @property
    def release(self) -> str:
        """The kernel release that a module names in its version magic, empty if it names none."""
        return self.module_info().get("vermagic", "").partition(" ")[0]

    def _broken(self, message: str) -> Exception:
        return failure(BROKEN_ELF, message, self.path)


def read_elf(data: bytes, path: str) -> ElfFile:
    """Check and index an ELF file. Raises DiagnosticError O2C0401 or O2C0402."""
    if data[:4] != b"\x7fELF":
        raise failure(NOT_ELF, "not an ELF file", path)
    if len(data) < _HEADER.size:
        raise failure(BROKEN_ELF, "the file ends within the ELF header", path)
    ident, kind, machine, _, _, _, table, _, _, _, _, entry_size, count, names_index = _HEADER.unpack_from(
        data
    )
    if ident[4] != 2 or ident[5] != 1 or machine != 62:
        raise failure(NOT_ELF, "not a 64-bit x86 ELF file", path)
    if kind not in (1, 2, 3):
        raise failure(NOT_ELF, f"an ELF file of type {kind}, neither a module nor a kernel", path)
    if count == 0 or entry_size != _SECTION.size or table + count * _SECTION.size > len(data):
        raise failure(BROKEN_ELF, "the section table is missing or lies outside the file", path)
    rows = [_SECTION.unpack_from(data, table + index * _SECTION.size) for index in range(count)]
    if names_index >= count:
        raise failure(BROKEN_ELF, "the section names' table is not there", path)
    for row in rows:
        if row[1] != SHT_NOBITS and row[1] != 0 and row[4] + row[5] > len(data):
            raise failure(BROKEN_ELF, "a section lies outside the file", path)
    names_row = rows[names_index]
    if names_row[1] == SHT_NOBITS:
        raise failure(BROKEN_ELF, "the section names' table has no content", path)
    names = data[names_row[4] : names_row[4] + names_row[5]]
    sections = []
    for index, (name, type_, flags, address, offset, size, link, info, _, _) in enumerate(rows):
        text = _string(names, name)
        if text is None:
            raise failure(BROKEN_ELF, "a section's name lies outside the names' table", path)
        sections.append(ElfSection(index, text, type_, flags, address, offset, size, link, info))
    return ElfFile(data, path, kind == 1, tuple(sections))


def _string(table: bytes, offset: int) -> str | None:
    end = table.find(b"\0", offset) if offset < len(table) else -1
    return table[offset:end].decode("utf-8", "replace") if end >= 0 else ("" if offset == 0 else None)
