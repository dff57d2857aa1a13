# SPDX-License-Identifier: Apache-2.0
"""The checker: a parsed policy, the modules it uses and a description of the target to a `CheckedPolicy`.

Pure: the modules come through a `Resolver`, the description is data.  Everything wrong is reported in one run.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace

from o2cc.diagnostics import (
    Collector,
    Diagnostic,
    Label,
    Span,
    did_you_mean,
    error,
    note,
    sorted_diagnostics,
    warning,
)
from o2cc.kernel.description import Description
from o2cc.policy import model
from o2cc.policy.calls import CallDecider, ScopedCall, indirect_targets, kernel_callbacks
from o2cc.policy.capabilities import Capabilities, related
from o2cc.policy.context import Context, LimitedCollector
from o2cc.policy.entries import EntryBuilder
from o2cc.policy.features import required_features
from o2cc.policy.gates import GateBuilder, GateRule
from o2cc.policy.grants import GrantBuilder
from o2cc.policy.members import with_member_gates
from o2cc.policy.model import (
    Action,
    CheckedPolicy,
    Gate,
    Grant,
    IndirectTargets,
    Scope,
    ViolationKind,
    ViolationRule,
)
from o2cc.policy.names import NoModules, ParsedModule, Program, Resolver, load_program
from o2cc.policy.overlap import check_overlaps
from o2cc.policy.policy_tests import TestChecker
from o2cc.policy.reasons import Reasons
from o2cc.policy.settings import (
    check_audition,
    check_code,
    check_heap,
    check_missed,
    check_probes,
    check_stack,
    check_transition,
    check_violations,
    resolve_scope,
)
from o2cc.policy.target import TargetCode
from o2cc.syntax import nodes

DEFAULT_ACTION = Action.DENY

# Against the wrong target every further rule would seem wrong.
_WRONG_TARGET = ("O2C0216", "O2C0238")


def check(
    main: ParsedModule,
    description: Description | None,
    resolve: Resolver | None = None,
    *,
    compartment: str | None = None,
) -> tuple[CheckedPolicy, tuple[Diagnostic, ...]]:
    """Check a policy against a target.

    ``compartment`` selects one where the file has several.  Returns the checked policy with its warnings and notes;
    raises DiagnosticError with all errors (and warnings) if there is any error.  Without a description, names of the
    target are not looked up and the result serves for diagnostics only.
    """
    collector = LimitedCollector()
    program = load_program(main, resolve or NoModules(), collector)
    node = _select(program, compartment, collector)
    if node is None:
        collector.raise_if_errors()
        raise AssertionError("a policy without a compartment is an error")
    policy = _Checker(Context(program, description, collector, Capabilities()), node).check()
    collector.raise_if_errors()
    return policy, sorted_diagnostics(collector.diagnostics)


def _select(program: Program, name: str | None, collector: Collector) -> nodes.Compartment | None:
    found = [item for item in program.main.file.items if isinstance(item, nodes.Compartment)]
    names = [item.name.text for item in found]
    for index, item in enumerate(found):
        if item.name.text in names[:index]:
            first = found[names.index(item.name.text)]
            collector.add(
                error(
                    "O2C0204",
                    f"compartment `{item.name.text}` is defined twice",
                    item.name.span,
                    secondary=[Label(first.name.span, "first defined here")],
                )
            )
    if not found:
        collector.add(
            error(
                "O2C0234",
                "there is no compartment in this policy",
                path=program.main.source.name,
                help='write `compartment name { code modules "name" ... }`',
            )
        )
        return None
    if name is None:
        if len(found) > 1:
            collector.add(
                error(
                    "O2C0234",
                    "this policy has several compartments",
                    found[1].name.span,
                    help=f"select one: {', '.join(f'`{item}`' for item in names)}",
                )
            )
            return None
        return found[0]
    if name not in names:
        collector.add(
            error(
                "O2C0234",
                f"there is no compartment `{name}`",
                path=program.main.source.name,
                help=did_you_mean(name, names),
            )
        )
        return None
    return found[names.index(name)]


def _without(targets: IndirectTargets, left_out: Collection[str]) -> IndirectTargets:
    """The same but for these functions."""
    return replace(targets, functions=tuple(name for name in targets.functions if name not in left_out))


@dataclass(frozen=True)
class _ScopedRule:
    """A rule with the functions that it is for (None: all)."""

    node: nodes.ScopedRule
    scope: Scope | None
    block: nodes.InFunctions | None = None


class _Checker:
    """Checks one compartment."""

    def __init__(self, context: Context, compartment: nodes.Compartment) -> None:
        self.context = context
        self.compartment = compartment
        self.span = compartment.name.span
        code = check_code(context, compartment)
        if any(item.code in _WRONG_TARGET for item in context.collector.diagnostics):
            context.collector.raise_if_errors()
        self.code = code.code
        self.target: TargetCode = code.target
        self.rules = self._scoped_rules()
        self.violations = check_violations(
            context,
            [(rule.node, rule.scope) for rule in self.rules if isinstance(rule.node, nodes.OnViolation)],
        )
        self.default = self._default_action()

    def _only_reports(self) -> bool:
        return {self.default, *(rule.action for rule in self.violations)} == {Action.REPORT}

    def check(self) -> CheckedPolicy:
        """Everything, in the order in which one part needs the other."""
        context = self.context
        heap, stack = check_heap(context, self.compartment), check_stack(context, self.compartment)
        audition, transition = (
            check_audition(context, self.compartment),
            check_transition(context, self.compartment, only_reports=self._only_reports()),
        )
        missed, strict = check_missed(context, self.compartment), check_probes(context, self.compartment)
        grants = self._grants()
        decider = CallDecider(context, self.target, self._action(ViolationKind.CALL, None))
        gate_rules = self._gate_rules()
        calls = decider.decide(
            [
                ScopedCall(rule.node, rule.scope, self._action(ViolationKind.CALL, rule.scope))
                for rule in self.rules
                if isinstance(rule.node, nodes.Call)
            ],
            [(rule.node, rule.scope) for rule in gate_rules],
            self.span,
        )
        indirect, scoped_indirect = self._indirect()
        through_pointers = {
            name: rule.span
            for rule in (*scoped_indirect, indirect)
            for name in rule.functions
            if name not in self.target.functions
        }
        decider.report_dangerous_targets(through_pointers)
        allowed = {rule.function: rule.span for rule in reversed(calls) if rule.allowed}
        builder = GateBuilder(context, self.target, self._action(ViolationKind.GATE, None))
        gates = builder.build(allowed, through_pointers, gate_rules, self.span)
        gates = tuple(self._mark_dangerous(gate, decider) for gate in gates)
        if builder.refused:
            self._report_refused(builder.refused, through_pointers)
            indirect, *rest = (_without(rule, builder.refused) for rule in (indirect, *scoped_indirect))
            scoped_indirect = tuple(rest)
        entry_builder = EntryBuilder(context, self.target, self._action(ViolationKind.GATE, None))
        entries = entry_builder.build(
            [rule for rule in self.compartment.rules if isinstance(rule, nodes.Entry)],
            [rule for rule in self.compartment.rules if isinstance(rule, nodes.Entries)],
            gates,
        )
        entry_builder.note_uncovered(self.span)
        gate_action = self._action(ViolationKind.GATE, None)
        indirect = with_member_gates(context, self.target, indirect, gate_action)
        scoped_indirect = tuple(
            with_member_gates(context, self.target, rule, gate_action) for rule in scoped_indirect
        )
        tests = self._tests({gate.function for gate in gates}, {entry.function for entry in entries})
        self._check_typed(grants, gates, entries)
        features = required_features(
            default=self.default,
            default_span=self.span,
            rules=self.violations,
            missed=missed,
            compartment=self.compartment,
            heap=heap,
            stack=stack,
            strict=strict,
            gates=gates,
            entries=entries,
        )
        capabilities = sorted(context.capabilities.values(), key=lambda item: item.number)
        return CheckedPolicy(
            name=self.compartment.name.text,
            span=self.compartment.span,
            files=tuple(module.source.name for module in context.program.modules.values()),
            code=self.code,
            heap=heap,
            stack=stack,
            grants=grants,
            capabilities=tuple(capabilities),
            entries=entries,
            gates=gates,
            calls=calls,
            indirect=indirect,
            audition=audition,
            transition=transition,
            on_violation=self.default,
            violation_rules=self.violations,
            on_missed=missed,
            probes_strict=strict,
            types=context.types.granted_types(),
            tests=tests,
            required_features=features,
            scoped_indirect=scoped_indirect,
            kernel_callbacks=kernel_callbacks(context),
        )

    # --- parts

    def _indirect(self) -> tuple[IndirectTargets, tuple[IndirectTargets, ...]]:
        """Where pointers may lead: for all code, and for some functions."""
        return indirect_targets(
            self.context,
            self.target,
            [
                (rule.node, rule.scope, self._action(ViolationKind.ICALL, rule.scope))
                for rule in self.rules
                if isinstance(rule.node, nodes.IndirectCall)
            ],
            self._action(ViolationKind.ICALL, None),
            self.span,
        )

    def _report_refused(self, refused: Mapping[str, Diagnostic], rules: Mapping[str, Span]) -> None:
        """Tell which functions pointers may not lead to after all."""
        by_rule: dict[Span, list[str]] = {}
        for name in sorted(refused):
            by_rule.setdefault(rules[name], []).append(name)
        for span, names in by_rule.items():
            self.context.collector.add(
                warning(
                    "O2C0310",
                    f"pointers may not lead to {len(names)} of these functions, whose arguments cannot be checked"
                    if len(names) > 1
                    else f"pointers may not lead to `{names[0]}`, whose arguments cannot be checked",
                    span,
                    "left out here",
                    notes=[f"`{name}`: {refused[name].message}" for name in names],
                    help="give the types of the parameters with `extern fn` or `gate`, or leave the functions out",
                )
            )

    def _scoped_rules(self) -> list[_ScopedRule]:
        rules: list[_ScopedRule] = []
        for rule in self.compartment.rules:
            if isinstance(rule, nodes.InFunctions):
                scope = resolve_scope(self.context, self.target, rule)
                if not rule.rules:
                    self.context.collector.add(
                        warning("O2C0233", "this block has no rules", rule.span, "it has no effect")
                    )
                if scope is not None:
                    rules.extend(_ScopedRule(inner, scope, rule) for inner in rule.rules)
            elif isinstance(
                rule,
                nodes.WriteStruct
                | nodes.WriteBehind
                | nodes.WritePernet
                | nodes.WriteSymbols
                | nodes.Gate
                | nodes.Call
                | nodes.IndirectCall
                | nodes.OnViolation,
            ):
                rules.append(_ScopedRule(rule, None))
        return rules

    def _default_action(self) -> Action:
        """The rule for all kinds in all code, or the strictest default."""
        for rule in self.violations:
            if rule.scope is None and len(rule.kinds) == len(ViolationKind):
                return rule.action
        return DEFAULT_ACTION

    def _action(self, kind: ViolationKind, scope: Scope | None) -> Action:
        function = scope.functions[0] if scope is not None else None
        rules: tuple[ViolationRule, ...] = tuple(
            rule
            for rule in self.violations
            if rule.scope is None or (scope is not None and set(scope.functions) <= set(rule.scope.functions))
        )
        return model.narrowest_action(rules, kind, function, self.default)

    def _grants(self) -> tuple[Grant, ...]:
        main = self.context.program.main
        reasons = Reasons(main.source, main.file)
        builder = GrantBuilder(self.context, reasons)
        grants: list[Grant] = []
        for rule in self.rules:
            if isinstance(
                rule.node,
                nodes.WriteStruct | nodes.WriteBehind | nodes.WritePernet | nodes.WriteSymbols,
            ):
                action = self._action(ViolationKind.WRITE, rule.scope)
                made = builder.build(rule.node, rule.scope, action)
                block = reasons.of(rule.block.span) if rule.block is not None else ""
                grants.extend(replace(grant, reason=grant.reason or block) for grant in made)
        check_overlaps(grants, self.context.collector)
        for grant in grants:
            if not grant.reason:
                self.context.collector.add(
                    note(
                        "O2C0236",
                        "this grant gives no reason",
                        grant.span,
                        help="write a comment on its line or above it",
                    )
                )
        return tuple(grants)

    def _gate_rules(self) -> list[GateRule]:
        found: list[GateRule] = []
        seen: dict[tuple[str, tuple[str, ...]], nodes.Gate] = {}
        for rule in self.rules:
            if not isinstance(rule.node, nodes.Gate):
                continue
            key = (rule.node.function.text, rule.scope.functions if rule.scope is not None else ())
            earlier = seen.setdefault(key, rule.node)
            if earlier is not rule.node:
                self.context.collector.add(
                    error(
                        "O2C0232",
                        f"gate `{rule.node.function.text}` is ruled twice",
                        rule.node.function.span,
                        secondary=[Label(earlier.function.span, "first ruled here")],
                        help="put all conditions into one rule",
                    )
                )
                continue
            found.append(GateRule(rule.node, rule.scope, self._action(ViolationKind.GATE, rule.scope)))
        return found

    def _mark_dangerous(self, gate: Gate, decider: CallDecider) -> Gate:
        mention = decider.dangerous.get(gate.function)
        if mention is None:
            return gate
        reason = "in a set called `dangerous`"
        return replace(gate, effects=(*gate.effects, model.Dangerous(reason, mention.span)))

    def _tests(self, gates: set[str], entries: set[str]) -> tuple[model.PolicyTest, ...]:
        known = [
            item.name.text
            for item in self.context.program.main.file.items
            if isinstance(item, nodes.Compartment)
        ]
        tests: list[model.PolicyTest] = []
        names: dict[str, nodes.Test] = {}
        for item in self.context.program.main.file.items:
            if not isinstance(item, nodes.Test):
                continue
            wanted = item.compartment
            if wanted is not None and wanted.text not in known:
                self.context.collector.add(
                    error(
                        "O2C0234",
                        f"there is no compartment `{wanted.text}`",
                        wanted.span,
                        help=did_you_mean(wanted.text, known),
                    )
                )
                continue
            if wanted is None and len(known) > 1:
                self.context.collector.add(
                    error(
                        "O2C0234",
                        "this test does not say which compartment it is for",
                        item.name.span,
                        help=f'write `test "{item.name.text}" of {known[0]} {{ ... }}`',
                    )
                )
                continue
            if wanted is not None and wanted.text != self.compartment.name.text:
                continue
            earlier = names.setdefault(item.name.text, item)
            if earlier is not item:
                self.context.collector.add(
                    error(
                        "O2C0204",
                        f"test `{item.name.text}` is defined twice",
                        item.name.span,
                        secondary=[Label(earlier.name.span, "first defined here")],
                    )
                )
            tests.append(TestChecker(self.context, self.target, gates, entries).check(item))
        return tuple(tests)

    def _check_typed(
        self, grants: tuple[Grant, ...], gates: tuple[Gate, ...], entries: tuple[model.Entry, ...]
    ) -> None:
        """Warn of struct grants of which no object can ever be recognized."""
        if not self.context.has_target:
            return
        typed = {capability.struct for capability in self.context.capabilities.values()}
        for entry in entries:
            typed.update(item.type.struct for item in entry.parameters if item.type.struct is not None)
        for gate in gates:
            if gate.result is not None and gate.result.struct is not None:
                typed.add(gate.result.struct)
            typed.update(
                effect.struct
                for effect in gate.effects
                if isinstance(effect, model.Allocates) and effect.struct is not None
            )
        for grant in grants:
            if not isinstance(grant, model.StructGrant) or grant.struct in typed:
                continue
            if not any(related(self.context, grant.struct, struct) for struct in typed):
                self.context.collector.add(
                    warning(
                        "O2C0235",
                        f"nothing tells which objects are of type `struct {grant.struct}`",
                        grant.span,
                        "this grant holds only for objects of a cache of their own",
                        help="define a capability for them, or an entry or gate that gets one",
                    )
                )
