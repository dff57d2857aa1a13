# SPDX-License-Identifier: Apache-2.0
"""The intermediate representation: what a compiled policy decides, independent of how BPF expresses it.

Every value is an unsigned 64-bit word.  Virtual registers (``%name``) are assigned once; variables
(``$name``) may be assigned again and are what loops count with.  A ``Check`` is the decision code for one
*shape* of site; it never holds a constant of a particular site, only ``param`` reads, so that all sites of
one shape share it.  A ``Site`` binds a check to an instruction of the compartment and gives the parameters.
A ``Function`` is shared code that checks, hooks and other functions call; at most five parameters (the BPF
calling convention, kernel Documentation/bpf/standardization/instruction-set.rst).  A ``Hook`` is a program
that does not belong to an instruction of the compartment: a tracepoint, or the entry of a kernel function.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum

from o2cc.diagnostics import Span


class Verdict(StrEnum):
    """The answer of a check.  The numbers are the program's return value, the ABI with the runtime."""

    ALLOW = "allow"  # 0
    DENY = "deny"  # 1
    AUDITION = "audition"  # 2

    @property
    def code(self) -> int:
        return ("allow", "deny", "audition").index(self.value)


# --- operands ---------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Value:
    """A virtual register, ``%name``; assigned exactly once, before every use on every path."""

    name: str


@dataclass(frozen=True, slots=True)
class Variable:
    """A mutable variable, ``$name``; zero until first assigned."""

    name: str


@dataclass(frozen=True, slots=True)
class Constant:
    """A 64-bit constant, 0 <= value < 2**64.  ``name`` tells where it comes from, e.g. ``offset(slab.slab_cache)``."""

    value: int
    name: str | None = None


Operand = Value | Variable | Constant


# --- instructions -----------------------------------------------------------------------------------------


class BinaryOperator(StrEnum):
    ADD = "add"
    SUB = "sub"
    MUL = "mul"
    UDIV = "udiv"  # x / 0 = 0, as BPF defines
    UMOD = "umod"  # x % 0 = x, as BPF defines
    AND = "and"
    OR = "or"
    XOR = "xor"
    SHL = "shl"  # count taken modulo 64
    LSHR = "lshr"
    ASHR = "ashr"
    EQ = "eq"  # comparisons give 0 or 1
    NE = "ne"
    ULT = "ult"
    ULE = "ule"
    UGT = "ugt"
    UGE = "uge"
    SLT = "slt"
    SLE = "sle"
    SGT = "sgt"
    SGE = "sge"


@dataclass(frozen=True, slots=True)
class Binary:
    """``%r = add %a, 5``"""

    result: Value
    operator: BinaryOperator
    left: Operand
    right: Operand


@dataclass(frozen=True, slots=True)
class Select:
    """``%r = select %condition, %a, %b``: %a if the condition is not zero."""

    result: Value
    condition: Operand
    if_true: Operand
    if_false: Operand


@dataclass(frozen=True, slots=True)
class Assign:
    """``$v = %a``"""

    variable: Variable
    value: Operand


@dataclass(frozen=True, slots=True)
class Register:
    """``%r = reg rbx``: a register of the interrupted code (checks; hooks on kernel functions), also ``rip``,
    ``rsp``, ``flags``."""

    result: Value
    register: str


@dataclass(frozen=True, slots=True)
class Argument:
    """``%r = arg 0``: the nth argument of a raw tracepoint (hooks only)."""

    result: Value
    index: int


@dataclass(frozen=True, slots=True)
class Parameter:
    """``%r = param displacement``: a constant of the site (checks only), see ``Site.parameters``."""

    result: Value
    name: str


@dataclass(frozen=True, slots=True)
class Symbol:
    """``%r = symbol page_offset_base``: the address of a kernel symbol, 0 when the kernel has none (weak)."""

    result: Value
    name: str


@dataclass(frozen=True, slots=True)
class Read:
    """``%r = read 8 %address``: kernel memory, 1, 2, 4 or 8 bytes, zero extended; 0 when it faults."""

    result: Value
    size: int
    address: Operand


@dataclass(frozen=True, slots=True)
class Load:
    """``%r = load table[%i].column``: a word of a constant table or of a global; 0 when %i is out of bounds."""

    result: Value
    table: str
    index: Operand
    column: str


@dataclass(frozen=True, slots=True)
class Store:
    """``store globals[0].page_offset = %a`` (writable tables only; ignored when %i is out of bounds)."""

    table: str
    index: Operand
    column: str
    value: Operand


