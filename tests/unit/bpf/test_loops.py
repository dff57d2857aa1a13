# SPDX-License-Identifier: Apache-2.0
"""Loops of compiled code as 6.1 takes them: the way back is a jump.

kernel/bpf/verifier.c check_cfg of 6.1 walks a program depth first, what follows before what is jumped to, and refuses
one in which an instruction that is no jump is followed by one that the walk has begun and not ended ("back-edge"). LLVM places
the blocks of a loop with several ways back so.
"""

from __future__ import annotations

import io
import struct
from collections.abc import Iterator
from pathlib import Path

import pytest
from elftools.elf.elffile import ELFFile

from o2cc.bpf.layout import Layout
from o2cc.compiler import Options, Stopwatch, emit
from o2cc.driver import compile_source
from o2cc.files import read_source
from o2cc.options import CompileOptions
from o2cc.policy.model import Action
from tests.unit.bpf.elf_sections import symbol_table
from tests.unit.lower.confined import RELEASE

EXAMPLES = Path(__file__).parents[3] / "examples"
_INSTRUCTION = struct.Struct("<BBhi")
_JUMP, _JUMP32 = 5, 6
_ALWAYS, _ALWAYS_FAR, _CALL, _EXIT = 0x05, 0x06, 0x80, 0x90


def _following(code: bytes, at: int) -> Iterator[tuple[int, bool]]:
    """The instructions that can come next, and whether by a jump."""
    opcode, _, offset, immediate = _INSTRUCTION.unpack_from(code, 8 * at)
    kind = opcode & 0xF0
    if opcode & 7 not in (_JUMP, _JUMP32) or kind == _CALL:
        yield at + 1, False
    elif opcode == _ALWAYS:
        yield at + 1 + offset, True
    elif opcode == _ALWAYS_FAR:
        yield at + 1 + immediate, True
    elif kind != _EXIT:
        yield at + 1, True
        yield at + 1 + offset, True


def back_edges(code: bytes) -> list[tuple[int, int]]:
    """Where 6.1 says that there is one."""
    found: list[tuple[int, int]] = []
    begun, ended = {0}, set[int]()
    path = [(0, _following(code, 0))]
    while path:
        at, further = path[-1]
        for target, jumps in further:
            if target not in begun:
                begun.add(target)
                path.append((target, _following(code, target)))
                break
            if target not in ended and not jumps:
                found.append((at, target))
        else:
            ended.add(at)
            path.pop()
    return found


def _encoded(*instructions: tuple[int, int, int, int]) -> bytes:
    return b"".join(_INSTRUCTION.pack(*item) for item in instructions)


def test_a_way_back_that_is_no_jump_is_found() -> None:
    """The form that 6.1 refused: a latch above its loop's head, which falls into it."""
    move, conditional, leave = (0xB7, 0, 0, 0), (0x15, 0, -3, 0), (0x95, 0, 0, 0)
    assert back_edges(_encoded((_ALWAYS, 0, 1, 0), move, move, conditional, leave)) == [(1, 2)]
    assert back_edges(_encoded(move, move, (0x15, 0, -2, 0), leave)) == []


@pytest.mark.parametrize("example", ["sctp", "cls_route"])
def test_every_way_back_is_a_jump(example: str) -> None:
    """Catches an object that 6.1 refuses and later kernels take."""
    source = read_source(EXAMPLES / f"{example}.o2c")
    options = Options(layout=Layout.SHAPE, degrade=Action.REPORT)
    compiled, _ = compile_source(source, CompileOptions(kernel=RELEASE), options, Stopwatch())
    elf = ELFFile(io.BytesIO(emit(compiled, options, Stopwatch()).data))
    seen = 0
    for symbol in symbol_table(elf).iter_symbols():
        if symbol["st_info"]["type"] == "STT_FUNC":
            first, size = symbol["st_value"], symbol["st_size"]
            code = elf.get_section(symbol["st_shndx"]).data()[first : first + size]
            assert back_edges(code) == [], symbol.name
            seen += 1
    assert seen > 50
