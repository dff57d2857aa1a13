# SPDX-License-Identifier: Apache-2.0
"""Rules of which a compartment has one each: code, heap, stack, audition, transition, probes, what violations do.

Codes: O2C0216 code that is not of the target, O2C0221 wrong unit, O2C0224 out of range, O2C0232 rules that contradict each other,
O2C0231 the same rule twice, O2C0233 rules for no function, O2C0238 no `code` rule, O2C0250 condition of an audition, O2C0251
transition without an end.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import TypeVar

from o2cc.diagnostics import Label, error, warning
from o2cc.kernel.description import Description
from o2cc.policy.context import Context
from o2cc.policy.expressions import Checker
from o2cc.policy.model import (
    Action,
    Audition,
    Code,
    Heap,
    HeapKind,
    Scope,
    Stack,
    Transition,
    ViolationKind,
    ViolationRule,
)
from o2cc.policy.paths import Scope as ExpressionScope
from o2cc.policy.sets import Universe, resolve_set
from o2cc.policy.target import TargetCode
from o2cc.syntax import nodes

DEFAULT_CONFIDENCE = Fraction(99, 100)

# A page is the least that a stack or a heap can be (x86-64: 4096 bytes).
_PAGE = 4096

NodeT = TypeVar("NodeT", bound=nodes.Node)


def single(context: Context, found: Sequence[NodeT], what: str) -> NodeT | None:
    """The only rule of its kind; reports further ones (O2C0232)."""
    for later in found[1:]:
        context.collector.add(
            error(
                "O2C0232",
                f"a compartment has only one {what}",
                later.span,
                secondary=[Label(found[0].span, "first given here")],
            )
        )
    return found[0] if found else None


def module_name(name: str) -> str:
    """A module's name as the kernel has it: with `_` for `-`."""
    return name.replace("-", "_")


@dataclass(frozen=True)
class CheckedCode:
    """The code of a compartment, and the view of the target that goes with it."""

    code: Code
    target: TargetCode


def check_code(context: Context, compartment: nodes.Compartment) -> CheckedCode:
    """What is confined.  Reports code that the description does not hold."""
    rules = [rule for rule in compartment.rules if isinstance(rule, nodes.CodeModules | nodes.CodeFunctions)]
    description = context.description
    everything = TargetCode(description)
    if not rules:
        context.collector.add(
            error(
                "O2C0238",
                f"compartment `{compartment.name.text}` has no code",
                compartment.name.span,
                help='write `code modules "name"` or `code functions { ... } of vmlinux`',
            )
        )
        return CheckedCode(Code((), (), compartment.name.span), everything)
    span = rules[0].span
    modules: list[str] = []
    members: set[str] | None = set()
    for rule in rules:
        if isinstance(rule, nodes.CodeModules):
            members = None
            for literal in rule.modules:
                modules.append(module_name(literal.text))
                _check_module(context, description, literal)
            continue
        names = [module_name(literal.text) for literal in rule.modules or ()]
        modules.extend(names)
        if rule.modules is None:
            _check_builtin(context, description, rule)
        for literal in rule.modules or ():
            _check_module(context, description, literal)
        universe = Universe(everything.functions, (), "function of this target", strict=True)
        resolved = resolve_set(context, context.program.main, rule.functions, universe)
        if members is not None:
            members |= set(resolved.included)
    target = everything if members is None else TargetCode(description, frozenset(members))
    if context.has_target and not target.functions and not context.collector.has_errors:
        context.collector.add(error("O2C0238", "this code has no functions", span))
    code = Code(tuple(dict.fromkeys(modules)), tuple(sorted(target.functions)), span)
    return CheckedCode(code, target)


def _check_module(context: Context, description: Description | None, literal: nodes.StringLiteral) -> None:
    if description is None:
        return
    target = description.target
    if target.kind != "module" or module_name(target.name) != module_name(literal.text):
        kind = f"module `{target.name}`" if target.kind == "module" else "built-in code"
        context.collector.add(
            error(
                "O2C0216",
                f"this description is of {kind}, not of module `{literal.text}`",
                literal.span,
                notes=[f"kernel {description.release}"],
                help=f"describe the module first: `o2c scan {literal.text}`",
            )
        )


