# SPDX-License-Identifier: Apache-2.0
"""Scans a module, or functions of the kernel itself, and describes them.

The result depends on the bytes of the files alone: the same input gives an equal description.
"""

import hashlib
from bisect import bisect_left
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from o2cc.diagnostics import DiagnosticError, error
from o2cc.kernel import btf as kinds
from o2cc.kernel.btf import Btf, read_btf
from o2cc.kernel.collection import without_collection
from o2cc.kernel.description import Description, Function, OpsTable, Section, StaticAddress, Symbol, Target
from o2cc.kernel.elf import (
    SHN_LORESERVE,
    SHN_UNDEF,
    STT_FUNC,
    STT_OBJECT,
    STT_SECTION,
    ElfFile,
    ElfSymbol,
    read_elf,
)
from o2cc.kernel.errors import NOT_ELF, OTHER_KERNEL, failure
from o2cc.kernel.flow import Unit, build_blocks, decode_functions, group
from o2cc.kernel.instruction import Flow
from o2cc.kernel.kernels import Kernel, module_name, read_module
from o2cc.kernel.layout import PADDING_PREFIXES, SECTION_STRIDE_BITS, Layout, LayoutSection, module_layout
from o2cc.kernel.ops import DataObject, ops_tables
from o2cc.kernel.patches import NOT_POINTERS_TO_DATA, Patches, read_patches, section_tables
from o2cc.kernel.sites import UnitFacts, describe_unit
from o2cc.kernel.type_table import Prototype, TypeTable
from o2cc.kernel.types import LAYOUTS, TypeBuilder, find_prototypes
from o2cc.kernel.values import ValueAnalysis, Values

# Sections that the module loader makes read-only once the module is initialized (``module_enable_ro``,
# ``kernel/module/strict_rwx.c``; ``ro_after_init`` is by section name in ``kernel/module/main.c``).
AFTER_INIT_READONLY = frozenset(
    {".data..ro_after_init", "__jump_table", ".data.rel.ro", ".static_call_sites"}
)

# Allocated sections that the loader does not keep (``rewrite_section_headers``, ``kernel/module/main.c``).
NOT_LOADED = frozenset({".modinfo", "__versions"})


def taken_addresses(layout: Layout, units: Sequence[Unit]) -> tuple[set[int], set[int]]:
    """Addresses of code that data refers to, or code as a number; and places in the middle of functions that other
    units jump to."""
    starts = {section.name: section.start for section in layout.sections}
    executable = {section.name for section in layout.sections if section.executable}
    taken: set[int] = set()
    entered: set[int] = set()
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
                    entered.add(goal)
    return taken, entered


def scan_module(path: str | Path, kernel: Kernel, structs: Sequence[str] = ()) -> Description:
    """Describe a module (``.ko``, also packed) of ``kernel``. ``structs``: further structs that its policy names.

    Raises DiagnosticError: the codes of `o2cc.kernel.errors` for files that cannot be read, O2C0422 for a module
    that belongs to another release, O2C0210 for a struct that is not there.
    """
    path = Path(path)
    return describe_module(read_module(path), str(path), module_name(path), kernel, structs)


def describe_module(
    data: bytes, path: str, name: str, kernel: Kernel, structs: Sequence[str] = ()
) -> Description:
    """Describe a module whose (unpacked) bytes are ``data``; ``path`` is for messages only."""
    with without_collection():
        return _describe_module(data, path, name, kernel, structs)


