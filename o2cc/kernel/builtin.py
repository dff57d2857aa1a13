# SPDX-License-Identifier: Apache-2.0
"""Scans functions that are built into the kernel, chosen by name patterns.

The kernel in a boot image has no symbol table and no relocations: names come from its kallsyms tables, addresses
are the ones it was linked for, and pointers in data are found by their values. A function ends where the next
symbol begins. For built-in code nothing is implied: its imports are the functions that it calls and that are not
chosen; its symbols are the data that it refers to.
"""

from __future__ import annotations

import fnmatch
import hashlib
import struct
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

import numpy as np

from o2cc.kernel.collection import without_collection
from o2cc.kernel.description import Description, Function, Section, StaticAddress, Symbol, Target
from o2cc.kernel.elf import ElfFile
from o2cc.kernel.errors import NO_FUNCTION, NO_KERNEL_IMAGE, failure
from o2cc.kernel.instruction import Link
from o2cc.kernel.kallsyms import KernelSymbols
from o2cc.kernel.kernels import Kernel
from o2cc.kernel.layout import PADDING_PREFIXES, FunctionRange, Layout, LayoutSection, kernel_name_at
from o2cc.kernel.ops import DataObject
from o2cc.kernel.patches import Patches, Table, read_patches
from o2cc.kernel.scan import analyse, prepare

KERNEL_START = 0xFFFFFFFF80000000  # ``__START_KERNEL_map``, ``asm/page_64_types.h``
PER_CPU_SECTION = ".data..percpu"
CODE_LETTERS = frozenset(b"tTwW")
DATA_LETTERS = frozenset(b"dDbBrRvV")

# Tables inside of other sections, between two symbols (``asm-generic/vmlinux.lds.h``).
_BOUNDED_TABLES = {
    "__jump_table": ("__start___jump_table", "__stop___jump_table"),
    ".static_call_sites": ("__start_static_call_sites", "__stop_static_call_sites"),
    "__mcount_loc": ("__start_mcount_loc", "__stop_mcount_loc"),
    "_kprobe_blacklist": ("__start_kprobe_blacklist", "__stop_kprobe_blacklist"),
}
_SECTION_TABLES = (
    ".retpoline_sites", ".return_sites", ".call_sites", ".ibt_endbr_seal", ".smp_locks", ".altinstructions",
    ".parainstructions", "__ex_table", "__bug_table",
)  # fmt: skip
# Code without kprobes (``arch_populate_kprobe_blacklist``, ``populate_kprobe_blacklist`` in ``kernel/kprobes.c``).
_REFUSED_RANGES = (
    ("__kprobes_text_start", "__kprobes_text_end"),
    ("__noinstr_text_start", "__noinstr_text_end"),
    ("__entry_text_start", "__entry_text_end"),
)
_INITIAL = (
    ".init.text",
    ".init.data",
    ".init.rodata",
    ".exit.text",
    ".altinstr_aux",
    ".altinstr_replacement",
)


def scan_builtin(
    kernel: Kernel, patterns: Sequence[str], name: str | None = None, structs: Sequence[str] = ()
) -> Description:
    """Describe the functions of ``kernel`` whose names match one of ``patterns`` (as file names in a shell do).
    ``structs``: further structs that its policy names.

    Raises DiagnosticError: O2C0420 for a pattern that no function matches, O2C0210 for a struct that is not there,
    and what reading the kernel raises.
    """
    with without_collection():
        return _scan_builtin(kernel, patterns, name, structs)


def _scan_builtin(
    kernel: Kernel, patterns: Sequence[str], name: str | None, structs: Sequence[str]
) -> Description:
    symbols = kernel.symbols
    path = str(kernel.path)
    layout, patches = kernel_layout(kernel, _chosen(symbols, patterns, path))
    sections, functions = layout.sections, layout.functions
    objects, links = _pointers(layout, symbols, {function.start for function in functions})
    layout.links = links
    counts = symbols.index
    analysed = analyse(prepare(layout, patches), kernel.btf, True, (), kernel.release, None, ())
    imports = _imports(analysed.functions)
    analysed.add_imports(imports)
    analysed.add_structs(structs)
    names = {
        address: kernel_name_at(symbols, address)
        for address in {link.address or 0 for link in links.values()}
    }
    tables = analysed.ops(
        objects, {address: text for address, text in names.items() if text is not None}, slack=64
    )
    chosen = name or _target_name(patterns)
    return Description(
        release=kernel.release,
        target=Target(
            chosen, "builtin", kernel.build_id, "", hashlib.sha256(kernel.image).hexdigest(), tuple(patterns)
        ),
        sections=tuple(_section(section, symbols) for section in sections if section.size),
        functions=tuple(
            replace(function, ambiguous=True) if len(counts.get(function.name, ())) > 1 else function
            for function in analysed.functions
        ),
        imports=imports,
        exports=(),
        symbols=_data_symbols(analysed.functions, objects, layout, symbols),
        ops_tables=tuple(tables),
        types=analysed.types(),
        kernel=kernel.facts,
        problems=tuple(dict.fromkeys([*patches.problems, *analysed.builder.problems])),
    )


