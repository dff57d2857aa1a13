# SPDX-License-Identifier: Apache-2.0
"""A small assembler for BPF: instructions, labels, and their encoding.

Numbers are those of the instruction set (kernel Documentation/bpf/standardization/instruction-set.rst,
6.12).  Every instruction used here is known to kernels from 5.1 on (32-bit jumps are the newest).
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import IntEnum

JUMP_REACH = 32767
"""How far a jump's 16-bit offset goes, in instructions."""


class Op(IntEnum):
    """Opcodes in use.  IMM compares or computes with the immediate, REG with the source register."""

    LD_IMM64 = 0x18
    LDX_U8 = 0x71
    LDX_U16 = 0x69
    LDX_U32 = 0x61
    LDX_U64 = 0x79
    STX_U32 = 0x63
    STX_U64 = 0x7B
    ST_U64 = 0x7A
    MOV_IMM = 0xB7
    MOV32_IMM = 0xB4
    MOV_REG = 0xBF
    ADD_IMM = 0x07
    ADD_REG = 0x0F
    SUB_REG = 0x1F
    AND_IMM = 0x57
    AND_REG = 0x5F
    MUL_IMM = 0x27
    LSH_IMM = 0x67
    RSH_IMM = 0x77
    ARSH_IMM = 0xC7
    JA = 0x05
    JEQ_IMM = 0x15
    JNE_IMM = 0x55
    JNE_REG = 0x5D
    JGT_IMM = 0x25
    JGT_REG = 0x2D
    JGE_IMM = 0x35
    JGE_REG = 0x3D
    JLT_IMM = 0xA5
    JLT_REG = 0xAD
    JLE_IMM = 0xB5
    JLE_REG = 0xBD
    JGT32_IMM = 0x26
    JGE32_IMM = 0x36
    JLT32_IMM = 0xA6
    JLE32_IMM = 0xB6
    CALL = 0x85
    EXIT = 0x95


MAP_FD = 1
MAP_VALUE = 2
FUNCTION = 4
"""Source register of LD_IMM64: what the immediate stands for (include/uapi/linux/bpf.h)."""

CALL_FUNCTION = 1
"""Source register of CALL for a function of the program itself."""


@dataclass(frozen=True, slots=True)
class Instruction:
    """One instruction; LD_IMM64 takes two slots and has a 64-bit `immediate`, `target` is a label."""

    op: Op
    dst: int = 0
    src: int = 0
    offset: int = 0
    immediate: int = 0
    target: str | None = None

    @property
    def slots(self) -> int:
        """Places it takes in the program."""
        return 2 if self.op is Op.LD_IMM64 else 1


class JumpTooFarError(Exception):
    """A jump does not reach its label."""


@dataclass
class Assembler:
    """Collects instructions and labels, then fixes the distances.  A label may be used before it is set."""

    instructions: list[Instruction] = field(default_factory=list)
    labels: dict[str, int] = field(default_factory=dict)
    position: int = 0

    def emit(
        self,
        op: Op,
        dst: int = 0,
        src: int = 0,
        offset: int = 0,
        immediate: int = 0,
        target: str | None = None,
    ) -> None:
        """Append one instruction."""
        instruction = Instruction(op, dst, src, offset, immediate, target)
        self.instructions.append(instruction)
        self.position += instruction.slots

    def label(self, name: str) -> None:
        """Set a label at the next instruction; each name once."""
        if name in self.labels:
            raise ValueError(f"label {name} is set twice")
        self.labels[name] = self.position

    def encode(self, outside: Mapping[str, int] | None = None) -> bytes:
        """The code's bytes, eight a slot; JumpTooFarError when a jump does not reach.

        `outside` gives labels of other code, as distances from the start of this one.
        """
        labels = {**(outside or {}), **self.labels}
        encoded = bytearray()
        position = 0
        for i in self.instructions:
            offset, immediate = i.offset, i.immediate
            if i.target is not None:
                distance = labels[i.target] - position - 1
                if i.op is Op.CALL or i.op is Op.LD_IMM64:
                    immediate = distance
                elif -JUMP_REACH <= distance <= JUMP_REACH:
                    offset = distance
                else:
                    raise JumpTooFarError(i.target)
            immediate &= 2**64 - 1
            encoded += struct.pack("<BBhI", i.op, i.dst | i.src << 4, offset, immediate & 0xFFFF_FFFF)
            if i.op is Op.LD_IMM64:
                encoded += struct.pack("<BBhI", 0, 0, 0, immediate >> 32 if i.target is None else 0)
            position += i.slots
        return bytes(encoded)


def fits_immediate(word: int) -> bool:
    """Whether a 64-bit word is a sign-extended 32-bit immediate."""
    return word < 2**31 or word >= 2**64 - 2**31