def _describe_module(
    data: bytes, path: str, name: str, kernel: Kernel, structs: Sequence[str]
) -> Description:
    elf = read_elf(data, path)
    if not elf.relocatable:
        raise failure(NOT_ELF, "not a kernel module: the file is not relocatable", path)
    info = elf.module_info()
    release = elf.release
    if not release:
        raise failure(NOT_ELF, "not a kernel module: it has no version magic", path)
    # Unpacking the kernel leaves the interpreter free meanwhile.
    kernel.prefetch()
    layout = module_layout(elf)
    tables = section_tables(layout)
    patches = read_patches(layout, tables)
    prepared = prepare(layout, patches)
    dependencies = list(_dependencies(info.get("depends", ""), kernel))
    # From here on the kernel is needed.
    if kernel.release and release != kernel.release:
        message = f"the module belongs to `{release}`, the kernel is `{kernel.release}`"
        raise failure(
            OTHER_KERNEL, message, path, "choose the kernel that the module was built for with `--kernel`"
        )
    btf_section = elf.section_by_name.get(".BTF")
    problems = [*layout.problems, *patches.problems]
    btf = kernel.btf
    if btf_section is not None:
        try:
            btf = read_btf(elf.content(btf_section), path, kernel.btf)
        except DiagnosticError as problem:
            problems.append(f"the module's own BTF is not used: {problem.diagnostics[0].message}")
    else:
        problems.append("the module has no BTF: prototypes and structs of its own are not known")
    imports = tuple(
        sorted({symbol.name for symbol in elf.symbols if symbol.section == SHN_UNDEF and symbol.name})
    )
    kernel_names = kernel.symbols.name_set
    analysed = analyse(
        prepared,
        btf,
        btf is not kernel.btf,
        imports,
        release,
        _module_last(layout),
        _dependency_btf(dependencies, kernel, problems),
    )
    analysed.add_structs(structs)
    own_counts = Counter(symbol.name for symbol in elf.symbols if _is_kallsyms_symbol(elf, symbol))
    ambiguous = {symbol for symbol, count in own_counts.items() if count > 1 or symbol in kernel_names}
    symbols = _module_symbols(elf, layout, analysed, ambiguous)
    sections = tuple(
        _module_section(section, layout, elf, ambiguous, name)
        for section in layout.sections
        if section.size and section.name not in NOT_LOADED
    )
    exports = tuple(sorted(function.name for function in analysed.functions if function.exported))
    return Description(
        release=release,
        target=Target(
            name, "module", elf.build_id, info.get("srcversion", ""), hashlib.sha256(data).hexdigest()
        ),
        sections=sections,
        functions=tuple(
            replace(function, ambiguous=True) if function.name in ambiguous else function
            for function in analysed.functions
        ),
        imports=imports,
        exports=exports,
        symbols=symbols,
        ops_tables=tuple(analysed.ops(module_objects(elf, btf))),
        types=analysed.types(),
        kernel=kernel.facts,
        problems=tuple(dict.fromkeys([*problems, *analysed.builder.problems])),
    )


@dataclass
class Analysed:
    """What the analysis of the code gave, and what is asked of it afterwards."""

    layout: Layout
    btf: Btf
    own_types: bool
    builder: TypeBuilder
    functions: tuple[Function, ...]
    prototypes: dict[str, Prototype]
    seeds: list[int]
    starts: dict[int, str]
    imports: tuple[str, ...]

    def add_imports(self, imports: tuple[str, ...]) -> None:
        """Make imports known that the analysis found (of built-in code)."""
        self.imports = imports
        found, seeds = find_prototypes(self.builder, imports)
        self.prototypes = {**found, **self.prototypes}
        self.seeds += seeds

    def add_structs(self, names: Iterable[str]) -> None:
        """Make structs known that no prototype leads to: the code gets at them by a cast.

        Raises DiagnosticError (O2C0210) for a struct that the type information does not have.
        """
        for name in names:
            id = self.btf.find(name, kinds.STRUCT)
            if id is None:
                raise DiagnosticError(
                    error("O2C0210", f"the kernel's type information has no struct `{name}`")
                )
            self.seeds.append(id)

    def ops(
        self, objects: Iterable[DataObject], others: Mapping[int, str] | None = None, slack: int = 0
    ) -> list[OpsTable]:
        """The ops tables among ``objects``; their structs become part of the types. ``others`` names further
        functions by address; ``slack`` is how much larger an object may look than its struct."""
        names = {**(others or {}), **self.starts}
        mine = set(self.starts.values())
        own = {start: (name, self._proto(name, name in mine)) for start, name in names.items()}
        imported = {name: self._proto(name) for name in self.imports if self._proto(name) is not None}
        found = ops_tables(self.layout, objects, self.btf, own, imported, slack)
        for table in found:
            id = self.btf.find(table.type, kinds.STRUCT) if table.type is not None else None
            if id is not None:
                self.seeds.append(id)
        return found

    def _proto(self, name: str, mine: bool = False) -> int | None:
        if mine and not self.own_types:
            return None
        id = self.btf.named(kinds.FUNC).get(name) if mine else self.btf.find(name, kinds.FUNC)
        return self.btf.type(id).reference if id is not None else None

    def types(self) -> TypeTable:
        """The type table; to be asked for last."""
        layouts = [self.btf.find(name, kinds.STRUCT) for name in LAYOUTS]
        # A module's own structs are what its policy is about, whether or not a function takes one.
        own = self.btf.named(kinds.STRUCT).values() if self.btf.base is not None else ()
        self.builder.add_structs([*self.seeds, *(id for id in layouts if id is not None), *own])
        return self.builder.table(self.prototypes)