def kernel_layout(kernel: Kernel, chosen: Mapping[int, str]) -> tuple[Layout, Patches]:
    """The kernel as a layout whose functions are the chosen ones (name by address), and its patch sites.

    Raises DiagnosticError: O2C0404 for a kernel without code, and what reading the kernel raises.
    """
    elf = kernel.elf
    sections = _sections(elf)
    if not any(section.executable for section in sections):
        raise failure(NO_KERNEL_IMAGE, "the kernel has no code where kernels are linked", str(kernel.path))
    functions = _functions(kernel.symbols, sections, chosen)
    low = min(section.start for section in sections if section.start >= KERNEL_START)
    high = max(section.end for section in sections)
    layout = Layout(sections, functions, {}, (low, high), kernel.symbols)
    return layout, _patches(layout, elf, kernel.symbols)


def _chosen(symbols: KernelSymbols, patterns: Sequence[str], path: str) -> dict[int, str]:
    chosen: dict[int, str] = {}
    for pattern in patterns:
        matched = [
            position
            for position, name in enumerate(symbols.names)
            if symbols.types[position] in CODE_LETTERS
            and fnmatch.fnmatchcase(name, pattern)
            and not name.startswith(PADDING_PREFIXES)
        ]
        if not matched:
            raise failure(NO_FUNCTION, f"no function of the kernel matches `{pattern}`", path)
        for position in matched:
            address = int(symbols.addresses[position])
            name = symbols.names[position]
            before = chosen.get(address)
            chosen[address] = name if before is None else min(before, name)
    return chosen


def _functions(
    symbols: KernelSymbols, sections: Sequence[LayoutSection], chosen: Mapping[int, str]
) -> tuple[FunctionRange, ...]:
    executable = [section for section in sections if section.executable]
    result = []
    for address, name in sorted(chosen.items()):
        section = next((item for item in executable if item.start <= address < item.end), None)
        if section is None:
            continue
        end = min(_next_symbol(symbols, address), section.end)
        if end > address:
            result.append(FunctionRange(name, section.name, address, end, end, False))
    return tuple(result)


def _next_symbol(symbols: KernelSymbols, address: int) -> int:
    position = int(np.searchsorted(symbols.addresses, np.uint64(address), side="right"))
    return int(symbols.addresses[position]) if position < len(symbols.addresses) else address


def _sections(elf: ElfFile) -> tuple[LayoutSection, ...]:
    """The loaded sections that lie where the kernel is linked, and the per-CPU area, which is linked at 0."""
    found = [
        LayoutSection.of(elf, section, section.address)
        for section in elf.sections
        if section.allocated
        and (section.address >= KERNEL_START or section.name == PER_CPU_SECTION)
        and section.address + section.size < 1 << 64
    ]
    return tuple(sorted(found, key=lambda section: section.start))


def _patches(layout: Layout, elf: ElfFile, symbols: KernelSymbols) -> Patches:
    tables: dict[str, Table] = {}
    for name in _SECTION_TABLES:
        section = elf.section_by_name.get(name)
        if section is not None:
            tables[name] = Table(section.address, elf.content(section))
    for name, (first, last) in _BOUNDED_TABLES.items():
        start, end = symbols.address(first), symbols.address(last)
        if start is not None and end is not None and end > start:
            content = _bytes_at(layout, start, end - start)
            if content is not None:
                tables[name] = Table(start, content)
    patches = read_patches(layout, tables)
    for first, last in _REFUSED_RANGES:
        start, end = symbols.address(first), symbols.address(last)
        if start is not None and end is not None:
            patches.refused.update(
                function.start for function in layout.functions if start <= function.start < end
            )
    return patches


def _bytes_at(layout: Layout, start: int, size: int) -> bytes | None:
    section = layout.section_at(start)
    if section is None or start + size > section.start + len(section.content):
        return None
    return section.content[start - section.start : start - section.start + size]


