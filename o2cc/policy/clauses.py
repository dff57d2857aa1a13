# SPDX-License-Identifier: Apache-2.0
"""Clauses of gates and entries to effects, and to the requirements that these imply.

An implied requirement lets a null pointer pass: what the kernel does with one is not of the compartment's making.
A condition (`when`) that does not read the result also limits what the effect requires.

Codes: O2C0225 `result` before the call, O2C0301 unknown length, O2C0307 capability of another struct, O2C0308 clause that
has no meaning here.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from o2cc.diagnostics import Span, error
from o2cc.policy import model
from o2cc.policy.capabilities import begins_with, capabilities_for, capability_named, fits
from o2cc.policy.context import Context
from o2cc.policy.expressions import Checker
from o2cc.policy.folding import compare, constant, either, is_constant
from o2cc.policy.model import (
    Action,
    AddressOfField,
    BinaryOperation,
    Capability,
    Effect,
    Expr,
    Predicate,
    PredicateKind,
    Requirement,
    TypeKind,
    UnaryExpr,
    UnaryOperation,
)
from o2cc.policy.paths import Scope
from o2cc.policy.places import ResolvedPlace, resolve_place, unknown_length
from o2cc.policy.structs import BOOLEAN
from o2cc.policy.substitute import mentioned_arguments, mentions_result
from o2cc.syntax import nodes

# kmalloc(0) gives 16 (ZERO_SIZE_PTR, include/linux/slab.h), which kfree ignores like null.
_ZERO_SIZE_POINTER = 16
_POINTER_ALIGNMENT = 8  # of objects that words with flags point to


_Passing = nodes.Gives | nodes.Takes | nodes.Lends | nodes.Transfer
_Passed = model.Gives | model.Takes | model.Lends


@dataclass
class CheckedClauses:
    """What clauses say; ``spoken_of`` are the arguments that they are about."""

    effects: list[Effect] = field(default_factory=list)
    requires: list[Requirement] = field(default_factory=list)
    spoken_of: set[int] = field(default_factory=set)
    pure: bool = False
    deny_result: int | None = None
    action: Action | None = None


class ClauseChecker:
    """Checks the clauses of one gate (``at_entry`` False) or entry."""

    def __init__(self, context: Context, scope: Scope, action: Action, *, at_entry: bool) -> None:
        self.context = context
        self.before = Checker(context, Scope(scope.module, scope.parameters, None, scope.implicit))
        self.after = self.before if at_entry else Checker(context, scope)
        self.action = action
        self.at_entry = at_entry
        self.done = CheckedClauses()

    def check(self, clauses: Sequence[nodes.Clause]) -> CheckedClauses:
        """Check all clauses."""
        for clause in clauses:
            if isinstance(clause, nodes.OnViolation):
                self.action = self.done.action = clause.action
        for clause in clauses:
            self._clause(clause)
        return self.done

    def _clause(self, clause: nodes.Clause) -> None:
        if self.at_entry and isinstance(clause, _GATE_ONLY):
            self._no_meaning(clause, "an entry")
            return
        match clause:
            case nodes.Pure():
                self.done.pure = True
                self.done.effects.append(model.Pure(clause.span))
            case nodes.Require():
                condition = self.before.condition(clause.condition)
                if condition is not None:
                    self._speak(condition)
                    self.done.requires.append(Requirement(condition, self.action, clause.span))
            case nodes.OnDeny():
                self.done.deny_result = self.before.constant(clause.result)
            case nodes.OnViolation():
                pass
            case nodes.Writes() | nodes.Reads():
                self._memory(clause)
            case nodes.Shares():
                condition, valid = self._when(clause.when)
                for place in clause.places:
                    found = self._object(place, self.after)
                    if found is not None and valid:
                        self.done.effects.append(model.Shares(found.pointer, place.span, condition))
            case nodes.Frees():
                self._frees(clause)
            case nodes.Allocates():
                self._allocates(clause)
            case nodes.Gives():
                self._gives(clause, model.Lends if clause.until_return else model.Gives)
            case nodes.Takes():
                self._takes(clause, model.Takes)
            case nodes.Lends():
                if self.at_entry:
                    self._gives(clause, model.Lends)
                else:
                    self._takes(clause, model.Lends)
            case nodes.Transfer():
                if clause.to is nodes.Party.KERNEL:
                    self._takes(clause, model.Takes)
                else:
                    self._gives(clause, model.Gives)
            case nodes.Returns():
                self._returns(clause)
            case nodes.StoresCallback() | nodes.CallsCallback():
                self._callback(clause)

    # --- one kind of clause each

    def _memory(self, clause: nodes.Writes | nodes.Reads) -> None:
        condition, valid = self._when(clause.when)
        for place in clause.places:
            found = resolve_place(self.before, place, pointee=False)
            if found is None or not valid:
                continue
            if isinstance(clause, nodes.Writes) or not _is_object(place, found.pointer):
                self._speak(found.pointer)
            if found.length is None:
                if isinstance(clause, nodes.Writes):
                    self._unknown_length(place)
                continue
            if isinstance(clause, nodes.Reads):
                self.done.effects.append(model.Reads(found.pointer, found.length, place.span, condition))
                continue
            self.done.effects.append(model.Writes(found.pointer, found.length, place.span, condition))
            self._require_writable(found.pointer, found.length, condition, place.span)

    def _frees(self, clause: nodes.Frees) -> None:
        condition, valid = self._when(clause.when)
        found = self._object(clause.place, self.before)
        capability = self._capability(clause.capability, found, clause.place)
        if found is None or not valid or (clause.capability is not None and capability is None):
            return
        self._speak(found.pointer)
        self.done.effects.append(
            model.Frees(found.pointer, capability.name if capability else None, clause.span, condition)
        )
        if capability is not None:
            self._imply(
                self._held(found.pointer, capability, clause.span), found.pointer, condition, clause.span
            )
            self._imply_movable(found.pointer, capability, condition, clause.span)
            return
        freeable = Predicate(PredicateKind.FREEABLE, (found.pointer,), BOOLEAN, clause.span)
        none = compare(
            BinaryOperation.LESS_EQUAL,
            found.pointer,
            constant(_ZERO_SIZE_POINTER, clause.span),
            clause.span,
        )
        self._add_requirement(either(none, freeable), condition, clause.span)

    def _allocates(self, clause: nodes.Allocates) -> None:
        condition, valid = self._when(clause.when)
        found = self._object(clause.place, self.after)
        if found is None or not valid:
            return
        self._speak(found.pointer)
        length = found.length if found.explicit else None
        struct = found.pointer.type.struct
        known = struct is not None and struct in self.context.table.struct_by_name
        number = self.context.types.number(struct) if known and struct is not None else None
        self.done.effects.append(
            model.Allocates(found.pointer, length, struct, number, clause.span, condition)
        )

    def _gives(self, clause: _Passing, kind: type[model.Gives | model.Lends]) -> None:
        self._passes(clause, kind, self.after)

    def _takes(self, clause: _Passing, kind: type[model.Takes | model.Lends]) -> None:
        passed = self._passes(clause, kind, self.before)
        if passed is None or self.at_entry:
            return
        effect, capability = passed
        pointer, span = effect.pointer, effect.span
        if capability is not None:
            self._imply(self._held(pointer, capability, span), pointer, None, span)
            if kind is model.Takes:
                self._imply_movable(pointer, capability, None, span)
        elif effect.length is not None:
            self._require_writable(pointer, effect.length, effect.condition, span)
        else:
            self._imply(Predicate(PredicateKind.FREEABLE, (pointer,), BOOLEAN, span), pointer, None, span)

    def _passes(
        self, clause: _Passing, kind: type[_Passed], checker: Checker
    ) -> tuple[_Passed, Capability | None] | None:
        """Note that the clause's object changes hands; None when the clause is wrong."""
        condition, valid = self._when(clause.when)
        found = self._object(clause.place, checker)
        capability = self._capability(clause.capability, found, clause.place)
        if found is None or not valid or (clause.capability is not None and capability is None):
            return None
        self._speak(found.pointer)
        name, length = (None, found.length) if capability is None else (capability.name, None)
        pointer = found.pointer if capability is None else _without_flags(found.pointer)
        effect = kind(pointer, name, length, clause.span, condition)
        self.done.effects.append(effect)
        return effect, capability

    def _returns(self, clause: nodes.Returns) -> None:
        pointer: Expr | None = None
        if clause.path is not None:
            typed = self.after.path(clause.path)
            if typed is None:
                return
            pointer = typed.expr
        self.done.effects.append(model.Returns(clause.right, pointer, clause.span))

    def _callback(self, clause: nodes.StoresCallback | nodes.CallsCallback) -> None:
        typed = self.before.path(clause.path)
        entry: str | None = None
        if clause.entry is not None:
            defined = self.context.program.lookup(
                self.before.scope.module, nodes.ExternEntry, clause.entry, self.context.collector
            )
            if defined is None:
                return
            entry = clause.entry.parts[-1].text
        if typed is None:
            return
        self._speak(typed.expr)
        self.done.effects.append(
            model.StoresCallback(
                typed.expr, clause.span, entry, isinstance(clause, nodes.CallsCallback), None
            )
        )
        required = Predicate(PredicateKind.ENTRY, (typed.expr,), BOOLEAN, clause.span)
        self._imply(required, typed.expr, None, clause.span)

    # --- parts

    def _object(self, place: nodes.Place, checker: Checker) -> ResolvedPlace | None:
        return resolve_place(checker, place, pointee=True)

    def _capability(
        self, name: nodes.QualifiedName | None, found: ResolvedPlace | None, place: nodes.Place
    ) -> Capability | None:
        """The named capability, or the only one that there is for the object's type."""
        module = self.before.scope.module
        if name is not None:
            capability = capability_named(self.context, module, name)
            if capability is not None and found is not None:
                fits(self.context, capability, found.pointer.type, place.span)
            return capability
        if found is None or place.extent is not None or found.pointer.type.struct is None:
            return None
        fitting = capabilities_for(self.context, module, found.pointer.type.struct)
        return fitting[0] if len(fitting) == 1 else None

    def _held(self, pointer: Expr, capability: Capability, span: Span) -> Expr:
        return Predicate(PredicateKind.HELD, (pointer,), BOOLEAN, span, capability.type_id, capability.name)

    def _imply_movable(
        self, pointer: Expr, capability: Capability, condition: Expr | None, span: Span
    ) -> None:
        """Who takes an object over may free it: it must be one of that type of the heap, from its first byte."""
        if any(isinstance(part.start, model.ArgumentValue) for part in capability.ranges):
            movable = Predicate(
                PredicateKind.FREEABLE, (pointer,), BOOLEAN, span, capability.type_id, capability.name
            )
            self._imply(movable, pointer, condition, span)

    def _when(self, when: nodes.Expression | None) -> tuple[Expr | None, bool]:
        """The condition of an effect, and whether it is valid."""
        if when is None:
            return None, True
        condition = self.after.condition(when)
        return condition, condition is not None

    def _require_writable(self, pointer: Expr, length: Expr, condition: Expr | None, span: Span) -> None:
        writable: Expr = Predicate(PredicateKind.WRITABLE, (pointer, length), BOOLEAN, span)
        writable = either(compare(BinaryOperation.EQUAL, length, constant(0, span), span), writable)
        self._imply(writable, pointer, condition, span)

    def _imply(self, required: Expr, pointer: Expr, condition: Expr | None, span: Span) -> None:
        """Require it of a pointer that is not null."""
        if not isinstance(pointer, AddressOfField):
            none = compare(BinaryOperation.EQUAL, pointer, constant(0, span), span)
            required = either(none, required)
        self._add_requirement(required, condition, span)

    def _add_requirement(self, required: Expr, condition: Expr | None, span: Span) -> None:
        if condition is not None and not mentions_result(condition):
            required = either(UnaryExpr(UnaryOperation.NOT, condition, BOOLEAN, span), required)
        if is_constant(required, 1):
            return
        requirement = Requirement(required, self.action, span, implied=True)
        if requirement not in self.done.requires:
            self.done.requires.append(requirement)

    def _speak(self, expr: Expr) -> None:
        self.done.spoken_of.update(mentioned_arguments(expr))

    def _unknown_length(self, place: nodes.Place) -> None:
        if not self.context.has_target:
            return
        self.context.collector.add(
            unknown_length(place.path.text, place.span, ", or give the parameter a type")
        )

    def _no_meaning(self, clause: nodes.Clause, where: str) -> None:
        word = _WORDS.get(type(clause), "this clause")
        self.context.collector.add(error("O2C0308", f"`{word}` has no meaning for {where}", clause.span))


