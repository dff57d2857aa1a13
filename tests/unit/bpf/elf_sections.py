# SPDX-License-Identifier: Apache-2.0
"""Sections of an object as pyelftools gives them, of the kind that they should be of."""

from __future__ import annotations

from elftools.elf.elffile import ELFFile
from elftools.elf.sections import Section, SymbolTableSection


def section_named(elf: ELFFile, name: str) -> Section:
    """The section of that name, which must be there."""
    section = elf.get_section_by_name(name)
    assert isinstance(section, Section), name
    return section


def symbol_table(elf: ELFFile) -> SymbolTableSection:
    """The section with the symbols, which must be there."""
    section = elf.get_section_by_name(".symtab")
    assert isinstance(section, SymbolTableSection)
    return section
