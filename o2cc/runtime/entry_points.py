# SPDX-License-Identifier: Apache-2.0
"""Where a breakpoint takes the place of a probe at a function's entry.  Pure.

A probe at the entry of a function that ftrace knows runs through ftrace, with interrupts on, and until it is through kprobes
runs no other probe on that processor (kprobe_ftrace_handler in arch/x86/kernel/kprobes/ftrace.c, 6.1 and 6.12): what an
interrupt's code does meanwhile is neither checked nor tracked.  Right behind ftrace's place no register has changed, and a
breakpoint there runs with interrupts off.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from iced_x86 import Decoder, FlowControl

_ENDBR = bytes.fromhex("f30f1efa")
_SEALED = bytes.fromhex(
    "660f1f00"
)  # in its place where nobody takes the address (arch/x86/include/asm/ibt.h, 6.12)
_NOP = bytes.fromhex("0f1f440000")
_CALL = 0xE8  # the place while somebody traces the function
_BRANCHES = (FlowControl.CONDITIONAL_BRANCH, FlowControl.UNCONDITIONAL_BRANCH)
_LONGEST = 1 << 16  # bytes of a function that are looked at


@dataclass(frozen=True)
class Ends:
    """Where functions end: at the next one."""

    starts: Sequence[int]  # ascending

    @classmethod
    def of(cls, addresses: Mapping[str, int]) -> Ends:
        """From the functions' addresses by name."""
        return cls(sorted(set(addresses.values())))

    def size(self, address: int) -> int:
        """Bytes from a function's start to the next function's, at most 65536."""
        following = bisect_right(self.starts, address)
        return min(self.starts[following] - address, _LONGEST) if following < len(self.starts) else _LONGEST


def behind_entry(code: bytes) -> int:
    """Bytes from a function's start to the instruction behind ftrace's place; 0 where ftrace has none, or where the function
    jumps back there, so that a probe would run more than once.  ``code`` is the whole function."""
    before = len(_ENDBR) if code.startswith((_ENDBR, _SEALED)) else 0
    if not code.startswith(_NOP, before) and code[before : before + 1] != bytes((_CALL,)):
        return 0
    behind = before + len(_NOP)
    loops = any(
        instruction.flow_control in _BRANCHES and instruction.near_branch_target == behind
        for instruction in Decoder(64, code[behind:], ip=behind)
    )
    return 0 if loops else behind
