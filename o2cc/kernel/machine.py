# SPDX-License-Identifier: Apache-2.0
"""Decodes x86-64 machine code into what the analyses need of each instruction.

Addresses are plain numbers in one space for the whole target (see `o2cc.kernel.layout`).
"""

from bisect import bisect_left
from typing import Any, cast

import iced_x86 as iced
from iced_x86 import FlowControl, MemorySizeExt, OpAccess, OpKind, Register

from o2cc.kernel.description import StaticAddress
from o2cc.kernel.instruction import (
    NO_REGISTER,
    RAX,
    RBP,
    REGISTERS,
    RSP,
    Code,
    Effect,
    Flow,
    Instruction,
    Link,
    Memory,
    Places,
)

PATCHED_THUNK_PREFIXES = ("__x86_indirect_thunk_", "__x86_indirect_call_thunk_", "__x86_indirect_jump_thunk_")
RETURN_THUNKS = frozenset({"__x86_return_thunk", "zen_untrain_ret", "its_return_thunk"})
FTRACE_ENTRIES = frozenset({"__fentry__", "mcount"})


_MNEMONICS = {
    value: name.rstrip("_").lower()
    for name, value in vars(iced.Mnemonic).items()
    if isinstance(value, int) and not name.startswith("_")
}
_SEGMENTS = {Register.FS: "fs", Register.GS: "gs"}


def _full_registers() -> tuple[int, ...]:
    """Index into `REGISTERS` by iced-x86's register number, `NO_REGISTER` for what is no general register."""
    registers = [value for name, value in vars(Register).items() if isinstance(value, int) and name.isupper()]
    table = [NO_REGISTER] * (max(registers) + 1)
    for register in registers:
        full = iced.RegisterExt.full_register(cast(Any, register))
        if Register.RAX <= full <= Register.R15:
            table[register] = full - Register.RAX
    return tuple(table)


_FULL = _full_registers()
_STACK_REGISTERS = (Register.RSP, Register.RBP, Register.ESP, Register.EBP)
_WIDE = range(Register.RAX, Register.R15 + 1)
_WRITES = (OpAccess.WRITE, OpAccess.COND_WRITE, OpAccess.READ_WRITE, OpAccess.READ_COND_WRITE)
_BIT_STRING = frozenset({"bts", "btr", "btc"})
# Writes at rax that the decoder does not tell of: a cache line; the state save area of a virtual machine.
_HIDDEN_WRITES = {
    "clzero": Memory(RAX, NO_REGISTER, 1, 0, None, None, 64),
    "vmsave": Memory(RAX, NO_REGISTER, 1, 0, None, None, 4096),
}
_MASK64 = (1 << 64) - 1
_FLOWS = {
    FlowControl.NEXT: Flow.NEXT,
    FlowControl.UNCONDITIONAL_BRANCH: Flow.JUMP,
    FlowControl.CONDITIONAL_BRANCH: Flow.CONDITIONAL,
    FlowControl.CALL: Flow.CALL,
    FlowControl.INDIRECT_CALL: Flow.INDIRECT_CALL,
    FlowControl.INDIRECT_BRANCH: Flow.INDIRECT_JUMP,
    FlowControl.RETURN: Flow.RETURN,
    FlowControl.INTERRUPT: Flow.NEXT,
    FlowControl.XBEGIN_XABORT_XEND: Flow.NEXT,
    FlowControl.EXCEPTION: Flow.STOP,
}
_CODE = iced.Code
_MOVE_CODES = frozenset({_CODE.MOV_R64_RM64, _CODE.MOV_RM64_R64})
_CONSTANT32 = frozenset({_CODE.MOV_R32_IMM32})
_CONSTANT64 = frozenset({_CODE.MOV_R64_IMM64, _CODE.MOV_RM64_IMM32})
_ZERO = frozenset({_CODE.XOR_R32_RM32, _CODE.XOR_RM32_R32, _CODE.XOR_R64_RM64, _CODE.XOR_RM64_R64})
_ADD = frozenset({_CODE.ADD_RM64_IMM8, _CODE.ADD_RM64_IMM32, _CODE.ADD_RAX_IMM32, _CODE.INC_RM64})
_SUBTRACT = frozenset({_CODE.SUB_RM64_IMM8, _CODE.SUB_RM64_IMM32, _CODE.SUB_RAX_IMM32, _CODE.DEC_RM64})
_AND = frozenset({_CODE.AND_RM64_IMM8, _CODE.AND_RM64_IMM32, _CODE.AND_RAX_IMM32})
_PUSH = frozenset({_CODE.PUSH_R64, _CODE.PUSH_RM64, _CODE.PUSHQ_IMM8, _CODE.PUSHQ_IMM32, _CODE.PUSHFQ})
_POP = frozenset({_CODE.POP_R64, _CODE.POP_RM64, _CODE.POPFQ})
_ZERO_EXTENDING_LOAD = frozenset({"movzx", "movsx", "movsxd", "mov"})
_NOPS = frozenset({"nop", "endbr64", "fnop"})
_NO_EFFECT: tuple[Any, ...] = (Effect.NONE,)


