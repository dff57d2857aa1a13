# SPDX-License-Identifier: Apache-2.0
"""A test that leads to two outcomes, computed instead of jumped: the processor cannot mispredict what is no branch.

With w the word and t the threshold, a difference is made whose sign says which outcome it is; the sign becomes a mask, and
the mask an outcome:

    below   r0 = w - (t + 1)    negative where w <= t; with an immediate
    above   r0 = t - w          negative where w > t; with a constant in r0

The difference must not overflow: the word is a half, or shifted right, or all words that come here are on one side of 2**63.
"""

from __future__ import annotations

from dataclasses import dataclass

from o2cc.trees.bytecode import Assembler, Op
from o2cc.trees.ranges import Interval

LOWER_HALF = 2**32 - 1
SIGN = 63
LARGEST_IMMEDIATE = 2**31
PREDICTABLE = 8
"""A branch is left to the processor's prediction where less than one in so many samples goes to one side."""


def shift_of(threshold: int) -> int:
    """The most bits that words and threshold can be shifted right by without another answer: `w <= t` is `w < t + 1`."""
    following = threshold + 1
    return (following & -following).bit_length() - 1


@dataclass(frozen=True, slots=True)
class Selection:
    """How the difference is made: whether of a half (the upper one: `upper`), shifted by how much, and the threshold
    after that; `below` as in the module's docstring."""

    is_half: bool
    upper: bool
    shift: int
    threshold: int

    @property
    def below(self) -> bool:
        """Whether t + 1 is an immediate."""
        return -LARGEST_IMMEDIATE < _signed(self.threshold + 1) <= LARGEST_IMMEDIATE

    def write(self, code: Assembler, outcome: int, word: int) -> None:
        """The difference in register `outcome`; `word` holds the half or the whole word, and may be `outcome` itself
        where `below`.  It is lost then."""
        if self.below:
            if word != outcome:
                code.emit(Op.MOV_REG, outcome, word)
            if self.shift:
                code.emit(Op.RSH_IMM, outcome, immediate=self.shift)
            code.emit(Op.ADD_IMM, outcome, immediate=-_signed(self.threshold + 1))
            return
        if self.shift:
            code.emit(Op.RSH_IMM, word, immediate=self.shift)
        load_constant(code, outcome, self.threshold)
        code.emit(Op.SUB_REG, outcome, word)


def _signed(word: int) -> int:
    word &= 2**64 - 1
    return word - 2**64 if word >> SIGN else word


def load_constant(code: Assembler, register: int, word: int) -> None:
    """Put a 64-bit constant into a register, in one slot where it can be."""
    if word < LARGEST_IMMEDIATE or word >= 2**64 - LARGEST_IMMEDIATE:
        code.emit(Op.MOV_IMM, register, immediate=word)
    elif word <= LOWER_HALF:
        code.emit(Op.MOV32_IMM, register, immediate=word)
    else:
        code.emit(Op.LD_IMM64, register, immediate=word)


def selection_of(threshold: int, interval: Interval, *, half: bool, upper: bool) -> Selection | None:
    """How to compute `word <= threshold`, for words in `interval`; None where the difference could overflow.

    ``half``: a comparison of the lower or (``upper``) upper halves suffices.
    """
    low, high = interval
    if half:
        return Selection(True, upper, 0, threshold >> 32 if upper else threshold & LOWER_HALF)
    shift = shift_of(threshold)
    one_side = low >> SIGN == high >> SIGN
    whole = Selection(False, False, 0, threshold)
    if shift and not (one_side and whole.below):
        return Selection(False, False, shift, threshold >> shift)
    return whole if one_side else None


def write_choice(code: Assembler, register: int, otherwise: int, negative: int) -> None:
    """Turn a difference into `negative` where it is negative, else into `otherwise`; both are outcomes, and differ."""
    difference = negative - otherwise
    code.emit(Op.RSH_IMM if difference == 1 else Op.ARSH_IMM, register, immediate=SIGN)
    if abs(difference) != 1:
        code.emit(Op.AND_IMM, register, immediate=difference)
    if otherwise:
        code.emit(Op.ADD_IMM, register, immediate=otherwise)
