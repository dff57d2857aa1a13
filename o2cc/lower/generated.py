# SPDX-License-Identifier: Apache-2.0
"""Shared functions that depend on the policy and on the kernel, beside those of the library's text."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from o2cc.ir import nodes as ir
from o2cc.ir.builder import Builder
from o2cc.lower.caches import INSTANCE_POINTERS, INSTANCES
from o2cc.lower.constants import preempt_count_place, slab_test
from o2cc.lower.context import Lowering
from o2cc.lower.expressions import Expressions, Place
from o2cc.lower.places import emit_layout, symbol_address
from o2cc.lower.rules import Instance, emit_instances
from o2cc.lower.targets import KernelTarget
from o2cc.policy import model


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


def in_behind(lowering: Lowering) -> ir.Function:
    """``in_behind(address, size, scopes)``: memory that a pointer in a named kernel object leads to.

    The areas of per-namespace variables and grants `behind` a struct are followed for the objects that have names
    (``init_net``); for other objects they come with the entry that is given the object.
    """
    code = Builder()
    address, size, scopes = (ir.Value(name) for name in ("address", "size", "scopes"))
    last = code.add(address, size)
    place = Place(lambda index: ir.Constant(0), None, ir.Constant(0), ir.Constant(0), ir.Constant(0))
    expressions = Expressions(code, place, lowering.policy, lowering.description, lowering.types)
    for index, grant in enumerate(lowering.policy.grants):
        if not isinstance(grant, model.BehindGrant | model.PernetGrant) or not grant.allows:
            continue
        code.span = grant.span
        struct = grant.struct if isinstance(grant, model.BehindGrant) else "net"
        for base in _named_objects(lowering, code, struct):
            area = _area(lowering, expressions, grant, base)
            if area is None:
                continue
            start, length = area
            classes = lowering.scopes.mask_of_rule(("grant", index), grant.scope)
            applies = code.binary(ir.BinaryOperator.AND, scopes, classes)
            applies = code.binary(ir.BinaryOperator.NE, applies, 0)
            present = code.binary(ir.BinaryOperator.NE, start, 0)
            low = code.binary(ir.BinaryOperator.UGE, address, start)
            high = code.binary(ir.BinaryOperator.ULE, last, code.add(start, length))
            inside = code.binary(ir.BinaryOperator.AND, low, high)
            known = code.binary(ir.BinaryOperator.AND, applies, present)
            _true_if(code, code.binary(ir.BinaryOperator.AND, inside, known))
    code.give_back(0)
    return ir.Function("in_behind", ("address", "size", "scopes"), code.finish())


def aims_grant(lowering: Lowering) -> ir.Function:
    """``aims_grant(address, size)``: 1 when the range touches what says where, or how far, `in_behind` reaches.

    These pointers and lengths lie in own data, or in granted fields.  A compartment that may write them could let the
    grant end anywhere.  They are set before a policy is loaded, or by the kernel.
    """
    code = Builder()
    address, size = ir.Value("address"), ir.Value("size")
    last = code.add(address, size)
    place = Place(lambda index: ir.Constant(0), None, ir.Constant(0), ir.Constant(0), ir.Constant(0))
    expressions = Expressions(code, place, lowering.policy, lowering.description, lowering.types)
    for grant in lowering.policy.grants:
        if not isinstance(grant, model.BehindGrant | model.PernetGrant) or not grant.allows:
            continue
        code.span = grant.span
        for slot, length in _aiming(lowering, expressions, grant):
            low = code.binary(ir.BinaryOperator.ULT, address, code.add(slot, length))
            high = code.binary(ir.BinaryOperator.UGT, last, slot)
            _true_if(code, code.binary(ir.BinaryOperator.AND, low, high))
    code.give_back(0)
    return ir.Function("aims_grant", ("address", "size"), code.finish())


def _true_if(code: Builder, condition: ir.Operand) -> None:
    """The function's answer is 1 where the condition holds; it goes on otherwise."""
    yes, following = code.label("yes"), code.label("next")
    code.branch(condition, yes, following)
    code.start(yes)
    code.give_back(1)
    code.start(following)


def _aiming(
    lowering: Lowering, expressions: Expressions, grant: model.BehindGrant | model.PernetGrant
) -> Iterator[tuple[ir.Operand, int]]:
    """Start and size of each word that the area of a grant hangs on."""
    code = expressions.code
    if isinstance(grant, model.PernetGrant):
        variable = symbol_address(code, lowering.description, grant.variable)
        if variable is not None:
            yield variable, 4
        return
    for name, outer, path in INSTANCE_POINTERS.get(grant.struct, ()):
        place = lowering.description.types.find_field(outer, path)
        if place is not None:
            yield code.add(code.symbol(name), place.offset), 8
    for base in _named_objects(lowering, code, grant.struct):
        yield code.add(base, grant.offset), 8
        inner = expressions.at(base)
        for field in (*_fields(grant.start), *_fields(grant.length)):
            yield code.add(inner.value(field.base), field.offset), field.size


def _fields(expression: model.Expr) -> Iterator[model.LoadField]:
    """The fields that an expression reads."""
    match expression:
        case model.LoadField():
            yield expression
            yield from _fields(expression.base)
        case model.AddressOfField():
            yield from _fields(expression.base)
        case model.UnaryExpr():
            yield from _fields(expression.operand)
        case model.BinaryExpr():
            yield from _fields(expression.left)
            yield from _fields(expression.right)
        case model.Predicate():
            for operand in expression.operands:
                yield from _fields(operand)


def _named_objects(lowering: Lowering, code: Builder, struct: str) -> Iterator[ir.Operand]:
    """Addresses of the objects of this struct that have a name, or that a field of such a one points to."""
    for name in INSTANCES.get(struct, ()):
        yield code.symbol(name)
    for name, outer, path in INSTANCE_POINTERS.get(struct, ()):
        place = lowering.description.types.find_field(outer, path)
        if place is not None:
            yield code.read(8, code.add(code.symbol(name), place.offset))


def _area(
    lowering: Lowering,
    expressions: Expressions,
    grant: model.BehindGrant | model.PernetGrant,
    base: ir.Operand,
) -> tuple[ir.Operand, ir.Operand] | None:
    code = expressions.code
    if isinstance(grant, model.BehindGrant):
        pointer = code.read(8, code.add(base, grant.offset))
        inner = expressions.at(base)
        start = code.binary(ir.BinaryOperator.ADD, pointer, inner.value(grant.start))
        present = code.binary(ir.BinaryOperator.NE, pointer, 0)
        return code.select(present, start, 0), inner.value(grant.length)
    # include/net/netns/generic.h net_generic, 6.1: net->gen->ptr[id]
    fields = lowering.description.types
    generic = fields.find_field("net", "gen")
    array = fields.find_field("net_generic", "ptr")
    variable = symbol_address(code, lowering.description, grant.variable)
    if generic is None or array is None or variable is None or len(grant.ranges) != 1:
        return None
    number = code.read(4, variable)
    table = code.read(8, code.add(base, generic.offset))
    slot = code.add(table, code.binary(ir.BinaryOperator.SHL, number, 3))
    area = code.read(8, code.add(slot, array.offset))
    first, last = grant.ranges[0]
    if grant.struct is None:
        return area, code.call("size_of_object", area)
    return code.add(area, first), ir.Constant(last - first)
