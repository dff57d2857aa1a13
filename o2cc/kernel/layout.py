# SPDX-License-Identifier: Apache-2.0
"""The target as one address space: sections, function symbols, and what the linker fills in.

A module's sections get addresses far apart (section index times 4 GiB), the kernel's have their own. All analyses
work on these numbers; `Layout.static_address` and `Layout.function_at` turn them back into names.
"""

from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Self

from o2cc.kernel.description import StaticAddress
from o2cc.kernel.elf import (
    R_X86_64_32,
    R_X86_64_32S,
    R_X86_64_64,
    R_X86_64_NONE,
    R_X86_64_PC32,
    R_X86_64_PC64,
    R_X86_64_PLT32,
    SHN_LORESERVE,
    SHN_UNDEF,
    STB_LOCAL,
    STT_FUNC,
    ElfFile,
    ElfSection,
)
from o2cc.kernel.instruction import Code, Link, Places
from o2cc.kernel.kallsyms import KernelSymbols

SECTION_STRIDE_BITS = 32
_LINK_SIZES = {
    R_X86_64_64: 8,
    R_X86_64_PC64: 8,
    R_X86_64_PC32: 4,
    R_X86_64_PLT32: 4,
    R_X86_64_32: 4,
    R_X86_64_32S: 4,
}
_RELATIVE = frozenset({R_X86_64_PC32, R_X86_64_PLT32, R_X86_64_PC64})

# Function symbols that are not code of the target: the padding before functions (6.3 and later).
PADDING_PREFIXES = ("__pfx_", "__cfi_")


@dataclass(frozen=True, slots=True)
class LayoutSection:
    """A loaded section; ``content`` is empty for zero-filled ones."""

    name: str
    start: int
    size: int
    content: bytes
    executable: bool
    writable: bool

    @classmethod
    def of(cls, elf: ElfFile, section: ElfSection, start: int) -> Self:
        """A section of a file, laid at ``start``."""
        content = elf.content(section)
        return cls(section.name, start, section.size, content, section.executable, section.writable)

    @property
    def end(self) -> int:
        return self.start + self.size


@dataclass(frozen=True, slots=True)
class FunctionRange:
    """The code of one function symbol. ``extent_end``: where kallsyms believes that it ends (the next symbol)."""

    name: str
    section: str
    start: int
    end: int
    extent_end: int
    exported: bool


@dataclass
class Layout(Places):
    """What the scanner knows of the target's code and data before it decodes anything.

    ``links`` are the linker's fields by address, in all loaded sections; ``imports`` the undefined symbols;
    ``names`` gives a name to addresses of code outside the functions (the kernel's other functions).
    """

    sections: tuple[LayoutSection, ...]
    functions: tuple[FunctionRange, ...]
    links: Mapping[int, Link]
    absolute: tuple[int, int] | None
    kernel_symbols: KernelSymbols | None = None
    problems: list[str] = field(default_factory=list)
    cached_names: dict[int, str | None] = field(default_factory=dict)

    @cached_property
    def _starts(self) -> Sequence[int]:
        return [section.start for section in self.sections]

    @cached_property
    def _function_starts(self) -> Sequence[int]:
        return [function.start for function in self.functions]

    @cached_property
    def _names(self) -> Mapping[int, str]:
        return {function.start: function.name for function in self.functions}

    @cached_property
    def link_addresses(self) -> Sequence[int]:
        return sorted(self.links)

    def section_at(self, address: int) -> LayoutSection | None:
        """The section that ``address`` lies in (its end included, for pointers behind the last object)."""
        position = bisect_right(self._starts, address) - 1
        if position >= 0 and address <= self.sections[position].end:
            return self.sections[position]
        return None

    def function_at(self, address: int) -> FunctionRange | None:
        """The function whose code covers ``address``."""
        position = bisect_right(self._function_starts, address) - 1
        if position >= 0 and address < self.functions[position].end:
            return self.functions[position]
        return None

    def static_address(self, address: int) -> StaticAddress:
        section = self.section_at(address)
        symbol = None
        if self.kernel_symbols is not None:
            position = self.kernel_symbols.covering(address)
            symbol = self.kernel_symbols.names[position] if position is not None else None
        if section is None:
            return StaticAddress(None, symbol, address)
        return StaticAddress(section.name, symbol, address - section.start)

    def name_at(self, address: int) -> str | None:
        found = self._names.get(address)
        if found is not None or self.kernel_symbols is None:
            return found
        if address not in self.cached_names:
            self.cached_names[address] = kernel_name_at(self.kernel_symbols, address)
        return self.cached_names[address]

    def code(self, section: LayoutSection) -> Code:
        return Code(section.start, section.content, self.links, self.link_addresses, self.absolute)


