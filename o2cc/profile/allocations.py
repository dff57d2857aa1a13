# SPDX-License-Identifier: Apache-2.0
"""Calls that allocate, found in a kernel's code, and where their results go.

A result is followed as a value (`o2cc.kernel.values`): through moves and spills, and through joins where it is one of
several values.  Its uses are arguments of direct calls, stores into memory, and the return of its function.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Container, Iterable, Iterator, Mapping
from dataclasses import dataclass, field

import numpy as np

from o2cc.kernel.btf import Btf, read_btf
from o2cc.kernel.builtin import kernel_layout
from o2cc.kernel.elf import ElfFile
from o2cc.kernel.flow import is_cold
from o2cc.kernel.instruction import ARGUMENT_REGISTERS, NO_REGISTER, RAX, Effect, Flow, Instruction, Memory
from o2cc.kernel.kernels import Kernel
from o2cc.kernel.layout import Layout, module_layout
from o2cc.kernel.patches import Patches, read_patches, section_tables
from o2cc.kernel.scan import prepare
from o2cc.kernel.values import Held, State, ValueAnalysis, Values

ALLOCATORS = frozenset(
    {
        # include/linux/slab.h (6.1; 6.12 adds `_noprof`)
        "__kmalloc", "__kmalloc_node", "kmalloc_trace", "kmalloc_node_trace", "kmalloc_large", "kmalloc_large_node",
        "__kmalloc_cache", "__kmalloc_cache_node", "__kmalloc_large", "__kmalloc_large_node", "kmem_cache_alloc", "kmem_cache_alloc_lru", "kmem_cache_alloc_node", "krealloc",
        # what hands its own caller's address on to `__kmalloc_node_track_caller`: mm/util.c, net/core/skbuff.c
        "kstrdup", "kstrndup", "kmemdup", "kmemdup_nul", "memdup_user", "memdup_user_nul", "strndup_user",
        "kvasprintf", "kmalloc_reserve",
    }
)  # fmt: skip
"""Functions whose caller is the allocation site in the tracepoints `kmalloc` and `kmem_cache_alloc`."""

CACHE_ALLOCATORS = frozenset({"kmem_cache_alloc", "kmem_cache_alloc_lru", "kmem_cache_alloc_node"})

CACHE_CREATORS = frozenset({"kmem_cache_create", "kmem_cache_create_usercopy", "__kmem_cache_create_args"})
"""Functions whose second argument is the size of a new cache's objects (mm/slab_common.c; the last one: 6.12)."""

_PROFILED = "_noprof"


def allocator(symbol: str | None) -> str | None:
    """The allocator that a symbol is, without the suffix of allocation profiling (6.10 and later); None: none."""
    name = symbol.removesuffix(_PROFILED) if symbol else ""
    return name if name in ALLOCATORS else None


def _callee(item: Instruction, wrappers: Container[str]) -> str | None:
    """The allocator or wrapper that an instruction calls or jumps to."""
    if item.flow not in (Flow.CALL, Flow.JUMP) or item.symbol is None:
        return None
    return allocator(item.symbol) or (item.symbol if item.symbol in wrappers else None)


Variable = tuple[str, int]
"""A pointer in static memory: section and offset."""


@dataclass(frozen=True, slots=True)
class Use:
    """What is done with a result.  ``certain``: the value is the result, not one of several.

    ``kind``: `argument` number ``index`` of ``callee``; `return`; `store` to ``base`` (a value and an offset), which is
    ``displacement`` bytes behind the register ``index``.
    """

    kind: str
    address: int
    certain: bool
    callee: str = ""
    index: int = 0
    base: Held = (0, 0)
    displacement: int = 0


@dataclass(frozen=True, slots=True)
class Point:
    """The state before one instruction, as far as it concerns one result: registers that hold it."""

    address: int
    certain: frozenset[int]
    possible: frozenset[int]


@dataclass
class Allocation:
    """One call that allocates.  ``address``: where it returns to; ``asked``: bytes, if they are a constant; ``cache``:
    the variable that holds the cache."""

    address: int
    callee: str
    asked: int | None
    cache: Variable | None = None
    uses: list[Use] = field(default_factory=list)
    points: list[Point] = field(default_factory=list)


