# SPDX-License-Identifier: Apache-2.0
"""Programs, subprograms and data -> the ELF object, by libbpf's conventions.

Maps are described by BTF in ``.maps``, data are in ``.rodata``, ``.data`` and ``.bss``, kernel symbols are weak
externs without a type in ``.ksyms``, subprograms are global functions in ``.text`` (the verifier checks each
once, for any arguments).  libbpf: docs/libbpf/program_types.rst and libbpf_overview.rst of its 1.1.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from o2cc.bpf import info
from o2cc.bpf.btf_writer import BtfWriter, Code, Linkage
from o2cc.bpf.compiler import MachineCode, Relocation
from o2cc.bpf.elf_writer import (
    MAXIMUM_SECTIONS,
    Binding,
    ElfWriter,
    SectionFlag,
    SectionType,
    SymbolType,
)
from o2cc.bpf.layout import WORD, Layout, rows_name, table_bytes, table_layout
from o2cc.bpf.llvm_context import SymbolKind
from o2cc.bpf.programs import NOT_IN_NAMES, Program
from o2cc.bpf.source_lines import SourceLines
from o2cc.diagnostics import DiagnosticError, error
from o2cc.ir import nodes

LICENSE = b"GPL\0"

# enum bpf_map_type: include/uapi/linux/bpf.h (6.1), ABI.
_MAP_TYPES = {nodes.MapKind.HASH: 1, nodes.MapKind.LRU_HASH: 9, nodes.MapKind.RING_BUFFER: 27}
_DATA = SectionFlag.ALLOC | SectionFlag.WRITE


@dataclass(frozen=True, slots=True)
class _Variable:
    """A symbol of a data section, and its BTF."""

    symbol: str
    name: str
    type: int
    offset: int
    size: int


class Assembler:
    """Builds one object.  Call add_functions, add_programs, write, each once and in this order.

    Raises DiagnosticError: O2C0602 for a kernel symbol that has the name of something else, O2C0604 when the
    object would have more sections than ELF can count.
    """

    def __init__(self, module: nodes.Module, layout: Layout, lines: SourceLines) -> None:
        self._module, self._layout, self._lines = module, layout, lines
        self._elf, self._btf = ElfWriter(), BtfWriter()
        self._symbols: dict[str, int] = {}
        self._tables: list[info.TableInfo] = []
        self._word = self._btf.unsigned(8)
        self._kernel_symbols: list[str] = []
        self._contexts: dict[str, int] = {}
        self._add_maps()
        self._add_tables()
        self._add_license()
        self.subprograms = 0
        self.subprogram_slots = 0
        self.program_sizes: list[tuple[str, int]] = []

    # --- data ---------------------------------------------------------------------------------------------

    def _add_data(
        self, section: str, variables: Sequence[_Variable], size: int, content: bytes | None, flags: int
    ) -> None:
        """A data section, its symbols, and its BTF."""
        if content is None:
            index = self._elf.add_zero_section(section, size, flags=flags)
        else:
            index = self._elf.add_section(section, content, flags=flags)
        entries = []
        for variable in variables:
            self._symbols[variable.symbol] = self._elf.add_symbol(
                variable.name, index, variable.offset, variable.size, SymbolType.OBJECT
            )
            entries.append((self._btf.variable(variable.name, variable.type), variable.offset, variable.size))
        # the kernel refuses a map whose value has another size than its type: one that can be resized has none
        if section != ".bss" or not any(table.resizable for table in self._module.tables):
            self._btf.data_section(section, size, entries)

    def _constant_member(self, value: int) -> int:
        """libbpf's way to put a number into a map definition: a pointer to an array of that length."""
        return self._btf.pointer(self._btf.array(self._btf.signed_int(), value))

    def _words(self, name: str, fields: Sequence[str]) -> int:
        """A struct of words."""
        members = [(field, self._word, WORD * i) for i, field in enumerate(fields)]
        return self._btf.structure(name, WORD * len(fields), members)

    def _add_maps(self) -> None:
        variables: list[_Variable] = []
        offset = 0
        for map_ in self._module.maps:
            members = [
                ("type", self._constant_member(_MAP_TYPES[map_.kind])),
                ("max_entries", self._constant_member(map_.capacity)),
            ]
            if map_.kind is not nodes.MapKind.RING_BUFFER:
                key = self._words(f"{map_.name}_key", map_.key)
                value = self._words(f"{map_.name}_entry", map_.fields)
                members += [("key", self._btf.pointer(key)), ("value", self._btf.pointer(value))]
            size = WORD * len(members)
            type_ = self._btf.structure("", size, [(n, t, WORD * i) for i, (n, t) in enumerate(members)])
            variables.append(_Variable(SymbolKind.MAP + map_.name, map_.name, type_, offset, size))
            offset += size
        if variables:
            self._add_data(".maps", variables, offset, bytes(offset), _DATA)

    def _table_type(self, table: nodes.Table) -> int:
        layout = table_layout(table)
        members = [
            (NOT_IN_NAMES.sub("_", name), self._btf.unsigned(size), layout.offsets[name])
            for name, size in table.columns
        ]
        if len(members) == 1:
            row = members[0][1]
        else:
            row = self._btf.structure(f"{table.name}_row", layout.stride, members)
        return self._btf.array(row, table.length)

    def _add_tables(self) -> None:
        resizable = [table for table in self._module.tables if table.resizable]

        def section_of(table: nodes.Table) -> str:
            if table.resizable:
                return ".bss"
            if not table.writable:
                return ".rodata"
            return ".data" if resizable or any(any(row) for row in table.rows) else ".bss"

        lengths = [
            nodes.Table(rows_name(table.name), (("rows", WORD),), ((table.length,),), 1)
            for table in resizable
        ]
        tables = (*self._module.tables, *lengths)
        for section in (".rodata", ".data", ".bss"):
            self._add_table_section(section, [table for table in tables if section_of(table) == section])

    def _add_table_section(self, section: str, tables: Sequence[nodes.Table]) -> None:
        if not tables:
            return
        variables: list[_Variable] = []
        content = bytearray()
        size = 0
        for table in tables:
            layout = table_layout(table)
            offset = -(-size // 8) * 8
            size = offset + layout.size
            if section != ".bss":
                content += bytes(offset - len(content)) + table_bytes(table)
            symbol = SymbolKind.TABLE + table.name
            variables.append(_Variable(symbol, table.name, self._table_type(table), offset, layout.size))
            columns = tuple((name, layout.offsets[name], layout.sizes[name]) for name, _ in table.columns)
            self._tables.append(
                info.TableInfo(table.name, section, offset, layout.stride, layout.length, columns)
            )
        flags = SectionFlag.ALLOC if section == ".rodata" else _DATA
        self._add_data(section, variables, size, None if section == ".bss" else bytes(content), flags)

    def _add_license(self) -> None:
        type_ = self._btf.array(self._btf.integer("char", 1, 1), len(LICENSE))
        variable = _Variable("", "_license", type_, 0, len(LICENSE))
        self._add_data("license", [variable], len(LICENSE), LICENSE, _DATA)

    # --- code ---------------------------------------------------------------------------------------------

    def _symbol(self, name: str) -> int:
        """The number of a symbol that code refers to; kernel symbols come into being here."""
        number = self._symbols.get(name)
        if number is None:
            kernel = name.removeprefix(SymbolKind.KERNEL)
            if kernel in {symbol[2:] for symbol in self._symbols}:
                raise DiagnosticError(
                    error(
                        "O2C0602", f"`{kernel}` is the name of a kernel symbol and of something in the object"
                    )
                )
            number = self._elf.add_symbol(kernel, 0, 0, 0, SymbolType.NOTYPE, Binding.WEAK)
            self._symbols[name] = number
            self._kernel_symbols.append(kernel)
        return number

    def _relocate(self, relocations: Sequence[Relocation], base: int) -> list[tuple[int, int, int]]:
        return [(base + r.offset, self._symbol(r.symbol), r.type) for r in relocations]

    def add_functions(self, functions: Sequence[tuple[nodes.Function, MachineCode]]) -> None:
        """The subprograms."""
        if not functions:
            return
        first = self._elf.reserve_symbols(len(functions))
        for number, (function, _) in enumerate(functions, first):
            self._symbols[SymbolKind.FUNCTION + function.name] = number
        text = bytearray()
        relocations: list[tuple[int, int, int]] = []
        codes: list[Code] = []
        places: list[int] = []
        for function, machine in functions:
            base = len(text)
            places.append(base)
            text += machine.code
            relocations += self._relocate(machine.relocations, base)
            parameters = [
                (f"a{i}_{NOT_IN_NAMES.sub('_', name)}", self._word)
                for i, name in enumerate(function.parameters)
            ]
            type_ = self._btf.function(function.name, self._btf.prototype(self._word, parameters))
            lines = self._lines.body(function.name, function.span, machine.lines)
            codes.append(Code(base, type_, lines))
        section = self._elf.add_code(".text", text, relocations)
        for number, place, (function, machine) in zip(
            range(first, first + len(functions)), places, functions, strict=True
        ):
            self._elf.set_symbol(number, function.name, section, place, len(machine.code), SymbolType.FUNC)
        self._btf.add_code(".text", codes)
        self.subprograms = len(functions)
        self.subprogram_slots = len(text) // 8

    def _program_type(self, section: str) -> int:
        """The BTF prototype of a kind of program."""
        kind = section.partition("/")[0]
        if kind not in self._contexts:
            names = {"raw_tracepoint": "bpf_raw_tracepoint_args", "syscall": "o2c_arguments"}
            context = self._btf.pointer(self._btf.forward(names.get(kind, "pt_regs")))
            self._contexts[kind] = self._btf.prototype(self._btf.signed_int(), [("ctx", context)])
        return self._contexts[kind]

    def add_programs(self, programs: Sequence[Program]) -> None:
        """The programs; those of one section lie in it one after another."""
        by_section: dict[str, list[Program]] = {}
        for program in programs:
            by_section.setdefault(program.section, []).append(program)
        if self._elf.section_count + 2 * len(by_section) + 3 >= MAXIMUM_SECTIONS:
            raise DiagnosticError(
                error(
                    "O2C0604",
                    f"{len(by_section)} probed places do not fit into one object of the layout `site`",
                    help="use the layout `shape`, or confine fewer functions",
                )
            )
        clash = [name for name, count in Counter(program.name for program in programs).items() if count > 1]
        if clash:
            raise DiagnosticError(error("O2C0602", f"two programs have the name `{clash[0]}`"))
        for section, members in by_section.items():
            self._add_program_section(section, members)

    def _add_program_section(self, section: str, programs: Sequence[Program]) -> None:
        prototype = self._program_type(section)
        text = bytearray()
        relocations: list[tuple[int, int, int]] = []
        codes: list[Code] = []
        places: list[int] = []
        base = 0
        for program in programs:
            places.append(base)
            text += program.code
            relocations += self._relocate(program.relocations, base)
            codes.append(Code(base, self._btf.function(program.name, prototype), program.lines))
            base += len(program.code)
        index = self._elf.add_code(section, text, relocations)
        for place, program in zip(places, programs, strict=True):
            size = len(program.code)
            self._elf.add_symbol(program.name, index, place, size, SymbolType.FUNC)
            self.program_sizes.append((program.name, size // 8))
        self._btf.add_code(section, codes)

    # --- the whole ----------------------------------------------------------------------------------------

    def write(
        self,
        sites: Sequence[info.SiteInfo],
        hooks: Sequence[info.HookInfo],
        ops_targets: Sequence[info.OpsTargetsInfo] = (),
        heap: info.HeapInfo | None = None,
    ) -> bytes:
        """The object."""
        if self._kernel_symbols:
            entries = [(self._btf.variable(name, 0, Linkage.EXTERN), 0, 0) for name in self._kernel_symbols]
            self._btf.data_section(".ksyms", 0, entries)
        self._elf.add_section(".BTF", self._btf.btf(), alignment=4)
        self._elf.add_section(".BTF.ext", self._btf.btf_ext(), alignment=4)
        discharged = Counter(item.reason for item in self._module.discharged)
        content = info.encode(
            info.ObjectInfo(
                name=self._module.name,
                layout=self._layout.value,
                identity=dict(self._module.identity),
                maps=tuple(
                    info.MapInfo(m.name, m.kind.value, m.key, m.fields, m.capacity) for m in self._module.maps
                ),
                tables=tuple(self._tables),
                sites=tuple(sites),
                hooks=tuple(hooks),
                discharged=dict(sorted(discharged.items())),
                ops_targets=tuple(ops_targets),
                heap=heap,
            )
        )
        self._elf.add_section(info.SECTION, content, alignment=1, type_=SectionType.STRTAB)
        return self._elf.write()