def kernel_name_at(symbols: KernelSymbols, address: int) -> str | None:
    """The best name of the kernel's code at exactly ``address``: global before local, fewest underscores."""
    position = symbols.covering(address)
    best: tuple[bool, bool, int, str] | None = None
    while position is not None and position >= 0 and int(symbols.addresses[position]) == address:
        name, letter = symbols.names[position], symbols.types[position]
        if letter in b"tTwW" and not name.startswith(PADDING_PREFIXES):
            thunk = name.startswith("__x86_") and not name.endswith("_array")
            key = (not thunk, letter not in b"TW", len(name) - len(name.lstrip("_")), name)
            best = key if best is None or key < best else best
        position -= 1
    return best[3] if best is not None else None


def module_layout(elf: ElfFile) -> Layout:
    """The layout of a relocatable module. Raises DiagnosticError for relocations that point outside."""
    sections = tuple(
        LayoutSection.of(elf, section, section.index << SECTION_STRIDE_BITS)
        for section in elf.sections
        if section.allocated
    )
    links: dict[int, Link] = {}
    problems: list[str] = []
    symbols = elf.symbols
    for section in elf.sections:
        if not section.allocated:
            continue
        base = section.index << SECTION_STRIDE_BITS
        for relocation in elf.relocations(section):
            if relocation.type == R_X86_64_NONE:
                continue
            size = _LINK_SIZES.get(relocation.type)
            if size is None:
                problems.append(
                    f"{section.name}+{relocation.offset:#x}: relocation type {relocation.type} not known"
                )
                continue
            symbol = symbols[relocation.symbol]
            relative = relocation.type in _RELATIVE
            if symbol.section == SHN_UNDEF:
                links[base + relocation.offset] = Link(None, symbol.name, relocation.addend, relative, size)
            elif symbol.section < SHN_LORESERVE:
                address = (symbol.section << SECTION_STRIDE_BITS) + symbol.value
                links[base + relocation.offset] = Link(address, None, relocation.addend, relative, size)
    return Layout(sections, _module_functions(elf), links, None, problems=problems)


def _module_functions(elf: ElfFile) -> tuple[FunctionRange, ...]:
    executable = {
        section.index: section for section in elf.sections if section.executable and section.allocated
    }
    exported = {
        symbol.name.removeprefix("__ksymtab_")
        for symbol in elf.symbols
        if symbol.name.startswith("__ksymtab_")
    }
    found: dict[int, tuple[tuple[bool, bool, str], int, ElfSection, int]] = {}
    boundaries: set[int] = set()
    for symbol in elf.symbols:
        section = executable.get(symbol.section)
        if section is None or not symbol.name or symbol.value > section.size:
            continue
        start = (section.index << SECTION_STRIDE_BITS) + symbol.value
        if symbol.type == STT_FUNC or symbol.binding != STB_LOCAL:
            boundaries.add(start)
        padding = symbol.name.startswith(PADDING_PREFIXES)
        if padding or not (symbol.type == STT_FUNC or (symbol.type == 0 and symbol.binding != STB_LOCAL)):
            continue
        # `init_module` and `cleanup_module` are second names of the module's own functions.
        generic = symbol.name in ("init_module", "cleanup_module")
        key = (generic, symbol.binding == STB_LOCAL, symbol.name)
        before = found.get(start)
        if before is None or key < before[0]:
            found[start] = (key, symbol.size, section, symbol.value)
    starts = sorted(found)
    ends = sorted(boundaries)
    result = []
    for start in starts:
        key, size, section, _ = found[start]
        section_end = (section.index << SECTION_STRIDE_BITS) + section.size
        position = bisect_right(ends, start)
        following = ends[position] if position < len(ends) and ends[position] < section_end else section_end
        end = min(start + size, following) if size else following
        if end > start:
            result.append(FunctionRange(key[2], section.name, start, end, following, key[2] in exported))
    return tuple(result)
