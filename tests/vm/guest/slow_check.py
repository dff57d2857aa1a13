# SPDX-License-Identifier: Apache-2.0
"""A check that looks at the owner shadow, and then takes its time before it lets the store go: a race that is always won.

Between a check and its store lies a moment in which another processor can do something.  Here the program looks, says so,
and waits until it is told to go on, so that a test can do in that moment what it likes.
"""

from __future__ import annotations

import os
import struct
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.vm.guest.enforcer_support import Shadow, array_map, instruction, load_program, read_map, write_map
from tests.vm.guest.heap_support import PAGE

_RDI = 112  # in struct pt_regs, x86-64
PROBE_READ_KERNEL = 113  # bpf_probe_read_kernel()
_CHUNK = 2 << 20  # bytes that are read at each turn, to spend time
_MOST_TURNS = 8000  # the verifier follows 8192 branches
_STATE = 16  # bytes: how far it is, and whether it may go on
_LOOKED, _TIRED = 1, 2


class SlowCheck:
    """The program: it allows a store through rdi if the page there has an owner."""

    def __init__(self, shadow: Shadow, direct_map: int, turns: int = _MOST_TURNS) -> None:
        """``direct_map``: where the kernel maps page frame 0.  ``turns``: after so many it waits no longer."""
        self._scratch = array_map(_CHUNK)
        self._state = array_map(_STATE)
        source = kernel_text()
        self.program = load_program(
            instruction(0x79, 6, 1, _RDI)  # r6 = the address that is written
            + constant(7, direct_map)
            + instruction(0x1F, 6, 7)  # r6 -= r7
            + instruction(0x77, 6, immediate=PAGE.bit_length() - 1)  # r6 >>= 12
            + constant(7, shadow.FRAMES)
            + instruction(0x3D, 6, 7, 22)  # if r6 >= r7 goto deny
            + map_value(8, shadow.map)
            + instruction(0x0F, 8, 6)  # r8 += r6
            + instruction(0x71, 9, 8)  # r9 = the owner
            + instruction(0x15, 9, 0, 17)  # if r9 == 0 goto deny
            + map_value(8, self._state)
            + instruction(0x7A, 8, immediate=_LOOKED)
            + instruction(0xB7, 6, immediate=turns)
            # again:
            + instruction(0x79, 7, 8, 8)  # may it go on?
            + instruction(0x55, 7, 0, 9)  # if r7 != 0 goto allow
            + map_value(1, self._scratch)
            + instruction(0xB7, 2, immediate=_CHUNK)
            + constant(3, source)
            + instruction(0x85, immediate=PROBE_READ_KERNEL)
            + instruction(0x17, 6, immediate=1)
            + instruction(0x55, 6, 0, -10)  # if r6 != 0 goto again
            + instruction(0x7A, 8, immediate=_TIRED)
            # allow:
            + instruction(0xB7, 0)
            + instruction(0x95)
            # deny:
            + instruction(0xB7, 0, immediate=1)
            + instruction(0x95)
        )

    def reset(self) -> None:
        write_map(self._state, bytes(_STATE))

    def wait(self, seconds: float = 60.0) -> None:
        """Until it has looked and let the store pass.  Raises TimeoutError."""
        end = time.monotonic() + seconds
        while not read_map(self._state, _STATE)[0]:
            if time.monotonic() > end:
                raise TimeoutError("the check did not run")
            time.sleep(0.01)

    def go_on(self) -> bool:
        """Let the store go; whether it was still held up."""
        held = read_map(self._state, _STATE)[0] == _LOOKED
        write_map(self._state, struct.pack("<QQ", _LOOKED, 1))
        return held

    def close(self) -> None:
        for descriptor in (self.program, self._scratch, self._state):
            os.close(descriptor)


@contextmanager
def on_cpu(number: int) -> Iterator[None]:
    """This thread runs on one processor only."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {number})
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


def constant(to: int, value: int) -> bytes:
    """Instructions that put 64 bits into a register."""
    low, high = struct.unpack("<ii", struct.pack("<Q", value))
    return instruction(0x18, to, immediate=low) + instruction(0, immediate=high)


def map_value(to: int, descriptor: int) -> bytes:
    """The address of an array map's value."""
    return instruction(0x18, to, 2, immediate=descriptor) + instruction(0)


def kernel_text() -> int:
    """Where the kernel's text begins."""
    with Path("/proc/kallsyms").open() as lines:
        return next(int(line.split()[0], 16) for line in lines if line.split()[2] == "_text")
