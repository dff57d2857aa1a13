# SPDX-License-Identifier: Apache-2.0
"""`call` and `icall` rules: which functions outside may be called, and where pointers may lead.

Every direct callee outside the compartment gets a decision with the rule that made it.  `except` belongs to its own
rule: what one rule leaves out another can allow.  A `gate` allows its function.

Codes: O2C0219 target that the description does not know, O2C0304 function that is never called, O2C0305 callees that no rule
allows, O2C0306 dangerous call.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass

from o2cc.diagnostics import Span, did_you_mean, warning
from o2cc.policy.context import Context
from o2cc.policy.model import Action, CallRule, IndirectTargets, OpsTargets, Scope
from o2cc.policy.sets import Exactness, Mention, Resolved, Universe, resolve_elements, resolve_set
from o2cc.policy.target import TargetCode
from o2cc.syntax import nodes

_NAMES_SHOWN = 8


@dataclass(frozen=True)
class ScopedCall:
    """A `call` rule and the functions that it is for (None: all)."""

    node: nodes.Call
    scope: Scope | None
    action: Action


def members_of_sets(
    context: Context, target: TargetCode, name: str, names: Collection[str]
) -> dict[str, Mention]:
    """Which of ``names`` stand in sets called ``name``, in any module of the program."""
    found: dict[str, Mention] = {}
    universe = Universe(names, target.callees, "function", strict=False, quiet=True)
    for module in context.program.modules.values():
        defined = context.program.definitions.get(module.name, {}).get((nodes.SetDef, name))
        if defined is None or not isinstance(defined.node, nodes.SetDef):
            continue
        resolved = resolve_set(context, defined.module, defined.node.value, universe)
        for member, mention in resolved.included.items():
            if member in names:  # `imports` brings all callees
                found.setdefault(member, mention)
    return found


def kernel_callbacks(context: Context) -> tuple[str, ...]:
    """Functions of the kernel that may stand in callbacks: the names in sets called `callbacks`."""
    found: set[str] = set()
    for definitions in context.program.definitions.values():
        defined = definitions.get((nodes.SetDef, "callbacks"))
        if defined is not None and isinstance(defined.node, nodes.SetDef):
            found.update(
                element.text
                for element in defined.node.value.include
                if isinstance(element, nodes.SymbolPattern) and not element.is_glob
            )
    return tuple(sorted(found))


class CallDecider:
    """Decides direct calls."""

    def __init__(self, context: Context, target: TargetCode, action: Action) -> None:
        self.context = context
        self.target = target
        self.action = action
        self.dangerous = members_of_sets(context, target, "dangerous", target.callees)

    def decide(
        self,
        calls: Sequence[ScopedCall],
        gates: Iterable[tuple[nodes.Gate, Scope | None]],
        policy_span: Span,
    ) -> tuple[CallRule, ...]:
        """A decision for each callee, by name; those for some functions only stand after those for all."""
        callees = self.target.callees
        universe = Universe(callees, callees, "callee of this code", strict=False)
        allowed: dict[str, Mention] = {}
        excluded: dict[str, Mention] = {}
        scoped: list[CallRule] = []
        for call in calls:
            resolved = resolve_set(self.context, self.context.program.main, call.node.functions, universe)
            self._report_unknown(resolved)
            if call.scope is not None:
                scoped.extend(
                    CallRule(name, True, call.action, mention.span, call.scope)
                    for name, mention in resolved.included.items()
                )
                self._report_dangerous(resolved.included)
                continue
            for name, mention in resolved.included.items():
                if name not in allowed or mention.exactness < allowed[name].exactness:
                    allowed[name] = mention
            for name, mention in resolved.excluded.items():
                excluded.setdefault(name, mention)
        for gate, scope in gates:
            name = gate.function.text
            if name not in callees:
                continue
            if scope is None:
                allowed[name] = Mention(gate.function.span, Exactness.NAME)
            else:
                scoped.append(CallRule(name, True, self.action, gate.function.span, scope))
        self._report_dangerous(allowed)
        rules: list[CallRule] = []
        silent: list[str] = []
        for name in callees:
            if name in allowed:
                rules.append(CallRule(name, True, self.action, allowed[name].span))
            elif name in excluded:
                rules.append(CallRule(name, False, self.action, excluded[name].span))
            else:
                rules.append(CallRule(name, False, self.action, policy_span))
                if not any(rule.function == name for rule in scoped):
                    silent.append(name)
        self._report_denied(silent, policy_span)
        return (*rules, *sorted(scoped, key=lambda rule: rule.function))

    def report_dangerous_targets(self, targets: Mapping[str, Span]) -> None:
        """Tell which functions that pointers may lead to are dangerous."""
        found = members_of_sets(self.context, self.target, "dangerous", targets)
        self.dangerous.update(found)
        self._report_dangerous(
            {name: Mention(targets[name], Exactness.NAME) for name in found if name in targets}
        )

    def _report_unknown(self, resolved: Resolved) -> None:
        for name, span in resolved.unknown.items():
            if name in self.target.functions:
                label = "it is a function of the compartment itself"
            else:
                label = "this has no effect"
            self.context.collector.add(
                warning(
                    "O2C0304",
                    f"this code never calls `{name}` directly",
                    span,
                    label,
                    help=did_you_mean(name, self.target.callees),
                )
            )

    def _report_dangerous(self, allowed: dict[str, Mention]) -> None:
        if self.context.collector.has_errors:  # a name in `except` may be what is wrong
            return
        for name, mention in sorted(allowed.items()):
            if name in self.dangerous:
                self.context.collector.add(
                    warning(
                        "O2C0306",
                        f"`{name}` gives power over the whole kernel",
                        mention.span,
                        "allowed here",
                        help="leave it out with `except std.linux.dangerous`"
                        if mention.exactness is Exactness.IMPORTS
                        else None,
                    )
                )

    def _report_denied(self, names: list[str], span: Span) -> None:
        if not names or self.context.collector.has_errors:
            return
        shown = ", ".join(f"`{name}`" for name in names[:_NAMES_SHOWN])
        more = len(names) - _NAMES_SHOWN
        self.context.collector.add(
            warning(
                "O2C0305",
                f"no rule allows {len(names)} of the functions that this code calls",
                span,
                notes=[shown + (f" and {more} more" if more > 0 else "")],
                help="calls of these are violations; write `call imports except ...` to allow what is left",
            )
        )


def indirect_targets(
    context: Context,
    target: TargetCode,
    rules: Iterable[tuple[nodes.IndirectCall, Scope | None, Action]],
    action: Action,
    policy_span: Span,
) -> tuple[IndirectTargets, tuple[IndirectTargets, ...]]:
    """The targets for all code, and those for some functions only.

    Without any `icall` rule nothing may be called through a pointer.
    """
    names = {*target.functions, *target.callees}
    if context.description is not None:
        names |= {*context.description.imports, *context.table.prototype_by_name}
    common = IndirectTargets(False, (), (), action, policy_span)
    scoped: list[IndirectTargets] = []
    for node, scope, scope_action in rules:
        one = _indirect(context, target, names, node, scope, scope_action)
        if scope is not None:
            scoped.append(one)
            continue
        first = common.span is policy_span
        common = IndirectTargets(
            own=common.own or one.own,
            functions=tuple(sorted({*common.functions, *one.functions})),
            ops=(*common.ops, *(ops for ops in one.ops if ops not in common.ops)),
            action=action,
            span=one.span if first else common.span,
            excluded=one.excluded if first else tuple(sorted(set(common.excluded) & set(one.excluded))),
        )
    return common, tuple(scoped)


def _indirect(
    context: Context,
    target: TargetCode,
    names: set[str],
    node: nodes.IndirectCall,
    scope: Scope | None,
    action: Action,
) -> IndirectTargets:
    own = False
    ops: list[OpsTargets] = []
    elements: list[nodes.SetElement] = []
    for item in node.targets:
        match item:
            case nodes.SelfTarget():
                own = True
            case nodes.OpsTarget():
                if item.type.name.text not in target.slots and context.struct(item.type) is None:
                    continue
                modules = tuple(literal.text for literal in item.modules)
                ops.append(OpsTargets(item.type.name.text, modules, item.span))
            case _:
                elements.append(item)
    universe = Universe(names, target.callees, "function", strict=False, open=True)
    resolved = resolve_elements(context, context.program.main, tuple(elements), node.excluded, universe)
    functions = set(resolved.included)
    for name, span in resolved.unknown.items():
        context.collector.add(
            warning(
                "O2C0219",
                f"the description of this target does not know a function `{name}`",
                span,
                "looked up when the policy is loaded",
                help=did_you_mean(name, names),
            )
        )
    excluded = resolve_elements(context, context.program.main, node.excluded, (), universe)
    left_out = set(excluded.included)
    return IndirectTargets(
        own=own,
        functions=tuple(sorted(functions - left_out)),
        ops=tuple(ops),
        action=action,
        span=node.span,
        excluded=tuple(sorted(left_out)),
        scope=scope,
    )