def _check_builtin(context: Context, description: Description | None, rule: nodes.CodeFunctions) -> None:
    if description is not None and description.target.kind != "builtin":
        context.collector.add(
            error(
                "O2C0216",
                f"this description is of module `{description.target.name}`, not of built-in code",
                rule.span,
                notes=[f"kernel {description.release}"],
                help="describe functions of vmlinux first, with `o2c scan`",
            )
        )


def check_heap(context: Context, compartment: nodes.Compartment) -> Heap:
    """Tracked, unless a rule says private."""
    found = [rule for rule in compartment.rules if isinstance(rule, nodes.HeapPrivate | nodes.HeapTracked)]
    rule = single(context, found, "heap")
    if isinstance(rule, nodes.HeapPrivate):
        return Heap(HeapKind.PRIVATE, _size(context, rule.size), rule.span)
    return Heap(HeapKind.TRACKED, None, rule.span if rule is not None else compartment.name.span)


def check_stack(context: Context, compartment: nodes.Compartment) -> Stack | None:
    """The private stack, if there is one."""
    rule = single(
        context, [rule for rule in compartment.rules if isinstance(rule, nodes.StackPrivate)], "stack"
    )
    if rule is None:
        return None
    limit = _size(context, rule.size)
    return None if limit is None else Stack(limit, rule.span)


def _size(context: Context, node: nodes.Expression) -> int | None:
    size = Checker(context, ExpressionScope(context.program.main)).constant_size(node)
    if size is not None and (size < _PAGE or size >= 1 << 47):
        context.collector.add(
            error("O2C0224", "this size is out of range", node.span, "from 4 KiB to 128 TiB")
        )
        return None
    return size


def check_violations(
    context: Context, rules: Iterable[tuple[nodes.OnViolation, Scope | None]]
) -> tuple[ViolationRule, ...]:
    """`on violation` rules; reports two that say different things of the same."""
    checked: list[ViolationRule] = []
    seen: dict[tuple[ViolationKind, int, tuple[str, ...]], ViolationRule] = {}
    for node, scope in rules:
        kinds = tuple(dict.fromkeys(node.kinds)) or tuple(ViolationKind)
        rule = ViolationRule(kinds, node.action, scope, node.span)
        checked.append(rule)
        for kind in kinds:
            key = (kind, len(kinds), scope.functions if scope is not None else ())
            earlier = seen.setdefault(key, rule)
            if earlier is rule:
                continue
            same = earlier.action is rule.action
            make = warning if same else error
            context.collector.add(
                make(
                    "O2C0231" if same else "O2C0232",
                    f"violations of {kind} are ruled twice" if node.kinds else "violations are ruled twice",
                    node.span,
                    secondary=[Label(earlier.span, "first ruled here")],
                )
            )
            break
    return tuple(checked)


def check_missed(context: Context, compartment: nodes.Compartment) -> Action:
    """What a check that could not run leads to: a report, unless a rule says more."""
    rule = single(
        context,
        [rule for rule in compartment.rules if isinstance(rule, nodes.OnMissed)],
        "rule for missed checks",
    )
    return rule.action if rule is not None else Action.REPORT


def check_probes(context: Context, compartment: nodes.Compartment) -> bool:
    """Whether probes are strict."""
    rule = single(
        context, [rule for rule in compartment.rules if isinstance(rule, nodes.Probes)], "probes rule"
    )
    return rule is not None and rule.mode is nodes.ProbeMode.STRICT