@dataclass(frozen=True, slots=True)
class FetchAdd:
    """``%old = fetch_add counters[%i].hits, 1``: atomic add to a word of a writable table; 0 out of bounds."""

    result: Value
    table: str
    index: Operand
    column: str
    value: Operand


@dataclass(frozen=True, slots=True)
class CompareExchange:
    """``%old = cmpxchg globals[%i].phase, %expected, %new``: atomic, 8 bytes of a writable table; 0 out of bounds."""

    result: Value
    table: str
    index: Operand
    column: str
    expected: Operand
    new: Operand


@dataclass(frozen=True, slots=True)
class Lookup:
    """``%e = lookup objects, %key [, %key2]``: an entry handle, 0 when absent."""

    result: Value
    map: str
    key: tuple[Operand, ...]


@dataclass(frozen=True, slots=True)
class EntryLoad:
    """``%r = entry %e objects.size``: a field of an entry.  %e must be known non-zero on every path here."""

    result: Value
    entry: Value
    map: str
    field: str


@dataclass(frozen=True, slots=True)
class EntryStore:
    """``entry %e objects.size = %a``"""

    entry: Value
    map: str
    field: str
    value: Operand


@dataclass(frozen=True, slots=True)
class EntryFetchAdd:
    """``%old = entry_fetch_add %e objects.count, 1`` (atomic)"""

    result: Value
    entry: Value
    map: str
    field: str
    value: Operand


@dataclass(frozen=True, slots=True)
class EntryCompareExchange:
    """``%old = entry_cmpxchg %e objects.word, %expected, %new`` (atomic)"""

    result: Value
    entry: Value
    map: str
    field: str
    expected: Operand
    new: Operand


@dataclass(frozen=True, slots=True)
class Update:
    """``%error = update objects, [%key], [%field, ...] [, noexist]``: 0 or a negative error as 64-bit word.
    ``noexist``: fail instead of replacing an entry that is there (BPF_NOEXIST)."""

    result: Value
    map: str
    key: tuple[Operand, ...]
    fields: tuple[Operand, ...]
    no_replace: bool = False


@dataclass(frozen=True, slots=True)
class Delete:
    """``%error = delete objects, [%key]``"""

    result: Value
    map: str
    key: tuple[Operand, ...]


class HelperKind(StrEnum):
    """Facts about the moment that a BPF helper or a field of the context tells."""

    NOW = "now"  # bpf_ktime_get_ns, nanoseconds
    CPU = "cpu"  # bpf_get_smp_processor_id
    TASK = "task"  # bpf_get_current_task, address of the task_struct
    PID_TGID = "pid_tgid"  # bpf_get_current_pid_tgid: tgid << 32 | pid
    KILL = "kill"  # bpf_send_signal(SIGKILL) to the current task; the error as word


@dataclass(frozen=True, slots=True)
class Helper:
    """``%r = now``"""

    result: Value
    kind: HelperKind


@dataclass(frozen=True, slots=True)
class Emit:
    """``%r = emit events, [%a, %b, ...]``: one record of 64-bit words to a ring buffer; 1, or 0 when full.
    The back end appends nothing: what a record holds is in ``Map.fields``."""

    result: Value
    map: str
    fields: tuple[Operand, ...]


@dataclass(frozen=True, slots=True)
class Call:
    """``%r = call check_store(%a, %b)``"""

    result: Value
    function: str
    arguments: tuple[Operand, ...]


Instruction = (
    Binary
    | Select
    | Assign
    | Register
    | Argument
    | Parameter
    | Symbol
    | Read
    | Load
    | Store
    | FetchAdd
    | CompareExchange
    | Lookup
    | EntryLoad
    | EntryStore
    | EntryFetchAdd
    | EntryCompareExchange
    | Update
    | Delete
    | Helper
    | Emit
    | Call
)


# --- terminators ------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Branch:
    """``br %condition, then, else``"""

    condition: Operand
    if_true: str
    if_false: str


@dataclass(frozen=True, slots=True)
class Jump:
    """``jump block``"""

    target: str


@dataclass(frozen=True, slots=True)
class Return:
    """``return %a`` (functions, hooks; a check returns a verdict code)"""

    value: Operand


@dataclass(frozen=True, slots=True)
class Decide:
    """``verdict allow`` (checks and functions): returns ``Verdict.code``."""

    verdict: Verdict


Terminator = Branch | Jump | Return | Decide


# --- structure --------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Block:
    """A basic block.  ``spans`` is parallel to ``instructions`` (None: the span of the function)."""

    name: str
    instructions: tuple[Instruction, ...]
    terminator: Terminator
    spans: tuple[Span | None, ...] = ()


