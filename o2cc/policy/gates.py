# SPDX-License-Identifier: Apache-2.0
"""Gates: what is known of each kernel function that the compartment may call.

What a library (`extern fn`) and the policy (`gate`) say of a function is taken together.  Arguments that neither
speaks of are judged by their type, unless the function is `pure`; a function that nobody speaks of is judged by its
types alone, with a warning that names it.

Codes: O2C0300 function that stdlib does not know, O2C0302 wrong number of parameters, O2C0303 gate that is never called,
O2C0309 wrong type of a parameter, O2C0210 unknown type of a parameter.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from o2cc.diagnostics import Collector, Diagnostic, Label, Span, did_you_mean, error, warning
from o2cc.kernel.type_table import Prototype
from o2cc.policy import model
from o2cc.policy.base_types import base_type, base_type_names
from o2cc.policy.capabilities import related
from o2cc.policy.clauses import CheckedClauses, ClauseChecker, implied_by_type
from o2cc.policy.context import Context
from o2cc.policy.model import Action, Gate, Parameter, Requirement, TypeKind, ValueType
from o2cc.policy.names import ParsedModule
from o2cc.policy.paths import Scope
from o2cc.policy.structs import UNKNOWN, pointer_to, value_type
from o2cc.policy.target import TargetCode
from o2cc.policy.unknown_warnings import UnknownCallee, unknown_warnings
from o2cc.syntax import nodes


@dataclass(frozen=True)
class GateRule:
    """A `gate` of the policy, and the functions that it is for (None: all)."""

    node: nodes.Gate
    scope: model.Scope | None
    action: Action


def written_parameters(
    context: Context, what: str, node: nodes.Parameters, prototype: Prototype | None
) -> tuple[Parameter, ...] | None:
    """Names from the policy, types from the prototype, or from the policy where that says more.

    None if their numbers disagree (O2C0302).  Assembly functions have a prototype without parameters that says
    nothing (kernel: `SYM_FUNC_START`); theirs is not compared.
    """
    known = list(prototype.parameters) if prototype is not None else []
    written = node.parameters
    says_nothing = prototype is not None and not known and prototype.returns.kind == "void"
    if prototype is not None and not says_nothing:
        agree = len(written) <= len(known) if node.variadic else len(written) == len(known)
        if node.variadic and prototype.variadic:
            agree = len(written) <= len(known)
        if not agree:
            context.collector.add(
                error(
                    "O2C0302",
                    f"`{what}` has {len(known)} parameter{'' if len(known) == 1 else 's'}, "
                    f"not {len(written)}",
                    node.span,
                    notes=[
                        "its prototype: "
                        + ", ".join(f"{parameter.type} {parameter.name}".strip() for parameter in known)
                    ],
                    help="end the list with `...` to leave out the rest"
                    if len(written) < len(known)
                    else None,
                )
            )
            return None
    result: list[Parameter] = []
    seen: dict[str, Span] = {}
    for index, parameter in enumerate(written):
        name = parameter.name
        if name.text in seen:
            context.collector.add(
                error(
                    "O2C0204",
                    f"parameter `{name.text}` is defined twice",
                    name.span,
                    secondary=[Label(seen[name.text], "first defined here")],
                )
            )
        seen[name.text] = name.span
        type_ = value_type(known[index].type) if index < len(known) else UNKNOWN
        if parameter.type is not None:
            stated = stated_type(context, parameter.type)
            if stated is not None:
                type_ = _agreed_type(context, parameter, type_, stated)
        result.append(Parameter(name.text, type_))
    for later in known[len(result) :]:
        result.append(Parameter(later.name, value_type(later.type)))
    return tuple(result)


def _agreed_type(
    context: Context, parameter: nodes.Parameter, known: ValueType, stated: ValueType
) -> ValueType:
    """The stated type where the prototype says nothing, or where it says a struct that the stated one begins with
    (or the other way round).  Else the prototype is right, and a policy that says otherwise is wrong (O2C0309)."""
    if known.kind is TypeKind.UNKNOWN:
        return stated
    if known.struct is None:
        vague = known.kind is TypeKind.POINTER or stated.kind is not TypeKind.POINTER
        return stated if vague and known.kind is not TypeKind.FUNCTION_POINTER else known
    if stated.struct is not None and related(context, known.struct, stated.struct):
        return stated
    if context.module_of(parameter.span) is context.program.main:
        context.collector.add(
            error(
                "O2C0309",
                f"`{parameter.name.text}` is a `{known}`, not a `{stated}`",
                parameter.span,
                help="leave the type out; it is known from the kernel's type information",
            )
        )
    return known


def stated_type(context: Context, node: nodes.Type) -> ValueType | None:
    """The type that a parameter list states; a struct stands for a pointer to it."""
    if isinstance(node, nodes.StructType):
        struct = context.table.struct_by_name.get(node.name.text)
        if struct is None:
            if context.module_of(node.span) is context.program.main:
                context.struct(node)
            return None
        return pointer_to(struct.name, struct.size)
    found = base_type(node.text)
    if found is None:
        context.collector.add(
            error(
                "O2C0210",
                f"unknown type `{node.text}`",
                node.span,
                help=did_you_mean(node.text, base_type_names()),
            )
        )
    return found


def gate_scope(module: ParsedModule, parameters: tuple[Parameter, ...], result: ValueType | None) -> Scope:
    """What names mean in the clauses of a gate or an entry."""
    return Scope(
        module,
        {parameter.name: (index, parameter.type) for index, parameter in enumerate(parameters)},
        result or UNKNOWN,
    )


class GateBuilder:
    """Builds the gates of a policy."""

    def __init__(self, context: Context, target: TargetCode, gate_action: Action) -> None:
        self.context = context
        self.target = target
        self.action = gate_action
        self.refused: dict[str, Diagnostic] = {}
        self.unknown: list[UnknownCallee] = []

    def build(
        self,
        callees: Mapping[str, Span],
        through_pointers: Mapping[str, Span],
        rules: Iterable[GateRule],
        policy_span: Span,
    ) -> tuple[Gate, ...]:
        """Gates of the functions that may be called, directly or through pointers (with the span of the rule that
        allows it), and of those that the policy speaks of, by name, those for all callers first.  Functions that only
        pointers lead to and whose arguments cannot be checked are left in ``refused``."""
        by_function: dict[str, list[GateRule]] = {}
        for rule in rules:
            by_function.setdefault(rule.node.function.text, []).append(rule)
        gates: list[Gate] = []
        for function in sorted({*callees, *by_function}):
            written = by_function.get(function, [])
            called = function in self.target.callees or function in through_pointers
            if not called and self.context.has_target:
                for rule in written:
                    if not rule.node.optional:
                        self._never_called(rule.node)
                written = [rule for rule in written if not rule.node.optional]
            for rule in written:
                gate = self._gate(function, rule, rule.node.span)
                if gate is not None:
                    gates.append(gate)
            if function in callees and not any(rule.scope is None for rule in written):
                gate = self._gate(function, None, callees[function])
                if gate is not None:
                    gates.append(gate)
        for function, span in sorted(through_pointers.items()):
            if function not in callees and not any(
                rule.scope is None for rule in by_function.get(function, [])
            ):
                gate = self._tried(function, span)
                if gate is not None:
                    gates.append(gate)
        for diagnostic in unknown_warnings(self.unknown):
            self.context.collector.add(diagnostic)
        return tuple(sorted(gates, key=lambda gate: gate.function))

    def _tried(self, function: str, span: Span) -> Gate | None:
        """The gate of a function that only pointers lead to.  The target knows types of what it calls directly: where
        what a library says needs more, there is no gate, and the function stands in ``refused``."""
        collector, broken = self.context.collector, set(self.context.broken_capabilities)
        unknown = len(self.unknown)
        trial = Collector()
        self.context.collector = trial
        try:
            gate = self._gate(function, None, span)
        finally:
            self.context.collector = collector
        if trial.has_errors:
            self.context.broken_capabilities = broken
            del self.unknown[unknown:]
            self.refused[function] = trial.diagnostics[0]
            return None
        for diagnostic in trial.diagnostics:
            collector.add(diagnostic)
        return gate

    def _never_called(self, node: nodes.Gate) -> None:
        name = node.function.text
        if name in self.target.functions:
            message = f"`{name}` is a function of the compartment itself, not a gate"
        else:
            message = f"this code never calls `{name}` directly"
        self.context.collector.add(
            warning(
                "O2C0303",
                message,
                node.function.span,
                "this gate has no effect",
                help=did_you_mean(name, self.target.callees),
            )
        )

    def _gate(self, function: str, rule: GateRule | None, span: Span) -> Gate | None:
        prototype = self.target.prototype(function)
        extern = self.context.program.extern(function)
        action = rule.action if rule is not None else self.action
        effects: list[model.Effect] = []
        requires: list[Requirement] = []
        spoken: set[int] = set()
        parameters: tuple[Parameter, ...] | None = None
        deny_result: int | None = None
        pure = False
        result = value_type(prototype.returns) if prototype is not None else None
        sources: list[tuple[ParsedModule, nodes.Parameters, tuple[nodes.Clause, ...]]] = []
        if rule is not None:
            sources.append((self.context.program.main, rule.node.parameters, rule.node.clauses))
        if extern is not None:
            sources.append((extern[0], extern[1].parameters, extern[1].clauses))
        for module, node, clauses in sources:
            own = written_parameters(self.context, function, node, prototype)
            if own is None:
                return None
            checked = self._clauses(module, own, result, clauses, action)
            for effect in checked.effects:
                if effect not in effects:
                    effects.append(effect)
            requires.extend(item for item in checked.requires if item not in requires)
            spoken |= checked.spoken_of
            pure = pure or checked.pure
            deny_result = checked.deny_result if deny_result is None else deny_result
            action = checked.action or action
            parameters = own if parameters is None else _better(parameters, own)
        if parameters is None:
            parameters = tuple(
                Parameter(item.name, value_type(item.type))
                for item in (prototype.parameters if prototype is not None else ())
            )
        if not pure:
            scope = gate_scope(extern[0] if extern else self.context.program.main, parameters, result)
            if extern is None:
                scope = gate_scope(self.context.program.main, parameters, result)
            for index, parameter in enumerate(parameters):
                if index in spoken:
                    continue
                implied = implied_by_type(
                    self.context, scope, index, parameter.name, parameter.type, action, span
                )
                if implied is not None:
                    requires.append(implied)
        if not sources:
            self._unknown(function, parameters, prototype, span)
        return Gate(
            function=function,
            parameters=parameters,
            variadic=prototype.variadic if prototype is not None else False,
            effects=tuple(effects),
            requires=tuple(requires),
            known=bool(sources),
            deny_result=deny_result,
            action=action,
            span=span,
            result=result,
            scope=rule.scope if rule is not None else None,
        )

    def _clauses(
        self,
        module: ParsedModule,
        parameters: tuple[Parameter, ...],
        result: ValueType | None,
        clauses: tuple[nodes.Clause, ...],
        action: Action,
    ) -> CheckedClauses:
        scope = gate_scope(module, parameters, result)
        return ClauseChecker(self.context, scope, action, at_entry=False).check(clauses)

    def _unknown(
        self,
        function: str,
        parameters: tuple[Parameter, ...],
        prototype: Prototype | None,
        span: Span,
    ) -> None:
        opaque = None
        original, _, suffix = function.partition(".")
        if suffix:
            opaque = f"the compiler made it of `{original}`, perhaps with other parameters: none of its arguments is checked"
        elif prototype is None:
            opaque = "no prototype is known either: none of its arguments is checked"
        shared = tuple(
            parameter.name
            for parameter in parameters
            if parameter.type.struct in self.context.program.shared_types
        )
        checked = tuple(
            parameter.name
            for parameter in parameters
            if (parameter.type.struct is not None or parameter.type.kind is TypeKind.FUNCTION_POINTER)
            and parameter.name not in shared
        )
        unchecked = tuple(
            parameter.name
            for parameter in parameters
            if parameter.type.kind is TypeKind.POINTER and parameter.type.struct is None
        )
        self.unknown.append(UnknownCallee(function, span, checked, shared, unchecked, opaque))


def _better(first: tuple[Parameter, ...], second: tuple[Parameter, ...]) -> tuple[Parameter, ...]:
    """Names of the first, and of each type the one that says more."""
    longer = first if len(first) >= len(second) else second
    merged = []
    for index, parameter in enumerate(longer):
        name, type_ = parameter.name, parameter.type
        for other in (first, second):
            if index < len(other) and (type_.kind is TypeKind.UNKNOWN or type_.struct is None):
                candidate = other[index].type
                if candidate.struct is not None or type_.kind is TypeKind.UNKNOWN:
                    type_ = candidate
        if index < len(first):
            name = first[index].name
        merged.append(Parameter(name, type_))
    return tuple(merged)
