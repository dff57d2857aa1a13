# SPDX-License-Identifier: Apache-2.0
"""Stores to the function's own stack frame at a place that is known at compile time."""

from __future__ import annotations

from dataclasses import dataclass

from o2cc.ir import nodes as ir
from o2cc.kernel.description import Description, Function, Site
from o2cc.passes.manager import CONTROL_FLOW, DESCRIPTION, Pass, PassContext
from o2cc.passes.sites import KEPT_FLOW, KEPT_STACK, Proof, discharge, is_plain

# Bytes that a frame may have at most; the build warns of larger ones (CONFIG_FRAME_WARN=2048, Debian 6.1 and 6.12).
_FRAME_LIMIT = 2048


@dataclass(frozen=True)
class DischargeOwnFrame(Pass):
    """Discharges stores to the function's own stack frame.

    Their bytes must lie between the stack pointer and the saved registers.

    The description gives the address written relative to the slot of the return address, and the height of the
    stack before the instruction.  Neither the return address nor a callee-saved register that the prologue pushed
    may be touched: the kernel's code never does so by such a store, so that an exception would be a mistake of
    the analysis.  Bytes below the stack pointer belong to nobody: the kernel has no red zone
    (-mno-red-zone, arch/x86/Makefile).

    Functions that align their stack (``and rsp, -16``) have no known height.  There a store through rsp with a
    displacement of at least 0 is above the stack pointer by itself, and rounding down only moves it further from
    the saved registers.  Through another register that holds the aligned address, it must be within the size
    that a frame may have; such an address is at a fixed distance from the stack pointer at the function's entry.
    """

    requires = frozenset({DESCRIPTION, CONTROL_FLOW})
    provides = frozenset({"own-frame"})

    def run(self, module: ir.Module, context: PassContext) -> ir.Module:
        target = context.target

        def prove(_site: ir.Site, function: Function, place: Site) -> Proof | None:
            return _prove(target, function, place)

        return discharge(module, target, "own-frame", prove)


def _prove(target: Description, function: Function, place: Site) -> Proof | None:
    return _prove_known(target, function, place) or _prove_aligned(target, function, place)


def _prove_aligned(target: Description, function: Function, place: Site) -> Proof | None:
    operand, source = place.operand, place.value_source
    if operand is None or not is_plain(place) or operand.segment is not None or operand.static is not None:
        return None
    if source is None or source.kind != "aligned_stack":
        return None
    end = source.offset + place.value_offset + operand.displacement + place.size
    start = end - place.size - source.number + 1
    highest = saved_floor(target, function)
    above_stack_pointer = operand.base == "rsp" and operand.displacement >= 0
    if end > highest or not (above_stack_pointer or (operand.base != "rsp" and start >= -_FRAME_LIMIT)):
        return None
    return Proof(
        f"writes {place.size} bytes within [{start}, {end}) of the function's frame, whose saved registers begin at "
        f"{highest} (the stack is aligned to {source.number} bytes; 0 is the slot of the return address)",
        (KEPT_FLOW, KEPT_STACK),
    )


def _prove_known(target: Description, function: Function, place: Site) -> Proof | None:
    start, height = place.frame_offset, place.stack_height
    if start is None or height is None or height < 0 or not is_plain(place):
        return None
    end = start + place.size
    lowest = -height - (8 if place.kind == "push" else 0)
    highest = saved_floor(target, function)
    if not lowest <= start or not end <= highest:
        return None
    return Proof(
        f"writes [{start}, {end}) of the function's frame, which is [{lowest}, {highest}) here "
        "(0 is the slot of the return address)",
        (KEPT_FLOW, KEPT_STACK),
    )


def saved_floor(target: Description, function: Function) -> int:
    """The frame address below which no saved register lies: 0 if the function saves none."""
    whole = target.function_by_name.get(function.parent or "", function)
    offsets = [offset for _, offset in (*whole.saved, *function.saved)]
    return min((*offsets, -whole.frame, -function.frame, 0))
