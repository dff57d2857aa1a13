# SPDX-License-Identifier: Apache-2.0
"""IR -> LLVM assembly text.

Text, not a builder API: writing and parsing it is several times faster.  Every word is an ``i64``; an entry
handle is also kept as a pointer, a comparison also as an ``i1``.  Names of symbols carry a prefix that says
what they are (`SymbolKind`); each body goes into a section of its own, named like its symbol, so that the
reader of the compiled file finds code by name.

What the verifier needs and LLVM does not know, done here:

- A table index passes through an opaque copy before its bounds check, or LLVM drops checks that it can prove
  and the verifier cannot; and through a second one after it, or LLVM computes the address before the check.
- A block that tests an entry handle begins with an empty opaque statement, or LLVM merges two tests into one
  condition that the verifier cannot follow.
- Context loads use the intrinsic that keeps pointer and constant offset together, or LLVM may load through
  one of two modified context pointers.
- Parameters and kernel symbols are addresses of weak externals behind an opaque copy: LLVM knows nothing of
  them, and relocations say where they are.  (An offset folded into such an address would be lost at load.)
- An atomic addition whose result is used asks for more than `monotonic`: LLVM 22 then emits the fetching
  instruction; with `monotonic` it emits the plain one and takes the addend for the result.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum

from o2cc.bpf.layout import REGISTER_OFFSETS, TableLayout
from o2cc.diagnostics import Span
from o2cc.ir import nodes
from o2cc.ir.walk import block_spans, operands, successors

# Numbers of BPF helpers: include/uapi/linux/bpf.h (6.1), ABI.
HELPER_MAP_LOOKUP = 1
HELPER_MAP_UPDATE = 2
HELPER_MAP_DELETE = 3
HELPER_KTIME_GET_NS = 5
HELPER_GET_SMP_PROCESSOR_ID = 8
HELPER_GET_CURRENT_PID_TGID = 14
HELPER_GET_CURRENT_TASK = 35
HELPER_SEND_SIGNAL = 109
HELPER_PROBE_READ_KERNEL = 113
HELPER_RINGBUF_RESERVE = 131
HELPER_RINGBUF_SUBMIT = 132
HELPER_GET_ATTACH_COOKIE = 174

SIGKILL = 9
BPF_NOEXIST = 1
MASK = (1 << 64) - 1
STACK_LIMIT = 448  # bytes of scratch; a BPF program has 512, and spilled registers need some


class SymbolKind(StrEnum):
    """Prefixes of symbol names inside the LLVM module."""

    FUNCTION = "f."
    CHECK = "c."
    HOOK = "h."
    MAP = "m."
    TABLE = "t."
    KERNEL = "k."
    PARAMETER = "p."


class BodyError(Exception):
    """A body that cannot be compiled; ``code`` is a diagnostic code, ``span`` where it is."""

    def __init__(self, code: str, message: str, span: Span | None = None) -> None:
        super().__init__(message)
        self.code, self.message, self.span = code, message, span


@dataclass
class Spans:
    """Numbers spans; the number travels through LLVM as a line number.  0 means none."""

    list: list[Span] = field(default_factory=list)
    _numbers: dict[Span, int] = field(default_factory=dict)

    def number(self, span: Span | None) -> int:
        """The number of a span."""
        if span is None:
            return 0
        number = self._numbers.get(span)
        if number is None:
            self.list.append(span)
            number = self._numbers[span] = len(self.list)
        return number

    def span(self, number: int) -> Span | None:
        """The span of a number; None for 0 and for numbers that were never given."""
        return self.list[number - 1] if 1 <= number <= len(self.list) else None


@dataclass(frozen=True)
class SiteTable:
    """Where a check of the `shape` layout finds its parameters: in a table of words, a row a site.

    ``first`` is the attach cookie of the check's first site and ``count`` the number of its sites; ``offset``
    is where its rows begin in the table, in words.
    """

    table: str
    counter: str
    first: int
    count: int
    offset: int
    parameters: tuple[str, ...]


@dataclass(frozen=True)
class Scope:
    """What the bodies of a module can name."""

    functions: Mapping[str, nodes.Function]
    maps: Mapping[str, nodes.Map]
    tables: Mapping[str, nodes.Table]
    layouts: Mapping[str, TableLayout]


class _Metadata:
    """Numbers metadata nodes of the text."""

    def __init__(self) -> None:
        self.lines = [
            "!llvm.dbg.cu = !{!0}",
            "!llvm.module.flags = !{!2, !3}",
            "!0 = distinct !DICompileUnit(language: DW_LANG_C99, file: !1, emissionKind: LineTablesOnly)",
            '!1 = !DIFile(filename: "o2c", directory: "/")',
            '!2 = !{i32 2, !"Debug Info Version", i32 3}',
            '!3 = !{i32 7, !"Dwarf Version", i32 4}',
            "!4 = !DISubroutineType(types: !5)",
            "!5 = !{null}",
        ]
        self.count = 6

    def add(self, text: str) -> int:
        """A node; returns its number."""
        self.lines.append(f"!{self.count} = {text}")
        self.count += 1
        return self.count - 1


class ModuleText:
    """Collects bodies and gives the text of the LLVM module."""

    def __init__(self, scope: Scope, data_layout: str) -> None:
        self.scope = scope
        self.spans = Spans()
        self.metadata = _Metadata()
        self._data_layout = data_layout
        self._bodies: list[str] = []
        self._declarations: dict[str, None] = {}

    def declare(self, text: str) -> None:
        """Adds a declaration, once."""
        self._declarations[text] = None

    def add_function(self, function: nodes.Function) -> None:
        """Adds shared code."""
        body = _Body(self, SymbolKind.FUNCTION + function.name, function.span, function.parameters)
        self._bodies.append(body.text(function.blocks, inline=function.inline))

    def add_check(self, check: nodes.Check, table: SiteTable | None) -> None:
        """Adds a check; with a table its parameters come from there, else they are left to be patched."""
        body = _Body(self, SymbolKind.CHECK + check.name, check.span, (), registers=True, sites=table, check=True)
        self._bodies.append(body.text(check.blocks))

    def add_hook(self, hook: nodes.Hook) -> None:
        """Adds a hook."""
        registers = hook.kind in (nodes.HookKind.KPROBE, nodes.HookKind.KRETPROBE)
        arguments = hook.kind is nodes.HookKind.RAW_TRACEPOINT
        body = _Body(
            self, SymbolKind.HOOK + hook.name, hook.span, (), registers=registers, arguments=arguments, hook=True
        )
        self._bodies.append(body.text(hook.blocks))

    def text(self) -> str:
        """The module."""
        return "\n".join(
            (
                f'target datalayout = "{self._data_layout}"',
                'target triple = "bpfel"',
                *self._declarations,
                *self._bodies,
                *self.metadata.lines,
                "",
            )
        )


def _quote(name: str) -> str:
    if '"' in name or "\\" in name or "\0" in name:
        raise BodyError("O2C0600", f"`{name}` cannot be the name of a symbol")
    return f'@"{name}"'


class _Body:
    """Writes one function."""

    def __init__(
        self,
        module: ModuleText,
        symbol: str,
        span: Span | None,
        parameters: Sequence[str],
        *,
        registers: bool = False,
        arguments: bool = False,
        check: bool = False,
        hook: bool = False,
        sites: SiteTable | None = None,
    ) -> None:
        self.module, self.symbol, self.span = module, symbol, span
        self.parameters = tuple(parameters)
        self.registers, self.arguments, self.check, self.hook = registers, arguments, check, hook
        self.sites = sites
        number = module.spans.number(span)
        self.program = module.metadata.add(
            f'distinct !DISubprogram(name: "f", file: !1, line: {number}, type: !4, '
            "spFlags: DISPFlagDefinition, unit: !0)"
        )
        self.locations: dict[int, int] = {}
        self.lines: list[str] = []
        self.words: dict[str, str] = {name: f"%a{i}" for i, name in enumerate(self.parameters)}
        self.pointers: dict[str, str] = {}
        self.bits: dict[str, str] = {}
        self.pointer_tests: set[str] = set()
        self.blocks: dict[str, int] = {}
        self.used: frozenset[str] = frozenset()
        self.variables: dict[str, str] = {}
        self.counter = 0
        self.scratch_words = 0
        self.label = ""
        self.debug = ""
        self.here = span

    # --- small parts --------------------------------------------------------------------------------------

    def locate(self, span: Span | None) -> None:
        """Later instructions come from this span."""
        self.here = span or self.span
        number = self.module.spans.number(self.here)
        location = self.locations.get(number)
        if location is None:
            location = self.module.metadata.add(f"!DILocation(line: {number}, scope: !{self.program})")
            self.locations[number] = location
        self.debug = f", !dbg !{location}"

    def fail(self, message: str, code: str = "O2C0600") -> BodyError:
        """The error to raise at the current instruction."""
        return BodyError(code, message, self.here)

    def fresh(self) -> str:
        """A new name."""
        self.counter += 1
        return f"%t{self.counter}"

    def add(self, text: str) -> None:
        """An instruction without result."""
        self.lines.append(f"  {text}{self.debug}")

    def value(self, text: str) -> str:
        """An instruction with result; returns its name."""
        name = self.fresh()
        self.lines.append(f"  {name} = {text}{self.debug}")
        return name

    def start(self, label: str) -> None:
        """Begins a block."""
        self.lines.append(f"{label}:")
        self.label = label

    def new_label(self) -> str:
        """A label for a block that the IR does not have."""
        self.counter += 1
        return f"x{self.counter}"

    def opaque(self, word: str, *, fixed: bool = False) -> str:
        """A copy of a word that LLVM knows nothing about; ``fixed``: it stays in its block."""
        effect = " sideeffect" if fixed else ""
        return self.value(f'call i64 asm{effect} "", "=r,0"(i64 {word})')

    def word(self, operand: nodes.Operand) -> str:
        """An operand as ``i64``."""
        if isinstance(operand, nodes.Constant):
            value = operand.value & MASK
            return str(value - (1 << 64) if value >> 63 else value)
        if isinstance(operand, nodes.Variable):
            return self.value(f"load i64, ptr {self.variable(operand)}")
        word = self.words.get(operand.name)
        if word is None:
            raise self.fail(f"value `%{operand.name}` is used before it is assigned")
        return word

    def variable(self, variable: nodes.Variable) -> str:
        """The stack slot of a variable (which LLVM turns into registers)."""
        return self.variables.setdefault(variable.name, f"%v{len(self.variables)}")

    def bit(self, operand: nodes.Operand) -> str:
        """An operand as a condition."""
        if isinstance(operand, nodes.Value):
            if operand.name in self.bits:
                return self.bits[operand.name]
            if operand.name in self.pointers:
                return self.value(f"icmp ne ptr {self.pointers[operand.name]}, null")
        return self.value(f"icmp ne i64 {self.word(operand)}, 0")

    def tests_entry(self, operand: nodes.Operand) -> bool:
        """Whether a condition asks if a map has an entry."""
        return isinstance(operand, nodes.Value) and (
            operand.name in self.pointers or operand.name in self.pointer_tests
        )

    def assign(self, result: nodes.Value, word: str) -> None:
        """Names the result of an instruction."""
        if result.name in self.words:
            raise self.fail(f"value `%{result.name}` is assigned twice")
        self.words[result.name] = word

    def assign_bit(self, result: nodes.Value, bit: str) -> None:
        """Names a result that is 0 or 1."""
        self.bits[result.name] = bit
        self.assign(result, self.value(f"zext i1 {bit} to i64"))

    def helper(self, number: int, arguments: str, result: str = "i64") -> str:
        """Calls a BPF helper."""
        return self.value(f"call {result} inttoptr (i64 {number} to ptr)({arguments})")

    def scratch(self, words: Sequence[str], first: int = 0) -> str:
        """Puts words on the stack and returns their address; one area serves all uses of a body."""
        self.scratch_words = max(self.scratch_words, first + len(words))
        for index, word in enumerate(words, first):
            self.add(f"store i64 {word}, ptr {self.scratch_address(index)}, align 8")
        return self.scratch_address(first)

    def scratch_address(self, index: int) -> str:
        """Address of a word of the scratch area."""
        return self.value(f"getelementptr i64, ptr %scratch, i64 {index}") if index else "%scratch"

    def map(self, name: str) -> nodes.Map:
        """A map by name."""
        found = self.module.scope.maps.get(name)
        if found is None:
            raise self.fail(f"there is no map `{name}`")
        self.module.declare(f"{_quote(SymbolKind.MAP + name)} = external global i64, align 8")
        return found

    def field(self, entry: nodes.Value, map_name: str, field_name: str) -> str:
        """Address of a field of an entry."""
        fields = self.map(map_name).fields
        if field_name not in fields:
            raise self.fail(f"map `{map_name}` has no field `{field_name}`")
        pointer = self.pointers.get(entry.name)
        if pointer is None:
            raise self.fail(f"`%{entry.name}` is not an entry of a map")
        index = fields.index(field_name)
        return self.value(f"getelementptr inbounds i64, ptr {pointer}, i64 {index}") if index else pointer

    def in_bounds(self, table: str, index: nodes.Operand, column: str) -> tuple[str, int, str, str] | None:
        """Goes into a block where an index is good.

        Returns the column's address, its size, the label of the block before and the label that both ways
        must end in (empty when the index is a constant); None when the index is a constant out of bounds.
        """
        scope = self.module.scope
        if table not in scope.tables:
            raise self.fail(f"there is no table `{table}`")
        layout = scope.layouts[table]
        if column not in layout.offsets:
            raise self.fail(f"table `{table}` has no column `{column}`")
        symbol = _quote(SymbolKind.TABLE + table)
        self.module.declare(f"{symbol} = external global [{max(layout.size, 1)} x i8], align 8")
        offset, size = layout.offsets[column], layout.sizes[column]
        if isinstance(index, nodes.Constant):
            if index.value >= layout.length:
                return None
            place = index.value * layout.stride + offset
            return self.value(f"getelementptr inbounds i8, ptr {symbol}, i64 {place}"), size, "", ""
        word = self.opaque(self.word(index))
        good, end, before = self.new_label(), self.new_label(), self.label
        condition = self.value(f"icmp ult i64 {word}, {layout.length}")
        self.add(f"br i1 {condition}, label %{good}, label %{end}")
        self.start(good)
        checked = self.opaque(word, fixed=True)
        row = self.value(f"mul nuw nsw i64 {checked}, {layout.stride}") if layout.stride != 1 else checked
        base = symbol
        if offset:
            base = f"getelementptr inbounds (i8, ptr {symbol}, i64 {offset})"
        return self.value(f"getelementptr inbounds i8, ptr {base}, i64 {row}"), size, before, end

    def join(self, result: nodes.Value, word: str, before: str, end: str) -> None:
        """Ends what `in_bounds` began: the result is ``word``, or 0 when the index was bad."""
        if not end:
            self.assign(result, word)
            return
        good = self.label
        self.add(f"br label %{end}")
        self.start(end)
        self.assign(result, self.value(f"phi i64 [ {word}, %{good} ], [ 0, %{before} ]"))

    # --- instructions -------------------------------------------------------------------------------------

    def binary(self, i: nodes.Binary) -> None:
        """Arithmetic and comparison."""
        op = i.operator
        if op in _COMPARISONS:
            self.assign_bit(i.result, self.comparison(i))
            return
        left, right = self.word(i.left), self.word(i.right)
        if op in (nodes.BinaryOperator.UDIV, nodes.BinaryOperator.UMOD):
            self.assign(i.result, self.division(i, left, right))
            return
        if op in (nodes.BinaryOperator.SHL, nodes.BinaryOperator.LSHR, nodes.BinaryOperator.ASHR):
            if isinstance(i.right, nodes.Constant):
                right = str(i.right.value & 63)
            else:
                right = self.value(f"and i64 {right}, 63")
        self.assign(i.result, self.value(f"{op.value} i64 {left}, {right}"))

    def comparison(self, i: nodes.Binary) -> str:
        """An ``i1``; an entry handle compared with 0 stays a pointer."""
        condition = i.operator.value
        for one, other in ((i.left, i.right), (i.right, i.left)):
            if (
                isinstance(one, nodes.Value)
                and one.name in self.pointers
                and isinstance(other, nodes.Constant)
                and other.value == 0
                and condition in ("eq", "ne")
            ):
                self.pointer_tests.add(i.result.name)
                return self.value(f"icmp {condition} ptr {self.pointers[one.name]}, null")
        return self.value(f"icmp {condition} i64 {self.word(i.left)}, {self.word(i.right)}")

    def division(self, i: nodes.Binary, left: str, right: str) -> str:
        """Division as BPF defines it: x / 0 = 0, x % 0 = x."""
        divide = i.operator is nodes.BinaryOperator.UDIV
        operation = "udiv" if divide else "urem"
        if isinstance(i.right, nodes.Constant):
            if i.right.value == 0:
                return "0" if divide else left
            return self.value(f"{operation} i64 {left}, {right}")
        zero = self.value(f"icmp eq i64 {right}, 0")
        divisor = self.value(f"select i1 {zero}, i64 1, i64 {right}")
        result = self.value(f"{operation} i64 {left}, {divisor}")
        return self.value(f"select i1 {zero}, i64 {'0' if divide else left}, i64 {result}")

    def select(self, i: nodes.Select) -> None:
        """One of two words."""
        bit = self.bit(i.condition)
        a, b = self.word(i.if_true), self.word(i.if_false)
        self.assign(i.result, self.value(f"select i1 {bit}, i64 {a}, i64 {b}"))

    def set_variable(self, i: nodes.Assign) -> None:
        """``$v = %a``"""
        word = self.word(i.value)
        self.add(f"store i64 {word}, ptr {self.variable(i.variable)}")

    def context_load(self, offset: int) -> str:
        """A word of the program's context."""
        self.module.declare("declare ptr @llvm.preserve.static.offset(ptr)")
        base = self.value("call ptr @llvm.preserve.static.offset(ptr %ctx)")
        address = self.value(f"getelementptr inbounds i8, ptr {base}, i64 {offset}")
        return self.value(f"load i64, ptr {address}, align 8")

    def register(self, i: nodes.Register) -> None:
        """A register of the interrupted code."""
        if not self.registers:
            raise self.fail(f"there is no interrupted code here whose `{i.register}` could be read")
        if i.register not in REGISTER_OFFSETS:
            raise self.fail(f"`{i.register}` is not a register")
        self.assign(i.result, self.context_load(REGISTER_OFFSETS[i.register]))

    def argument(self, i: nodes.Argument) -> None:
        """An argument of a raw tracepoint."""
        if not self.arguments:
            raise self.fail("only hooks on raw tracepoints have arguments")
        self.assign(i.result, self.context_load(8 * i.index))

    def parameter(self, i: nodes.Parameter) -> None:
        """A constant of the site."""
        if not self.check:
            raise self.fail("only checks have parameters of a site")
        if self.sites is None:
            self.assign(i.result, self.address(SymbolKind.PARAMETER + i.name))
            return
        index = self.sites.parameters.index(i.name)
        address = self.value(f"getelementptr inbounds i64, ptr %row, i64 {index}")
        self.assign(i.result, self.value(f"load i64, ptr {address}, align 8"))

    def symbol_address(self, i: nodes.Symbol) -> None:
        """The address of a kernel symbol."""
        self.assign(i.result, self.address(SymbolKind.KERNEL + i.name))

    def address(self, symbol: str) -> str:
        """The address of a weak external, about which LLVM knows nothing."""
        quoted = _quote(symbol)
        self.module.declare(f"{quoted} = extern_weak global i8, align 1")
        return self.opaque(f"ptrtoint (ptr {quoted} to i64)")

    def read(self, i: nodes.Read) -> None:
        """Kernel memory.

        bpf_probe_read_kernel writes zeros when the address faults (kernel/trace/bpf_trace.c, 6.1 and 6.12),
        so that the slot needs no clearing first.
        """
        if i.size not in (1, 2, 4, 8):
            raise self.fail(f"cannot read {i.size} bytes")
        address = self.word(i.address)
        self.scratch_words = max(self.scratch_words, 1)
        self.helper(HELPER_PROBE_READ_KERNEL, f"ptr %scratch, i32 {i.size}, i64 {address}")
        self.assign(i.result, self.load("%scratch", i.size))

    def load(self, address: str, size: int) -> str:
        """A zero-extended load."""
        loaded = self.value(f"load i{8 * size}, ptr {address}, align {size}")
        return loaded if size == 8 else self.value(f"zext i{8 * size} {loaded} to i64")

    def table_load(self, i: nodes.Load) -> None:
        """A word of a table."""
        place = self.in_bounds(i.table, i.index, i.column)
        if place is None:
            self.assign(i.result, "0")
            return
        address, size, before, end = place
        self.join(i.result, self.load(address, size), before, end)

    def writable(self, table: str) -> None:
        """Refuses to write a constant table."""
        if table in self.module.scope.tables and not self.module.scope.tables[table].writable:
            raise self.fail(f"table `{table}` is constant")

    def table_store(self, i: nodes.Store) -> None:
        """Writes a word of a table."""
        self.writable(i.table)
        word = self.word(i.value)
        place = self.in_bounds(i.table, i.index, i.column)
        if place is None:
            return
        address, size, _, end = place
        if size != 8:
            word = self.value(f"trunc i64 {word} to i{8 * size}")
        self.add(f"store i{8 * size} {word}, ptr {address}, align {size}")
        if end:
            self.add(f"br label %{end}")
            self.start(end)

    def table_add(self, i: nodes.FetchAdd) -> None:
        """Adds to a word of a table."""
        self.writable(i.table)
        word = self.word(i.value)
        place = self.in_bounds(i.table, i.index, i.column)
        if place is None:
            self.assign(i.result, "0")
            return
        address, size, before, end = place
        if size < 4:
            raise self.fail(f"BPF has no atomic addition to a column of {size} bytes (`{i.table}.{i.column}`)", "O2C0603")
        if size == 4:
            word = self.value(f"trunc i64 {word} to i32")
        old = self.atomic_add(i.result, address, word, size)
        if size == 4:
            old = self.value(f"zext i32 {old} to i64")
        self.join(i.result, old, before, end)

    def atomic_add(self, result: nodes.Value, address: str, word: str, size: int) -> str:
        """An atomic addition; see the head of this file for the ordering."""
        ordering = "seq_cst" if result.name in self.used else "monotonic"
        return self.value(f"atomicrmw add ptr {address}, i{8 * size} {word} {ordering}, align {size}")

    def key(self, map_: nodes.Map, key: Sequence[nodes.Operand], more: Sequence[nodes.Operand] = ()) -> str:
        """Puts a key, then further words, on the stack; returns the key's address."""
        if map_.kind is nodes.MapKind.RING_BUFFER:
            raise self.fail(f"ring buffer `{map_.name}` has no entries")
        if len(key) != len(map_.key):
            raise self.fail(f"a key of `{map_.name}` has {len(map_.key)} words, not {len(key)}")
        return self.scratch([self.word(operand) for operand in (*key, *more)])

    def map_pointer(self, name: str) -> str:
        """A map as the argument of a helper."""
        return f"ptr {_quote(SymbolKind.MAP + name)}"

    def lookup(self, i: nodes.Lookup) -> None:
        """Finds an entry."""
        key = self.key(self.map(i.map), i.key)
        pointer = self.helper(HELPER_MAP_LOOKUP, f"{self.map_pointer(i.map)}, ptr {key}", "ptr")
        self.pointers[i.result.name] = pointer
        self.assign(i.result, self.value(f"ptrtoint ptr {pointer} to i64"))

    def entry_load(self, i: nodes.EntryLoad) -> None:
        """A field of an entry."""
        self.assign(i.result, self.load(self.field(i.entry, i.map, i.field), 8))

    def entry_store(self, i: nodes.EntryStore) -> None:
        """Writes a field of an entry."""
        word = self.word(i.value)
        self.add(f"store i64 {word}, ptr {self.field(i.entry, i.map, i.field)}, align 8")

    def entry_add(self, i: nodes.EntryFetchAdd) -> None:
        """Adds to a field of an entry."""
        word = self.word(i.value)
        address = self.field(i.entry, i.map, i.field)
        self.assign(i.result, self.atomic_add(i.result, address, word, 8))

    def entry_exchange(self, i: nodes.EntryCompareExchange) -> None:
        """Compares and exchanges a field of an entry."""
        expected, new = self.word(i.expected), self.word(i.new)
        address = self.field(i.entry, i.map, i.field)
        pair = self.value(f"cmpxchg ptr {address}, i64 {expected}, i64 {new} seq_cst seq_cst, align 8")
        self.assign(i.result, self.value(f"extractvalue {{ i64, i1 }} {pair}, 0"))

    def update(self, i: nodes.Update) -> None:
        """Writes an entry."""
        map_ = self.map(i.map)
        if len(i.fields) != len(map_.fields):
            raise self.fail(f"an entry of `{map_.name}` has {len(map_.fields)} words, not {len(i.fields)}")
        key = self.key(map_, i.key, i.fields)
        value = self.scratch_address(len(i.key))
        flags = BPF_NOEXIST if i.no_replace else 0
        arguments = f"{self.map_pointer(i.map)}, ptr {key}, ptr {value}, i64 {flags}"
        self.assign(i.result, self.helper(HELPER_MAP_UPDATE, arguments))

    def delete(self, i: nodes.Delete) -> None:
        """Removes an entry."""
        key = self.key(self.map(i.map), i.key)
        self.assign(i.result, self.helper(HELPER_MAP_DELETE, f"{self.map_pointer(i.map)}, ptr {key}"))

    def helper_fact(self, i: nodes.Helper) -> None:
        """What a helper without arguments tells."""
        match i.kind:
            case nodes.HelperKind.NOW:
                word = self.helper(HELPER_KTIME_GET_NS, "")
            case nodes.HelperKind.CPU:
                number = self.helper(HELPER_GET_SMP_PROCESSOR_ID, "", "i32")
                word = self.value(f"zext i32 {number} to i64")
            case nodes.HelperKind.TASK:
                word = self.helper(HELPER_GET_CURRENT_TASK, "")
            case nodes.HelperKind.PID_TGID:
                word = self.helper(HELPER_GET_CURRENT_PID_TGID, "")
            case nodes.HelperKind.KILL:
                word = self.helper(HELPER_SEND_SIGNAL, f"i32 {SIGKILL}")
        self.assign(i.result, word)

    def emit(self, i: nodes.Emit) -> None:
        """A record to a ring buffer, written in place."""
        map_ = self.map(i.map)
        if map_.kind is not nodes.MapKind.RING_BUFFER:
            raise self.fail(f"map `{map_.name}` is not a ring buffer")
        if len(i.fields) != len(map_.fields):
            raise self.fail(f"a record of `{map_.name}` has {len(map_.fields)} words, not {len(i.fields)}")
        words = [self.word(operand) for operand in i.fields]
        size = 8 * len(words)
        record = self.helper(
            HELPER_RINGBUF_RESERVE, f"{self.map_pointer(i.map)}, i64 {size}, i64 0", "ptr"
        )
        got = self.value(f"icmp ne ptr {record}, null")
        good, end, before = self.new_label(), self.new_label(), self.label
        self.add(f"br i1 {got}, label %{good}, label %{end}")
        self.start(good)
        for index, word in enumerate(words):
            address = self.value(f"getelementptr inbounds i64, ptr {record}, i64 {index}")
            self.add(f"store i64 {word}, ptr {address}, align 8")
        self.helper(HELPER_RINGBUF_SUBMIT, f"ptr {record}, i64 0")
        self.join(i.result, "1", before, end)

    def call(self, i: nodes.Call) -> None:
        """Calls shared code."""
        function = self.module.scope.functions.get(i.function)
        if function is None:
            raise self.fail(f"there is no function `{i.function}`")
        if len(i.arguments) != len(function.parameters):
            raise self.fail(f"`{i.function}` takes {len(function.parameters)} arguments, not {len(i.arguments)}")
        for operand in i.arguments:
            if isinstance(operand, nodes.Value) and operand.name in self.pointers:
                raise self.fail(f"entry `%{operand.name}` cannot be passed to `{i.function}`")
        words = ", ".join(f"i64 {self.word(operand)}" for operand in i.arguments)
        self.assign(i.result, self.value(f"call i64 {_quote(SymbolKind.FUNCTION + i.function)}({words})"))

    def instruction(self, i: nodes.Instruction) -> None:
        """Any instruction."""
        match i:
            case nodes.Binary():
                self.binary(i)
            case nodes.Select():
                self.select(i)
            case nodes.Assign():
                self.set_variable(i)
            case nodes.Register():
                self.register(i)
            case nodes.Argument():
                self.argument(i)
            case nodes.Parameter():
                self.parameter(i)
            case nodes.Symbol():
                self.symbol_address(i)
            case nodes.Read():
                self.read(i)
            case nodes.Load():
                self.table_load(i)
            case nodes.Store():
                self.table_store(i)
            case nodes.FetchAdd():
                self.table_add(i)
            case nodes.Lookup():
                self.lookup(i)
            case nodes.EntryLoad():
                self.entry_load(i)
            case nodes.EntryStore():
                self.entry_store(i)
            case nodes.EntryFetchAdd():
                self.entry_add(i)
            case nodes.EntryCompareExchange():
                self.entry_exchange(i)
            case nodes.Update():
                self.update(i)
            case nodes.Delete():
                self.delete(i)
            case nodes.Helper():
                self.helper_fact(i)
            case nodes.Emit():
                self.emit(i)
            case nodes.Call():
                self.call(i)

    # --- structure ----------------------------------------------------------------------------------------

    def terminator(self, t: nodes.Terminator) -> None:
        """The end of a block."""
        match t:
            case nodes.Branch():
                bit = self.bit(t.condition)
                self.add(f"br i1 {bit}, label {self.target(t.if_true)}, label {self.target(t.if_false)}")
            case nodes.Jump():
                self.add(f"br label {self.target(t.target)}")
            case nodes.Return():
                self.add(f"ret i64 {self.word(t.value)}")
            case nodes.Decide():
                self.add(f"ret i64 {t.verdict.code}")

    def target(self, block: str) -> str:
        """The label of a block of the IR."""
        if block not in self.blocks:
            raise self.fail(f"there is no block `{block}`")
        return f"%b{self.blocks[block]}"

    def text(self, blocks: Sequence[nodes.Block], *, inline: bool = False) -> str:
        """The whole function."""
        self.blocks = {block.name: index for index, block in enumerate(blocks)}
        self.used = _used_values(blocks)
        self.locate(None)
        for block in _reverse_postorder(blocks):
            self.start(f"b{self.blocks[block.name]}")
            head = len(self.lines)
            for instruction, span in zip(block.instructions, block_spans(block), strict=True):
                self.locate(span)
                self.instruction(instruction)
            self.terminator(block.terminator)
            if isinstance(block.terminator, nodes.Branch) and self.tests_entry(block.terminator.condition):
                self.lines.insert(head, f'  call void asm sideeffect "", ""(){self.debug}')
        if 8 * self.scratch_words > STACK_LIMIT:
            raise BodyError(
                "O2C0607",
                f"`{self.symbol[2:]}` needs {8 * self.scratch_words} bytes of stack for one key or entry, "
                f"more than {STACK_LIMIT}",
                self.span,
            )
        return "\n".join((*self.head(inline), *self.entry(), *self.lines, "}"))

    def head(self, inline: bool) -> list[str]:
        """The function's first line."""
        if self.check or self.hook:
            parameters = "ptr %ctx"
        else:
            parameters = ", ".join(f"i64 %a{i}" for i in range(len(self.parameters)))
        linkage = "internal " if inline else ""
        attributes = "alwaysinline" if inline else "noinline"
        name = _quote(self.symbol)
        return [
            f"define {linkage}i64 {name}({parameters}) {attributes} nounwind "
            f'section ".{self.symbol}" !dbg !{self.program} {{'
        ]

    def entry(self) -> list[str]:
        """The block before the first: stack slots, and the site's row in the `shape` layout."""
        body, self.lines = self.lines, ["entry:"]
        self.locate(None)
        if self.scratch_words:
            self.lines.append(f"  %scratch = alloca [{self.scratch_words} x i64], align 8")
        for name in self.variables.values():
            self.lines.append(f"  {name} = alloca i64, align 8")
        for name in self.variables.values():
            self.lines.append(f"  store i64 0, ptr {name}, align 8")
        if self.sites is not None:
            self.site_row(self.sites)
        self.add("br label %b0")
        head, self.lines = self.lines, body
        return head

    def site_row(self, sites: SiteTable) -> None:
        """Finds the site's row by the attach cookie; a cookie that is not of this check is counted, denied."""
        cookie = self.helper(HELPER_GET_ATTACH_COOKIE, "ptr %ctx")
        index = self.opaque(self.value(f"sub i64 {cookie}, {sites.first}"))
        condition = self.value(f"icmp ult i64 {index}, {sites.count}")
        self.add(f"br i1 {condition}, label %known, label %unknown")
        self.start("unknown")
        counter = _quote(SymbolKind.TABLE + sites.counter)
        self.module.declare(f"{counter} = external global [8 x i8], align 8")
        self.value(f"atomicrmw add ptr {counter}, i64 1 monotonic, align 8")
        self.add(f"ret i64 {nodes.Verdict.DENY.code}")
        self.start("known")
        if sites.parameters:
            table = _quote(SymbolKind.TABLE + sites.table)
            self.module.declare(f"{table} = external global [8 x i8], align 8")
            checked = self.opaque(index, fixed=True)
            row = self.value(f"mul nuw nsw i64 {checked}, {8 * len(sites.parameters)}")
            base = f"getelementptr (i8, ptr {table}, i64 {8 * sites.offset})"
            self.lines.append(f"  %row = getelementptr i8, ptr {base}, i64 {row}{self.debug}")


_COMPARISONS = frozenset(
    nodes.BinaryOperator(name) for name in ("eq", "ne", "ult", "ule", "ugt", "uge", "slt", "sle", "sgt", "sge")
)


def _used_values(blocks: Sequence[nodes.Block]) -> frozenset[str]:
    """Names of the values that something reads."""
    return frozenset(
        operand.name
        for block in blocks
        for node in (*block.instructions, block.terminator)
        for operand in operands(node)
        if isinstance(operand, nodes.Value)
    )


def _reverse_postorder(blocks: Sequence[nodes.Block]) -> list[nodes.Block]:
    """The blocks that can be reached, each after all that dominate it."""
    by_name = {block.name: block for block in blocks}
    order: list[nodes.Block] = []
    seen = {blocks[0].name}
    work = [(blocks[0], iter(successors(blocks[0].terminator)))]
    while work:
        block, targets = work[-1]
        for target in targets:
            if target in by_name and target not in seen:
                seen.add(target)
                work.append((by_name[target], iter(successors(by_name[target].terminator))))
                break
        else:
            order.append(block)
            work.pop()
    return order[::-1]
