# SPDX-License-Identifier: Apache-2.0
"""Limits of the kernel that compiled code can break although the IR is valid, found without a kernel.

The stack of a program and of everything that it calls is 512 bytes, each frame rounded up to 32, at most 8
frames deep (check_max_stack_depth in kernel/bpf/verifier.c, 6.1; later kernels round less).
"""

from __future__ import annotations

import struct
from collections.abc import Mapping

from o2cc.bpf.compiler import MachineCode
from o2cc.bpf.llvm_context import SymbolKind
from o2cc.diagnostics import Diagnostic, Span, error

STACK = 512
FRAMES = 8
_ROUND = 32
_FRAME_POINTER = 10

_INSTRUCTION = struct.Struct("<BBhi")
_LOAD, _STORE_IMMEDIATE, _STORE = 1, 2, 3  # instruction classes with an address
_MOVE, _ADD = 0xBF, 0x07


def stack_depth(code: bytes) -> int:
    """Bytes of stack that a function uses: the lowest place that it addresses through the frame pointer."""
    depth = 0
    copies: set[int] = set()
    for opcode, registers, offset, immediate in _INSTRUCTION.iter_unpack(code):
        target, source = registers & 15, registers >> 4
        kind = opcode & 7
        if (kind == _LOAD and source == _FRAME_POINTER) or (
            kind in (_STORE_IMMEDIATE, _STORE) and target == _FRAME_POINTER
        ):
            depth = max(depth, -offset)
        elif opcode == _ADD and target in copies:
            depth = max(depth, -immediate)
        if opcode == _MOVE and source == _FRAME_POINTER:
            copies.add(target)
        elif kind in (_LOAD, 4, 7):
            copies.discard(target)
    return depth


def check_stacks(machine: Mapping[str, MachineCode], spans: Mapping[str, Span | None]) -> list[Diagnostic]:
    """An error (O2C0607) for each program whose calls need too much stack or are too deep.

    ``spans`` gives the programs (by LLVM symbol) to check; ``machine`` also holds what they call.
    """
    frames = {name: -(-max(stack_depth(code.code), 1) // _ROUND) * _ROUND for name, code in machine.items()}
    calls = {
        name: sorted({r.symbol for r in code.relocations if r.symbol.startswith(SymbolKind.FUNCTION)})
        for name, code in machine.items()
    }
    deepest: dict[str, tuple[int, int, tuple[str, ...]]] = {}

    def measure(name: str) -> tuple[int, int, tuple[str, ...]]:
        """Stack, frames and path of the deepest chain of calls from a function."""
        if name not in deepest:
            below = [measure(callee) for callee in calls[name]]
            stack = max(below, default=(0, 0, ()))
            deepest[name] = (
                frames[name] + stack[0],
                1 + max((b[1] for b in below), default=0),
                (name, *stack[2]),
            )
        return deepest[name]

    found: list[Diagnostic] = []
    for name, span in spans.items():
        stack, depth, path = measure(name)
        shown = " -> ".join(f"{step[2:]} ({frames[step]})" for step in path)
        if stack > STACK:
            found.append(
                error(
                    "O2C0607",
                    f"`{name[2:]}` and what it calls need {stack} bytes of stack, and BPF has {STACK}",
                    span,
                    notes=(f"frames: {shown}",),
                )
            )
        elif depth > FRAMES:
            found.append(
                error("O2C0607", f"`{name[2:]}` calls {depth} functions deep, and BPF allows {FRAMES}", span)
            )
    return found