def decode(code: Code, start: int, end: int, places: Places) -> tuple[list[Instruction], int | None]:
    """The instructions in ``[start, end)`` and the address of the first that cannot be decoded, if any."""
    data = code.content[start - code.address : end - code.address]
    decoder = iced.Decoder(64, data, ip=start)
    info = iced.InstructionInfoFactory().info
    links = code.link_addresses
    at = bisect_left(links, start)
    count = len(links)
    decoded = code.decoded
    result: list[Instruction] = []
    for raw in decoder:
        address = raw.ip
        length = raw.len
        if raw.is_invalid:
            return result, address
        stop = address + length
        fields: list[int] = []
        while at < count and links[at] < stop:
            fields.append(links[at])
            at += 1
        body = data[address - start : stop - start]
        known = decoded.get(body) if not fields else None
        if known is not None:
            result.append(known.at(address))
            continue
        item = _instruction(code, places, decoder, raw, info(raw), address, body, fields)
        result.append(item)
        if not fields and code.absolute is None and _is_anywhere(item, raw):
            decoded[body] = item
    return result, None


def _is_anywhere(item: Instruction, raw: iced.Instruction) -> bool:
    """Whether the same bytes mean the same at another address."""
    return item.target is None and item.symbol is None and not raw.is_ip_rel_memory_operand


def _instruction(
    code: Code,
    places: Places,
    decoder: iced.Decoder,
    raw: iced.Instruction,
    used: iced.InstructionInfo,
    address: int,
    body: bytes,
    fields: list[int],
) -> Instruction:
    item = Instruction()
    item.address = address
    item.length = length = len(body)
    item.body = body
    mnemonic = _MNEMONICS[raw.mnemonic]
    item.mnemonic = mnemonic
    item.flow = flow = _FLOWS[raw.flow_control]
    item.target = item.symbol = item.operand = item.write = item.place = None
    item.string = item.rep = item.modifies = item.stack_write = False
    item.lock = raw.has_lock_prefix
    item.bit_register = NO_REGISTER
    item.reads_stack_register = 0
    item.is_nop = mnemonic in _NOPS
    item.effect = _NO_EFFECT

    written = 0
    for register in used.used_registers():
        if register.access in _WRITES:
            full = _FULL[register.register]
            if full >= 0:
                written |= 1 << full
    item.written = written

    displacement_link = immediate_link = branch_link = None
    relocated: list[tuple[int, int]] = []
    if fields:
        constants = decoder.get_constant_offsets(raw)
        for field in fields:
            link = code.links[field]
            position = field - address
            relocated.append((position, link.size))
            if flow in (Flow.JUMP, Flow.CONDITIONAL, Flow.CALL):
                branch_link = (link, field)
            elif constants.has_displacement and position == constants.displacement_offset:
                displacement_link = (link, field)
            elif constants.has_immediate and position == constants.immediate_offset:
                immediate_link = (link, field)
    elif code.absolute is not None:
        relocated = _absolute_fields(code.absolute, decoder, raw)
    item.relocated = tuple(relocated)

    if flow in (Flow.JUMP, Flow.CONDITIONAL, Flow.CALL):
        _direct_branch(places, item, raw, branch_link)
        return item
    hidden = _HIDDEN_WRITES.get(mnemonic)
    if hidden is not None:
        item.write = hidden
        return item
    if raw.op_count == 0 and not used.used_memory():
        return item

    memory = None
    operands = used.used_memory()
    if operands:
        for part in operands:
            access = part.access
            if access in _WRITES and not (
                part.base == Register.RSP
                and part.segment == Register.SS
                and raw.is_stack_instruction
                and not mnemonic.startswith("pop")
                and part.displacement >> 63
            ):
                memory = _memory(code, places, raw, part, displacement_link, stop=address + length)
                item.write = memory
                item.modifies = access in (OpAccess.READ_WRITE, OpAccess.READ_COND_WRITE)
                item.string = raw.is_string_instruction
                item.rep = raw.has_rep_prefix or raw.has_repne_prefix if item.string else False
                if item.string:
                    item.write = Memory(memory.base, NO_REGISTER, 1, 0, None, None, _element_size(raw))
            elif memory is None and not raw.is_stack_instruction:
                memory = _memory(code, places, raw, part, displacement_link, stop=address + length)
        if mnemonic in _BIT_STRING and item.write is not None and raw.op1_kind == OpKind.REGISTER:
            item.bit_register = _FULL[raw.op1_register]

    if flow in (Flow.INDIRECT_CALL, Flow.INDIRECT_JUMP):
        if raw.op0_kind == OpKind.REGISTER:
            item.operand = _FULL[raw.op0_register]
        else:
            for part in operands:
                if part.access == OpAccess.READ:
                    item.operand = _memory(code, places, raw, part, displacement_link, stop=address + length)
        return item
    _effect(code, places, item, raw, memory, immediate_link, displacement_link)
    if item.effect is _NO_EFFECT and mnemonic != "lea":
        for position in range(raw.op_count):
            if raw.op_register(position) in _STACK_REGISTERS and raw.op_kind(position) == OpKind.REGISTER:
                item.reads_stack_register |= 1 << _FULL[raw.op_register(position)]
    return item


