# SPDX-License-Identifier: Apache-2.0
"""Checks of instructions that write memory.

One check a shape: the registers of the operand, its scale and segment, how often it repeats.  Displacement and
size are parameters of the site.
"""

from __future__ import annotations

from o2cc.ir import nodes as ir
from o2cc.ir.builder import Builder
from o2cc.kernel.description import Description, Function, Operand, Site
from o2cc.kernel.pointees import Pointees
from o2cc.lower.context import Lowering
from o2cc.lower.expressions import sized
from o2cc.lower.places import static_address
from o2cc.policy.model import ViolationKind

# Per-CPU words that inlined kernel code writes: preempt_disable(), this_cpu work of the entry code.
KERNEL_PER_CPU = frozenset({"__preempt_count", "pcpu_hot"})
_BIT_STRING_SHIFTS = {2: 4, 4: 5}  # size of a word of a bit string: log2 of its bits; 8 bytes else
MAXIMUM_REPEAT = 1 << 32  # iterations; more cannot be meant and would overflow the length


def lower_stores(lowering: Lowering, function: Function) -> None:
    """Sites for every write of ``function``, each with the field that it seems to write."""
    pointees = Pointees(lowering.description, function)
    for site in function.sites:
        if site.writes:
            _lower_store(lowering, function, site, pointees.written(site) or "")


def _lower_store(lowering: Lowering, function: Function, site: Site, note: str) -> None:
    operand = site.operand
    if site.kind == "push" and (operand is None or not operand.is_memory):
        lowering.discharge(
            function, site.offset, ir.SiteKind.STORE, "push", "writes the new top of the own frame", None
        )
        return
    if operand is None or not operand.is_memory:
        return
    if (
        site.mnemonic == "lock add"
        and operand.base == "rsp"
        and operand.displacement < 0
        and not operand.index
    ):
        # smp_mb() on x86-64 (arch/x86/include/asm/barrier.h, 6.1): the word below the stack pointer is no object.
        lowering.discharge(
            function, site.offset, ir.SiteKind.STORE, "barrier", "adds 0 below the stack pointer", None
        )
        return
    fixed = operand.base is None and operand.index is None
    if (
        operand.segment == "gs"
        and fixed
        and operand.static is not None
        and operand.static.symbol in KERNEL_PER_CPU
    ):
        lowering.discharge(
            function,
            site.offset,
            ir.SiteKind.STORE,
            "preempt-count",
            f"writes the per-CPU word `{operand.static.symbol}` that inlined preemption control keeps",
            None,
        )
        return
    probe = lowering.probed_offset(function, site, ir.SiteKind.STORE)
    if probe is None:
        return
    name = shape_name(site)
    check = lowering.check(name, lambda: _store_check(lowering.description, site))
    lowering.add_site(
        function,
        site.offset,
        ir.SiteKind.STORE,
        check,
        action=lowering.policy.action_for(ViolationKind.WRITE, function.parent or function.name),
        span=lowering.policy.span,
        place=site,
        probe_offset=probe,
        parameters={"displacement": operand.displacement & (2**64 - 1), "size": max(1, site.size)},
        note=note,
    )


def shape_name(site: Site) -> str:
    """Name of the check for a store; equal names mean equal code."""
    operand = site.operand
    assert operand is not None
    parts = ["store"]
    if operand.segment:
        parts.append(operand.segment)
    if operand.static is not None:
        place = operand.static
        parts.append(
            f"{(place.section or place.symbol or 'nowhere').strip('.').replace('.', '_')}_{place.offset:x}"
        )
    if operand.base:
        parts.append(operand.base)
    if operand.index:
        parts.append(f"{operand.index}x{operand.scale}")
    if site.bit_index:
        parts.append(f"bit_{site.bit_index}" + (f"_{site.size}" if site.size in _BIT_STRING_SHIFTS else ""))
    if site.rep:
        parts.append("rep")
    return "_".join(parts)


def _address(code: Builder, description: Description, operand: Operand) -> ir.Operand | None:
    address: ir.Operand | None = None
    if operand.static is not None:
        address = static_address(code, description, operand.static)
        if address is None:
            return None
    if operand.base is not None:
        base = code.register(operand.base)
        address = base if address is None else code.add(address, base)
    if operand.index is not None:
        index: ir.Operand = code.register(operand.index)
        if operand.scale != 1:
            index = code.binary(ir.BinaryOperator.MUL, index, operand.scale)
        address = index if address is None else code.add(address, index)
    displacement = code.parameter("displacement")
    return displacement if address is None else code.add(address, displacement)


def _store_check(description: Description, site: Site) -> tuple[ir.Block, ...]:
    operand = site.operand
    assert operand is not None
    code = Builder()
    address = _address(code, description, operand)
    if address is None:
        code.decide(ir.Verdict.DENY)
        return code.finish()
    number = code.parameter("site")
    size: ir.Operand = code.parameter("size")
    if site.bit_index is not None:
        # bts and its kin with a register operand address the bit string from the operand on, in words of the operand's
        # size; the number of the bit is a signed one of that size (Intel SDM 2A, BTS and table 3-2).
        width = site.size if site.size in _BIT_STRING_SHIFTS else 8
        bits = sized(code, code.register(site.bit_index), width, True)
        words = code.binary(ir.BinaryOperator.ASHR, bits, _BIT_STRING_SHIFTS.get(width, 6))
        address = code.add(address, code.binary(ir.BinaryOperator.MUL, words, width))
        size = ir.Constant(width)
    if site.rep:
        count = code.register("rcx")
        limited = code.binary(ir.BinaryOperator.ULE, count, MAXIMUM_REPEAT)
        count = code.select(limited, count, MAXIMUM_REPEAT)
        size = code.binary(ir.BinaryOperator.MUL, size, count)
    if operand.segment == "gs":
        code.give_back(code.call("check_per_cpu", address, size, number, code.register("rsp")))
    else:
        sp, bp = code.register("rsp"), code.register("rbp")
        code.give_back(code.call("check_store", address, size, number, sp, bp))
    return code.finish()
