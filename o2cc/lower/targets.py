# SPDX-License-Identifier: Apache-2.0
"""Where indirect calls and jumps may lead, each target with the scope classes that may go there.

Own functions and functions of the kernel that the policy names are tables of the module.  Functions that stand in
other modules' ops tables are found when the policy is loaded (`o2cc.runtime.call_targets`), into the map
``call_targets``.
"""

from __future__ import annotations

from dataclasses import dataclass

from o2cc.diagnostics import Collector, Span, error
from o2cc.lower.context import Lowering
from o2cc.lower.rules import ScopedRule
from o2cc.policy.model import IndirectTargets


@dataclass(frozen=True)
class KernelTarget:
    """A function outside the compartment that code of these scope classes may call through a pointer."""

    function: str
    scopes: int
    gate: int = 0  # that looks at the arguments, see o2cc.lower.indirect


@dataclass(frozen=True)
class OpsTables:
    """Functions in tables of ``struct`` in loaded modules that match ``modules`` (globs), but for ``excluded``, may be
    called by code of these scope classes."""

    struct: str
    modules: tuple[str, ...]
    excluded: tuple[str, ...]
    scopes: int
    span: Span
    gates: tuple[tuple[str, int], ...] = ()  # by member, see o2cc.lower.indirect


def _rules(lowering: Lowering) -> list[tuple[ScopedRule, IndirectTargets]]:
    policy = lowering.policy
    rules: list[tuple[ScopedRule, IndirectTargets]] = [(("icall", -1), policy.indirect)]
    rules += [(("icall", index), targets) for index, targets in enumerate(policy.scoped_indirect)]
    return rules


def kernel_targets(lowering: Lowering) -> tuple[KernelTarget, ...]:
    """Kernel functions that the policy names, by name."""
    own = lowering.description.function_by_name
    masks: dict[str, int] = {}
    for rule, targets in _rules(lowering):
        mask = lowering.scopes.mask_of_rule(rule, targets.scope)
        for name in targets.functions:
            if name not in own:
                masks[name] = masks.get(name, 0) | mask
    gates = lowering.target_gates
    return tuple(KernelTarget(name, mask, gates.get(name, 0)) for name, mask in sorted(masks.items()))


def own_targets(lowering: Lowering) -> dict[str, int]:
    """Own functions, with the scope classes that may call them through a pointer.

    Entries are in it in any case, since the kernel may be given their addresses; with no classes where no rule
    allows calls to them.
    """
    entries = {entry.function for entry in lowering.policy.entries}
    taken = {f.name for f in lowering.description.functions if f.address_taken or f.exported}
    masks = dict.fromkeys(entries, 0)
    for rule, targets in _rules(lowering):
        mask = lowering.scopes.mask_of_rule(rule, targets.scope)
        own = lowering.description.function_by_name
        names = {name for name in targets.functions if name in own}
        if targets.own:
            names |= entries | taken
        for name in names - set(targets.excluded):
            masks[name] = masks.get(name, 0) | mask
    return masks


def ops_targets(lowering: Lowering) -> tuple[OpsTables, ...]:
    """Tables whose functions the loader looks up.  Raises DiagnosticError (O2C0512) for tables of no named module."""
    problems = Collector()
    found: list[OpsTables] = []
    gates = lowering.target_gates
    for rule, targets in _rules(lowering):
        mask = lowering.scopes.mask_of_rule(rule, targets.scope)
        for ops in targets.ops:
            if not ops.modules:
                problems.add(
                    error(
                        "O2C0512",
                        f"tables of `struct {ops.struct}` in built-in code cannot be listed",
                        ops.span,
                        "of which modules?",
                        help='name the modules: `ops struct T of modules "x_*"`; name functions of the kernel '
                        "itself one by one, or by a set",
                    )
                )
                continue
            numbers = tuple(
                (gate.function.removeprefix(f"{ops.struct}."), gates[gate.function])
                for gate in ops.gates
                if gate.function in gates
            )
            found.append(OpsTables(ops.struct, ops.modules, targets.excluded, mask, ops.span, numbers))
    problems.raise_if_errors()
    return tuple(found)