def _direct_branch(
    places: Places, item: Instruction, raw: iced.Instruction, link: tuple[Link, int] | None
) -> None:
    if link is None:
        item.target = raw.near_branch_target
        item.symbol = places.name_at(item.target)
    else:
        found, field = link
        if found.address is None:
            item.symbol = found.symbol
        else:
            item.target = found.address + found.addend + (item.address + item.length - field)
            item.symbol = places.name_at(item.target)
    symbol = item.symbol
    if symbol is None or (not symbol.startswith("__x86_") and symbol not in RETURN_THUNKS):
        return
    if symbol in RETURN_THUNKS and item.flow == Flow.JUMP:
        item.flow = Flow.RETURN
        return
    for prefix in PATCHED_THUNK_PREFIXES:
        register = symbol.removeprefix(prefix)
        if register != symbol and register in REGISTERS:
            item.operand = REGISTERS.index(register)
            item.flow = Flow.INDIRECT_CALL if item.flow == Flow.CALL else Flow.INDIRECT_JUMP
            item.target = None
            return


def _memory(
    code: Code,
    places: Places,
    raw: iced.Instruction,
    part: iced.UsedMemory,
    link: tuple[Link, int] | None,
    stop: int,
) -> Memory:
    base = _FULL[part.base] if part.base else NO_REGISTER
    index = _FULL[part.index] if part.index else NO_REGISTER
    displacement = part.displacement_i64
    static: StaticAddress | None = None
    explicit = not raw.is_string_instruction
    if explicit and link is not None:
        static = _linked(places, link, stop)
        displacement = 0
    elif (explicit and raw.is_ip_rel_memory_operand) or (
        code.absolute is not None and code.absolute[0] <= part.displacement < code.absolute[1]
    ):
        static = places.static_address(part.displacement)
        displacement = 0
    elif (
        code.absolute is not None
        and part.segment == Register.GS
        and base < 0
        and index < 0
        and displacement > 255
    ):
        # Per-CPU symbols of the kernel are offsets in the per-CPU area, which is linked at 0.
        static = places.static_address(displacement)
        displacement = 0
    return Memory(
        base,
        index,
        part.scale,
        displacement,
        _SEGMENTS.get(part.segment),
        static,
        MemorySizeExt.size(part.memory_size),
    )


def _element_size(raw: iced.Instruction) -> int:
    last = _MNEMONICS[raw.mnemonic][-1]
    return {"b": 1, "w": 2, "d": 4, "q": 8}.get(last, 0)


def _absolute_fields(
    image: tuple[int, int], decoder: iced.Decoder, raw: iced.Instruction
) -> list[tuple[int, int]]:
    """The fields of an instruction of the kernel that the boot code's relocation changes."""
    if raw.flow_control != FlowControl.NEXT or raw.is_ip_rel_memory_operand:
        return []
    found: list[tuple[int, int]] = []
    displacement = raw.memory_displacement
    constants = None
    if image[0] <= displacement < image[1]:
        constants = decoder.get_constant_offsets(raw)
        if constants.has_displacement:
            found.append((constants.displacement_offset, constants.displacement_size))
    for position in range(raw.op_count):
        wide = raw.op_kind(position) in (OpKind.IMMEDIATE64, OpKind.IMMEDIATE32TO64)
        if wide and image[0] <= raw.immediate(position) & _MASK64 < image[1]:
            constants = constants or decoder.get_constant_offsets(raw)
            found.append((constants.immediate_offset, constants.immediate_size))
    return found


def _linked(places: Places, link: tuple[Link, int], stop: int) -> StaticAddress:
    """What the linker puts into a field (at the address behind the link) of the instruction that ends at ``stop``."""
    found, field = link
    extra = found.addend + (stop - field if found.relative else 0)
    if found.address is None:
        return StaticAddress(None, found.symbol, extra)
    return places.static_address(found.address + extra)


