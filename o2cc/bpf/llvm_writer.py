# SPDX-License-Identifier: Apache-2.0
"""The small parts of LLVM text: operands, stack slots, addresses and bounds checks of one body.

`llvm_text` says what these have to do for the verifier.
"""

from __future__ import annotations

from collections.abc import Sequence

from o2cc.bpf.layout import rows_name
from o2cc.bpf.llvm_context import BodyError, Context, Role, SiteTable, SymbolKind, quote
from o2cc.diagnostics import Span
from o2cc.ir import nodes
from o2cc.ir.walk import MASK

MAXIMUM_ROWS = 1 << 29  # of a resizable table: the verifier lets no pointer go further (BPF_MAX_VAR_OFF)


class BodyWriter:
    """The parts from which instructions are made: names, words, conditions, addresses, blocks."""

    def __init__(
        self,
        context: Context,
        symbol: str,
        span: Span | None,
        role: Role,
        parameters: Sequence[str] = (),
        sites: SiteTable | None = None,
    ) -> None:
        self.context, self.symbol, self.span, self.role, self.sites = context, symbol, span, role, sites
        number = context.spans.number(span)
        self.program = context.metadata.add(
            f'distinct !DISubprogram(name: "f", file: !1, line: {number}, type: !4, '
            "spFlags: DISPFlagDefinition, unit: !0)"
        )
        self.locations: dict[int, int] = {}
        self.lines: list[str] = []
        self.words_of_parameters = tuple(f"%a{i}" for i in range(len(parameters)))
        self.words: dict[str, str] = dict(zip(parameters, self.words_of_parameters, strict=True))
        self.pointers: dict[str, str] = {}  # entry handles
        self.bits: dict[str, str] = {}  # comparisons
        self.pointer_tests: set[str] = set()  # comparisons of an entry handle with 0
        self.variables: dict[str, str] = {}
        self.blocks: dict[str, int] = {}
        self.used: frozenset[str] = frozenset()
        self.counter = 0
        self.scratch_words = 0
        self.label = ""
        self.debug = ""
        self.here = span

    def locate(self, span: Span | None) -> None:
        """Later instructions come from this span."""
        self.here = span or self.span
        number = self.context.spans.number(self.here)
        location = self.locations.get(number)
        if location is None:
            location = self.context.metadata.add(f"!DILocation(line: {number}, scope: !{self.program})")
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

    def error(self, number: int, arguments: str) -> str:
        """Calls a helper that gives 0 or a negative error, and widens that.

        Up to Linux 6.3 the verifier calls a map's own functions in place of the helpers, and these return an
        ``int``: the upper half of the register is not the sign.
        """
        return self.value(f"sext i32 {self.helper(number, arguments, 'i32')} to i64")

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
        found = self.context.scope.maps.get(name)
        if found is None:
            raise self.fail(f"there is no map `{name}`")
        self.context.declare(f"{quote(SymbolKind.MAP + name)} = external global i64, align 8")
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
        scope = self.context.scope
        if table not in scope.tables:
            raise self.fail(f"there is no table `{table}`")
        layout = scope.layouts[table]
        if column not in layout.offsets:
            raise self.fail(f"table `{table}` has no column `{column}`")
        symbol = quote(SymbolKind.TABLE + table)
        resizable = scope.tables[table].resizable
        room = MAXIMUM_ROWS * layout.stride if resizable else max(layout.size, 1)
        self.context.declare(f"{symbol} = external global [{room} x i8], align 8")
        offset, size = layout.offsets[column], layout.sizes[column]
        if isinstance(index, nodes.Constant) and not resizable:
            if index.value >= layout.length:
                return None
            place = index.value * layout.stride + offset
            return self.value(f"getelementptr inbounds i8, ptr {symbol}, i64 {place}"), size, "", ""
        word = self.opaque(self.word(index))
        good, end, before = self.new_label(), self.new_label(), self.label
        condition = self.value(f"icmp ult i64 {word}, {self.rows(table) if resizable else layout.length}")
        self.add(f"br i1 {condition}, label %{good}, label %{end}")
        self.start(good)
        checked = self.opaque(word, fixed=True)
        row = self.value(f"mul nuw nsw i64 {checked}, {layout.stride}") if layout.stride != 1 else checked
        base = symbol
        if offset:
            base = f"getelementptr inbounds (i8, ptr {symbol}, i64 {offset})"
        return self.value(f"getelementptr inbounds i8, ptr {base}, i64 {row}"), size, before, end

    def rows(self, table: str) -> str:
        """How many rows a resizable table has: constant data that the loader sets, which the verifier knows."""
        symbol = quote(SymbolKind.TABLE + rows_name(table))
        self.context.declare(f"{symbol} = external global i64, align 8")
        return self.value(f"load i64, ptr {symbol}, align 8")

    def join(self, result: nodes.Value, word: str, before: str, end: str) -> None:
        """Ends what `in_bounds` began: the result is ``word``, or 0 when the index was bad."""
        if not end:
            self.assign(result, word)
            return
        good = self.label
        self.add(f"br label %{end}")
        self.start(end)
        self.assign(result, self.value(f"phi i64 [ {word}, %{good} ], [ 0, %{before} ]"))
