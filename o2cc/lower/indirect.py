# SPDX-License-Identifier: Apache-2.0
"""Checks of calls and jumps through pointers: where they lead, and what they hand to functions outside.

Who is called is known only when the call is made.  So the gates of all functions outside the compartment that pointers
may lead to are numbered, from 1; `check_target` gives the number with its answer, and `check_arguments` asks what that
gate requires.  A BPF subprogram has five parameters at most: the arguments of the call go through the map `pending`.
"""

from __future__ import annotations

from functools import partial

from o2cc.ir import nodes as ir
from o2cc.ir.builder import Builder
from o2cc.kernel.description import Function, Operand
from o2cc.lower import pending
from o2cc.lower.context import REQUIREMENT_FAILED, Lowering
from o2cc.lower.expressions import ARGUMENT_REGISTERS, Expressions, Place
from o2cc.lower.gates import emit_end, emit_if, emit_loss, emit_requirements, stack_argument
from o2cc.policy import model
from o2cc.policy.model import Gate, ViolationKind


def target_gates(policy: model.CheckedPolicy) -> dict[str, int]:
    """Numbers of the gates that ask something of calls through pointers, by function (``STRUCT.MEMBER`` for a member
    of other modules' tables)."""
    rules = (policy.indirect, *policy.scoped_indirect)
    named = [policy.gate(name) for name in sorted({name for rule in rules for name in rule.functions})]
    members = {gate.function: gate for rule in rules for ops in rule.ops for gate in ops.gates}
    gates = [*named, *(members[name] for name in sorted(members))]
    asking = [gate for gate in gates if gate is not None and _asks(gate)]
    return {gate.function: number for number, gate in enumerate(asking, 1)}


def _asks(gate: Gate) -> bool:
    return bool(gate.requires) or any(isinstance(effect, model.Takes) for effect in gate.effects)


def _gate_named(policy: model.CheckedPolicy, name: str) -> Gate:
    for rule in (policy.indirect, *policy.scoped_indirect):
        for ops in rule.ops:
            for gate in ops.gates:
                if gate.function == name:
                    return gate
    found = policy.gate(name)
    assert found is not None
    return found


def lower_indirect(lowering: Lowering, function: Function) -> None:
    """Sites for the calls and jumps through pointers."""
    gated = bool(lowering.target_gates)
    for site in function.sites:
        if site.kind not in ("indirect_call", "indirect_jump"):
            continue
        kind = ir.SiteKind.INDIRECT_CALL if site.kind == "indirect_call" else ir.SiteKind.INDIRECT_JUMP
        probe = lowering.probed_offset(function, site, kind)
        operand = site.operand
        if probe is None or operand is None or operand.base is None:
            continue
        jumps = gated and kind is ir.SiteKind.INDIRECT_JUMP
        name = target_shape(operand) + ("_jump" if jumps else "")
        check = lowering.check(name, partial(_target_check, operand, gated=gated, jumps=jumps))
        lowering.add_site(
            function,
            site.offset,
            kind,
            check,
            action=lowering.policy.action_for(ViolationKind.ICALL, function.parent or function.name),
            span=lowering.policy.indirect.span,
            place=site,
            probe_offset=probe,
            parameters={"displacement": operand.displacement & (2**64 - 1)} if operand.is_memory else None,
        )


def target_shape(operand: Operand) -> str:
    """Name of the check for an indirect call or jump; equal names mean equal code."""
    index = f"_{operand.index}x{operand.scale}" if operand.index else ""
    return f"target_{'at_' if operand.is_memory else ''}{operand.base}{index}"


def _target_check(operand: Operand, *, gated: bool, jumps: bool) -> tuple[ir.Block, ...]:
    code = Builder()
    target: ir.Operand = code.register(operand.base or "")
    if operand.is_memory:
        if operand.index is not None:
            index = code.binary(ir.BinaryOperator.MUL, code.register(operand.index), operand.scale)
            target = code.add(target, index)
        target = code.read(8, code.add(target, code.parameter("displacement")))
    number, sp = code.parameter("site"), code.register("rsp")
    answer = code.call("check_target", target, number, sp)
    if gated:
        gate = code.binary(ir.BinaryOperator.LSHR, answer, 8)
        arguments, done = code.label("arguments"), code.label("done")
        code.branch(gate, arguments, done)
        code.start(arguments)
        registers = [code.register(name) for name in ARGUMENT_REGISTERS]
        pending.keep(code, sp, number, registers)
        above = 8 if jumps else 0  # the return address of a tail jump is on top of the stack
        code.give_back(code.call("check_arguments", gate, number, sp, code.register("rbp"), above))
        code.start(done)
    code.give_back(answer)
    return code.finish()


def check_arguments(lowering: Lowering) -> ir.Function:
    """``check_arguments(gate, site, sp, bp, above)``: what the gate with this number requires of the arguments that
    `pending` holds; those on the stack lie ``above`` bytes over ``sp``.

    What a gate gives back is not told apart by who was called: results of calls through pointers are nobody's.
    """
    code = Builder()
    gate, site, sp, bp = (ir.Value(name) for name in ("gate", "site", "sp", "bp"))
    registers = pending.recall(
        code, sp, site, lambda: code.give_back(code.call("report", site, REQUIREMENT_FAILED, 0, 0, sp))
    )

    def argument(index: int) -> ir.Operand:
        if index < len(registers):
            return registers[index]
        return stack_argument(code, code.add(sp, ir.Value("above")), index, 0)

    place = Place(argument, None, site, sp, bp)
    expressions = Expressions(code, place, lowering.policy, lowering.description, lowering.types)
    for name, number in lowering.target_gates.items():
        mine, following = code.label("gate"), code.label("next")
        code.branch(code.binary(ir.BinaryOperator.EQ, gate, number), mine, following)
        code.start(mine)
        found = _gate_named(lowering.policy, name)
        code.span = found.span
        emit_requirements(expressions, found.requires, None, REQUIREMENT_FAILED)
        for effect in found.effects:
            if isinstance(effect, model.Takes):
                code.span = effect.span
                emit_if(expressions, effect.condition, partial(emit_loss, expressions, effect))
            elif isinstance(effect, model.Frees):
                code.span = effect.span
                emit_if(expressions, effect.condition, partial(emit_end, expressions, effect))
        code.give_back(0)
        code.start(following)
    code.give_back(0)
    return ir.Function("check_arguments", ("gate", "site", "sp", "bp", "above"), code.finish())
