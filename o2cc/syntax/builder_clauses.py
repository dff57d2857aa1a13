# SPDX-License-Identifier: Apache-2.0
"""The builder's methods for clauses, functions and capabilities."""

from __future__ import annotations

from lark import v_args
from lark.tree import Meta

from o2cc.diagnostics import error
from o2cc.syntax import nodes as n
from o2cc.syntax.builder_expressions import ExpressionBuilder
from o2cc.syntax.parts import (
    AsCapability,
    AsEntry,
    Children,
    Clauses,
    Kinds,
    UntilReturn,
    Variadic,
    When,
    all_of,
    first_of,
    one_of,
)


@v_args(meta=True)
class ClauseBuilder(ExpressionBuilder):
    """What functions, gates and entries do."""

    # -------------------------------------------------------------- clauses

    def when(self, meta: Meta, children: Children) -> When:
        return When(children[0])

    def as_cap(self, meta: Meta, children: Children) -> AsCapability:
        return AsCapability(children[0])

    def as_entry(self, meta: Meta, children: Children) -> AsEntry:
        return AsEntry(children[0])

    def until_return(self, meta: Meta, children: Children) -> UntilReturn:
        return UntilReturn()

    @staticmethod
    def _when(children: Children) -> n.Expression | None:
        found = first_of(children, When)
        return found.condition if found else None

    @staticmethod
    def _capability(children: Children) -> n.QualifiedName | None:
        found = first_of(children, AsCapability)
        return found.name if found else None

    @staticmethod
    def _entry_kind(children: Children) -> n.QualifiedName | None:
        found = first_of(children, AsEntry)
        return found.name if found else None

    def writes(self, meta: Meta, children: Children) -> n.Writes:
        return n.Writes(self._span(meta), all_of(children, n.Place), self._when(children))

    def reads(self, meta: Meta, children: Children) -> n.Reads:
        return n.Reads(self._span(meta), all_of(children, n.Place), self._when(children))

    def shares(self, meta: Meta, children: Children) -> n.Shares:
        return n.Shares(self._span(meta), all_of(children, n.Place), self._when(children))

    def frees(self, meta: Meta, children: Children) -> n.Frees:
        return n.Frees(self._span(meta), children[0], self._capability(children), self._when(children))

    def allocates(self, meta: Meta, children: Children) -> n.Allocates:
        return n.Allocates(self._span(meta), children[0], self._when(children))

    def gives(self, meta: Meta, children: Children) -> n.Gives:
        until = first_of(children, UntilReturn) is not None
        return n.Gives(self._span(meta), children[0], self._capability(children), until, self._when(children))

    def takes(self, meta: Meta, children: Children) -> n.Takes:
        return n.Takes(self._span(meta), children[0], self._capability(children), self._when(children))

    def lends(self, meta: Meta, children: Children) -> n.Lends:
        until = first_of(children, UntilReturn) is not None
        return n.Lends(self._span(meta), children[0], self._capability(children), until, self._when(children))

    def transfer(self, meta: Meta, children: Children) -> n.Transfer:
        return n.Transfer(
            self._span(meta),
            children[0],
            self._capability(children),
            one_of(children, n.Party),
            self._when(children),
        )

    def returns(self, meta: Meta, children: Children) -> n.Returns:
        return n.Returns(self._span(meta), one_of(children, n.Right), first_of(children, n.Path))

    def stores_callback(self, meta: Meta, children: Children) -> n.StoresCallback:
        return n.StoresCallback(self._span(meta), children[0], self._entry_kind(children))

    def calls_callback(self, meta: Meta, children: Children) -> n.CallsCallback:
        return n.CallsCallback(self._span(meta), children[0], self._entry_kind(children))

    def pure(self, meta: Meta, children: Children) -> n.Pure:
        return n.Pure(self._span(meta))

    def require(self, meta: Meta, children: Children) -> n.Require:
        return n.Require(self._span(meta), children[0])

    def on_deny(self, meta: Meta, children: Children) -> n.OnDeny:
        return n.OnDeny(self._span(meta), children[0])

    def violation_kinds(self, meta: Meta, children: Children) -> Kinds:
        return Kinds(tuple(children))

    def on_violation(self, meta: Meta, children: Children) -> n.OnViolation:
        kinds = first_of(children, Kinds)
        return n.OnViolation(self._span(meta), kinds.kinds if kinds else (), one_of(children, n.Action))

    def clauses(self, meta: Meta, children: Children) -> Clauses:
        return Clauses(tuple(children))

    clause_block = clauses

    # -------------------------------------------------------------- closed sets of words

    def party(self, meta: Meta, children: Children) -> n.Party:
        return n.Party(children[0].value)

    def right(self, meta: Meta, children: Children) -> n.Right:
        return n.Right(children[0].value)

    def moment(self, meta: Meta, children: Children) -> n.Moment:
        return n.Moment(children[0].value)

    def action(self, meta: Meta, children: Children) -> n.Action:
        return n.Action(children[0].value)

    def violation_kind(self, meta: Meta, children: Children) -> n.ViolationKind:
        return n.ViolationKind(children[0].value)

    def probe_mode(self, meta: Meta, children: Children) -> n.ProbeMode:
        return n.ProbeMode(children[0].value)

    def object_state(self, meta: Meta, children: Children) -> n.ObjectState:
        return n.ObjectState(children[0].value)

    def phase_name(self, meta: Meta, children: Children) -> n.PhaseName:
        return n.PhaseName(children[0].value)

    def outcome(self, meta: Meta, children: Children) -> n.Outcome:
        return n.Outcome(children[0].value)

    # -------------------------------------------------------------- functions and capabilities

    def variadic(self, meta: Meta, children: Children) -> Variadic:
        return Variadic()

    def param(self, meta: Meta, children: Children) -> n.Parameter:
        return n.Parameter(self._span(meta), children[0], children[1] if len(children) > 1 else None)

    def params(self, meta: Meta, children: Children) -> n.Parameters:
        variadic = any(isinstance(child, Variadic) for child in children)
        if any(isinstance(child, Variadic) for child in children[:-1]):
            self.problems.add(error("O2C0113", "`...` is not the last parameter", self._span(meta)))
        return n.Parameters(self._span(meta), all_of(children, n.Parameter), variadic)

    def extern_names(self, meta: Meta, children: Children) -> tuple[n.SymbolPattern | n.SetRef, ...]:
        return self._flat(children)

    def extern_fn(self, meta: Meta, children: Children) -> n.ExternFunction:
        names = children[0]
        if isinstance(names, n.SymbolPattern):
            names = (names,)
        return n.ExternFunction(self._span(meta), names, children[1], children[2].clauses)

    def named_entry(self, meta: Meta, children: Children) -> n.Name:
        name: n.Name = children[0]
        return name

    def ops_entry(self, meta: Meta, children: Children) -> tuple[n.StructType, n.FieldPath]:
        return children[0], children[1]

    def extern_entry(self, meta: Meta, children: Children) -> n.ExternEntry:
        kind, parameters, clauses = children
        name = kind if isinstance(kind, n.Name) else None
        table, field = kind if isinstance(kind, tuple) else (None, None)
        return n.ExternEntry(self._span(meta), name, table, field, parameters, clauses.clauses)

    def cap_item(self, meta: Meta, children: Children) -> n.CapItem:
        return n.CapItem(self._span(meta), children[0], first_of(children, n.QualifiedName))

    def percpu_item(self, meta: Meta, children: Children) -> n.CapItem:
        return n.CapItem(self._span(meta), children[0], None, per_cpu=True)

    def caps_def(self, meta: Meta, children: Children) -> n.CapsDef:
        parameters = children[1]
        if len(parameters.parameters) != 1 or parameters.variadic:
            self.problems.add(
                error(
                    "O2C0114",
                    "a capability has exactly one parameter",
                    parameters.span,
                    "here",
                    help="write the object that it goes with, as in `caps packet(s: struct sk_buff)`",
                )
            )
        return n.CapsDef(self._span(meta), children[0], parameters, all_of(children, n.CapItem))
