# SPDX-License-Identifier: Apache-2.0
"""Stores to the function's own stack frame at a place that is known at compile time."""

from __future__ import annotations

from dataclasses import dataclass

from o2cc.ir import nodes as ir
from o2cc.kernel.description import Description, Function, Site
from o2cc.passes.manager import CONTROL_FLOW, DESCRIPTION, Pass, PassContext
from o2cc.passes.sites import KEPT_FLOW, KEPT_STACK, Proof, discharge, is_plain

# Bytes that a frame may have at most; the build warns of larger ones (CONFIG_FRAME_WARN=2048, Debian 6.1 and 6.12).
FRAME_LIMIT = 2048
_REGISTER_ARGUMENTS = 6  # what comes after them is on the stack


@dataclass(frozen=True)
class DischargeOwnFrame(Pass):
    """Discharges stores to the function's own stack frame.

    Their bytes must lie between the stack pointer and the saved registers.

    The description gives the address written relative to the slot of the return address, and the height of the
    stack before the instruction.  Neither the return address nor a callee-saved register that the prologue pushed
    may be touched: the kernel's code never does so by such a store, so that an exception would be a mistake of
    the analysis.  Bytes below the stack pointer belong to nobody: the kernel has no red zone
    (-mno-red-zone, arch/x86/Makefile).

    Functions that align their stack (``and rsp, -16``) have no known height.  There the description bounds the bytes
    written.  A store through rsp with a displacement of at least 0 is above the stack pointer by itself; through
    another register it must be within the size that a frame may have.  Such an address is at a fixed distance from
    the stack pointer at the function's entry.
    """

    requires = frozenset({DESCRIPTION, CONTROL_FLOW})
    provides = frozenset({"own-frame"})

    def run(self, module: ir.Module, context: PassContext) -> ir.Module:
        target = context.target

        def prove(_site: ir.Site, function: Function, place: Site) -> Proof | None:
            return _prove(target, function, place)

        return discharge(module, target, "own-frame", prove)


def _prove(target: Description, function: Function, place: Site) -> Proof | None:
    written = _written(place)
    if written is None:
        return None
    start, end = written
    arguments = _stack_arguments(target, function)
    if start >= 8 and end <= 8 + arguments:
        return Proof(
            f"writes within [{start}, {end}) of the function's {arguments} bytes of arguments on the stack, which are its own "
            "(0 is the slot of the return address)",
            (KEPT_FLOW, KEPT_STACK),
        )
    lowest = _lowest(place)
    highest = saved_floor(target, function)
    if not lowest <= start or not end <= highest:
        return None
    return Proof(
        f"writes within [{start}, {end}) of the function's frame, which is [{lowest}, {highest}) here "
        "(0 is the slot of the return address)",
        (KEPT_FLOW, KEPT_STACK),
    )


def _written(place: Site) -> tuple[int, int] | None:
    """Frame addresses that a store certainly stays in; None if the description does not bound them."""
    if place.frame_range is not None:
        return place.frame_range
    if place.frame_offset is None or place.stack_height is None or not is_plain(place):
        return None
    return place.frame_offset, place.frame_offset + place.size


def _lowest(place: Site) -> int:
    """The frame address below which a store may not reach: the stack pointer, as far as it is known."""
    if place.stack_height is not None:
        return -place.stack_height - (8 if place.kind == "push" else 0)
    operand = place.operand
    below = operand is not None and operand.base == "rsp" and operand.displacement < 0
    return 0 if below else -FRAME_LIMIT


def _stack_arguments(target: Description, function: Function) -> int:
    """Bytes above the return address that hold arguments: the called function may change them (System V ABI for x86-64,
    3.2.3).  0 where a pointer may lead to the function: who calls it so may have passed less."""
    prototype = target.types.prototype_by_name.get(function.name)
    if prototype is None or prototype.variadic or function.address_taken or function.parent is not None:
        return 0
    if any(parameter.type.kind in ("struct", "union") for parameter in prototype.parameters):
        return 0  # passed in registers or not, as its size and members say
    return 8 * max(0, len(prototype.parameters) - _REGISTER_ARGUMENTS)


def saved_floor(target: Description, function: Function) -> int:
    """The frame address below which no saved register lies: 0 if the function saves none.

    A ``.cold`` part has the frame of its function (of all that have its name). Where the stack pointer was rounded down
    before, registers count from the copy of the return address, which is a word below the rounded address, and so is
    what :func:`_written` gives as the end, at most.
    """
    whole = [function]
    if function.parent is not None:
        whole += [other for other in target.functions if other.name == function.parent]
    return min(
        0, *(min((-part.frame, *(offset for _, offset in part.saved))) - _copied(part) for part in whole)
    )


def _copied(function: Function) -> int:
    """Bytes of the copy of the return address that a function makes below its rounded stack pointer."""
    return 8 if function.stack_kept is not None else 0
