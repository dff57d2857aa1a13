# SPDX-License-Identifier: Apache-2.0
"""Which instructions a jump-optimized kprobe may copy (``can_boost`` in ``arch/x86/kernel/kprobes/core.c``).

The kernel replaces the five bytes at an optimized probe by a jump and runs the displaced instructions elsewhere;
it does so only with those that behave the same there. Its rules, in 6.1: of the one-byte opcodes all but
conditional jumps, calls, direct jumps, loops, groups 2, 3 and 4, group 5 other than an indirect jump, ``bound``,
far calls, software interrupts, x87 and ``hlt``; of the two-byte ones a fixed table; no address-size or cs prefix;
nothing longer. Since 6.9 also groups 2, 3, 4 and 5's ``inc`` and ``dec`` (with the reserved encodings left out).
Lock and repeat prefixes do not matter (seen to be optimized, ``tests/vm/guest/test_scan_probes.py``).
"""

from enum import IntEnum
from functools import lru_cache


class Boost(IntEnum):
    """Whether an instruction can be displaced."""

    NEVER = 0
    ALWAYS = 1
    SINCE_6_9 = 2


_PREFIXES = frozenset({0x26, 0x2E, 0x36, 0x3E, 0x64, 0x65, 0x66, 0x67, 0xF0, 0xF2, 0xF3})
_REFUSED_PREFIXES = frozenset({0x2E, 0x67})
_NEVER = frozenset({
    0x62, *range(0x70, 0x80), 0x9A, 0xCC, 0xCD, 0xCE, 0xD6, *range(0xD8, 0xE4), 0xE8, 0xE9, 0xEB, *range(0xF0, 0xF5),
})  # fmt: skip
# Second opcode bytes that can be displaced, by the high half: bit n stands for the low half n.
_TWO_BYTE = (
    0x034C, 0x8000, 0x000F, 0x0002, 0xFFFF, 0x0000, 0xCFFF, 0xC0F0,
    0x0000, 0xFFFF, 0xBB3B, 0xF8FF, 0xFF03, 0xBB2E, 0xBB26, 0x772E,
)  # fmt: skip


def is_prefixed_call(body: bytes) -> bool:
    """Whether the bytes are a direct near call behind a prefix, as compilers write calls of thunks by r8 to r15."""
    stripped = body.lstrip(bytes(_PREFIXES))
    return stripped[:1] == b"\xe8" and len(stripped) < len(body)


@lru_cache(1 << 15)
def boost_class(body: bytes) -> Boost:
    """The class of the instruction whose bytes are ``body``."""
    position = 0
    while position < len(body) and body[position] in _PREFIXES:
        if body[position] in _REFUSED_PREFIXES:
            return Boost.NEVER
        position += 1
    if position < len(body) and body[position] & 0xF0 == 0x40:
        position += 1
    if position >= len(body):
        return Boost.NEVER
    opcode = body[position]
    if opcode == 0x0F:
        second = body[position + 1] if position + 1 < len(body) else 0
        return Boost.ALWAYS if _TWO_BYTE[second >> 4] >> (second & 15) & 1 else Boost.NEVER
    if opcode in _NEVER or opcode in (0xC4, 0xC5):
        return Boost.NEVER
    reg = body[position + 1] >> 3 & 7 if position + 1 < len(body) else 0
    if opcode in (0xC0, 0xC1, 0xD0, 0xD1, 0xD2, 0xD3):
        return Boost.SINCE_6_9 if reg != 6 else Boost.NEVER
    if opcode in (0xF6, 0xF7):
        return Boost.SINCE_6_9 if reg != 1 else Boost.NEVER
    if opcode == 0xFE:
        return Boost.SINCE_6_9 if reg in (0, 1) else Boost.NEVER
    if opcode == 0xFF:
        if reg == 4:
            return Boost.ALWAYS
        return Boost.SINCE_6_9 if reg in (0, 1) else Boost.NEVER
    return Boost.ALWAYS
