# SPDX-License-Identifier: Apache-2.0
"""Checks at the functions that the kernel calls."""

from __future__ import annotations

from functools import partial

from o2cc.ir import nodes as ir
from o2cc.ir.builder import Builder
from o2cc.kernel.description import Function
from o2cc.lower import pending
from o2cc.lower.behind import emit_held, grants_of
from o2cc.lower.context import ENTRY_REFUSED, Lowering
from o2cc.lower.expressions import ARGUMENT_REGISTERS, Expressions, Place
from o2cc.lower.gates import (
    LENT,
    emit_gain,
    emit_if,
    emit_loss,
    emit_requirements,
    expressions_at_call,
    lends_with_bits,
    stack_argument,
)
from o2cc.policy import model


def lower_entry(lowering: Lowering, function: Function) -> None:
    """The sites at the first instruction and at the return of an entry, where the policy gives it something."""
    entry = lowering.policy.entry(function.name)
    if entry is None:
        return
    marks = _typed_parameters(lowering, entry)
    if entry.effects or entry.requires or marks:
        lowering.add_site(
            function,
            0,
            ir.SiteKind.ENTRY,
            lowering.check(
                f"entry_{function.name}", lambda: _entry_check(lowering, entry, marks), entry.span
            ),
            action=entry.action,
            span=entry.span,
            note=f"call of {function.name}" if entry.requires else "",
        )
    if any(isinstance(effect, model.Lends) for effect in entry.effects):
        lowering.add_site(
            function,
            0,
            ir.SiteKind.RETURN,
            lowering.check(f"return_{function.name}", lambda: _return_check(lowering, entry), entry.span),
            action=entry.action,
            span=entry.span,
        )


def _typed_parameters(lowering: Lowering, entry: model.Entry) -> tuple[tuple[int, str, int], ...]:
    """(argument, struct, types) of the parameters whose struct the policy has rules for."""
    found = []
    for index, parameter in enumerate(entry.parameters[: len(ARGUMENT_REGISTERS)]):
        struct = parameter.type.struct
        if parameter.type.kind is not model.TypeKind.POINTER or struct is None:
            continue
        mask = lowering.types.mask(struct)
        if mask or any(grants_of(lowering, struct)):
            found.append((index, struct, mask))
    return tuple(found)


def _entry_check(
    lowering: Lowering, entry: model.Entry, marks: tuple[tuple[int, str, int], ...]
) -> tuple[ir.Block, ...]:
    code = Builder(entry.span)
    expressions = expressions_at_call(lowering, code, entered=True)
    emit_requirements(expressions, entry.requires, entry.action, ENTRY_REFUSED)
    _emit_own_caller(code, expressions.place)
    for index, struct, mask in marks:
        argument = expressions.place.argument(index)
        if mask:
            code.call("mark", argument, mask)
        emit_held(lowering, expressions, struct, argument)
    for effect in entry.effects:
        if isinstance(effect, model.Gives):
            code.span = effect.span
            emit_if(expressions, effect.condition, partial(emit_gain, expressions, effect))
    lends = tuple(lends_with_bits(entry.effects, lowering.policy))
    for lent, bit in lends:
        code.span = lent.span
        emit_if(expressions, lent.condition, partial(emit_gain, expressions, lent, bit))
    if lends:
        place = expressions.place
        arguments = [place.argument(i) for i in range(len(ARGUMENT_REGISTERS))]
        pending.keep(code, place.sp, place.site, arguments, ir.Variable(LENT))
    code.decide(ir.Verdict.ALLOW)
    return code.finish()


def _emit_own_caller(code: Builder, place: Place) -> None:
    """Return when the compartment itself made the call: its arguments prove nothing, and give nothing."""
    flat = code.call("flat_text", code.read(8, place.sp))
    inside, own, kernel = code.label("inside"), code.label("own_caller"), code.label("kernel_caller")
    code.branch(flat, inside, kernel)
    code.start(inside)
    code.branch(code.call("return_record", flat), own, kernel)
    code.start(own)
    code.decide(ir.Verdict.ALLOW)
    code.start(kernel)


def _return_check(lowering: Lowering, entry: model.Entry) -> tuple[ir.Block, ...]:
    code = Builder(entry.span)
    number, sp = code.parameter("site"), code.register("rsp")
    # A return probe sees the stack pointer after the return address is popped (kernel/trace/rethook.c, 6.1).
    at_entry = code.binary(ir.BinaryOperator.SUB, sp, 8)
    fields = (*pending.ARGUMENTS, pending.LENT)
    entered = code.binary(ir.BinaryOperator.SUB, number, 1)  # lower_entry adds both
    ended = partial(code.decide, ir.Verdict.ALLOW)
    *arguments, lent = pending.recall(code, at_entry, entered, ended, fields)

    def argument(index: int) -> ir.Operand:
        return arguments[index] if index < len(arguments) else stack_argument(code, at_entry, index, 8)

    place = Place(argument, None, number, at_entry, ir.Constant(0))
    expressions = Expressions(code, place, lowering.policy, lowering.description, lowering.types)
    for effect, bit in lends_with_bits(entry.effects, lowering.policy):
        code.span = effect.span
        emit_loss(expressions, effect, lent, bit)
    code.decide(ir.Verdict.ALLOW)
    return code.finish()
