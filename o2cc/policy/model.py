# SPDX-License-Identifier: Apache-2.0
"""The checked policy: what is left of a policy once every name is resolved.

Nothing in here has to be looked up or interpreted again: struct fields are byte offsets, globs are lists of
functions, units are bytes and nanoseconds, capabilities are address ranges.  Every part keeps the span of the
rule that asked for it.  All classes are frozen; collections are tuples, ordered as in the source or by name.

Struct names are those of BTF without the word ``struct``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from functools import cached_property

from o2cc.diagnostics import Span
from o2cc.policy.effects import *
from o2cc.policy.effects import Capability, Effect
from o2cc.policy.expr import *
from o2cc.policy.expr import Expr, ValueType
from o2cc.policy.steps import *
from o2cc.policy.steps import PolicyTest
from o2cc.syntax.nodes.words import Action as Action
from o2cc.syntax.nodes.words import ViolationKind as ViolationKind

# --- the compartment --------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Code:
    """What is confined: whole modules, or functions of built-in code (globs resolved, sorted)."""

    modules: tuple[str, ...]
    functions: tuple[str, ...]
    span: Span


class HeapKind(StrEnum):
    TRACKED = "tracked"
    PRIVATE = "private"


@dataclass(frozen=True, slots=True)
class Heap:
    """How the compartment's objects are known; ``limit`` in bytes, None for no limit."""

    kind: HeapKind
    limit: int | None
    span: Span


@dataclass(frozen=True, slots=True)
class Stack:
    """A private stack of ``limit`` bytes a task or CPU."""

    limit: int
    span: Span


@dataclass(frozen=True, slots=True)
class Scope:
    """The functions of the compartment that a rule is for (globs resolved, sorted, never empty)."""

    functions: tuple[str, ...]
    span: Span


@dataclass(frozen=True, slots=True)
class ViolationRule:
    """`on violation of KINDS ACTION`; in code of ``scope`` only, if there is one."""

    kinds: tuple[ViolationKind, ...]
    action: Action
    scope: Scope | None
    span: Span


def narrowest_action(
    rules: tuple[ViolationRule, ...], kind: ViolationKind, function: str | None, default: Action
) -> Action:
    """The action of the narrowest rule for violations of ``kind`` in ``function``: the one for the fewest
    functions, then for the fewest kinds, then the later one."""
    best: tuple[tuple[int, int], Action] | None = None
    for rule in rules:
        if kind not in rule.kinds:
            continue
        if rule.scope is not None and function not in rule.scope.functions:
            continue
        key = (len(rule.scope.functions) if rule.scope is not None else 1 << 62, len(rule.kinds))
        if best is None or key <= best[0]:
            best = key, rule.action
    return best[1] if best is not None else default


@dataclass(frozen=True, slots=True)
class GrantedType:
    """A struct that grants, capabilities or arguments mention; ``number`` counts from 1."""

    number: int
    struct: str
    size: int


@dataclass(frozen=True, slots=True)
class StructGrant:
    """Writes to the byte ranges ``[start, end)`` of a ``struct`` (sorted, disjoint), for an object whose type is
    certain.  ``allows`` is False for a rule that takes the ranges away from a wider one."""

    struct: str
    type_id: int
    ranges: tuple[tuple[int, int], ...]
    fields: tuple[str, ...]
    whole: bool
    scope: Scope | None
    action: Action
    span: Span
    reason: str
    allows: bool = True


@dataclass(frozen=True, slots=True)
class SymbolGrant:
    """Writes to ``size`` bytes at ``symbol + offset``, data of the kernel (or of the code, when it is built in)."""

    symbol: str
    offset: int
    size: int
    scope: Scope | None
    action: Action
    span: Span
    reason: str
    allows: bool = True