def _pointers(
    layout: Layout, symbols: KernelSymbols, starts: set[int]
) -> tuple[list[DataObject], dict[int, Link]]:
    """The objects that hold pointers to the chosen functions, and all pointers to code in these objects."""
    wanted = np.array(sorted(starts), np.uint64)
    objects: dict[int, DataObject] = {}
    for section in layout.sections:
        if (
            section.executable
            or not section.content
            or section.name.startswith((".init", ".orc", ".BTF", "__bug"))
        ):
            continue
        words = np.frombuffer(section.content, "<u8", count=len(section.content) // 8)
        for index in np.nonzero(np.isin(words, wanted))[0].tolist():
            item = _object_at(section, symbols, section.start + 8 * index)
            if item is not None:
                objects[item.start] = item
    links: dict[int, Link] = {}
    for item in objects.values():
        content = _bytes_at(layout, item.start, item.size) or b""
        for position in range(0, len(content) - 7, 8):
            (value,) = struct.unpack_from("<Q", content, position)
            target = layout.section_at(value)
            if target is not None and target.executable:
                links[item.start + position] = Link(value, None, 0, False, 8)
    return [objects[start] for start in sorted(objects)], links


def _object_at(section: LayoutSection, symbols: KernelSymbols, address: int) -> DataObject | None:
    position = symbols.covering(address)
    if position is None:
        return None
    start = int(symbols.addresses[position])
    names = [
        symbols.names[other]
        for other in range(max(0, position - 8), position + 1)
        if int(symbols.addresses[other]) == start and symbols.types[other] in DATA_LETTERS
    ]
    if start < section.start or not names:
        return None
    end = min(_next_symbol(symbols, address), section.end)
    # Large areas without symbols (tables of exported functions, init calls) are no objects.
    return DataObject(min(names), section.name, start, end - start, None) if end - start <= 1 << 16 else None


def _imports(functions: Iterable[Function]) -> tuple[str, ...]:
    own = {function.name for function in functions}
    called = {
        site.target
        for function in functions
        for site in function.sites
        if site.kind in ("call", "tail_call") and site.target is not None
    }
    return tuple(sorted(name for name in called if name.partition("+")[0] not in own))


def _data_symbols(
    functions: Iterable[Function],
    objects: Iterable[DataObject],
    layout: Layout,
    symbols: KernelSymbols,
) -> tuple[Symbol, ...]:
    """The functions themselves, the data that they write or take addresses of, and the objects that name them."""
    names: set[str] = {item.name for item in objects}

    def add(address: StaticAddress | None) -> None:
        if address is not None and address.symbol is not None:
            names.add(address.symbol)

    found: list[Symbol] = []
    by_section = {section.name: section for section in layout.sections}
    for function in functions:
        found.append(Symbol(function.name, function.section, function.offset, function.size, False))
        for source in function.values:
            add(source.address)
        for site in function.sites:
            if site.operand is not None:
                add(site.operand.static)
    for name in names:
        for position in symbols.index.get(name, ()):
            if symbols.types[position] not in DATA_LETTERS:
                continue
            address = int(symbols.addresses[position])
            section = layout.section_at(address)
            if section is None or section.executable:
                continue
            size = min(_next_symbol(symbols, address), section.end) - address
            ambiguous = len(symbols.index[name]) > 1
            found.append(Symbol(name, section.name, address - section.start, size, True, None, ambiguous))
    return tuple(sorted(found, key=lambda item: (by_section[item.section].start, item.offset, item.name)))


def _section(section: LayoutSection, symbols: KernelSymbols) -> Section:
    position = int(np.searchsorted(symbols.addresses, np.uint64(section.start), side="left"))
    anchor: str | None = None
    offset = 0
    per_cpu = section.name == PER_CPU_SECTION
    for other in range(position, min(position + 64, len(symbols.names))):
        address = int(symbols.addresses[other])
        if address >= section.end:
            break
        if len(symbols.index[symbols.names[other]]) == 1:
            anchor, offset = symbols.names[other], address - section.start
            break
    return Section(
        name=section.name,
        size=section.size,
        # The first read-only megabytes are mapped so although the linker script marks them writable.
        writable=section.writable and section.name not in (".rodata", "__modver"),
        executable=section.executable,
        after_init_readonly=False,
        per_cpu=per_cpu,
        anchor_symbol=anchor,
        anchor_offset=offset,
        initial=section.name in _INITIAL or section.name.startswith(".init"),
    )


def _target_name(patterns: Sequence[str]) -> str:
    first = "".join(letter for letter in patterns[0] if letter.isalnum() or letter == "_").strip("_")
    return first or "builtin"
