# SPDX-License-Identifier: Apache-2.0
"""Programs at tracepoints: one that counts what it sees, and one that takes its time, so that an interrupt comes inside it."""

from __future__ import annotations

import os
import struct
import time

from tests.vm.guest.enforcer_support import (
    RAW_TRACEPOINT,
    array_map,
    instruction,
    load_program,
    map_id,
    read_map,
    write_map,
)
from tests.vm.guest.slow_check import PROBE_READ_KERNEL, constant, kernel_text, map_value

ROWS = 65536  # O2C_COUNT_ROWS
_WORDS = 4 * ROWS
_SIZE = _WORDS + 24
_GOLDEN_RATIO = 0x9E3779B97F4A7C15

_STATE = 40
_CHUNK = 1 << 20  # bytes that are read at each turn, to spend time
_TURNS = 2000  # the verifier follows 8192 branches
_LIMIT = 1_000_000_000  # nanoseconds
_KTIME_GET_NS = 5  # bpf_ktime_get_ns()
_BEGUN, _TIRED = 1, 2


def object_row(pointer: int) -> int:
    """The row of an object's count: see `struct o2c_tracepoint` in o2c.h."""
    return (pointer * _GOLDEN_RATIO) % 2**64 >> 48


def frame_row(frame: int) -> int:
    """The row of a page frame's count."""
    return frame >> 3 & ROWS - 1


class Counter:
    """Words that say when a program runs, and the program: it counts its runs, and those for a wanted argument, by its place in
    what programs of that ``kind`` are given."""

    def __init__(self, argument: int, kind: int = RAW_TRACEPOINT) -> None:
        self.map = array_map(_SIZE)
        self.id = map_id(self.map)
        self.program = load_program(
            instruction(0x79, 6, 1, 8 * argument)  # r6 = the argument
            + map_value(7, self.map)
            + instruction(0x07, 7, immediate=_WORDS)  # r7 += _WORDS
            + instruction(0x79, 8, 7, 8)
            + instruction(0x07, 8, immediate=1)
            + instruction(0x7B, 7, 8, 8)  # runs += 1
            + instruction(0x79, 8, 7)
            + instruction(0x5D, 6, 8, 3)  # if r6 != wanted goto end
            + instruction(0x79, 8, 7, 16)
            + instruction(0x07, 8, immediate=1)
            + instruction(0x7B, 7, 8, 16)  # seen += 1
            # end:
            + instruction(0xB7, 0)
            + instruction(0x95),
            kind,
        )

    def begin(self, wanted: int = 0, words: dict[int, int] | None = None) -> None:
        """Count from 0, with these words by their row."""
        image = bytearray(_SIZE)
        for row, value in (words or {}).items():
            struct.pack_into("<I", image, 4 * row, value)
        struct.pack_into("<Q", image, _WORDS, wanted)
        write_map(self.map, bytes(image))

    @property
    def runs(self) -> int:
        return self._counts()[0]

    @property
    def seen(self) -> int:
        return self._counts()[1]

    def _counts(self) -> tuple[int, int]:
        runs, seen = struct.unpack_from("<QQ", read_map(self.map, _SIZE), _WORDS + 8)
        return runs, seen

    def close(self) -> None:
        os.close(self.program)
        os.close(self.map)


class SlowHook:
    """A hook at kfree that is held up by one object, for at most a second, and counts how often it sees another one."""

    def __init__(self, slow: int, wanted: int) -> None:
        self._scratch = array_map(_CHUNK)
        self._state = array_map(_STATE)
        write_map(self._state, struct.pack("<QQQQQ", slow, wanted, 0, 0, 0))
        source = kernel_text()
        self.program = load_program(
            instruction(0x79, 6, 1, 8)  # r6 = the object
            + map_value(7, self._state)
            + instruction(0x79, 8, 7)
            + instruction(0x1D, 6, 8, 6)  # if r6 == slow goto slow
            + instruction(0x79, 8, 7, 8)
            + instruction(0x5D, 6, 8, 22)  # if r6 != wanted goto end
            + instruction(0x79, 8, 7, 16)
            + instruction(0x07, 8, immediate=1)
            + instruction(0x7B, 7, 8, 16)  # seen += 1
            + instruction(0x05, offset=18)  # goto end
            # slow:
            + instruction(0x7A, 7, 0, 24, _BEGUN)
            + instruction(0x85, immediate=_KTIME_GET_NS)
            + instruction(0xBF, 9, 0)
            + instruction(0x07, 9, immediate=_LIMIT)  # r9 = until when
            + instruction(0xB7, 8, immediate=_TURNS)
            # again:
            + instruction(0x79, 6, 7, 32)  # may it go on?
            + instruction(0x55, 6, 0, 11)  # if r6 != 0 goto end
            + map_value(1, self._scratch)
            + instruction(0xB7, 2, immediate=_CHUNK)
            + constant(3, source)
            + instruction(0x85, immediate=PROBE_READ_KERNEL)
            + instruction(0x85, immediate=_KTIME_GET_NS)
            + instruction(0x3D, 0, 9, 2)  # if r0 >= r9 goto tired
            + instruction(0x17, 8, immediate=1)
            + instruction(0x55, 8, 0, -12)  # if r8 != 0 goto again
            # tired:
            + instruction(0x7A, 7, 0, 24, _TIRED)
            # end:
            + instruction(0xB7, 0)
            + instruction(0x95),
            RAW_TRACEPOINT,
        )

    def _word(self, offset: int) -> int:
        return int(struct.unpack_from("<Q", read_map(self._state, _STATE), offset)[0])

    def wait(self, seconds: float = 30.0) -> None:
        """Until it has met the object that holds it up.  Raises TimeoutError."""
        end = time.monotonic() + seconds
        while not self._word(24):
            if time.monotonic() > end:
                raise TimeoutError("the hook did not run")
            time.sleep(0.001)

    @property
    def held(self) -> bool:
        """Whether it is held up now, and has not given up."""
        return self._word(24) == _BEGUN

    @property
    def seen(self) -> int:
        return self._word(16)

    def go_on(self) -> None:
        state = bytearray(read_map(self._state, _STATE))
        struct.pack_into("<Q", state, 32, 1)
        write_map(self._state, bytes(state))

    def close(self) -> None:
        for descriptor in (self.program, self._scratch, self._state):
            os.close(descriptor)
