# SPDX-License-Identifier: Apache-2.0
"""The description of one kernel build (``.o2k``): what is known of the code that a policy confines.

Plain frozen data, made by ``o2cc.kernel.scan`` and read by the lowering and by the passes. Nothing here
does I/O or refers to the files that the facts came from. Facts and hashes only: no code bytes.

Conventions
    * Offsets are bytes. ``Function.offset`` counts from its section's start; the offsets of blocks, sites,
      probes and value sources count from the start of *their function*, as kallsyms names it
      (``foo+0x2c``, ``foo.cold+0x3``).
    * Frame addresses count from the slot that holds the function's own return address: the slot is 0, the
      first pushed register is at -8, the first argument on the stack at +8.
    * Registers have their full 64-bit names (``rax`` ... ``r15``), whatever part an instruction uses.
    * Values number what registers hold, as in SSA form: within one unit (a function and its ``.cold`` part)
      two sites with the same ``value`` hold the same 64-bit number there, each plus its ``value_offset``.
      A value is assigned once on each execution of its definition: in a loop the same number can stand for
      another object in the next round, exactly as an SSA name does, so facts about a value hold where its
      definition dominates and die where it is defined again.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Literal

from o2cc.kernel.type_table import Prototype, TypeReference, TypeTable

FORMAT_VERSION = 1
_ELEMENT = re.compile(r"\[\d+\]\.?")

SiteKind = Literal[
    "store",
    "read_modify_write",
    "string",
    "push",
    "call",
    "indirect_call",
    "tail_call",
    "indirect_jump",
    "return",
]
WRITE_KINDS: frozenset[SiteKind] = frozenset({"store", "read_modify_write", "string", "push"})

ValueKind = Literal[
    "argument", "call", "load", "static", "stack", "aligned_stack", "constant", "per_cpu", "merge", "unknown"
]

PatchKind = Literal[
    "alternative", "retpoline", "return", "static_call", "jump_label", "ftrace", "lock", "call_thunk", "endbr"
]


CALLEE_SAVED_NAMES = frozenset(("rbx", "rbp", "r12", "r13", "r14", "r15"))  # System V ABI, AMD64 supplement


@dataclass(frozen=True, slots=True)
class Target:
    """The code that is described.

    ``kind`` is ``"module"`` or ``"builtin"``. ``build_id`` is the hex of ``.note.gnu.build-id`` (of the
    kernel for built-in code; empty if there is none), ``sha256`` that of the uncompressed ELF file.
    ``patterns`` are the function patterns of a built-in target.
    """

    name: str
    kind: Literal["module", "builtin"]
    build_id: str
    srcversion: str
    sha256: str
    patterns: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Section:
    """A section that is loaded into memory and stays there (``initial``: freed after initialization).

    ``anchor_symbol`` is a symbol inside it whose name nothing else in the kernel and in the target has;
    the section starts at its address minus ``anchor_offset``. None if there is no such symbol.
    """

    name: str
    size: int
    writable: bool
    executable: bool
    after_init_readonly: bool
    per_cpu: bool
    anchor_symbol: str | None
    anchor_offset: int
    initial: bool = False


@dataclass(frozen=True, slots=True)
class StaticAddress:
    """An address fixed when the code is linked: in a section of the target, or relative to an import.

    Exactly one of ``section`` and ``symbol`` is set when the place is known; for built-in code both may be
    (the symbol then is the one that covers the place). ``offset`` counts from the section's start, or from
    the symbol if there is no section.
    """

    section: str | None
    symbol: str | None
    offset: int


@dataclass(frozen=True, slots=True)
class Operand:
    """``segment:[base + index * scale + displacement + static]``, or a register (``is_memory`` false).

    With ``static`` the displacement that the linker fills in is in ``static.offset`` and ``displacement``
    is 0. A rip-relative operand has ``static`` and no base.
    """

    base: str | None
    index: str | None = None
    scale: int = 1
    displacement: int = 0
    segment: str | None = None
    static: StaticAddress | None = None
    is_memory: bool = True


@dataclass(frozen=True, slots=True)
class ValueSource:
    """Where a value comes from.

    ========== ==================================================================================
    kind       fields
    ========== ==================================================================================
    argument   ``number``: 0 for the first integer argument (rdi)
    call       ``callee`` (None: indirect), ``site``: offset of the call whose rax this is
    load       ``value`` + ``offset``: the address (``value`` None: not by one register), ``size`` bytes
    static     ``address``: the address itself
    stack      the address of the return address slot
    aligned_stack  the address at frame offset ``offset``, rounded down to a multiple of ``number``
    constant   ``number``
    per_cpu    ``address``: loaded through gs from this per-CPU variable
    merge      different values meet at the block that starts at ``site``
    unknown    everything else; ``site``: the instruction that made it
    ========== ==================================================================================

    ``function`` is the function (the unit's other part) that ``site`` counts in, None for the own one.
    """

    kind: ValueKind
    number: int = 0
    callee: str | None = None
    site: int = 0
    value: int | None = None
    offset: int = 0
    size: int = 0
    address: StaticAddress | None = None
    function: str | None = None


@dataclass(frozen=True, slots=True)
class Probe:
    """Where a kprobe for a site goes.

    ``offset`` (in the same function) is the site itself or an earlier instruction of its block after which
    nothing up to the site changes a register of the operand, calls or is entered from elsewhere. None: no
    place, and ``reason`` says why. ``jump_optimizable``: the kernel can replace its int3 by a jump.
    ``length`` is that of the instruction there, ``code_hash`` its hash. ``bytes_change``: the kernel rewrites
    the instruction there at load, so its bytes cannot be compared. ``keep_int3``: control enters the five bytes
    from a place that the kernel does not look at when it optimizes, so that the probe must have a post handler.
    ``reason`` also says why a place is not optimizable or is not the site itself.
    """

    offset: int | None
    jump_optimizable: bool
    reason: str | None = None
    length: int = 0
    code_hash: int = 0
    bytes_change: bool = False
    keep_int3: bool = False


@dataclass(frozen=True, slots=True)
class Argument:
    """What an argument register holds at a call: ``value`` plus ``offset``; ``source`` says what that is."""

    value: int
    offset: int
    source: ValueSource


@dataclass(frozen=True, slots=True)
class Site:
    """One instruction that needs a decision.

    ``size``: bytes written (for each iteration if ``rep``; 0: not known). ``count``: how often a string
    instruction with ``rep`` repeats, where that is a constant. ``bit_index``: the register whose
    bits above the operand's width move the address (``bts [mem], reg``). ``target``: the callee of a direct
    call or tail call. ``stack_height``: bytes from rsp to the return address slot before the instruction (0 at
    the function's entry; None: not known). ``frame_offset``: the address written, relative to that slot, when
    it is provably an address in terms of the entry stack pointer. ``frame_range``: the bytes [low, high), relative to
    that slot too, that the write certainly stays in; also known in functions that round their stack pointer down,
    where ``frame_offset`` is not. ``value``, ``value_offset``,
    ``value_source``: what the base register holds (None without one); for indirect calls and jumps what
    is called. ``arguments``: for calls, what rdi, rsi, rdx, rcx, r8, r9 hold where something is known.
    ``code_hash``: 32 bits over the instruction with the relocated fields zeroed; ``relocated`` says which
    bytes these are: (offset in the instruction, length). ``patched``: the kernel rewrites this instruction.
    ``probe`` is at the site itself where that is possible; ``earlier``, if there is one, is the nearest
    equivalent place before it that can be jump-optimized where ``probe`` cannot. ``frame_pointer``: rbp holds the
    address just below the return address slot, or below the copy of it that a function made which rounded its stack
    pointer down first (``Function.stack_kept``).
    """

    offset: int
    length: int
    kind: SiteKind
    mnemonic: str
    operand: Operand | None
    size: int
    rep: bool
    target: str | None
    stack_height: int | None
    frame_offset: int | None
    value: int | None
    value_offset: int
    value_source: ValueSource | None
    code_hash: int
    relocated: tuple[tuple[int, int], ...]
    probe: Probe
    bit_index: str | None = None
    patched: PatchKind | None = None
    arguments: tuple[Argument | None, ...] = ()
    earlier: Probe | None = None
    frame_range: tuple[int, int] | None = None
    count: int | None = None
    frame_pointer: bool = False

    @property
    def writes(self) -> bool:
        """Whether it writes memory by itself (a call's push of the return address apart)."""
        return self.kind in WRITE_KINDS


@dataclass(frozen=True, slots=True)
class Block:
    """A basic block: ``[start, end)``, entered only at its start.

    ``successors`` are starts of blocks of the same function; ``jumps`` are (function, offset) in others of
    the target (``.cold`` parts, tail jumps into functions). ``indirect``: ends in a jump with unknown targets.
    ``external``: may be entered in ways that no ``successors`` and ``jumps`` show (the function's entry, a place
    whose address is taken). ``faults``: (offset of an instruction that may fault, start of the fixup's block);
    control leaves there before the instruction is done, and such blocks are not in ``successors`` for it.
    """

    start: int
    end: int
    successors: tuple[int, ...]
    jumps: tuple[tuple[str, int], ...] = ()
    indirect: bool = False
    external: bool = False
    faults: tuple[tuple[int, int], ...] = ()


@dataclass(frozen=True, slots=True)
class PatchSite:
    """Bytes of a function that the kernel rewrites when it loads or later."""

    kind: PatchKind
    offset: int
    length: int


@dataclass(frozen=True, slots=True)
class Symbol:
    """A named object or function of the target; ``type`` where BTF has the variable."""

    name: str
    section: str
    offset: int
    size: int
    is_object: bool
    type: TypeReference | None = None
    ambiguous: bool = False


@dataclass(frozen=True, slots=True)
class OpsTable:
    """An object in a data section that holds function addresses.

    ``type`` is the struct's name where BTF says so or where exactly one struct fits size, places and
    prototypes (``type_inferred``); ``slots`` are (member path, function) or, without a type,
    (``"+0x18"``, function). Functions are of the target or imports.
    """

    symbol: str
    section: str
    offset: int
    type: str | None
    slots: tuple[tuple[str, str], ...]
    type_inferred: bool = False
    writable: bool = False


def member_path(place: str) -> str:
    """The path of a slot of an ops table without the numbers of array elements: ``[3].fn`` is the member ``fn``."""
    return _ELEMENT.sub("", place)


@dataclass(frozen=True)
class Function:
    """A function, or the ``.cold`` part of one (``parent`` then names it).

    ``ambiguous``: other code of the kernel or of the target has the same name, so that a probe by name is
    refused or lands elsewhere. ``frame``: bytes of registers that the prologue pushes for the caller; ``saved``
    says which register is at which frame offset. A function that rounds its stack pointer down before anything else
    copies its return address below; ``saved`` then counts from that copy, and has one register that is not callee-saved:
    it keeps the caller's stack pointer. ``traced``: it begins with the ftrace call or nop. ``values``
    is indexed by ``Site.value``; a ``.cold`` part shares its parent's table (and has an empty one). ``problems``
    is what could not be understood. ``initial``: its code is freed after initialization.
    """

    name: str
    section: str
    offset: int
    size: int
    ambiguous: bool
    address_taken: bool
    exported: bool
    prototype: Prototype | None
    blocks: tuple[Block, ...]
    sites: tuple[Site, ...]
    frame: int
    problems: tuple[str, ...]
    parent: str | None = None
    saved: tuple[tuple[str, int], ...] = ()
    traced: bool = False
    initial: bool = False
    instructions: int = 0
    values: tuple[ValueSource, ...] = ()
    patches: tuple[PatchSite, ...] = ()

    @property
    def stack_kept(self) -> int | None:
        """Where a function that rounds its stack pointer down first keeps its caller's (the address behind the return
        address slot): offset from its copy of the return address."""
        return next((offset for register, offset in self.saved if register not in CALLEE_SAVED_NAMES), None)

    @cached_property
    def callees(self) -> frozenset[str]:
        """The functions that it calls by name."""
        return frozenset(site.target for site in self.sites if site.target is not None)

    @cached_property
    def site_by_offset(self) -> Mapping[int, Site]:
        return {site.offset: site for site in self.sites}


@dataclass(frozen=True, slots=True)
class Field:
    """Where a field of a kernel struct is, in bytes (and bits for a bit field)."""

    offset: int
    size: int
    bit_offset: int = 0
    bitfield_size: int = 0


@dataclass(frozen=True)
class KernelFacts:
    """What checks need to know of the kernel around the target, all of it from BTF and symbols.

    ``fields`` is by ``"struct.field"``, ``sizes`` by struct, ``enums`` by enumerator (``"PG_slab"``; absent in
    kernels that lack it), ``symbols`` the present ones of those that checks may read (``page_offset_base``),
    ``constants`` further numbers (``thread_size``, ``page_shift``).
    """

    fields: Mapping[str, Field] = field(default_factory=dict)
    sizes: Mapping[str, int] = field(default_factory=dict)
    enums: Mapping[str, int] = field(default_factory=dict)
    symbols: frozenset[str] = frozenset()
    constants: Mapping[str, int] = field(default_factory=dict)
    build_id: str = ""


@dataclass(frozen=True)
class Description:
    """Everything that is known of one target in one kernel build."""

    release: str
    target: Target
    sections: tuple[Section, ...]
    functions: tuple[Function, ...]
    imports: tuple[str, ...]
    exports: tuple[str, ...]
    symbols: tuple[Symbol, ...]
    ops_tables: tuple[OpsTable, ...]
    types: TypeTable
    kernel: KernelFacts
    problems: tuple[str, ...] = ()
    format_version: int = FORMAT_VERSION

    @cached_property
    def function_by_name(self) -> Mapping[str, Function]:
        """By name; where several share one, the first."""
        found: dict[str, Function] = {}
        for function in self.functions:
            found.setdefault(function.name, function)
        return found

    @cached_property
    def section_by_name(self) -> Mapping[str, Section]:
        return {section.name: section for section in self.sections}

    @cached_property
    def symbol_by_name(self) -> Mapping[str, Symbol]:
        found: dict[str, Symbol] = {}
        for symbol in self.symbols:
            found.setdefault(symbol.name, symbol)
        return found
