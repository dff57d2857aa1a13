# SPDX-License-Identifier: Apache-2.0
"""Checks of direct calls out of the compartment: what a gate requires before, what it changes after.

What a gate does to capabilities before it runs (`takes`) happens in the check at the call; what it gives or
allocates is recorded by a second site right behind the call, where the result is in rax.  Arguments are gone by
then, so the first site leaves them in the map `pending` under the stack pointer, which no other activation shares.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial

from o2cc.diagnostics import DiagnosticError, error
from o2cc.ir import nodes as ir
from o2cc.ir.builder import Builder
from o2cc.kernel.description import Function, Site
from o2cc.lower import pending
from o2cc.lower.context import (
    ACTION_CODES,
    CALL_FORBIDDEN,
    DENIED,
    FOREIGN_FREED,
    HEAP_EXHAUSTED,
    REQUIREMENT_FAILED,
    Lowering,
    Unchecked,
)
from o2cc.lower.expressions import ABOUT, ARGUMENT_REGISTERS, Expressions, Place
from o2cc.lower.heap import allocates, is_private
from o2cc.policy import model
from o2cc.policy.model import ViolationKind

FLAG_OWN = 1
FLAG_HELD = 2
FLAG_TYPED = 4
LENT = "lent"  # variable of an entry's check
FLAG_LENT = 16  # a part of an object may be lent, for as long as the entry runs
FLAG_PER_CPU = 32  # what alloc_percpu gave

AfterEffect = model.Allocates | model.Gives

# Calls that the compiler inserts and the kernel patches: profiling, thunks, the stack protector.
_MACHINERY_PREFIXES = ("__fentry__", "__x86_", "__stack_chk_fail", "__sanitizer_cov", "__asan_", "__kcsan_")


def lower_calls(lowering: Lowering, function: Function) -> None:
    """Sites for the direct calls and tail calls of ``function`` that leave the compartment."""
    own = lowering.description.function_by_name
    for site in function.sites:
        if site.kind not in ("call", "tail_call") or site.target is None or site.target in own:
            continue
        if site.target.startswith(_MACHINERY_PREFIXES):
            continue
        _lower_call(lowering, function, site, site.target)


def after_effects(gate: model.Gate) -> tuple[AfterEffect, ...]:
    """What the gate changes once it has returned."""
    return tuple(e for e in gate.effects if isinstance(e, model.Allocates | model.Gives))


def denied_result(lowering: Lowering, function: str, gate: model.Gate | None) -> int:
    """What a denied call returns: what the policy says; else NULL or false where the function returns a pointer or bool,
    since callers of most such functions look for that only and would follow -EFAULT as an address."""
    if gate is not None and gate.deny_result is not None:
        if not -0x8000 <= gate.deny_result <= 0x7FFF:
            raise DiagnosticError(
                error(
                    "O2C0511", f"a denied call cannot return {gate.deny_result}: 16 bits are kept", gate.span
                )
            )
        return gate.deny_result
    prototype = lowering.description.types.prototype_by_name.get(function)
    if prototype is None:
        return DENIED
    return 0 if prototype.returns.kind == "pointer" or prototype.returns.name == "_Bool" else DENIED


def gate_name(lowering: Lowering, gate: model.Gate) -> str:
    """A name for the checks of a gate; gates for some functions only are numbered."""
    if gate.scope is None:
        return gate.function
    return f"{gate.function}_{lowering.policy.gates.index(gate)}"


def _lower_call(lowering: Lowering, function: Function, site: Site, target: str) -> None:
    kind = ir.SiteKind.CALL if site.kind == "call" else ir.SiteKind.TAIL_CALL
    owner = function.parent or function.name
    rule = lowering.policy.call(target, owner)
    if rule is None or not rule.allowed:
        probe = lowering.probed_offset(function, site, kind)
        if probe is not None:
            action = (
                rule.action if rule is not None else lowering.policy.action_for(ViolationKind.CALL, owner)
            )
            span = rule.span if rule is not None else lowering.policy.span
            check = lowering.check("forbidden_call", _forbidden_check, span)
            lowering.add_site(
                function,
                site.offset,
                kind,
                check,
                action=action,
                span=span,
                place=site,
                probe_offset=probe,
                note=f"call of {target}",
                result=denied_result(lowering, target, None),
            )
        return
    gate = lowering.policy.gate(target, owner)
    if gate is None:
        lowering.discharge(
            function,
            site.offset,
            kind,
            "granted-call",
            f"`{target}` may be called; nothing is required",
            rule.span,
        )
        return
    after = after_effects(gate)
    takes = any(isinstance(e, model.Takes) for e in gate.effects)
    keeps_arguments = any(_needs_arguments(effect) for effect in after)
    if gate.requires or takes or (keeps_arguments and kind is ir.SiteKind.CALL):
        probe = lowering.probed_offset(function, site, kind)
        if probe is not None:
            saves = keeps_arguments and kind is ir.SiteKind.CALL
            suffix = "" if kind is ir.SiteKind.CALL else "_tail"
            check = lowering.check(
                f"gate_{gate_name(lowering, gate)}{suffix}",
                lambda: _gate_check(lowering, gate, saves, tail=kind is not ir.SiteKind.CALL),
                gate.span,
            )
            lowering.add_site(
                function,
                site.offset,
                kind,
                check,
                action=gate.action,
                span=gate.span,
                place=site,
                probe_offset=probe,
                note=f"call of {target}",
                result=denied_result(lowering, target, gate),
            )
    else:
        lowering.discharge(
            function,
            site.offset,
            kind,
            "granted-call",
            f"`{target}` asks for nothing of its arguments",
            gate.span,
        )
    if after and kind is ir.SiteKind.CALL:
        _lower_after(lowering, function, site, gate, after)


def _lower_after(
    lowering: Lowering, function: Function, site: Site, gate: model.Gate, after: tuple[AfterEffect, ...]
) -> None:
    behind = site.offset + site.length
    patched = next(
        (p for p in function.patches if p.offset < behind + 1 and behind < p.offset + p.length), None
    )
    if behind >= function.size or (patched is not None and patched.kind not in ("ftrace", "lock")):
        lowering.unchecked.append(
            Unchecked(
                function.name,
                behind,
                ir.SiteKind.CALL,
                f"the result of `{gate.function}` cannot be seen: "
                + (
                    "the kernel patches the instruction behind the call"
                    if patched
                    else "the function ends there"
                ),
            )
        )
        return
    check = lowering.check(
        f"after_{gate_name(lowering, gate)}", lambda: _after_check(lowering, gate, after), gate.span
    )
    lowering.add_site(
        function,
        behind,
        ir.SiteKind.CALL,
        check,
        action=gate.action,
        span=gate.span,
        place=site,
        note=f"result of {gate.function}",
    )


def _forbidden_check() -> tuple[ir.Block, ...]:
    code = Builder()
    number = code.parameter("site")
    code.give_back(code.call("report", number, CALL_FORBIDDEN, 0, 0, code.register("rsp")))
    return code.finish()


def stack_argument(code: Builder, sp: ir.Operand, index: int, above: int) -> ir.Operand:
    """The seventh or a later argument: on the stack, ``above`` bytes higher than rsp (System V ABI for x86-64)."""
    return code.read(8, code.add(sp, above + 8 * (index - len(ARGUMENT_REGISTERS))))


def expressions_at_call(lowering: Lowering, code: Builder, *, entered: bool) -> Expressions:
    """Expressions over the arguments: at a call, or with the return address on top of the stack (``entered``: at the
    entry of a function, at a tail call)."""
    number, sp = code.parameter("site"), code.register("rsp")
    known: dict[int, ir.Operand] = {
        index: code.register(ARGUMENT_REGISTERS[index]) for index in range(len(ARGUMENT_REGISTERS))
    }
    above = 8 if entered else 0

    def argument(index: int) -> ir.Operand:
        return known[index] if index in known else stack_argument(code, sp, index, above)

    place = Place(argument, None, number, sp, code.register("rbp"))
    return Expressions(code, place, lowering.policy, lowering.description, lowering.types)


def emit_requirements(
    expressions: Expressions,
    requires: tuple[model.Requirement, ...],
    default: model.Action | None,
    kind: int,
) -> None:
    """Report and return at the first requirement that does not hold; go on otherwise.  ``default``: the action that the
    site has anyhow (None: it may have any)."""
    code = expressions.code
    for requirement in requires:
        code.span = requirement.span
        holds, fails = code.label("holds"), code.label("fails")
        about = first_pointer(requirement.condition)
        code.assign(ABOUT, expressions.value(about) if about is not None else 0)
        expressions.branch(requirement.condition, holds, fails)
        code.start(fails)
        number = FOREIGN_FREED if _speaks_of_freeing(requirement.condition) else kind
        if requirement.action is not default:
            number |= (ACTION_CODES[requirement.action] + 1) << 8
        place = expressions.place
        code.give_back(code.call("report", place.site, number, ir.Variable(ABOUT), 0, place.sp))
        code.start(holds)


def _gate_check(lowering: Lowering, gate: model.Gate, saves: bool, *, tail: bool) -> tuple[ir.Block, ...]:
    code = Builder(gate.span)
    expressions = expressions_at_call(lowering, code, entered=tail)
    emit_requirements(expressions, gate.requires, gate.action, REQUIREMENT_FAILED)
    for effect in gate.effects:
        if isinstance(effect, model.Takes):
            code.span = effect.span
            emit_if(
                expressions,
                effect.condition,
                lambda effect=effect: emit_loss(expressions, effect),
            )
        elif isinstance(effect, model.Frees):
            code.span = effect.span
            emit_if(expressions, effect.condition, partial(emit_end, expressions, effect))
    if saves:
        place = expressions.place
        arguments = [place.argument(i) for i in range(len(ARGUMENT_REGISTERS))]
        pending.keep(code, place.sp, place.site, arguments)
    code.decide(ir.Verdict.ALLOW)
    return code.finish()


def _after_check(
    lowering: Lowering, gate: model.Gate, after: tuple[AfterEffect, ...]
) -> tuple[ir.Block, ...]:
    code = Builder(gate.span)
    number, sp, result = code.parameter("site"), code.register("rsp"), code.register("rax")
    arguments: tuple[ir.Operand, ...] = (ir.Constant(0),) * len(ARGUMENT_REGISTERS)
    if any(_needs_arguments(effect) for effect in after):
        # Where the probe at the call was missed, what the gate gave is not known, so nothing is granted.
        called = code.binary(ir.BinaryOperator.SUB, number, 1)  # _lower_call adds it right before
        arguments = pending.recall(code, sp, called, partial(code.decide, ir.Verdict.ALLOW))

    def argument(index: int) -> ir.Operand:
        return arguments[index] if index < len(arguments) else stack_argument(code, sp, index, 0)

    place = Place(argument, result, number, sp, code.register("rbp"))
    expressions = Expressions(code, place, lowering.policy, lowering.description, lowering.types)
    for effect in after:
        code.span = effect.span
        function = "renew" if _told_anew(gate, effect) else "gain"
        emit_if(
            expressions,
            effect.condition,
            lambda effect=effect, function=function: _emit_effect(expressions, effect, function),
        )
    if is_private(lowering.policy) and allocates(gate.function):
        _emit_exhausted(code, number, result, sp)
    code.decide(ir.Verdict.ALLOW)
    return code.finish()


def _emit_exhausted(code: Builder, number: ir.Operand, result: ir.Operand, sp: ir.Operand) -> None:
    """An allocation that the private heap could not serve is told, whatever the policy does on violations."""
    nothing, done = code.label("nothing"), code.label("served")
    code.branch(result, done, nothing)
    code.start(nothing)
    code.call("report", number, HEAP_EXHAUSTED | (ACTION_CODES[model.Action.REPORT] + 1) << 8, 0, 0, sp)
    code.jump(done)
    code.start(done)


def _told_anew(gate: model.Gate, effect: AfterEffect) -> bool:
    """The gate gives what it was lent, to tell what belongs to it now: no second capability."""
    if not isinstance(effect, model.Gives) or not isinstance(effect.pointer, model.ArgumentValue):
        return False
    taken = [e.pointer for e in gate.effects if isinstance(e, model.Takes)]
    return all(
        not isinstance(pointer, model.ArgumentValue) or pointer.index != effect.pointer.index
        for pointer in taken
    )


def _emit_effect(expressions: Expressions, effect: AfterEffect, function: str) -> None:
    if isinstance(effect, model.Gives):
        emit_gain(
            expressions, effect, function=function, part=isinstance(effect.pointer, model.ArgumentValue)
        )
        return
    pointer = expressions.value(effect.pointer)
    length = expressions.value(effect.length) if effect.length is not None else ir.Constant(0)
    mask = expressions.types.mask(effect.struct)
    flags = FLAG_OWN | (FLAG_TYPED if mask else 0)
    expressions.code.call("gain", pointer, length, flags, mask)


def emit_if(expressions: Expressions, condition: model.Expr | None, emit: object) -> None:
    """Run ``emit`` under a condition (None: always)."""
    assert callable(emit)
    if condition is None:
        emit()
        return
    code = expressions.code
    yes, no = code.label("when"), code.label("done")
    expressions.branch(condition, yes, no)
    code.start(yes)
    emit()
    code.jump(no)
    code.start(no)


@dataclass(frozen=True)
class Piece:
    """One range of memory that a capability covers, as operands and the arguments of ``gain``."""

    start: ir.Operand
    length: ir.Operand | int
    flags: int
    types: int


def _pieces(
    expressions: Expressions, effect: model.Gives | model.Lends | model.Takes, *, part: bool = False
) -> list[Piece]:
    """The object of an effect first, then what belongs to it.  ``part``: it may lie inside an object."""
    code = expressions.code
    address = expressions.value(effect.pointer)
    lent = FLAG_LENT if part or isinstance(effect, model.Lends) else 0
    if effect.capability is None:
        length = expressions.value(effect.length) if effect.length is not None else ir.Constant(0)
        return [Piece(address, length, FLAG_HELD | lent, 0)]
    capability = expressions.policy.capability(effect.capability)
    if capability is None:
        return []
    mask = expressions.types.mask(capability.struct)
    covered = any(_is_object(part.start) for part in capability.ranges)
    flags = FLAG_TYPED | (FLAG_HELD if covered else 0)
    pieces = [Piece(address, _struct_size(expressions, capability.struct), flags | lent, mask)]
    inner = expressions.at(address)
    for area in capability.ranges:
        if not _is_object(area.start):
            start = inner.value(area.start)
            length = code.binary(ir.BinaryOperator.SUB, inner.value(area.end), start)
            per_cpu = FLAG_PER_CPU if area.per_cpu else 0
            pieces.append(Piece(start, length, FLAG_HELD | lent | per_cpu, 0))
    return pieces


def emit_gain(
    expressions: Expressions,
    effect: model.Gives | model.Lends,
    first_bit: int | None = None,
    function: str = "gain",
    *,
    part: bool = False,
) -> None:
    """The compartment gains a capability, by ``gain`` or ``renew``.  With ``first_bit`` each piece that was not held before sets a bit of the
    variable LENT, from that bit on.  ``part``: the object may lie inside another one, and ends when it is taken."""
    code = expressions.code
    for index, piece in enumerate(_pieces(expressions, effect, part=part)):
        gained = code.call(function, piece.start, piece.length, piece.flags, piece.types)
        if first_bit is not None:
            fresh = code.binary(ir.BinaryOperator.EQ, gained, 1)
            bit = code.binary(ir.BinaryOperator.SHL, fresh, first_bit + index)
            code.assign(LENT, code.binary(ir.BinaryOperator.OR, ir.Variable(LENT), bit))


def emit_loss(
    expressions: Expressions,
    effect: model.Takes | model.Lends,
    lent: ir.Operand | None = None,
    first_bit: int = 0,
) -> None:
    """The compartment gives a capability back; what it allocated itself stays its own.  With ``lent`` only the
    pieces whose bit is set, as ``emit_gain`` left it."""
    code = expressions.code
    for index, piece in enumerate(_pieces(expressions, effect)):
        if lent is None:
            code.call("lose", piece.start)
            continue
        yes, no = code.label("lent"), code.label("kept")
        code.branch(code.binary(ir.BinaryOperator.AND, lent, 1 << first_bit + index), yes, no)
        code.start(yes)
        code.call("lose", piece.start)
        code.jump(no)
        code.start(no)


def emit_end(expressions: Expressions, effect: model.Frees) -> None:
    """An object ends.  Hooks see that of slab objects and pages, whoever frees them."""
    expressions.code.call("forget", expressions.value(effect.pointer))


def lends_with_bits(
    effects: tuple[model.Effect, ...], policy: model.CheckedPolicy
) -> Iterator[tuple[model.Lends, int]]:
    """What an entry is lent, each with the number of its first bit in LENT."""
    bit = 0
    for effect in effects:
        if isinstance(effect, model.Lends):
            yield effect, bit
            capability = policy.capability(effect.capability) if effect.capability is not None else None
            bit += 1 + (len(capability.ranges) if capability is not None else 0)


def _struct_size(expressions: Expressions, struct: str) -> int:
    layout = expressions.description.types.struct_by_name.get(struct)
    return layout.size if layout is not None else 0


def _is_object(expression: model.Expr) -> bool:
    return isinstance(expression, model.ArgumentValue)


def _operands(expression: model.Expr) -> tuple[model.Expr, ...]:
    match expression:
        case model.BinaryExpr():
            return (expression.left, expression.right)
        case model.UnaryExpr():
            return (expression.operand,)
        case model.Predicate():
            return expression.operands
        case model.LoadField() | model.AddressOfField():
            return (expression.base,)
        case _:
            return ()


def _walk(expression: model.Expr) -> Iterator[model.Expr]:
    yield expression
    for operand in _operands(expression):
        yield from _walk(operand)


def first_pointer(expression: model.Expr) -> model.Expr | None:
    """What a requirement is about, for the event: the pointer of its first predicate, else its first argument."""
    for part in _walk(expression):
        if isinstance(part, model.Predicate):
            return part.operands[0]
    return next((part for part in _walk(expression) if isinstance(part, model.ArgumentValue)), None)


def _speaks_of_freeing(expression: model.Expr) -> bool:
    return any(
        isinstance(part, model.Predicate) and part.kind is model.PredicateKind.FREEABLE
        for part in _walk(expression)
    )


def _needs_arguments(effect: AfterEffect) -> bool:
    parts: list[model.Expr] = [effect.pointer]
    if isinstance(effect, model.Allocates) and effect.length is not None:
        parts.append(effect.length)
    if effect.condition is not None:
        parts.append(effect.condition)
    return any(isinstance(inner, model.ArgumentValue) for part in parts for inner in _walk(part))