@dataclass
class CodeUnit:
    """A function with calls that allocate, solved."""

    name: str
    start: int
    ranges: tuple[tuple[int, int], ...]
    definitions: list[tuple[object, ...]]
    allocations: list[Allocation]


@dataclass(frozen=True)
class Code:
    """The code of a kernel or module that allocates; ``names`` are symbols of code as in /proc/kallsyms."""

    layout: Layout
    btf: Btf
    own_btf: bool
    units: tuple[CodeUnit, ...]
    names: tuple[tuple[int, str], ...]


def kernel_code(kernel: Kernel) -> Code:
    """The functions of a kernel that call allocators.  Raises DiagnosticError as `Kernel` does."""
    symbols = kernel.symbols
    names = tuple(
        (address, name)
        for address, letter, name in zip(
            symbols.addresses.tolist(), symbols.types, symbols.names, strict=True
        )
        if chr(letter) in "tTwW" and address
    )
    starts: dict[int, str] = {}
    for address, name in names:
        starts.setdefault(address, name)
    addresses = sorted(starts)
    everything, _ = kernel_layout(kernel, {})
    sections = [section for section in everything.sections if section.executable and section.content]

    def around(targets: set[int], opcodes: bytes) -> dict[int, str]:
        found = {}
        for section in sections:
            for place in _branches_to(section.content, section.start, targets, opcodes):
                start = addresses[bisect_right(addresses, place) - 1]
                found[start] = starts[start]
        return found

    wrappers = {address for address, name in names if allocator(name) is not None}
    # A function that ends in a jump to an allocator: what it calls takes the caller of the function for its own.
    while True:
        more = {
            start
            for start, name in around(wrappers, b"\xe9").items()
            if not is_cold(name) and start not in wrappers
        }
        if not more:
            break
        wrappers = wrappers | more
    creators = {address for address, name in names if name in CACHE_CREATORS}
    chosen = around(wrappers | creators, b"\xe8\xe9")
    _with_cold_parts(chosen, starts)
    layout, patches = kernel_layout(kernel, chosen)
    own = frozenset(starts[start] for start in wrappers if start in starts)
    return Code(layout, kernel.btf, True, _solve(layout, patches, own), names)


def _with_cold_parts(chosen: dict[int, str], starts: Mapping[int, str]) -> None:
    by_name: dict[str, list[int]] = {}
    for address, name in starts.items():
        by_name.setdefault(name, []).append(address)
    for name in list(chosen.values()):
        base = name.removesuffix(".cold")
        for other in (base, f"{base}.cold"):
            for address in by_name.get(other, ()):
                chosen[address] = other


def _branches_to(content: bytes, start: int, targets: set[int], opcodes: bytes) -> Iterator[int]:
    """Places of bytes that may be a direct call (0xe8) or jump (0xe9) to one of the targets."""
    data = np.frombuffer(content, np.uint8)
    places = np.nonzero(np.isin(data[:-4], np.frombuffer(opcodes, np.uint8)))[0]
    raw = (
        data[places + 1].astype(np.uint32)
        | data[places + 2].astype(np.uint32) << np.uint32(8)
        | data[places + 3].astype(np.uint32) << np.uint32(16)
        | data[places + 4].astype(np.uint32) << np.uint32(24)
    ).view(np.int32)
    goals = (start & 0xFFFFFFFF) + places + 5 + raw.astype(np.int64)
    wanted = np.array([target & 0xFFFFFFFF for target in targets], np.int64)
    for place in places[np.isin(goals & 0xFFFFFFFF, wanted)].tolist():
        yield start + place


def module_code(elf: ElfFile, kernel: Btf) -> Code:
    """The functions of a module that call allocators; ``kernel``: the kernel's types.  Raises DiagnosticError."""
    layout = module_layout(elf)
    section = elf.section_by_name.get(".BTF")
    btf = kernel if section is None else read_btf(elf.content(section), elf.path, kernel)
    patches = read_patches(layout, section_tables(layout))
    names = tuple((function.start, function.name) for function in layout.functions)
    return Code(layout, btf, section is not None, _solve(layout, patches, frozenset()), names)