def _effect(
    code: Code,
    places: Places,
    item: Instruction,
    raw: iced.Instruction,
    memory: Memory | None,
    immediate_link: tuple[Link, int] | None,
    displacement_link: tuple[Link, int] | None,
) -> None:
    """Set ``effect`` for what the value analysis follows."""
    kind = raw.code
    first_register = raw.op0_kind == OpKind.REGISTER
    to = _FULL[raw.op0_register] if first_register else NO_REGISTER
    immediate: StaticAddress | None = None
    if immediate_link is not None:
        item.place = immediate = _linked(places, immediate_link, item.end)
    if kind in _MOVE_CODES:
        second = raw.op1_kind == OpKind.REGISTER
        if first_register and second:
            item.effect = (Effect.MOVE, to, _FULL[raw.op1_register])
        elif first_register and memory is not None:
            item.effect = (Effect.LOAD, to, memory)
        elif second:
            item.effect = (Effect.STORE, _FULL[raw.op1_register])
        return
    if item.mnemonic == "lea":
        if raw.op0_register not in _WIDE:
            return
        _lea(code, places, item, raw, to, displacement_link)
        return
    if kind in _ADD or kind in _SUBTRACT:
        if first_register and immediate is None:
            number = 1 if kind in (_CODE.INC_RM64, _CODE.DEC_RM64) else _signed(raw.immediate(1))
            item.effect = (Effect.ADD, to, number if kind in _ADD else -number)
        return
    if kind in _AND:
        alignment = -_signed(raw.immediate(1))
        if first_register and immediate is None and alignment > 0 and alignment & (alignment - 1) == 0:
            item.effect = (Effect.ALIGN, to, alignment)
        return
    if kind in _ZERO:
        if first_register and raw.op1_kind == OpKind.REGISTER and raw.op0_register == raw.op1_register:
            item.effect = (Effect.CONSTANT, to, 0)
        return
    if kind in _CONSTANT64 or kind in _CONSTANT32:
        if first_register:
            number = raw.immediate(1) & (_MASK64 if kind in _CONSTANT64 else 0xFFFFFFFF)
            if (
                immediate is None
                and code.absolute is not None
                and code.absolute[0] <= number < code.absolute[1]
            ):
                item.place = immediate = places.static_address(number)
            item.effect = (Effect.STATIC, to, immediate) if immediate else (Effect.CONSTANT, to, number)
        return
    if kind in _PUSH:
        item.stack_write = True
        item.effect = (
            Effect.PUSH,
            to if kind == _CODE.PUSH_R64 or (first_register and kind == _CODE.PUSH_RM64) else -1,
        )
        return
    if kind in _POP:
        item.effect = (Effect.POP, to if first_register else NO_REGISTER)
        return
    if item.mnemonic == "leave":
        item.effect = (Effect.LEAVE,)
        return
    if raw.is_stack_instruction:
        item.stack_write = item.mnemonic.startswith(("push", "enter"))
        return
    if (
        first_register
        and memory is not None
        and item.write is None
        and item.mnemonic in _ZERO_EXTENDING_LOAD
        and iced.RegisterExt.size(raw.op0_register) >= 4
        and raw.op1_kind == OpKind.MEMORY
    ):
        item.effect = (Effect.LOAD, to, memory)


def _lea(
    code: Code,
    places: Places,
    item: Instruction,
    raw: iced.Instruction,
    to: int,
    link: tuple[Link, int] | None,
) -> None:
    static: StaticAddress | None = None
    if link is not None:
        item.place = static = _linked(places, link, item.end)
    elif raw.is_ip_rel_memory_operand:
        item.place = static = places.static_address(raw.ip_rel_memory_address)
    base: Any = raw.memory_base
    index: Any = raw.memory_index
    if static is not None:
        if (base in (Register.NONE, Register.RIP)) and index == Register.NONE:
            item.effect = (Effect.STATIC, to, static)
        return
    if (base in _STACK_REGISTERS and index != Register.NONE) or index == Register.RBP:
        item.reads_stack_register |= 1 << RSP | 1 << RBP
    displacement = _signed(raw.memory_displacement)
    if index == Register.NONE and base != Register.NONE:
        item.effect = (Effect.ADDRESS, to, _FULL[base], displacement)
    elif base == Register.NONE and index != Register.NONE and raw.memory_index_scale == 1:
        item.effect = (Effect.ADDRESS, to, _FULL[index], displacement)


def _signed(number: int) -> int:
    number &= _MASK64
    return number - (1 << 64) if number >> 63 else number
