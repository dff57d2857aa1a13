# SPDX-License-Identifier: Apache-2.0
"""What registers and stack slots hold: forward data flow over a unit, with numbers for values as in SSA form.

A register holds (value, offset). Values are numbered by what defines them (an argument, the result of a call, a
load, a join of different values at a block's start, ...), so that the same number in two places means the same
64-bit value at run time. The iteration is optimistic: a block's start state is what its predecessors agree on
so far, until nothing changes; a join that stays different gets a number of its own.

rsp is a register like any other; a value ``STACK`` plus offset is an address relative to the return address slot.
Slots of the own frame are followed through spills and reloads. They are forgotten at calls and at writes through
other pointers if the unit lets the address of its frame out of rsp and rbp (``frame_escapes``), since then the
callee or the pointer may reach them; otherwise nothing but the unit's own accesses can. Slots into which a
callee-saved register or the frame's own address was pushed stay: no object of the program overlaps them. (Correct
code never writes there; that an attacker does not is what the checks of stores are for.)
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from heapq import heappop, heappush
from typing import Any

from o2cc.kernel.flow import BasicBlock, Unit, is_ftrace_entry
from o2cc.kernel.instruction import (
    ARGUMENT_REGISTERS,
    CALLEE_SAVED,
    CALLER_SAVED_MASK,
    NO_REGISTER,
    RAX,
    RBP,
    RSP,
    Effect,
    Flow,
    Instruction,
    Memory,
    registers_in,
)

Held = tuple[int, int]
Definition = tuple[Any, ...]

STACK = 0
_CALLER_SAVED = tuple(
    register for register in range(16) if CALLER_SAVED_MASK >> register & 1 and register != RAX
)
# Visits after which a block's joins are no longer taken back, so that the iteration ends.
_STICKY_AFTER = 24
_MASK64 = (1 << 64) - 1
_CALLERS_TOP: Held = (STACK, 8)  # the stack pointer before the call


@dataclass(slots=True)
class State:
    """What is held at one point: 16 registers and slots of 8 bytes by (STACK or aligned value, offset)."""

    registers: list[Held]
    slots: dict[Held, Held]

    def copy(self) -> "State":
        return State(self.registers.copy(), self.slots.copy())


@dataclass
class Values:
    """The result: definitions by number, start states by block, the registers before each instruction that writes
    memory or does not go on to the next, and what the prologue saves.

    ``realigned``: the aligned stack pointer of a function that begins with ``lea r10, [rsp + 8]; and rsp, -16; push
    [r10 - 8]; push rbp; mov rbp, rsp`` and then saves registers, r10 among them. ``saved`` then counts from the copy of
    the return address, and where r10 is saved is the stack pointer that the caller had before the call.

    Definitions are tuples: ("stack",), ("aligned", address, alignment, frame offset), ("argument", n), ("entry", register), ("call", address), ("load", address,
    Memory, value or None, offset), ("static", StaticAddress), ("constant", n), ("merge", block, place),
    ("unknown", address, register), ("start", block, register).
    """

    definitions: list[Definition]
    starts: dict[int, State]
    before: dict[int, list[Held]]
    saved: dict[int, int]
    frame_escapes: bool
    unreached: list[int] = field(default_factory=list)
    realigned: int | None = None


Record = Callable[[Instruction, State], None]


class ValueAnalysis:
    """Runs over one unit; `solve`, then `replay` each block to see the state before each instruction."""

    def __init__(self, unit: Unit) -> None:
        self.unit = unit
        self.numbers: dict[Definition, int] = {("stack",): STACK}
        self.definitions: list[Definition] = [("stack",)]
        self.saved: dict[int, int] = {}
        self.saved_aligned: dict[int, int] = {}
        self.aligned: int | None = None
        self.frame_escapes = _frame_escapes(unit)
        self.before: dict[int, list[Held]] = {}
        self.protected: set[Held] = set()
        self.reused: set[Held] = set()

    def number(self, definition: Definition) -> int:
        found = self.numbers.get(definition)
        if found is None:
            found = self.numbers[definition] = len(self.definitions)
            self.definitions.append(definition)
        return found

    def solve(self) -> Values:
        """Iterate to the fixed point, then once over what no path from the entry reaches."""
        unit = self.unit
        starts: dict[int, State] = {}
        order = _reverse_postorder(unit)
        position = {address: index for index, address in enumerate(order)}
        predecessors: dict[int, list[int]] = {address: [] for address in unit.blocks}
        for block in unit.blocks.values():
            for successor in block.successors:
                predecessors[successor].append(block.start)
        exits: dict[int, State] = {}
        faults: dict[int, dict[tuple[int, int], State]] = {}
        visits: dict[int, int] = {}
        sticky: dict[int, set[object]] = {}
        reached: set[int] = set()
        # A function whose first instruction cannot be decoded has no block at its entry.
        roots = {block.start for block in unit.blocks.values() if block.external or block.start == unit.entry}
        pending = sorted(position[address] for address in roots)
        while True:
            while pending:
                place = heappop(pending)
                if pending and pending[0] == place:
                    continue
                address = order[place]
                reached.add(address)
                block = unit.blocks[address]
                incoming = [exits[source] for source in predecessors[address] if source in exits]
                incoming += faults.get(address, {}).values()
                visits[address] = visits.get(address, 0) + 1
                kept = sticky.setdefault(address, set()) if visits[address] > _STICKY_AFTER else None
                start = self._join(address, incoming, address in roots, kept)
                before = starts.get(address)
                if before is not None and before.registers == start.registers and before.slots == start.slots:
                    continue
                starts[address] = start
                state = start.copy()
                self._run(block, state, None)
                exits[address] = state
                for successor in block.successors:
                    heappush(pending, position[successor])
                for index, fixup in block.faults:
                    faults.setdefault(fixup, {})[address, index] = self._fault_state(block, start, index)
                    heappush(pending, position[fixup])
            rest = [address for address in order if address not in reached]
            for address in [address for address in rest if unit.blocks[address].is_padding]:
                # Bytes between aligned blocks: nothing runs them, so nothing flows out of them.
                starts[address] = self._unknown_state(address)
                reached.add(address)
                rest.remove(address)
            if not rest:
                break
            # Code behind calls that do not return, or reached in ways that are not understood.
            roots.add(rest[0])
            pending.append(position[rest[0]])
        unreached = [
            address for address in roots if address != unit.entry and not unit.blocks[address].external
        ]
        realigned = self._realigned()
        saved = self.saved if realigned is None else self.saved_aligned
        return Values(
            self.definitions, starts, self.before, saved, self.frame_escapes, sorted(unreached), realigned
        )

    def replay(self, block: BasicBlock, start: State, record: Record) -> State:
        """Call ``record`` with every instruction of the block and the state before it (not to be kept); gives back
        the state behind the block."""
        state = start.copy()
        self._run(block, state, record)
        return state

    def _entry_state(self) -> State:
        registers = [(self.number(("entry", register)), 0) for register in range(16)]
        for index, register in enumerate(ARGUMENT_REGISTERS):
            registers[register] = (self.number(("argument", index)), 0)
        registers[RSP] = (STACK, 0)
        return State(registers, {})

    def _unknown_state(self, address: int) -> State:
        return State([(self.number(("start", address, register)), 0) for register in range(16)], {})

    def _join(self, address: int, incoming: list[State], root: bool, sticky: set[object] | None) -> State:
        if root:
            entry = self._entry_state() if address == self.unit.entry else self._unknown_state(address)
            incoming = [entry, *incoming]
        first = incoming[0]
        if len(incoming) == 1 and not sticky:
            return first.copy()
        registers = first.registers.copy()
        for register in range(16):
            held = registers[register]
            for state in incoming:
                if state.registers[register] != held:
                    registers[register] = (self.number(("merge", address, register)), 0)
                    if sticky is not None:
                        sticky.add(register)
                    break
            else:
                if sticky and register in sticky:
                    registers[register] = (self.number(("merge", address, register)), 0)
        slots: dict[Held, Held] = {}
        for slot, held in first.slots.items():
            same = True
            for state in incoming:
                other = state.slots.get(slot)
                if other is None:
                    break
                same = same and other == held
            else:
                if same and not (sticky and slot in sticky):
                    slots[slot] = held
                else:
                    slots[slot] = (self.number(("merge", address, slot)), 0)
                    if sticky is not None:
                        sticky.add(slot)
        return State(registers, slots)

    def _fault_state(self, block: BasicBlock, start: State, index: int) -> State:
        """The state in which a fixup is entered: the handler may have set any register that is no address of the
        frame."""
        state = start.copy()
        partial = BasicBlock(block.start, block.instructions[:index])
        if index:
            self._run(partial, state, None)
        address = block.instructions[index].address
        if block.instructions[index].write is not None:
            state.slots.clear()
        for register in range(16):
            if not self._is_frame(state.registers[register][0]):
                state.registers[register] = (self.number(("unknown", address, 32 + register)), 0)
        return state

    def _run(self, block: BasicBlock, state: State, record: Record | None) -> None:
        registers, slots = state.registers, state.slots
        number = self.number
        clobbers = self.unit.clobbers
        before = self.before
        for item in block.instructions:
            if record is not None:
                record(item, state)
            address = item.address
            effect = item.effect
            kind = effect[0]
            flow = item.flow
            if flow != Flow.NEXT or item.write is not None or item.stack_write:
                before[address] = registers.copy()
            if flow == Flow.CALL or flow == Flow.INDIRECT_CALL:
                if not is_ftrace_entry(item):
                    self._call(address, registers, slots)
            elif kind == Effect.NONE or kind == Effect.STORE:
                if item.write is not None:
                    self._write(item, registers, slots)
                for register in registers_in(item.written):
                    registers[register] = (number(("unknown", address, register)), 0)
            elif kind == Effect.MOVE:
                registers[effect[1]] = registers[effect[2]]
            elif kind == Effect.LOAD:
                registers[effect[1]] = self._load(item, effect[2], registers, slots)
            elif kind == Effect.ADDRESS:
                registers[effect[1]] = self._plus(registers[effect[2]], effect[3])
            elif kind == Effect.ADD:
                registers[effect[1]] = self._plus(registers[effect[1]], effect[2])
            elif kind == Effect.ALIGN:
                value, offset = registers[effect[1]]
                if value == STACK:
                    registers[effect[1]] = (number(("aligned", address, effect[2], offset)), 0)
                else:
                    registers[effect[1]] = (number(("unknown", address, effect[1])), 0)
            elif kind == Effect.CONSTANT:
                registers[effect[1]] = (number(("constant", effect[2])), 0)
            elif kind == Effect.STATIC:
                registers[effect[1]] = (number(("static", effect[2])), 0)
            elif kind == Effect.PUSH:
                self._push(item, effect[1], registers, slots)
            elif kind == Effect.POP:
                self._pop(item, effect[1], registers, slots)
            elif kind == Effect.LEAVE:
                registers[RSP] = registers[RBP]
                self._pop(item, RBP, registers, slots)
            if address in clobbers:
                for register in registers_in(clobbers[address]):
                    registers[register] = (number(("unknown", address, 16 + register)), 0)

    def _plus(self, held: Held, amount: int) -> Held:
        value, offset = held
        definition = self.definitions[value]
        if definition[0] == "constant":
            return self.number(("constant", (definition[1] + amount) & _MASK64)), 0
        total = (offset + amount) & _MASK64
        return value, total - (1 << 64) if total >> 63 else total

    def _is_frame(self, value: int) -> bool:
        return value == STACK or self.definitions[value][0] == "aligned"

    def _call(self, address: int, registers: list[Held], slots: dict[Held, Held]) -> None:
        number = self.number
        for register in _CALLER_SAVED:
            registers[register] = (number(("unknown", address, register)), 0)
        registers[RAX] = (number(("call", address)), 0)
        if not slots:
            return
        base, top = registers[RSP]
        if not self._is_frame(base):
            slots.clear()
        elif self.frame_escapes:
            self._forget_objects(slots)
        else:
            # The callee's own frame lies below rsp.
            for slot in [slot for slot in slots if slot[0] == base and slot[1] < top]:
                del slots[slot]

    def _load(
        self, item: Instruction, memory: Memory, registers: list[Held], slots: dict[Held, Held]
    ) -> Held:
        base = registers[memory.base] if memory.base != NO_REGISTER else None
        if (
            base is None
            or memory.index != NO_REGISTER
            or memory.segment is not None
            or memory.static is not None
        ):
            return self.number(("load", item.address, memory, None, 0)), 0
        value, offset = base[0], base[1] + memory.displacement
        if memory.size == 8 and item.mnemonic == "mov" and self._is_frame(value):
            found = slots.get((value, offset))
            if found is None:
                found = (self.number(("load", item.address, memory, value, offset)), 0)
                self._set(slots, (value, offset), found)
            return found
        return self.number(("load", item.address, memory, value, offset)), 0

    def _push(self, item: Instruction, register: int, registers: list[Held], slots: dict[Held, Held]) -> None:
        held = registers[register] if register != NO_REGISTER else None
        top = registers[RSP] = self._plus(registers[RSP], -8)
        if not self._is_frame(top[0]):
            slots.clear()
            return
        self._forget(slots, top, 8)
        if held is not None:
            slots[top] = held
            self._note_saved(register, held, top)
            self._note_pushed(register, held, top)
            if (self._is_callers(register, held) or self._is_frame(held[0])) and top not in self.reused:
                self.protected.add(top)

    def _note_saved(self, register: int, held: Held, slot: Held) -> None:
        if slot[0] == STACK and self._is_callers(register, held):
            self.saved.setdefault(register, slot[1])

    def _note_pushed(self, register: int, held: Held, slot: Held) -> None:
        """A push below an aligned stack pointer, whose first word is a copy of the return address."""
        if slot[0] == STACK or self.aligned not in (None, slot[0]):
            return
        if self._is_callers(register, held) or held == _CALLERS_TOP:
            self.aligned = slot[0]
            self.saved_aligned.setdefault(register, slot[1] + 8)

    def _is_callers(self, register: int, held: Held) -> bool:
        """Whether this is what the caller left in a register that it needs again."""
        return register in CALLEE_SAVED and held[1] == 0 and self.definitions[held[0]] == ("entry", register)

    def _realigned(self) -> int | None:
        """The aligned stack pointer of a function that keeps its caller's, see :class:`Values`."""
        others = [register for register in self.saved_aligned if register not in CALLEE_SAVED]
        # Who pushed anything before keeps its registers in two places, which nothing here describes.
        whole = not self.saved and len(others) == 1 and self.saved_aligned.get(RBP) == -8
        return self.aligned if whole else None

    def _forget_objects(self, slots: dict[Held, Held]) -> None:
        """Drop the slots that may overlap an object whose address went out."""
        for slot in [slot for slot in slots if slot not in self.protected or slot in self.reused]:
            del slots[slot]

    def _pop(self, item: Instruction, register: int, registers: list[Held], slots: dict[Held, Held]) -> None:
        top = registers[RSP]
        found = slots.get(top)
        registers[RSP] = self._plus(top, 8)
        if register != NO_REGISTER:
            registers[register] = (
                found if found is not None else (self.number(("unknown", item.address, register)), 0)
            )
        elif item.write is not None:
            slots.clear()

    def _write(self, item: Instruction, registers: list[Held], slots: dict[Held, Held]) -> None:
        memory = item.write
        assert memory is not None
        if memory.segment is not None or (memory.base == NO_REGISTER and memory.index == NO_REGISTER):
            return
        base = registers[memory.base] if memory.base != NO_REGISTER else None
        if memory.index != NO_REGISTER and self._is_frame(registers[memory.index][0]):
            self._forget_objects(slots)
            return
        if base is None or not self._is_frame(base[0]):
            if self.frame_escapes and slots:
                self._forget_objects(slots)
            return
        if memory.index != NO_REGISTER or item.rep or memory.size == 0 or item.bit_register != NO_REGISTER:
            self._forget_objects(slots)
            return
        slot = (base[0], base[1] + memory.displacement)
        if self.protected:
            low, high = slot[1] - 8, slot[1] + memory.size
            self.reused.update(
                other for other in self.protected if other[0] == slot[0] and low < other[1] < high
            )
        self._forget(slots, slot, memory.size)
        if item.effect[0] == Effect.STORE and memory.size == 8:
            register = item.effect[1]
            slots[slot] = registers[register]
            self._note_saved(register, registers[register], slot)

    def _set(self, slots: dict[Held, Held], slot: Held, held: Held) -> None:
        """Remember what an 8-byte load found; slots that overlap only in part are no longer whole."""
        for other in [other for other in slots if other[0] == slot[0] and abs(other[1] - slot[1]) < 8]:
            del slots[other]
        slots[slot] = held

    def _forget(self, slots: dict[Held, Held], start: Held, size: int) -> None:
        """Drop the slots that a write of ``size`` bytes may touch."""
        if not slots:
            return
        low, high = self._range(start, size)
        for other in list(slots):
            if other[0] == start[0]:
                if start[1] - 8 < other[1] < start[1] + size:
                    del slots[other]
            else:
                other_low, other_high = self._range(other, 8)
                if other_low < high and low < other_high:
                    del slots[other]

    def _range(self, slot: Held, size: int) -> tuple[int, int]:
        found = frame_range(self.definitions, slot, size)
        return found if found is not None else (-(1 << 62), 1 << 62)