def _solve(layout: Layout, patches: Patches, wrappers: frozenset[str]) -> tuple[CodeUnit, ...]:
    solved = prepare(layout, patches).units
    # A module's own functions that end in a jump to an allocator.
    wrappers = wrappers | {
        name
        for analysis, _ in solved
        if (name := _function_name(analysis)) and not is_cold(name) and _jumps_to_allocator(analysis)
    }
    sizes = cache_sizes(solved)
    units = []
    for analysis, values in solved:
        name = _function_name(analysis)
        allocations = follow(analysis, values, wrappers)
        for allocation in allocations:
            if allocation.cache is not None:
                allocation.asked = sizes.get(allocation.cache)
        if name and allocations:
            ranges = tuple((part.start, part.end) for part in analysis.unit.parts)
            units.append(CodeUnit(name, analysis.unit.entry, ranges, values.definitions, allocations))
    return tuple(units)


def _function_name(analysis: ValueAnalysis) -> str:
    function = analysis.unit.parts[0].function
    return function.name if function is not None else ""


def _jumps_to_allocator(analysis: ValueAnalysis) -> bool:
    return any(
        item.flow == Flow.JUMP and allocator(item.symbol) is not None
        for part in analysis.unit.parts
        for item in part.instructions
    )


def cache_sizes(solved: Iterable[tuple[ValueAnalysis, Values]]) -> dict[Variable, int]:
    """The size of the objects of each cache, by the variable that it is kept in: what its creator was asked for.  A
    variable that holds caches of several sizes is left out."""
    found: dict[Variable, set[int | None]] = {}
    for analysis, values in solved:
        created: dict[int, int | None] = {}
        stores: list[tuple[Variable, int]] = []

        def record(
            item: Instruction,
            state: State,
            created: dict[int, int | None] = created,
            stores: list[tuple[Variable, int]] = stores,
            values: Values = values,
        ) -> None:
            if item.flow == Flow.CALL and item.symbol in CACHE_CREATORS:
                created[item.address] = _constant(state.registers[ARGUMENT_REGISTERS[1]], values)
            elif item.effect[0] == Effect.STORE and item.write is not None:
                variable = _variable(item.write)
                if variable is not None:
                    stores.append((variable, state.registers[item.effect[1]][0]))

        if not any(
            item.symbol in CACHE_CREATORS for part in analysis.unit.parts for item in part.instructions
        ):
            continue
        for address, block in analysis.unit.blocks.items():
            start = values.starts.get(address)
            if start is not None:
                analysis.replay(block, start, record)
        for variable, value in stores:
            definition = values.definitions[value]
            if definition[0] == "call" and definition[1] in created:
                found.setdefault(variable, set()).add(created[definition[1]])
    return {
        variable: size
        for variable, sizes in found.items()
        if len(sizes) == 1 and (size := next(iter(sizes))) is not None
    }


def _variable(memory: Memory) -> Variable | None:
    if memory.static is None or memory.base != NO_REGISTER or memory.index != NO_REGISTER or memory.segment:
        return None
    place = memory.static
    return (place.section or f"import {place.symbol}", place.offset)


def follow(analysis: ValueAnalysis, values: Values, wrappers: Container[str] = ()) -> list[Allocation]:
    """The calls in one unit that allocate, with the uses of their results.  ``wrappers``: functions that end in a jump
    to an allocator."""
    if not any(
        item.flow == Flow.CALL and _callee(item, wrappers)
        for part in analysis.unit.parts
        for item in part.instructions
    ):
        return []
    records: list[tuple[Instruction, tuple[Held, ...]]] = []
    exits: dict[int, State] = {}
    for address, block in analysis.unit.blocks.items():
        start = values.starts.get(address)
        if start is None:
            continue
        exits[address] = analysis.replay(
            block, start, lambda item, state: records.append((item, tuple(state.registers)))
        )
    records.sort(key=lambda record: record[0].address)
    merges = _merges(analysis, values, exits)
    numbers = {definition[1]: n for n, definition in enumerate(values.definitions) if definition[0] == "call"}
    found: list[Allocation] = []
    for item, registers in records:
        callee = _callee(item, wrappers) if item.flow == Flow.CALL else None
        if callee is None or item.address not in numbers:
            continue
        result = numbers[item.address]
        asked = _constant_size(callee, registers, values)
        cache = _cache(registers[ARGUMENT_REGISTERS[0]], values) if callee in CACHE_ALLOCATORS else None
        allocation = Allocation(item.end, callee, asked, cache)
        _note_uses(allocation, records, result, _closure(result, merges))
        found.append(allocation)
    return found


