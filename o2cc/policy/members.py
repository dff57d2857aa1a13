# SPDX-License-Identifier: Apache-2.0
"""Gates of the members of other modules' tables (`icall ops struct T of modules ...`).

The functions are not known before the policy is loaded, but their types are: those of the own functions that stand in
the same member, or what a library says of it (`extern entry struct T.member(...)`).  Arguments are judged by their type
alone, as those of a direct call that nobody speaks of.

Codes: O2C0311 members whose arguments nothing tells.
"""

from __future__ import annotations

from dataclasses import replace

from o2cc.diagnostics import warning
from o2cc.policy.clauses import implied_by_type
from o2cc.policy.context import Context
from o2cc.policy.gates import gate_scope, written_parameters
from o2cc.policy.model import Action, Gate, IndirectTargets, OpsTargets, Parameter
from o2cc.policy.structs import value_type
from o2cc.policy.target import TargetCode

_NAMES_SHOWN = 8


def with_member_gates(
    context: Context, target: TargetCode, targets: IndirectTargets, action: Action
) -> IndirectTargets:
    """The targets with the gates of their tables' members."""
    ops = tuple(
        replace(item, gates=_gates(context, target, item, action)) if item.modules else item
        for item in targets.ops
    )
    return replace(targets, ops=ops)


def _gates(context: Context, target: TargetCode, ops: OpsTargets, action: Action) -> tuple[Gate, ...]:
    functions: dict[str, list[str]] = {}
    for member, _, function in target.slots.get(ops.struct, ()):
        functions.setdefault(member, []).append(function)
    described = {member for struct, member in context.program.table_entries if struct == ops.struct}
    gates: list[Gate] = []
    for member in sorted({*functions, *described}):
        parameters = _parameters(context, target, ops, member, functions.get(member, []))
        if parameters is not None:
            gates.append(_gate(context, ops, member, parameters, action))
    _report_unknown(context, ops, {gate.function for gate in gates})
    return tuple(gates)


def _parameters(
    context: Context, target: TargetCode, ops: OpsTargets, member: str, functions: list[str]
) -> tuple[Parameter, ...] | None:
    prototypes = [prototype for name in functions if (prototype := target.prototype(name)) is not None]
    prototype = prototypes[0] if prototypes else None
    if prototype is not None:
        return tuple(Parameter(item.name, value_type(item.type)) for item in prototype.parameters)
    for _, entry in context.program.table_entries.get((ops.struct, member), []):
        return written_parameters(context, f"struct {ops.struct}.{member}", entry.parameters, None)
    return None


def _gate(
    context: Context, ops: OpsTargets, member: str, parameters: tuple[Parameter, ...], action: Action
) -> Gate:
    scope = gate_scope(context.program.main, parameters, None)
    implied = (
        implied_by_type(context, scope, index, parameter.name, parameter.type, action, ops.span)
        for index, parameter in enumerate(parameters)
    )
    return Gate(
        function=f"{ops.struct}.{member}",
        parameters=parameters,
        variadic=False,
        effects=(),
        requires=tuple(item for item in implied if item is not None),
        known=True,
        deny_result=None,
        action=action,
        span=ops.span,
    )


def _report_unknown(context: Context, ops: OpsTargets, known: set[str]) -> None:
    layout = context.table.struct_by_name.get(ops.struct)
    unknown = [
        f"`{member.name}`"
        for member in (layout.members if layout is not None else ())
        if member.type.is_function_pointer and f"{ops.struct}.{member.name}" not in known
    ]
    if not unknown and layout is not None:
        return
    more = len(unknown) - _NAMES_SHOWN
    shown = ", ".join(unknown[:_NAMES_SHOWN]) + (f" and {more} more" if more > 0 else "")
    context.collector.add(
        warning(
            "O2C0311",
            f"arguments of calls through {len(unknown)} members of `struct {ops.struct}` are not checked"
            if len(unknown) > 1
            else f"arguments of calls through {unknown[0]} of `struct {ops.struct}` are not checked"
            if unknown
            else f"arguments of calls through tables of `struct {ops.struct}` are not checked",
            ops.span,
            "allowed here",
            notes=[shown] if len(unknown) > 1 else [],
            help=f"say what they are given with `extern entry struct {ops.struct}.member(...)`",
        )
    )