def check_audition(context: Context, compartment: nodes.Compartment) -> Audition | None:
    """How untracked objects are judged, if at all."""
    rule = single(
        context, [rule for rule in compartment.rules if isinstance(rule, nodes.Audition)], "audition"
    )
    if rule is None:
        return None
    confidence = DEFAULT_CONFIDENCE
    payload: list[str] = []
    own: list[str] = []
    for item in rule.items:
        if isinstance(item, nodes.AcceptPayload):
            payload.extend(literal.text for literal in item.caches)
            continue
        if isinstance(item, nodes.AcceptOwn):
            own.extend(name.text for name in item.structs)
            continue
        stated = _confidence(context, item)
        if stated is not None:
            confidence = stated
    return Audition(
        path=rule.tree.text,
        at_access=nodes.Moment.ACCESS in rule.moments,
        at_free=nodes.Moment.FREE in rule.moments,
        confidence=decimal(confidence),
        accept_payload=tuple(dict.fromkeys(payload)),
        span=rule.span,
        own=tuple(dict.fromkeys(own)),
    )


def _confidence(context: Context, item: nodes.Require) -> Fraction | None:
    condition = item.condition
    if (
        isinstance(condition, nodes.Binary)
        and condition.operator is nodes.BinaryOperator.GREATER_EQUAL
        and isinstance(condition.left, nodes.Path)
        and condition.left.text == "confidence"
        and isinstance(condition.right, nodes.Ratio | nodes.Integer)
    ):
        value = Fraction(condition.right.value)
        if 0 < value <= 1:
            return value
        context.collector.add(error("O2C0224", "a confidence lies above 0 and up to 1", condition.right.span))
        return None
    context.collector.add(
        error(
            "O2C0250",
            "an audition can only require a confidence",
            condition.span,
            help="write `require confidence >= 0.99`",
        )
    )
    return None


def decimal(value: Fraction) -> str:
    """A fraction that the language can write, as the decimal that it was (denominator a divisor of a power of 10)."""
    digits = 0
    while (value * 10**digits).denominator != 1:
        digits += 1
    number = str(int(value * 10**digits)).rjust(digits + 1, "0")
    return f"{number[:-digits]}.{number[-digits:]}" if digits else number


def check_transition(
    context: Context, compartment: nodes.Compartment, *, only_reports: bool
) -> Transition | None:
    """When the transition ends, if a rule says so.  ``only_reports``: no violation is more than reported."""
    rule = single(
        context, [rule for rule in compartment.rules if isinstance(rule, nodes.Transition)], "transition"
    )
    if rule is None:
        return None
    checker = Checker(context, ExpressionScope(context.program.main))
    quiescent = single(
        context, [item for item in rule.items if isinstance(item, nodes.UntilQuiescent)], "`until quiescent`"
    )
    at_most = single(context, [item for item in rule.items if isinstance(item, nodes.AtMost)], "`at most`")
    if quiescent is None and at_most is None:
        context.collector.add(
            warning(
                "O2C0251", "this transition never ends by itself", rule.span, help="add `until quiescent`"
            )
        )
    if at_most is not None and not only_reports:
        context.collector.add(
            warning(
                "O2C0252",
                "this ends the transition even while objects from before loading are in use",
                at_most.span,
                "what was not touched by then is a violation: the end of an open connection can stop the kernel",
                help="leave it out: `until quiescent` waits for them, and `o2c phase NAME final --wait SECONDS` as well",
            )
        )
    quiet = checker.duration(quiescent.quiet_for) if quiescent and quiescent.quiet_for else None
    return Transition(
        until_quiescent=quiescent is not None,
        quiescent_for=quiet,
        at_most=checker.duration(at_most.duration) if at_most is not None else None,
        span=rule.span,
    )


def resolve_scope(context: Context, target: TargetCode, node: nodes.InFunctions) -> Scope | None:
    """The functions of an `in functions` block; None if there are none, with a warning unless some are named `if
    present`."""
    universe = Universe(target.functions, (), "function of this compartment", strict=True)
    resolved = resolve_set(context, context.program.main, node.functions, universe)
    if not resolved.included:
        optional = any(
            isinstance(part, nodes.SymbolPattern) and part.optional for part in node.functions.include
        )
        if context.has_target and not resolved.unknown and not optional:
            context.collector.add(
                warning(
                    "O2C0233",
                    "these rules are for no function at all",
                    node.functions.span,
                    "they have no effect",
                )
            )
        return None
    return Scope(tuple(sorted(resolved.included)), node.functions.span)
