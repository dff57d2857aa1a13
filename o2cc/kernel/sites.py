# SPDX-License-Identifier: Apache-2.0
"""From an analysed unit to the description's functions: sites, blocks, values, problems."""

from bisect import bisect_left
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from o2cc.kernel.description import (
    Argument,
    Block,
    Function,
    Operand,
    PatchSite,
    Site,
    SiteKind,
    StaticAddress,
    ValueSource,
)
from o2cc.kernel.flow import BasicBlock, Part, Unit, is_ftrace_entry
from o2cc.kernel.instruction import (
    ARGUMENT_REGISTERS,
    NO_REGISTER,
    RBP,
    REGISTERS,
    RSP,
    Flow,
    Instruction,
    Memory,
)
from o2cc.kernel.layout import Layout
from o2cc.kernel.patches import Patches
from o2cc.kernel.probes import ProbeContext, choose, context_for, register_mask
from o2cc.kernel.type_table import Prototype
from o2cc.kernel.values import (
    STACK,
    Definition,
    Held,
    ValueAnalysis,
    Values,
    frame_address,
    frame_range,
)

RCX = 1
_REALIGNED_BASE = -16  # what rbp holds behind the copy of the return address and the saved rbp


@dataclass(frozen=True)
class UnitFacts:
    """What the rest of the scan knows and the sites need."""

    layout: Layout
    patches: Patches
    sorted_sites: list[int]
    release: str
    last_function: int | None
    prototypes: Mapping[str, Prototype]
    own_prototypes: Mapping[str, Prototype]
    taken: frozenset[int]
    initial_sections: frozenset[str]


@dataclass
class _Table:
    """Renumbers the values that sites use, in order of first use."""

    values: Values
    place: Callable[[int], tuple[str | None, int]]
    callee: Mapping[int, str | None]
    numbers: dict[int, int] = field(default_factory=dict)
    sources: list[ValueSource] = field(default_factory=list)

    def number(self, value: int) -> int:
        found = self.numbers.get(value)
        if found is None:
            # A load's source refers to its base, which then comes before it.
            source = self._source(self.values.definitions[value])
            found = self.numbers[value] = len(self.sources)
            self.sources.append(source)
        return found

    def _source(self, definition: Definition) -> ValueSource:
        kind = definition[0]
        if kind == "stack":
            return ValueSource("stack")
        if kind == "argument":
            return ValueSource("argument", number=definition[1])
        if kind == "constant":
            number = definition[1]
            return ValueSource("constant", number=number - (1 << 64) if number >> 63 else number)
        if kind == "static":
            return ValueSource("static", address=definition[1])
        if kind == "entry":
            return ValueSource("unknown", function=None, site=0)
        if kind == "aligned":
            return ValueSource("aligned_stack", number=definition[2], offset=definition[3])
        function, site = self.place(definition[1])
        if kind == "call":
            return ValueSource("call", callee=self.callee.get(definition[1]), site=site, function=function)
        if kind == "load":
            memory: Memory = definition[2]
            if memory.segment == "gs" and memory.static is not None:
                return ValueSource(
                    "per_cpu", address=memory.static, size=memory.size, site=site, function=function
                )
            base = definition[3]
            return ValueSource(
                "load",
                value=self.number(base) if base is not None else None,
                offset=definition[4],
                size=memory.size,
                address=memory.static,
                site=site,
                function=function,
            )
        return ValueSource("merge" if kind == "merge" else "unknown", site=site, function=function)