@dataclass(frozen=True, slots=True)
class PernetGrant:
    """Writes to ``ranges`` of the per-namespace area `net->gen->ptr[*variable]`, which is a ``struct`` (None: not
    known; then the range is open and the heap object's own bounds hold)."""

    variable: str
    struct: str | None
    ranges: tuple[tuple[int, int], ...]
    scope: Scope | None
    action: Action
    span: Span
    reason: str
    allows: bool = True


@dataclass(frozen=True, slots=True)
class BehindGrant:
    """Writes to ``length`` bytes, from byte ``start`` on, behind the pointer member at ``offset`` of a ``struct`` that
    is owned, held or granted.  ``start`` and ``length`` may use ``ArgumentValue(0)``, the struct."""

    struct: str
    type_id: int
    field: str
    offset: int
    start: Expr
    length: Expr
    pointee: str | None
    scope: Scope | None
    action: Action
    span: Span
    reason: str
    allows: bool = True


Grant = StructGrant | SymbolGrant | PernetGrant | BehindGrant


# --- gates and entries ------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Parameter:
    """A parameter of a gate or an entry."""

    name: str
    type: ValueType


@dataclass(frozen=True, slots=True)
class Requirement:
    """A condition on the arguments, and what happens when it does not hold.

    ``implied`` requirements come from the default for typed pointers and effects, not from a written guard.
    """

    condition: Expr
    action: Action
    span: Span
    implied: bool = False


@dataclass(frozen=True, slots=True)
class Gate:
    """A kernel function that the compartment may call.

    ``known``: stdlib or the policy says what it does; else the default for typed pointers holds.
    ``deny_result``: what the caller sees as result when the call is denied (None: -EFAULT).
    ``scope``: only for calls from these functions; such a gate takes the place of the one for all.
    """

    function: str
    parameters: tuple[Parameter, ...]
    variadic: bool
    effects: tuple[Effect, ...]
    requires: tuple[Requirement, ...]
    known: bool
    deny_result: int | None
    action: Action
    span: Span
    result: ValueType | None = None
    scope: Scope | None = None


@dataclass(frozen=True, slots=True)
class Slot:
    """A member of an ops table that holds a function of the compartment."""

    struct: str
    field: str
    table: str


@dataclass(frozen=True, slots=True)
class Entry:
    """A function of the compartment that the kernel calls.  ``slots``: where its address stands, if an
    `entries of` rule found it."""

    function: str
    slots: tuple[Slot, ...]
    parameters: tuple[Parameter, ...]
    effects: tuple[Effect, ...]
    requires: tuple[Requirement, ...]
    action: Action
    span: Span


@dataclass(frozen=True, slots=True)
class CallRule:
    """Why a direct callee outside the compartment is allowed or denied; in code of ``scope`` only, if given."""

    function: str
    allowed: bool
    action: Action
    span: Span
    scope: Scope | None = None


@dataclass(frozen=True, slots=True)
class OpsTargets:
    """Targets that are the functions in tables of ``struct``, in modules that match ``modules`` (globs).  ``gates``
    say what is required of the arguments of calls through each member; their functions are called ``STRUCT.MEMBER``."""

    struct: str
    modules: tuple[str, ...]
    span: Span
    gates: tuple[Gate, ...] = ()


@dataclass(frozen=True, slots=True)
class IndirectTargets:
    """Where indirect calls and jumps may go.  ``own``: functions of the compartment whose address is taken."""

    own: bool
    functions: tuple[str, ...]
    ops: tuple[OpsTargets, ...]
    action: Action
    span: Span
    excluded: tuple[str, ...] = ()
    scope: Scope | None = None


# --- audition, phases -------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Audition:
    """Untracked objects are typed by the tree in ``path``; ``confidence`` in 0..1 (exact decimal as text).
    ``own``: names or globs of structs that only the compartment allocates; an object judged to be one is its own."""

    path: str
    at_access: bool
    at_free: bool
    confidence: str
    accept_payload: tuple[str, ...]
    span: Span
    own: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Transition:
    """When the transition ends; times in nanoseconds."""

    until_quiescent: bool
    quiescent_for: int | None
    at_most: int | None
    span: Span


