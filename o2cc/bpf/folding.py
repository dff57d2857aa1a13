# SPDX-License-Identifier: Apache-2.0
"""Folds a parameter's move into the addition that uses it, which almost every check of a store begins with.

LLVM cannot: to it the parameter is an unknown word in a register.  Of

    r5 = PARAMETER ; r2 = *(u64 *)(r1 + 80) ; r5 += r2

remains ``r5 = *(u64 *)(r1 + 80) ; r5 += PARAMETER``.  Only inside a basic block, and only where the register that
goes is seen to be dead; anything else stays as it is.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

Slot = tuple[int, int, int, int]  # opcode, registers (source << 4 | target), offset, immediate

_LOAD_IMMEDIATE_64 = 0x18
_ADD_REGISTER, _ADD_IMMEDIATE = 0x0F, 0x07
_MOVE = 0xB0
_CALL, _EXIT = 0x85, 0x95
_LDX, _ST, _STX = 1, 2, 3
_ALU = (4, 7)
_BY_REGISTER = 0x08


@dataclass(frozen=True, slots=True)
class Fold:
    """The move goes; at ``addition`` there is now an addition of the parameter to ``register``.

    ``load``: a load whose target becomes ``register``, or None.
    """

    addition: int
    register: int
    load: int | None


def _reads(slot: Slot) -> set[int] | None:
    """Registers that an instruction reads; None for what ends or leaves a basic block, or is not understood."""
    opcode, registers, _, _ = slot
    target, source, kind = registers & 15, registers >> 4, opcode & 7
    if opcode == _LOAD_IMMEDIATE_64:
        return set()
    if kind == _LDX:
        return {source}
    if kind == _ST:
        return {target}
    if kind == _STX and opcode & 0xE0 == 0x60:
        return {target, source}
    if kind in _ALU:
        read = {source} if opcode & _BY_REGISTER else set()
        return read if opcode & 0xF0 == _MOVE else read | {target}
    return None


def _writes(slot: Slot) -> int | None:
    """The register that an instruction that `_reads` understands writes."""
    kind = slot[0] & 7
    return slot[1] & 15 if slot[0] == _LOAD_IMMEDIATE_64 or kind == _LDX or kind in _ALU else None


def _dead(slots: Sequence[Slot], targets: frozenset[int], start: int, register: int) -> bool:
    """Whether nothing from an instruction on reads a register before it is written, as far as its block shows."""
    index = start
    while index < len(slots) and index not in targets:
        slot = slots[index]
        if slot[0] == _EXIT:
            return register != 0
        if slot[0] == _CALL:
            return register == 0  # the others may be arguments, or live on
        read = _reads(slot)
        if read is None or register in read:
            return False
        if _writes(slot) == register:
            return True
        index += 2 if slot[0] == _LOAD_IMMEDIATE_64 else 1
    return False


def find_fold(slots: Sequence[Slot], targets: frozenset[int], move: int, after: int) -> Fold | None:
    """The addition into which a parameter's move can go.

    ``slots`` are the instructions, ``targets`` the numbers of those that something jumps to, ``move`` the number of
    the parameter's move and ``after`` that of the instruction behind it.
    """
    moved = slots[move][1] & 15
    loads: dict[int, int] = {}  # register -> its load since the move
    used: dict[int, int] = {}  # register -> last instruction that read it
    index = after
    while index < len(slots) and index not in targets:
        slot = slots[index]
        target, source = slot[1] & 15, slot[1] >> 4
        read = _reads(slot)
        if read is None:
            return None
        if slot[0] == _ADD_REGISTER and target != source and moved in (target, source):
            if source == moved:
                return Fold(index, target, None) if _dead(slots, targets, index + 1, moved) else None
            load = loads.get(source)
            if load is None or used.get(source, -1) > load or not _dead(slots, targets, index + 1, source):
                return None
            return Fold(index, moved, load)
        if moved in read or _writes(slot) == moved:
            return None
        for register in read:
            used[register] = index
        written = _writes(slot)
        if written is not None:
            loads.pop(written, None)
            if slot[0] & 7 == _LDX:
                loads[written] = index
        index += 2 if slot[0] == _LOAD_IMMEDIATE_64 else 1
    return None


def apply_fold(slots: list[Slot], fold: Fold) -> None:
    """Changes the load and the addition; the move is the caller's to take away."""
    if fold.load is not None:
        opcode, registers, offset, immediate = slots[fold.load]
        slots[fold.load] = (opcode, registers & 0xF0 | fold.register, offset, immediate)
    slots[fold.addition] = (_ADD_IMMEDIATE, fold.register, 0, 0)