def frame_range(definitions: list[Definition], slot: Held, size: int) -> tuple[int, int] | None:
    """The bytes, relative to the return address slot, that ``size`` bytes at ``slot`` lie in for certain.

    An aligned value is at most alignment - 1 below what it was made from. None if not in terms of the frame.
    """
    value, offset = slot
    definition = definitions[value]
    if value == STACK:
        return offset, offset + size
    if definition[0] == "aligned":
        _, _, alignment, base = definition
        return base - (alignment - 1) + offset, base + offset + size
    return None


def frame_address(held: Held, memory: Memory) -> int | None:
    """The frame offset of a memory operand whose base holds ``held``; None unless provably in terms of the entry rsp."""
    if (
        held[0] != STACK
        or memory.index != NO_REGISTER
        or memory.segment is not None
        or memory.static is not None
    ):
        return None
    return held[1] + memory.displacement


def _frame_escapes(unit: Unit) -> bool:
    """Whether an address of the frame may be in memory or in a register other than rsp and the frame pointer rbp."""
    uses_frame_pointer = False
    for part in unit.parts:
        for item in part.instructions:
            if (item.effect[0] == Effect.MOVE and item.effect[1] == RBP and item.effect[2] == RSP) or (
                item.effect[0] == Effect.ADDRESS and item.effect[1] == RBP and item.effect[2] == RSP
            ):
                uses_frame_pointer = True
    sources = (RSP, RBP) if uses_frame_pointer else (RSP,)
    mask = sum(1 << register for register in sources)
    for part in unit.parts:
        for item in part.instructions:
            effect = item.effect
            kind = effect[0]
            if kind in (Effect.MOVE, Effect.ADDRESS):
                if effect[2] in sources and effect[1] not in (RSP, RBP):
                    return True
            elif kind in (Effect.PUSH, Effect.STORE):
                # `push rbp` in a prologue saves the caller's rbp: the frame pointer is set afterwards.
                if effect[1] == RSP or (effect[1] == RBP and kind == Effect.STORE and uses_frame_pointer):
                    return True
            elif item.reads_stack_register & mask and item.mnemonic not in ("cmp", "test"):
                return True
    return False


def _reverse_postorder(unit: Unit) -> list[int]:
    seen: set[int] = set()
    order: list[int] = []
    for root in [unit.entry, *sorted(unit.blocks)]:
        if root in seen or root not in unit.blocks:
            continue
        stack: list[tuple[int, int]] = [(root, 0)]
        seen.add(root)
        while stack:
            address, index = stack.pop()
            block = unit.blocks[address]
            following = (
                block.successors if not block.faults else [*block.successors, *(f for _, f in block.faults)]
            )
            while index < len(following) and following[index] in seen:
                index += 1
            if index < len(following):
                stack.append((address, index + 1))
                seen.add(following[index])
                stack.append((following[index], 0))
            else:
                order.append(address)
    order.reverse()
    return order
