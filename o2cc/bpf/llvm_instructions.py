# SPDX-License-Identifier: Apache-2.0
"""Each kind of IR instruction as LLVM text."""

from __future__ import annotations

from collections.abc import Sequence

from o2cc.bpf.layout import REGISTER_OFFSETS
from o2cc.bpf.llvm_context import Role, SymbolKind, quote
from o2cc.bpf.llvm_writer import BodyWriter
from o2cc.ir import nodes

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

_COMPARISONS = frozenset(
    nodes.BinaryOperator(name)
    for name in ("eq", "ne", "ult", "ule", "ugt", "uge", "slt", "sle", "sgt", "sge")
)


class InstructionWriter(BodyWriter):
    """Writes instructions one after another."""

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
        self.context.declare("declare ptr @llvm.preserve.static.offset(ptr)")
        base = self.value("call ptr @llvm.preserve.static.offset(ptr %ctx)")
        address = self.value(f"getelementptr inbounds i8, ptr {base}, i64 {offset}")
        return self.value(f"load i64, ptr {address}, align 8")

    def register(self, i: nodes.Register) -> None:
        """A register of the interrupted code."""
        if self.role not in (Role.CHECK, Role.PROBE_HOOK):
            raise self.fail(f"there is no interrupted code here whose `{i.register}` could be read")
        if i.register not in REGISTER_OFFSETS:
            raise self.fail(f"`{i.register}` is not a register")
        self.assign(i.result, self.context_load(REGISTER_OFFSETS[i.register]))

    def argument(self, i: nodes.Argument) -> None:
        """An argument of a raw tracepoint."""
        if self.role is not Role.TRACEPOINT_HOOK:
            raise self.fail("only hooks on raw tracepoints have arguments")
        self.assign(i.result, self.context_load(8 * i.index))

    def parameter(self, i: nodes.Parameter) -> None:
        """A constant of the site."""
        if self.role is not Role.CHECK:
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
        quoted = quote(symbol)
        self.context.declare(f"{quoted} = extern_weak global i8, align 1")
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
        if table in self.context.scope.tables and not self.context.scope.tables[table].writable:
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
            raise self.fail(
                f"BPF has no atomic addition to a column of {size} bytes (`{i.table}.{i.column}`)", "O2C0603"
            )
        if size == 4:
            word = self.value(f"trunc i64 {word} to i32")
        old = self.atomic_add(i.result, address, word, size)
        if size == 4:
            old = self.value(f"zext i32 {old} to i64")
        self.join(i.result, old, before, end)

    def table_exchange(self, i: nodes.CompareExchange) -> None:
        """Compares and exchanges a word of a table."""
        self.writable(i.table)
        expected, new = self.word(i.expected), self.word(i.new)
        place = self.in_bounds(i.table, i.index, i.column)
        if place is None:
            self.assign(i.result, "0")
            return
        address, size, before, end = place
        if size != 8:
            raise self.fail(
                f"there is no atomic exchange of a column of {size} bytes (`{i.table}.{i.column}`)", "O2C0603"
            )
        self.join(i.result, self.exchange(address, expected, new), before, end)

    def exchange(self, address: str, expected: str, new: str) -> str:
        """The word that was there."""
        pair = self.value(f"cmpxchg ptr {address}, i64 {expected}, i64 {new} seq_cst seq_cst, align 8")
        return self.value(f"extractvalue {{ i64, i1 }} {pair}, 0")

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
        return f"ptr {quote(SymbolKind.MAP + name)}"

    def lookup(self, i: nodes.Lookup) -> None:
        """Finds an entry."""
        key = self.key(self.map(i.map), i.key)
        pointer = self.helper(HELPER_MAP_LOOKUP, f"{self.map_pointer(i.map)}, ptr {key}", "ptr")
        self.pointers[i.result.name] = pointer
        self.assign(i.result, self.value(f"ptrtoint ptr {pointer} to i64"))

    def entry_load(self, i: nodes.EntryLoad) -> None:
        """A field of an entry, read once and in its turn: another processor may write it meanwhile."""
        address = self.field(i.entry, i.map, i.field)
        self.assign(i.result, self.value(f"load volatile i64, ptr {address}, align 8"))

    def entry_store(self, i: nodes.EntryStore) -> None:
        """Writes a field of an entry, in its turn."""
        word = self.word(i.value)
        self.add(f"store volatile i64 {word}, ptr {self.field(i.entry, i.map, i.field)}, align 8")

    def entry_add(self, i: nodes.EntryFetchAdd) -> None:
        """Adds to a field of an entry."""
        word = self.word(i.value)
        address = self.field(i.entry, i.map, i.field)
        self.assign(i.result, self.atomic_add(i.result, address, word, 8))

    def entry_exchange(self, i: nodes.EntryCompareExchange) -> None:
        """Compares and exchanges a field of an entry."""
        expected, new = self.word(i.expected), self.word(i.new)
        address = self.field(i.entry, i.map, i.field)
        self.assign(i.result, self.exchange(address, expected, new))

    def update(self, i: nodes.Update) -> None:
        """Writes an entry."""
        map_ = self.map(i.map)
        if len(i.fields) != len(map_.fields):
            raise self.fail(f"an entry of `{map_.name}` has {len(map_.fields)} words, not {len(i.fields)}")
        key = self.key(map_, i.key, i.fields)
        value = self.scratch_address(len(i.key))
        flags = BPF_NOEXIST if i.no_replace else 0
        arguments = f"{self.map_pointer(i.map)}, ptr {key}, ptr {value}, i64 {flags}"
        self.assign(i.result, self.error(HELPER_MAP_UPDATE, arguments))

    def delete(self, i: nodes.Delete) -> None:
        """Removes an entry."""
        key = self.key(self.map(i.map), i.key)
        self.assign(i.result, self.error(HELPER_MAP_DELETE, f"{self.map_pointer(i.map)}, ptr {key}"))

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
                word = self.error(HELPER_SEND_SIGNAL, f"i32 {SIGKILL}")
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
        record = self.helper(HELPER_RINGBUF_RESERVE, f"{self.map_pointer(i.map)}, i64 {size}, i64 0", "ptr")
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
        function = self.context.scope.functions.get(i.function)
        if function is None:
            raise self.fail(f"there is no function `{i.function}`")
        if len(i.arguments) != len(function.parameters):
            raise self.fail(
                f"`{i.function}` takes {len(function.parameters)} arguments, not {len(i.arguments)}"
            )
        for operand in i.arguments:
            if isinstance(operand, nodes.Value) and operand.name in self.pointers:
                raise self.fail(f"entry `%{operand.name}` cannot be passed to `{i.function}`")
        self.context.called[i.function] = len(i.arguments)
        words = ", ".join(f"i64 {self.word(operand)}" for operand in i.arguments)
        self.assign(i.result, self.value(f"call i64 {quote(SymbolKind.FUNCTION + i.function)}({words})"))

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
            case nodes.CompareExchange():
                self.table_exchange(i)
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