@dataclass
class Prepared:
    """What can be known of the code without the kernel: solved units, and addresses of code that are taken."""

    layout: Layout
    patches: Patches
    units: list[tuple[ValueAnalysis, Values]]
    pointers: set[int]


def prepare(layout: Layout, patches: Patches) -> Prepared:
    """Decode the functions, and follow control and values through them."""
    units = group(decode_functions(layout), layout)
    pointers, entered = taken_addresses(layout, units)
    middle = sorted(address for address in pointers if not _starts_function(layout, address))
    inside = sorted(entered)
    solved: list[tuple[ValueAnalysis, Values]] = []
    for unit in units:
        build_blocks(unit, layout, patches, _within(unit, middle), _within(unit, inside))
        analysis = ValueAnalysis(unit)
        solved.append((analysis, analysis.solve()))
    return Prepared(layout, patches, solved, pointers)


def analyse(
    prepared: Prepared,
    btf: Btf,
    own_types: bool,
    imports: tuple[str, ...],
    release: str,
    last: int | None,
    others: Sequence[Btf],
) -> Analysed:
    """Describe the functions. ``own_types``: ``btf`` knows the target's own functions; ``last``: the function behind
    which the text ends; ``others``: BTF of modules that the target imports from."""
    layout, patches = prepared.layout, prepared.patches
    builder = TypeBuilder(btf)
    own_names = dict.fromkeys(function.name for function in layout.functions)
    own, own_seeds = find_prototypes(builder, own_names if own_types else (), own=True)
    other, other_seeds = find_prototypes(builder, imports, others)
    facts = UnitFacts(
        layout=layout,
        patches=patches,
        sorted_sites=sorted(patches.sites),
        release=release,
        last_function=last,
        prototypes={**other, **own},
        own_prototypes=own,
        taken=frozenset(prepared.pointers),
        initial_sections=frozenset({".init.text"}),
    )
    described: list[tuple[int, Function]] = []
    for analysis, values in prepared.units:
        for part, function in describe_unit(analysis, values, facts):
            described.append((part.start, function))
    described.sort(key=lambda item: item[0])
    starts = {function.start: function.name for function in layout.functions}
    return Analysed(
        layout,
        btf,
        own_types,
        builder,
        tuple(function for _, function in described),
        {**other, **own},
        own_seeds + other_seeds,
        starts,
        imports,
    )


def _starts_function(layout: Layout, address: int) -> bool:
    found = layout.function_at(address)
    return found is not None and found.start == address


def _within(unit: Unit, addresses: list[int]) -> list[int]:
    result: list[int] = []
    for part in unit.parts:
        low = bisect_left(addresses, part.start + 1)
        result += addresses[low : bisect_left(addresses, part.end)]
    return result


def _dependencies(depends: str, kernel: Kernel) -> Iterator[tuple[str, Path, ElfFile | DiagnosticError]]:
    """Name, path and file of the modules that this one imports from."""
    for name in filter(None, depends.split(",")):
        if kernel.has_module(name):
            path = kernel.find_module(name)
            try:
                yield name, path, read_elf(read_module(path), str(path))
            except DiagnosticError as problem:
                yield name, path, problem