def _is_object(place: nodes.Place, pointer: Expr) -> bool:
    """A parameter that points to a struct, as a whole: that it is read says nothing of whose it must be."""
    argument = isinstance(pointer, model.ArgumentValue) and pointer.type.struct is not None
    return argument and not isinstance(place.extent, nodes.Length | nodes.Range)


def _without_flags(pointer: Expr) -> Expr:
    """The pointer in a field that BTF calls a number: flags are in its low bits (`_skb_refdst`, include/linux/skbuff.h)."""
    if not isinstance(pointer, model.LoadField) or pointer.type.kind is TypeKind.POINTER:
        return pointer
    mask = constant(~(_POINTER_ALIGNMENT - 1) & (1 << 64) - 1, pointer.span)
    return model.BinaryExpr(BinaryOperation.BIT_AND, pointer, mask, pointer.type, pointer.span)


_GATE_ONLY = (
    nodes.Writes,
    nodes.Reads,
    nodes.Frees,
    nodes.Allocates,
    nodes.StoresCallback,
    nodes.CallsCallback,
    nodes.OnDeny,
    nodes.Returns,
)

_WORDS: dict[type[nodes.Node], str] = {
    nodes.Writes: "writes",
    nodes.Reads: "reads",
    nodes.Frees: "frees",
    nodes.Allocates: "allocates",
    nodes.StoresCallback: "stores callback",
    nodes.CallsCallback: "calls callback",
    nodes.OnDeny: "on deny",
    nodes.Returns: "returns",
}


