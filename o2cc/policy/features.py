# SPDX-License-Identifier: Apache-2.0
"""What a policy needs of the system that enforces it, beyond what an object loaded by itself can do.

The driver refuses a feature that the target of the compilation lacks, or weakens it where it was told to by name.
Names: ``deny``, ``panic``, ``private heap``, ``private stack``, ``strict probes``.
"""

from __future__ import annotations

from o2cc.diagnostics import Span
from o2cc.policy.model import (
    Action,
    Entry,
    Gate,
    Heap,
    HeapKind,
    RequiredFeature,
    Stack,
    ViolationKind,
    ViolationRule,
)
from o2cc.syntax import nodes

_ACTIONS = {
    Action.DENY: (
        "deny",
        "only o2c.ko can keep an instruction from taking effect; an eBPF program can only report",
        "write `on violation report`, or load the policy with o2c.ko",
    ),
    Action.PANIC: (
        "panic",
        "an eBPF program cannot stop the kernel",
        "write `on violation report` or `kill`, or load the policy with o2c.ko",
    ),
}


def required_features(
    *,
    default: Action,
    default_span: Span,
    rules: tuple[ViolationRule, ...],
    missed: Action,
    compartment: nodes.Compartment,
    heap: Heap,
    stack: Stack | None,
    strict: bool,
    gates: tuple[Gate, ...],
    entries: tuple[Entry, ...],
) -> tuple[RequiredFeature, ...]:
    """Each feature once, with the first rule that needs it."""
    found: dict[str, RequiredFeature] = {}

    def need(name: str, reason: str, remedy: str, span: Span) -> None:
        found.setdefault(name, RequiredFeature(name, reason, remedy, span))

    actions = [(rule.action, rule.span) for rule in rules]
    ruled = {kind for rule in rules if rule.scope is None for kind in rule.kinds}
    if ruled != set(ViolationKind):
        actions.append((default, default_span))
    actions.extend((missed, rule.span) for rule in compartment.rules if isinstance(rule, nodes.OnMissed))
    actions.extend((gate.action, gate.span) for gate in gates)
    actions.extend((entry.action, entry.span) for entry in entries)
    for action, span in actions:
        if action in _ACTIONS:
            need(*_ACTIONS[action], span)
    if heap.kind is HeapKind.PRIVATE:
        need(
            "private heap",
            "own slab caches are made by o2c.ko",
            "write `heap tracked`, or load the policy with o2c.ko",
            heap.span,
        )
    if stack is not None:
        need(
            "private stack",
            "a stack can only be switched by o2c.ko",
            "leave the rule out, or load the policy with o2c.ko",
            stack.span,
        )
    if strict:
        span = next(rule.span for rule in compartment.rules if isinstance(rule, nodes.Probes))
        need(
            "strict probes",
            "only o2c.ko can keep its probes from being optimized",
            "write `probes optimized`, or load the policy with o2c.ko",
            span,
        )
    return tuple(found.values())