def _dependency_btf(
    dependencies: Iterable[tuple[str, Path, ElfFile | DiagnosticError]], kernel: Kernel, problems: list[str]
) -> list[Btf]:
    """BTF of the modules that this one imports from."""
    found: list[Btf] = []
    for name, path, elf in dependencies:
        try:
            if isinstance(elf, DiagnosticError):
                raise elf
            section = elf.section_by_name.get(".BTF")
            if section is not None:
                found.append(read_btf(elf.content(section), str(path), kernel.btf))
        except DiagnosticError as problem:
            problems.append(f"types of the module `{name}` are not known: {problem.diagnostics[0].message}")
    return found


def _module_last(layout: Layout) -> int | None:
    """The last function of the text that stays: nothing that kallsyms knows follows it."""
    staying = [function.start for function in layout.functions if function.section != ".init.text"]
    return max(staying, default=None)


def _is_kallsyms_symbol(elf: ElfFile, symbol: ElfSymbol) -> bool:
    return (
        bool(symbol.name)
        and SHN_UNDEF < symbol.section < SHN_LORESERVE
        and symbol.type != STT_SECTION
        and elf.sections[symbol.section].allocated
    )


def _module_symbols(
    elf: ElfFile, layout: Layout, analysed: Analysed, ambiguous: set[str]
) -> tuple[Symbol, ...]:
    found: list[Symbol] = []
    for symbol in elf.symbols:
        if not _is_kallsyms_symbol(elf, symbol) or symbol.type not in (STT_OBJECT, STT_FUNC):
            continue
        if symbol.name.startswith(PADDING_PREFIXES):
            continue
        section = elf.sections[symbol.section]
        variable = analysed.btf.find(symbol.name, kinds.VAR) if symbol.type == STT_OBJECT else None
        reference = None
        if variable is not None and variable >= analysed.btf.first_id:
            reference = analysed.builder.reference(analysed.btf.type(variable).reference)
        found.append(
            Symbol(
                symbol.name,
                section.name,
                symbol.value,
                symbol.size,
                symbol.type == STT_OBJECT,
                reference,
                symbol.name in ambiguous,
            )
        )
    order = {section.name: index for index, section in enumerate(layout.sections)}
    return tuple(sorted(found, key=lambda item: (order[item.section], item.offset, item.name)))


def module_objects(elf: ElfFile, btf: Btf) -> list[DataObject]:
    found = []
    for symbol in elf.symbols:
        if symbol.type != STT_OBJECT or not _is_kallsyms_symbol(elf, symbol) or symbol.size == 0:
            continue
        section = elf.sections[symbol.section]
        if section.executable:
            continue
        variable = btf.named(kinds.VAR).get(symbol.name)
        start = (section.index << SECTION_STRIDE_BITS) + symbol.value
        type_id = btf.type(variable).reference if variable is not None else None
        found.append(DataObject(symbol.name, section.name, start, symbol.size, type_id))
    return sorted(found, key=lambda item: (item.start, item.name))


def _module_section(
    section: LayoutSection, layout: Layout, elf: ElfFile, ambiguous: set[str], target: str
) -> Section:
    index = section.start >> SECTION_STRIDE_BITS
    best: tuple[bool, int, str] | None = None
    for symbol in elf.symbols:
        if symbol.section != index or not _is_kallsyms_symbol(elf, symbol) or symbol.name in ambiguous:
            continue
        # Symbols that stay in kallsyms after loading; names of the module's own are the least likely to clash.
        # Every module has `__this_module` and generated names with underscores in front: they are ambiguous as
        # soon as a second module is loaded.
        if symbol.type not in (STT_OBJECT, STT_FUNC) or symbol.name in ("init_module", "cleanup_module"):
            continue
        if symbol.name.startswith("_"):
            continue
        key = (not symbol.name.startswith(target), symbol.value, symbol.name)
        best = key if best is None or key < best else best
    return Section(
        name=section.name,
        size=section.size,
        writable=section.writable,
        executable=section.executable,
        after_init_readonly=section.name in AFTER_INIT_READONLY,
        per_cpu=section.name.startswith(".data..percpu"),
        anchor_symbol=best[2] if best is not None else None,
        anchor_offset=best[1] if best is not None else 0,
        initial=section.name.startswith((".init", "__initcall")),
    )