# --- the whole --------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class RequiredFeature:
    """Something that the policy needs of the running system, e.g. "deny" or "private heap", and why."""

    name: str
    reason: str
    remedy: str
    span: Span


@dataclass(frozen=True)
class CheckedPolicy:
    """A compartment that is ready to be compiled, with its tests.

    ``gates`` holds the direct callees of the target and whatever the policy names, by function name.
    ``calls`` decides every direct callee outside the compartment (sorted by function).  ``kernel_callbacks`` are
    functions of the kernel that satisfy ENTRY like the compartment's own entries; some may not exist in this kernel.
    """

    name: str
    span: Span
    files: tuple[str, ...]
    code: Code
    heap: Heap
    stack: Stack | None
    grants: tuple[Grant, ...]
    capabilities: tuple[Capability, ...]
    entries: tuple[Entry, ...]
    gates: tuple[Gate, ...]
    calls: tuple[CallRule, ...]
    indirect: IndirectTargets
    audition: Audition | None
    transition: Transition | None
    on_violation: Action
    violation_rules: tuple[ViolationRule, ...]
    on_missed: Action
    probes_strict: bool
    types: tuple[GrantedType, ...]
    tests: tuple[PolicyTest, ...] = ()
    required_features: tuple[RequiredFeature, ...] = ()
    scoped_indirect: tuple[IndirectTargets, ...] = ()
    kernel_callbacks: tuple[str, ...] = ()

    @cached_property
    def _gates_by_function(self) -> Mapping[str, list[Gate]]:
        found: dict[str, list[Gate]] = {}
        for gate in self.gates:
            found.setdefault(gate.function, []).append(gate)
        return found

    @cached_property
    def _calls_by_function(self) -> Mapping[str, list[CallRule]]:
        found: dict[str, list[CallRule]] = {}
        for rule in self.calls:
            found.setdefault(rule.function, []).append(rule)
        return found

    def action_for(self, kind: ViolationKind, function: str | None = None) -> Action:
        """What a violation of that kind in code of ``function`` does."""
        return narrowest_action(self.violation_rules, kind, function, self.on_violation)

    def gate(self, function: str, caller: str | None = None) -> Gate | None:
        """The gate of that name for calls from ``caller``: one for few functions before one for all."""
        found = [
            gate
            for gate in self._gates_by_function.get(function, ())
            if gate.scope is None or caller in gate.scope.functions
        ]
        return min(found, key=lambda gate: len(gate.scope.functions) if gate.scope else 1 << 62, default=None)

    def entry(self, function: str) -> Entry | None:
        """The entry of that name."""
        return next((entry for entry in self.entries if entry.function == function), None)

    def call(self, function: str, caller: str | None = None) -> CallRule | None:
        """The rule that decides direct calls of that function from ``caller``; a rule for few functions only
        ever allows more."""
        found = [
            rule
            for rule in self._calls_by_function.get(function, ())
            if rule.scope is None or caller in rule.scope.functions
        ]
        return next((rule for rule in found if rule.allowed), found[0] if found else None)

    def capability(self, name: str) -> Capability | None:
        """The capability of that name."""
        return next((capability for capability in self.capabilities if capability.name == name), None)

    def type_named(self, struct: str) -> GrantedType | None:
        """The numbered type of that struct."""
        return next((granted for granted in self.types if granted.struct == struct), None)

    @property
    def allowed_calls(self) -> tuple[CallRule, ...]:
        """The direct callees that may be called."""
        return tuple(rule for rule in self.calls if rule.allowed)

    @property
    def denied_calls(self) -> tuple[CallRule, ...]:
        """The direct callees that may not be called."""
        return tuple(rule for rule in self.calls if not rule.allowed)
