# SPDX-License-Identifier: Apache-2.0
"""Runs a compiled tree without a kernel, and counts the instructions that it executes.

For tests and for the estimate of what a prediction costs; the kernel is the judge of everything else.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from o2cc.trees.bytecode import MAP_VALUE, Instruction, Op
from o2cc.trees.compile import CompiledTree

WORD = 2**64 - 1
HALF = 2**32 - 1
_VECTOR_BASE = 1 << 40
_TABLE_BASE = 1 << 41
_STACK_BASE = 1 << 42
_STACK_BYTES = 512

_COMPARE: dict[Op, Callable[[int, int], bool]] = {
    Op.JEQ_IMM: lambda a, b: a == b,
    Op.JNE_IMM: lambda a, b: a != b,
    Op.JGT_IMM: lambda a, b: a > b,
    Op.JGT_REG: lambda a, b: a > b,
    Op.JGE_IMM: lambda a, b: a >= b,
    Op.JGE_REG: lambda a, b: a >= b,
    Op.JLT_IMM: lambda a, b: a < b,
    Op.JLT_REG: lambda a, b: a < b,
    Op.JLE_IMM: lambda a, b: a <= b,
    Op.JLE_REG: lambda a, b: a <= b,
}
_COMPARE_HALF: dict[Op, Callable[[int, int], bool]] = {
    Op.JGT32_IMM: lambda a, b: a > b,
    Op.JGE32_IMM: lambda a, b: a >= b,
    Op.JLT32_IMM: lambda a, b: a < b,
    Op.JLE32_IMM: lambda a, b: a <= b,
}
_REGISTER_COMPARISONS = (Op.JGT_REG, Op.JGE_REG, Op.JLT_REG, Op.JLE_REG)
_LOAD_SIZES = {Op.LDX_U8: 1, Op.LDX_U16: 2, Op.LDX_U32: 4, Op.LDX_U64: 8}


class Machine:
    """A compiled tree, ready to run."""

    def __init__(self, tree: CompiledTree) -> None:
        self.tree = tree
        self._slots: dict[int, Instruction] = {}
        self._targets: dict[tuple[int, str], int] = {}
        self._starts: dict[str, int] = {}
        self._part_of: dict[int, int] = {}
        base = 0
        for part, subprogram in enumerate(tree.subprograms):
            self._starts[subprogram.name] = base
            position = base
            for instruction in subprogram.code.instructions:
                self._slots[position] = instruction
                self._part_of[position] = part
                position += instruction.slots
            self._targets |= {(part, name): base + place for name, place in subprogram.code.labels.items()}
            base = position

    def run(self, words: Sequence[int]) -> tuple[int, int]:
        """Outcome and executed instructions for one vector: a word for each of the tree's features."""
        vector = b"".join(int(word).to_bytes(8, "little") for word in words)
        stack = bytearray(_STACK_BYTES)
        registers = [0] * 11
        registers[1] = _VECTOR_BASE
        registers[10] = _STACK_BASE + _STACK_BYTES
        at, executed = 0, 0
        frames: list[int] = []
        while True:
            i = self._slots[at]
            executed += 1
            following = at + i.slots
            if i.op is Op.EXIT:
                if not frames:
                    return registers[0], executed
                following = frames.pop()
            elif i.op is Op.CALL:
                frames.append(following)
                assert i.target is not None
                following = self._starts[i.target]
            elif self._jumps(i, registers):
                assert i.target is not None
                following = self._targets[self._part_of[at], i.target]
            else:
                self._compute(i, registers, vector, stack)
            at = following

    def _jumps(self, i: Instruction, registers: list[int]) -> bool:
        if i.op is Op.JA:
            return True
        if i.op in _COMPARE_HALF:
            return _COMPARE_HALF[i.op](registers[i.dst] & HALF, i.immediate & HALF)
        if i.op in _COMPARE:
            right = registers[i.src] if i.op in _REGISTER_COMPARISONS else _extended(i.immediate)
            return _COMPARE[i.op](registers[i.dst], right)
        return False

    def _compute(self, i: Instruction, registers: list[int], vector: bytes, stack: bytearray) -> None:
        if i.op in _LOAD_SIZES:
            size = _LOAD_SIZES[i.op]
            memory, start = self._memory(registers[i.src] + i.offset, size, vector, stack)
            registers[i.dst] = int.from_bytes(memory[start : start + size], "little")
        elif i.op is Op.STX_U64:
            _, start = self._memory(registers[i.dst] + i.offset, 8, vector, stack)
            stack[start : start + 8] = registers[i.src].to_bytes(8, "little")
        elif i.op is Op.LD_IMM64:
            registers[i.dst] = _TABLE_BASE if i.src == MAP_VALUE else i.immediate & WORD
        elif i.op is Op.MOV_IMM:
            registers[i.dst] = _extended(i.immediate)
        elif i.op is Op.MOV32_IMM:
            registers[i.dst] = i.immediate & HALF
        elif i.op is Op.MOV_REG:
            registers[i.dst] = registers[i.src]
        elif i.op is Op.ADD_IMM:
            registers[i.dst] = (registers[i.dst] + i.immediate) & WORD
        elif i.op is Op.ADD_REG:
            registers[i.dst] = (registers[i.dst] + registers[i.src]) & WORD
        elif i.op is Op.SUB_REG:
            registers[i.dst] = (registers[i.dst] - registers[i.src]) & WORD
        elif i.op is Op.AND_IMM:
            registers[i.dst] &= _extended(i.immediate)
        elif i.op is Op.RSH_IMM:
            registers[i.dst] >>= i.immediate
        elif i.op is Op.ARSH_IMM:
            sign = WORD if registers[i.dst] >> 63 else 0
            registers[i.dst] = (registers[i.dst] | sign << 64) >> i.immediate & WORD
        elif i.op is Op.LSH_IMM:
            registers[i.dst] = (registers[i.dst] << i.immediate) & WORD
        elif i.op not in _COMPARE and i.op not in _COMPARE_HALF:
            raise ValueError(f"the machine does not know {i.op.name}")

    def _memory(
        self, address: int, size: int, vector: bytes, stack: bytearray
    ) -> tuple[bytes | bytearray, int]:
        """The memory that an address lies in, and the place there."""
        areas: tuple[tuple[int, bytes | bytearray], ...] = (
            (_STACK_BASE, stack),
            (_TABLE_BASE, self.tree.table),
            (_VECTOR_BASE, vector),
        )
        base, memory = next(((base, memory) for base, memory in areas if address >= base), (0, b""))
        if not 0 <= address - base <= len(memory) - size:
            raise IndexError(f"the program accesses {size} bytes at {address - base} of {len(memory)}")
        return memory, address - base


def _extended(immediate: int) -> int:
    """A 32-bit immediate, sign-extended to 64 bits."""
    immediate &= HALF
    return immediate | (WORD ^ HALF) if immediate >> 31 else immediate
