# SPDX-License-Identifier: Apache-2.0
"""Shared functions that depend on the policy and on the kernel, beside those of the library's text."""

from __future__ import annotations

from collections.abc import Sequence

from o2cc.ir import nodes as ir
from o2cc.ir.builder import Builder
from o2cc.lower.constants import preempt_count_place, slab_test
from o2cc.lower.context import Lowering
from o2cc.lower.places import emit_layout
from o2cc.lower.rules import Instance, emit_instances
from o2cc.lower.targets import KernelTarget


def is_slab(lowering: Lowering) -> ir.Function:
    """``is_slab(head)``: 1 when a head page belongs to the slab allocator."""
    offset, size, mask, value = slab_test(lowering.description.kernel, lowering.description.release)
    code = Builder()
    word = code.read(size, code.add(ir.Value("head"), offset))
    bits = code.binary(ir.BinaryOperator.AND, word, mask)
    code.give_back(code.binary(ir.BinaryOperator.EQ, bits, value))
    return ir.Function("is_slab", ("head",), code.finish())


def preempt_count(lowering: Lowering) -> ir.Function:
    """``preempt_count(unused)``: that of this processor; bits 8 to 15 count soft interrupts, 16 to 19 hard ones
    (include/linux/preempt.h, 6.1).  The probe itself may have raised the hard interrupt bits."""
    symbol, offset = preempt_count_place(lowering.description.kernel)
    code = Builder()
    cpu = code.helper(ir.HelperKind.CPU)
    slot = code.add(code.symbol("__per_cpu_offset"), code.binary(ir.BinaryOperator.SHL, cpu, 3))
    area = code.read(8, slot)
    code.give_back(code.read(4, code.add(code.add(area, code.symbol(symbol)), offset)))
    return ir.Function("preempt_count", ("unused",), code.finish())


def per_cpu_cookie(lowering: Lowering) -> ir.Function:
    """``per_cpu_cookie(address)``: what alloc_percpu gave for an address in the area of this processor, 0 for what
    cannot be one (include/linux/percpu-defs.h, SHIFT_PERCPU_PTR).

    Cookies count from the start of the first area, which lies in the direct map and below every other one (mm/percpu.c,
    x86-64): they are in the lower half, where nothing else is tracked (``gain``).
    """
    code = Builder()
    cpu = code.helper(ir.HelperKind.CPU)
    slot = code.add(code.symbol("__per_cpu_offset"), code.binary(ir.BinaryOperator.SHL, cpu, 3))
    cookie = code.binary(ir.BinaryOperator.SUB, ir.Value("address"), code.read(8, slot))
    code.give_back(code.select(code.binary(ir.BinaryOperator.LSHR, cookie, 63), 0, cookie))
    return ir.Function("per_cpu_cookie", ("address",), code.finish())


def resolve_symbols(
    lowering: Lowering, named: Sequence[Instance], targets: Sequence[KernelTarget]
) -> tuple[ir.Function, tuple[str, ...]]:
    """``resolve_symbols(unused)``: fills `layout`, `instances`, `kernel_targets` and `kernel_callbacks`; and the symbols that nothing
    can locate at run time."""
    code = Builder()
    emit_layout(code, lowering.description)
    lost = emit_instances(code, lowering.description, named)
    for row, target in enumerate(targets):
        code.store("kernel_targets", row, "address", code.symbol(target.function))
    for row, name in enumerate(lowering.policy.kernel_callbacks):
        code.store("kernel_callbacks", row, "address", code.symbol(name))
    code.give_back(1)
    return ir.Function("resolve_symbols", ("unused",), code.finish()), lost
