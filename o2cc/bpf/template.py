# SPDX-License-Identifier: Apache-2.0
"""One compiled check, stamped out for many sites.

LLVM leaves every parameter as a 64-bit immediate load (two instruction slots) that a relocation names.  Where
the values of all sites allow it, the load becomes a one-slot move, or goes into the addition that uses it; jumps
and relocations move along.
Offsets are in bytes, an instruction slot has 8.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import IntEnum

from o2cc.bpf.compiler import MachineCode, Relocation
from o2cc.bpf.folding import Slot, apply_fold, find_fold
from o2cc.bpf.llvm_context import SymbolKind
from o2cc.ir.walk import MASK

SLOT = 8

# Encoding: kernel Documentation/bpf/instruction-set.rst (6.1).
_LOAD_IMMEDIATE_64 = 0x18
_MOVE_64 = 0xB7
_MOVE_32 = 0xB4
_CLASS_MASK = 0x07
_CLASS_JMP = 0x05
_CLASS_JMP32 = 0x06
_CALL = 0x85
_EXIT = 0x95

_INSTRUCTION = struct.Struct("<BBhi")


class Width(IntEnum):
    """How a parameter is loaded."""

    SIGNED_32 = 0  # sign-extended move
    UNSIGNED_32 = 1  # zero-extended move
    FULL_64 = 2  # 64-bit immediate load


def width_of(values: Iterable[int]) -> Width:
    """The narrowest load that gives every one of the values (64-bit words)."""
    signed = unsigned = True
    for value in values:
        word = value & MASK
        signed = signed and (word < 1 << 31 or word >= (1 << 64) - (1 << 31))
        unsigned = unsigned and word < 1 << 32
    if signed:
        return Width.SIGNED_32
    return Width.UNSIGNED_32 if unsigned else Width.FULL_64


@dataclass(frozen=True, slots=True)
class Template:
    """Code with holes; ``holes`` are (byte offset of the instruction, parameter, is it a 64-bit load)."""

    code: bytes
    holes: tuple[tuple[int, str, bool], ...]
    relocations: tuple[Relocation, ...]

    def fill(self, parameters: Mapping[str, int]) -> bytearray:
        """The code of a site.  Raises KeyError for a parameter that the site does not give."""
        code = bytearray(self.code)
        for offset, name, full in self.holes:
            word = parameters[name] & MASK
            code[offset + 4 : offset + 8] = (word & 0xFFFFFFFF).to_bytes(4, "little")
            if full:
                code[offset + 12 : offset + 16] = (word >> 32).to_bytes(4, "little")
        return code


def make_template(machine: MachineCode, widths: Mapping[str, Width]) -> Template:
    """Turns parameter loads into holes.

    Raises ValueError if a parameter's relocation is not at a plain 64-bit immediate load, which would mean
    that LLVM did something with the address that the opaque copy should have prevented.
    """
    prefix = SymbolKind.PARAMETER
    count = len(machine.code) // SLOT
    slots: list[Slot] = [_INSTRUCTION.unpack_from(machine.code, SLOT * i) for i in range(count)]
    targets = _jump_targets(slots)
    removed: set[int] = set()
    found: list[tuple[int, str]] = []
    kept: list[Relocation] = []
    for relocation in machine.relocations:
        if not relocation.symbol.startswith(prefix):
            kept.append(relocation)
            continue
        index, name = relocation.offset // SLOT, relocation.symbol[len(prefix) :]
        opcode, registers, _, immediate = slots[index]
        if opcode != _LOAD_IMMEDIATE_64 or registers >> 4 or immediate or slots[index + 1][3]:
            raise ValueError(f"parameter `{name}` is not loaded plainly")
        fold = find_fold(slots, targets, index, index + 2) if widths[name] is Width.SIGNED_32 else None
        if fold is not None:
            apply_fold(slots, fold)
            removed |= {index, index + 1}
            found.append((fold.addition, name))
            continue
        found.append((index, name))
        if widths[name] is not Width.FULL_64:
            move = _MOVE_64 if widths[name] is Width.SIGNED_32 else _MOVE_32
            slots[index] = (move, registers, 0, 0)
            removed.add(index + 1)
    new_index, position = [], 0
    for index in range(count):
        new_index.append(position)
        position += index not in removed
    new_index.append(position)
    code = bytearray()
    second = False  # the second slot of a 64-bit load has opcode 0, never a jump's
    for index, (opcode, registers, offset, immediate) in enumerate(slots):
        if index in removed:
            continue
        if not second and _is_jump(opcode):
            offset = new_index[index + 1 + offset] - new_index[index] - 1
        second = opcode == _LOAD_IMMEDIATE_64
        code += _INSTRUCTION.pack(opcode, registers, offset, immediate)
    return Template(
        bytes(code),
        tuple((SLOT * new_index[i], name, widths[name] is Width.FULL_64) for i, name in found),
        tuple(Relocation(SLOT * new_index[r.offset // SLOT], r.symbol, r.type) for r in kept),
    )


def _jump_targets(slots: Sequence[Slot]) -> frozenset[int]:
    """Numbers of the slots that something jumps to."""
    found: set[int] = set()
    second = False
    for index, (opcode, _, offset, _) in enumerate(slots):
        if not second and _is_jump(opcode):
            found.add(index + 1 + offset)
        second = opcode == _LOAD_IMMEDIATE_64
    return frozenset(found)


def _is_jump(opcode: int) -> bool:
    """Whether an instruction's offset field counts instructions."""
    return opcode & _CLASS_MASK in (_CLASS_JMP, _CLASS_JMP32) and opcode not in (_CALL, _EXIT)