def describe_unit(analysis: ValueAnalysis, values: Values, facts: UnitFacts) -> list[tuple[Part, Function]]:
    """Describe each function symbol of a unit, given the solved analysis of its values."""
    unit = analysis.unit
    main = unit.parts[0]
    named = [part for part in unit.parts if part.function is not None]

    def place(address: int) -> tuple[str | None, int]:
        for part in unit.parts:
            if part.start <= address < part.end and part.function is not None:
                return (None if part is main else part.function.name), address - part.start
        return None, 0

    callee = {
        item.address: _callee(facts.layout, item)
        for part in unit.parts
        for item in part.instructions
        if item.flow == Flow.CALL
    }
    table = _Table(values, place, callee)
    contexts = {
        part.start: context_for(
            unit,
            part,
            facts.patches,
            facts.sorted_sites,
            facts.release,
            part.function is not None and part.function.start == facts.last_function,
        )
        for part in unit.parts
    }
    problems: dict[int, list[str]] = {part.start: [] for part in unit.parts}
    for address, message in sorted(unit.problems):
        part = _part_of(unit, address)
        problems[part.start].append(f"+{address - part.start:#x}: {message}")
    sites: dict[int, list[Site]] = {part.start: [] for part in unit.parts}
    unreached = set(values.unreached)
    for start in sorted(unit.blocks):
        block = unit.blocks[start]
        part = _part_of(unit, start)
        builder = _SiteBuilder(unit, part, block, contexts[part.start], table, facts, sites[part.start])
        for index, item in enumerate(block.instructions):
            registers = values.before.get(item.address)
            if registers is not None:
                builder.add(index, item, registers)
        if builder.unknown_height is not None and start not in unreached:
            offset = builder.unknown_height - part.start
            problems[part.start].append(f"+{offset:#x}: the stack height is not known")
    for address in values.unreached:
        block = unit.blocks[address]
        if not all(
            item.is_nop or item.mnemonic == "int3" or item.flow == Flow.STOP for item in block.instructions
        ):
            part = _part_of(unit, address)
            problems[part.start].append(f"+{address - part.start:#x}: no path from the entry leads here")
    for part in unit.parts:
        if part.undecodable is not None:
            problems[part.start].append(
                f"+{part.undecodable - part.start:#x}: an instruction cannot be decoded"
            )
        if part.function is None and sites[part.start]:
            where = facts.layout.static_address(part.start)
            problems[main.start].append(f"{where.section}+{where.offset:#x}: code without a symbol has sites")
    saved = tuple(
        sorted(((REGISTERS[register], slot) for register, slot in values.saved.items()), key=lambda s: -s[1])
    )
    return [
        (
            part,
            _function(
                unit,
                part,
                facts,
                tuple(sites[part.start]),
                tuple(dict.fromkeys(problems[part.start])),
                saved,
                tuple(table.sources) if part is main else (),
            ),
        )
        for part in named
    ]


def _function(
    unit: Unit,
    part: Part,
    facts: UnitFacts,
    sites: tuple[Site, ...],
    problems: tuple[str, ...],
    saved: tuple[tuple[str, int], ...],
    values: tuple[ValueSource, ...],
) -> Function:
    function = part.function
    main = unit.parts[0].function
    assert function is not None
    assert main is not None
    section = next(section for section in facts.layout.sections if section.name == function.section)
    first = next((item for item in part.instructions if not item.is_nop), None)
    return Function(
        name=function.name,
        section=function.section,
        offset=function.start - section.start,
        size=function.end - function.start,
        ambiguous=False,
        address_taken=function.start in facts.taken,
        exported=function.exported,
        prototype=facts.own_prototypes.get(function.name),
        blocks=_blocks(unit, part, facts.layout),
        sites=sites,
        frame=8 * sum(1 for _, slot in saved if slot >= -8 * len(saved)),
        problems=problems,
        parent=main.name if function is not main else None,
        saved=saved,
        traced=first is not None and is_ftrace_entry(first),
        initial=function.section in facts.initial_sections,
        instructions=len(part.instructions),
        values=values,
        patches=_patch_sites(part, facts),
    )


def _blocks(unit: Unit, part: Part, layout: Layout) -> tuple[Block, ...]:
    found = []
    # A fixup in another part is entered in a way that only this part's blocks could tell.
    foreign_fixups = {
        fixup
        for block in unit.blocks.values()
        for _, fixup in block.faults
        if not part.start <= block.start < part.end
    }
    entered = {address for block in unit.blocks.values() for address in block.successors}
    entered.update(fixup for block in unit.blocks.values() for _, fixup in block.faults)
    for start in sorted(unit.blocks):
        if not part.start <= start < part.end:
            continue
        block = unit.blocks[start]
        if block.is_padding and not block.external and start not in entered:
            continue
        faults = [
            (block.instructions[index].address - part.start, fixup - part.start)
            for index, fixup in block.faults
            if part.start <= fixup < part.end
        ]
        inside = [address for address in block.successors if part.start <= address < part.end]
        inside += [
            fixup for _, fixup in block.faults if part.start <= fixup < part.end and fixup not in inside
        ]
        jumps: list[tuple[str, int]] = []
        for address in sorted({*block.successors, *block.outside, *(fixup for _, fixup in block.faults)}):
            target = layout.function_at(address)
            if not part.start <= address < part.end and target is not None:
                jumps.append((target.name, address - target.start))
        found.append(
            Block(
                start - part.start,
                block.end - part.start,
                tuple(sorted(address - part.start for address in inside)),
                tuple(jumps),
                block.indirect,
                block.external or start in foreign_fixups,
                tuple(faults),
            )
        )
    return tuple(found)