def _merges(
    analysis: ValueAnalysis, values: Values, exits: Mapping[int, State]
) -> Mapping[int, frozenset[int]]:
    """For each value, the joins that it is one of the inputs of (without an offset)."""
    places: dict[int, list[tuple[int | Held, int]]] = {}
    for number, definition in enumerate(values.definitions):
        if definition[0] == "merge":
            places.setdefault(definition[1], []).append((definition[2], number))
    found: dict[int, set[int]] = {}
    for address, state in exits.items():
        for successor in analysis.unit.blocks[address].successors:
            for place, number in places.get(successor, ()):
                held = state.registers[place] if isinstance(place, int) else state.slots.get(place)
                if held is not None and held[1] == 0:
                    found.setdefault(held[0], set()).add(number)
    return {number: frozenset(joins) for number, joins in found.items()}


def _closure(result: int, merges: Mapping[int, frozenset[int]]) -> frozenset[int]:
    seen = {result}
    pending = [result]
    while pending:
        for join in merges.get(pending.pop(), ()):
            if join not in seen:
                seen.add(join)
                pending.append(join)
    return frozenset(seen)


def _note_uses(
    allocation: Allocation,
    records: Iterable[tuple[Instruction, tuple[Held, ...]]],
    result: int,
    possible: frozenset[int],
) -> None:
    for item, registers in records:
        holders = [
            register
            for register in range(16)
            if registers[register][1] == 0 and registers[register][0] in possible
        ]
        if not holders:
            continue
        certain = frozenset(register for register in holders if registers[register][0] == result)
        allocation.points.append(Point(item.address, certain, frozenset(holders)))
        if item.flow == Flow.RETURN:
            if RAX in holders:
                allocation.uses.append(Use("return", item.address, RAX in certain))
        elif item.flow in (Flow.CALL, Flow.JUMP):
            if item.symbol is not None:
                for index, register in enumerate(ARGUMENT_REGISTERS):
                    if register in holders:
                        allocation.uses.append(
                            Use("argument", item.address, register in certain, item.symbol, index)
                        )
        elif item.effect[0] == Effect.STORE and item.effect[1] in holders and item.write is not None:
            memory = item.write
            if memory.base != NO_REGISTER and memory.index == NO_REGISTER and memory.segment is None:
                base = registers[memory.base]
                allocation.uses.append(
                    Use(
                        "store",
                        item.address,
                        item.effect[1] in certain,
                        index=memory.base,
                        base=(base[0], base[1] + memory.displacement),
                        displacement=memory.displacement,
                    )
                )


_SIZE_ARGUMENT = {
    "__kmalloc": 0, "__kmalloc_node": 0, "kmalloc_large": 0, "kmalloc_large_node": 0, "__kmalloc_large": 0,
    "__kmalloc_large_node": 0, "kmalloc_trace": 2, "kmalloc_node_trace": 3,
    "__kmalloc_cache": 2, "__kmalloc_cache_node": 3, "krealloc": 1, "kmemdup": 1, "memdup_user": 1,
}  # fmt: skip
"""Which argument is the size (include/linux/slab.h, 6.1 and 6.12)."""


def _constant_size(callee: str, registers: tuple[Held, ...], values: Values) -> int | None:
    index = _SIZE_ARGUMENT.get(callee)
    return None if index is None else _constant(registers[ARGUMENT_REGISTERS[index]], values)


def _constant(held: Held, values: Values) -> int | None:
    definition = values.definitions[held[0]]
    return int(definition[1]) + held[1] if definition[0] == "constant" else None


def _cache(held: Held, values: Values) -> Variable | None:
    """The variable that a cache was loaded from."""
    definition = values.definitions[held[0]]
    return _variable(definition[2]) if definition[0] == "load" and not held[1] else None