def implied_by_type(
    context: Context, scope: Scope, index: int, name: str, type_: model.ValueType, action: Action, span: Span
) -> Requirement | None:
    """What is required of an argument of which nothing but the type is known; None for numbers and untyped
    pointers.

    A function pointer must be an entry.  A pointer to a struct that the kernel shares must not be of the
    compartment's making.  Where a capability reaches further than the object itself, or says nothing but what the
    object is, owning the object is not enough, since the compartment could have forged what is in it.
    """
    argument = model.ArgumentValue(index, name, type_, span)
    none = compare(BinaryOperation.EQUAL, argument, constant(0, span), span)
    if type_.kind is TypeKind.FUNCTION_POINTER:
        entry = Predicate(PredicateKind.ENTRY, (argument,), BOOLEAN, span)
        return Requirement(either(none, entry), action, span, implied=True)
    if type_.kind is not TypeKind.POINTER or type_.struct is None:
        return None
    number = context.types.number(type_.struct)
    fitting = capabilities_for(context, scope.module, type_.struct)
    required: Expr = none
    if type_.struct in context.program.shared_types:
        required = either(required, Predicate(PredicateKind.SHARED, (argument,), BOOLEAN, span, number))
        if not fitting:  # not `held`, which is true of whatever the compartment has allocated
            fit = Predicate(PredicateKind.GRANTED, (argument,), BOOLEAN, span, number)
            return Requirement(either(required, fit), action, span, implied=True)
    elif all(capability.ranges and not _reaches_further(capability) for capability in fitting):
        required = either(required, Predicate(PredicateKind.OWNED, (argument,), BOOLEAN, span))
    names: list[str | None] = [capability.name for capability in fitting]
    for held in names or [None]:
        required = either(required, Predicate(PredicateKind.HELD, (argument,), BOOLEAN, span, number, held))
    identity = any(not capability.ranges for capability in fitting)  # held by every object of that type
    if not identity and _is_granted(context, type_.struct):
        required = either(required, Predicate(PredicateKind.GRANTED, (argument,), BOOLEAN, span, number))
    return Requirement(required, action, span, implied=True)


def _is_granted(context: Context, struct: str) -> bool:
    """Whether fields are granted of objects that are a ``struct`` or begin with one."""
    return any(
        granted == struct or begins_with(context, struct, granted) for granted in context.granted_structs
    )


def _reaches_further(capability: Capability) -> bool:
    """Whether a capability covers memory that lies behind pointers of the object."""
    return any(_reads_memory(part.start) for part in capability.ranges)


def _reads_memory(expr: Expr) -> bool:
    match expr:
        case model.LoadField():
            return True
        case AddressOfField():
            return _reads_memory(expr.base)
        case model.BinaryExpr():
            return _reads_memory(expr.left) or _reads_memory(expr.right)
        case UnaryExpr():
            return _reads_memory(expr.operand)
        case _:
            return False