@dataclass(frozen=True, slots=True)
class Function:
    """Shared code.  The first block is the entry.  A back edge must be bounded (a variable that counts up to a
    constant), since the BPF verifier explores every iteration."""

    name: str
    parameters: tuple[str, ...]
    blocks: tuple[Block, ...]
    span: Span | None = None
    inline: bool = False


@dataclass(frozen=True, slots=True)
class Check:
    """The decision code for one shape of site."""

    name: str
    blocks: tuple[Block, ...]
    span: Span | None = None


class SiteKind(StrEnum):
    STORE = "store"
    CALL = "call"  # direct call of a gate, an allocator or a free
    TAIL_CALL = "tail_call"
    INDIRECT_CALL = "indirect_call"
    INDIRECT_JUMP = "indirect_jump"
    ENTRY = "entry"  # first instruction of a function that the kernel calls
    RETURN = "return"  # return of such a function (kretprobe)


@dataclass(frozen=True, slots=True)
class Site:
    """One place of the compartment's code, bound to a check.

    ``parameters`` maps the names that the check reads to 64-bit constants (negative displacements as two's
    complement).  ``probe_offset`` is where the probe goes when it is not at ``offset`` itself.
    ``covered_by`` is the number of a site whose check decides this one as well (pass ``merge-checks``): this one
    then has neither program nor probe, and its number still names it in reports.
    """

    number: int
    function: str
    offset: int
    kind: SiteKind
    check: str
    parameters: tuple[tuple[str, int], ...]
    span: Span | None = None
    probe_offset: int | None = None
    note: str = ""
    covered_by: int | None = None


@dataclass(frozen=True, slots=True)
class Discharged:
    """A site proved safe at compile time.  ``premises`` are what the proof leans on, in words."""

    function: str
    offset: int
    kind: SiteKind
    reason: str  # short stable name of the pass, e.g. "own-frame", "static-data", "checked-before"
    proof: str
    premises: tuple[str, ...] = ()
    span: Span | None = None


class HookKind(StrEnum):
    KPROBE = "kprobe"  # entry of a kernel function: Register reads
    KRETPROBE = "kretprobe"
    RAW_TRACEPOINT = "raw_tracepoint"  # Argument reads
    SYSCALL = "syscall"  # run on demand by the loader (BPF_PROG_TEST_RUN)


@dataclass(frozen=True, slots=True)
class Hook:
    """A program of its own, ``SEC("kprobe/kfree")`` or ``SEC("raw_tracepoint/kfree")``."""

    name: str
    kind: HookKind
    target: str
    blocks: tuple[Block, ...]
    span: Span | None = None


class MapKind(StrEnum):
    HASH = "hash"
    LRU_HASH = "lru_hash"
    RING_BUFFER = "ring_buffer"


@dataclass(frozen=True, slots=True)
class Map:
    """A BPF map.  Keys and values are structs of 64-bit words with these names.

    ``capacity``: entries, or bytes for a ring buffer (a power of two, multiple of the page size).
    """

    name: str
    kind: MapKind
    key: tuple[str, ...]
    fields: tuple[str, ...]
    capacity: int


@dataclass(frozen=True, slots=True)
class Table:
    """An array of records that is part of the object: ``.rodata`` when constant, else ``.data``/``.bss``.

    ``columns`` are (name, size in bytes 1|2|4|8); loads zero-extend.  ``rows`` give the initial values, row by
    row; ``length`` may exceed ``len(rows)`` (the rest is zero).  ``resizable``: the loader may make it longer, the
    kernel fills it, and code only reads it; rows beyond ``length`` read as 0 until then.
    """

    name: str
    columns: tuple[tuple[str, int], ...]
    rows: tuple[tuple[int, ...], ...]
    length: int
    writable: bool = False
    resizable: bool = False


@dataclass(frozen=True, slots=True)
class Module:
    """Everything that becomes one object.  ``identity`` names the kernel and the code that it is for."""

    name: str
    identity: tuple[
        tuple[str, str], ...
    ]  # ("release", "6.1.0-57-amd64"), ("target", "sctp"), ("build_id", ...)
    maps: tuple[Map, ...] = ()
    tables: tuple[Table, ...] = ()
    functions: tuple[Function, ...] = ()
    checks: tuple[Check, ...] = ()
    sites: tuple[Site, ...] = ()
    hooks: tuple[Hook, ...] = ()
    discharged: tuple[Discharged, ...] = field(default=())