def _patch_sites(part: Part, facts: UnitFacts) -> tuple[PatchSite, ...]:
    by_address = {item.address: item for item in part.instructions}
    found = []
    position = bisect_left(facts.sorted_sites, part.start)
    while position < len(facts.sorted_sites) and facts.sorted_sites[position] < part.end:
        address = facts.sorted_sites[position]
        kind, length = facts.patches.sites[address]
        if not length:
            length = by_address[address].length if address in by_address else 0
        found.append(PatchSite(kind, address - part.start, length))
        position += 1
    return tuple(found)


class _SiteBuilder:
    """Collects the sites of one block."""

    def __init__(
        self,
        unit: Unit,
        part: Part,
        block: BasicBlock,
        context: ProbeContext,
        table: _Table,
        facts: UnitFacts,
        into: list[Site],
    ) -> None:
        self.unit = unit
        self.part = part
        self.block = block
        self.context = context
        self.table = table
        self.facts = facts
        self.into = into
        self.index = -1
        self.unknown_height: int | None = None
        self.frame_pointer = False

    def add(self, index: int, item: Instruction, registers: list[Held]) -> None:
        """Take the instruction at ``index`` of the block, with what registers hold before it."""
        self.index = index
        realigned = self.table.values.realigned
        self.frame_pointer = registers[RBP] in ((STACK, -8), (realigned, _REALIGNED_BASE))
        flow = item.flow
        top = registers[RSP]
        height = -top[1] if top[0] == STACK else None
        if flow == Flow.NEXT:
            if item.write is not None:
                self._write(item, registers, height)
            elif frame_range(self.table.values.definitions, top, 0) is None:
                memory = Memory(RSP, NO_REGISTER, 1, -8, None, None, 8)
                self._site(item, "push", height, _operand(memory), 8, register_mask([RSP]), None, top)
        elif flow == Flow.CALL:
            if not is_ftrace_entry(item):
                self._call(item, registers, height, "call")
        elif flow in (Flow.JUMP, Flow.CONDITIONAL):
            if self._is_tail_call(item):
                self._call(item, registers, height, "tail_call")
        elif flow in (Flow.INDIRECT_CALL, Flow.INDIRECT_JUMP):
            self._indirect(item, registers, height)
        elif flow == Flow.RETURN:
            self._site(item, "return", height, None, 0, register_mask([RSP]), None, None)
        if frame_range(self.table.values.definitions, top, 0) is None and self.unknown_height is None:
            self.unknown_height = item.address

    def _is_tail_call(self, item: Instruction) -> bool:
        if item.target is None:
            return item.symbol is not None
        return not any(part.start <= item.target < part.end for part in self.unit.parts)

    def _write(self, item: Instruction, registers: list[Held], height: int | None) -> None:
        memory = item.write
        assert memory is not None
        kind: SiteKind = "string" if item.string else "read_modify_write" if item.modifies else "store"
        held = registers[memory.base] if memory.base != NO_REGISTER else None
        frame = frame_address(held, memory) if held is not None else None
        within = None
        simple = memory.index == NO_REGISTER and memory.segment is None and memory.static is None
        count = self._constant(registers[RCX]) if item.rep else None
        if item.bit_register != NO_REGISTER:
            frame = None
        elif held is not None and simple and memory.size and (not item.rep or count is not None):
            slot = (held[0], held[1] + memory.displacement)
            within = frame_range(
                self.table.values.definitions, slot, memory.size * (count if count is not None else 1)
            )
        needed = register_mask(
            [memory.base, memory.index, item.bit_register, RCX if item.rep else NO_REGISTER]
        )
        self._site(
            item, kind, height, _operand(memory), memory.size, needed, frame, held, within=within, count=count
        )

    def _constant(self, held: Held) -> int | None:
        definition = self.table.values.definitions[held[0]]
        return definition[1] if definition[0] == "constant" else None

    def _call(self, item: Instruction, registers: list[Held], height: int | None, kind: SiteKind) -> None:
        target = _callee(self.facts.layout, item)
        prototype = self.facts.prototypes.get(target) if target is not None else None
        count = 6 if prototype is None or prototype.variadic else min(6, len(prototype.parameters))
        needed = register_mask(ARGUMENT_REGISTERS[:count])
        arguments = self._arguments(registers, count, prototype is not None)
        self._site(item, kind, height, None, 0, needed, None, None, target, arguments)

    def _indirect(self, item: Instruction, registers: list[Held], height: int | None) -> None:
        kind: SiteKind = "indirect_call" if item.flow == Flow.INDIRECT_CALL else "indirect_jump"
        arguments = self._arguments(registers, 6, False)
        operand = item.operand
        if isinstance(operand, int):
            held = registers[operand]
            register = Operand(REGISTERS[operand], is_memory=False)
            self._site(item, kind, height, register, 0, register_mask([operand]), None, held, None, arguments)
            return
        if operand is None:
            self._site(item, kind, height, None, 0, 0, None, None, None, arguments)
            return
        held_base = registers[operand.base] if operand.base != NO_REGISTER else None
        needed = register_mask([operand.base, operand.index])
        self._site(item, kind, height, _operand(operand), 0, needed, None, held_base, None, arguments)

    def _arguments(self, registers: list[Held], count: int, certain: bool) -> tuple[Argument | None, ...]:
        result: list[Argument | None] = []
        definitions = self.table.values.definitions
        for register in ARGUMENT_REGISTERS[:count]:
            value, offset = registers[register]
            kind = definitions[value][0]
            # Without a prototype, a register that nothing set on purpose is left out.
            if kind in ("unknown", "start", "entry") and not certain:
                result.append(None)
                continue
            number = self.table.number(value)
            result.append(Argument(number, offset, self.table.sources[number]))
        while result and result[-1] is None:
            result.pop()
        return tuple(result)

    def _site(
        self,
        item: Instruction,
        kind: SiteKind,
        height: int | None,
        operand: Operand | None,
        size: int,
        needed: int,
        frame: int | None,
        held: Held | None,
        target: str | None = None,
        arguments: tuple[Argument | None, ...] = (),
        within: tuple[int, int] | None = None,
        count: int | None = None,
    ) -> None:
        probe, earlier = choose(self.context, self.block, self.index, needed, self.unit.clobbers)
        number = self.table.number(held[0]) if held is not None else None
        mnemonic = f"lock {item.mnemonic}" if item.lock else item.mnemonic
        patch = self.context.patch_in(item.address, item.end)
        self.into.append(
            Site(
                offset=item.address - self.part.start,
                length=item.length,
                kind=kind,
                mnemonic=mnemonic,
                operand=operand,
                size=size,
                rep=item.rep,
                target=target,
                stack_height=height,
                frame_offset=frame,
                value=number,
                value_offset=held[1] if held is not None else 0,
                value_source=self.table.sources[number] if number is not None else None,
                code_hash=item.hash,
                relocated=item.relocated,
                probe=probe,
                bit_index=REGISTERS[item.bit_register] if item.bit_register != NO_REGISTER else None,
                patched=patch[1] if patch is not None else None,
                arguments=arguments,
                earlier=earlier,
                frame_range=within,
                count=count,
                frame_pointer=self.frame_pointer,
            )
        )


def _callee(layout: Layout, item: Instruction) -> str | None:
    if item.symbol is not None:
        return item.symbol
    if item.target is None:
        return None
    function = layout.function_at(item.target)
    if function is not None:
        return f"{function.name}+{item.target - function.start:#x}"
    symbols = layout.kernel_symbols
    position = symbols.covering(item.target) if symbols is not None else None
    if symbols is not None and position is not None:
        return f"{symbols.names[position]}+{item.target - int(symbols.addresses[position]):#x}"
    place: StaticAddress = layout.static_address(item.target)
    return f"{place.section or place.symbol}+{place.offset:#x}"


def _operand(memory: Memory) -> Operand:
    return Operand(
        base=REGISTERS[memory.base] if memory.base != NO_REGISTER else None,
        index=REGISTERS[memory.index] if memory.index != NO_REGISTER else None,
        scale=memory.scale if memory.index != NO_REGISTER else 1,
        displacement=memory.displacement,
        segment=memory.segment,
        static=memory.static,
    )


def _part_of(unit: Unit, address: int) -> Part:
    return next((part for part in unit.parts if part.start <= address < part.end), unit.parts[0])
