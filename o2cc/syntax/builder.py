# SPDX-License-Identifier: Apache-2.0
"""From lark's parse tree to the AST; one method a grammar rule, named after it.

The methods also check what the grammar cannot say: sizes of numbers, units where only one kind makes
sense, depth of expressions. Such problems go to the collector, and the tree is still built.
"""

from __future__ import annotations

from typing import Any

from lark import v_args
from lark.tree import Meta

from o2cc.diagnostics import error
from o2cc.syntax import nodes as n
from o2cc.syntax.builder_clauses import ClauseBuilder
from o2cc.syntax.parts import (
    Arguments,
    BindResult,
    Children,
    Clauses,
    Excluded,
    FieldValues,
    Functions,
    IfPresent,
    Modules,
    ModuleString,
    OfTest,
    PernetType,
    StoreSize,
    Vmlinux,
    all_of,
    first_of,
    one_of,
)


@v_args(meta=True)
class AstBuilder(ClauseBuilder):
    """Builds the AST of one source. `problems` holds what is wrong beyond the grammar."""

    # -------------------------------------------------------------- rules

    def compartment(self, meta: Meta, children: Children) -> n.Compartment:
        return n.Compartment(self._span(meta), children[0], tuple(children[1:]))

    def code_modules(self, meta: Meta, children: Children) -> n.CodeModules:
        return n.CodeModules(self._span(meta), tuple(children))

    def functions(self, meta: Meta, children: Children) -> Functions:
        return Functions(children[0])

    def vmlinux(self, meta: Meta, children: Children) -> Vmlinux:
        return Vmlinux()

    def modules(self, meta: Meta, children: Children) -> Modules:
        return Modules(tuple(children))

    def code_functions(self, meta: Meta, children: Children) -> n.CodeFunctions:
        functions, image = children
        modules = image.names if isinstance(image, Modules) else None
        return n.CodeFunctions(self._span(meta), functions.value, modules)

    def heap_private(self, meta: Meta, children: Children) -> n.HeapPrivate:
        self._want_unit(children[0], time=False, what="the private heap's size")
        return n.HeapPrivate(self._span(meta), children[0])

    def heap_tracked(self, meta: Meta, children: Children) -> n.HeapTracked:
        return n.HeapTracked(self._span(meta))

    def stack_private(self, meta: Meta, children: Children) -> n.StackPrivate:
        self._want_unit(children[0], time=False, what="the private stack's size")
        return n.StackPrivate(self._span(meta), children[0])

    def write_struct(self, meta: Meta, children: Children) -> n.WriteStruct:
        return n.WriteStruct(self._span(meta), children[0], first_of(children, n.FieldSet))

    def behind_object(self, meta: Meta, children: Children) -> n.Behind:
        return n.Behind(self._span(meta), children[0], None)

    def behind_sized(self, meta: Meta, children: Children) -> n.Behind:
        field, size = children
        return n.Behind(self._span(meta), field, n.Length(size.span, size))

    def behind_range(self, meta: Meta, children: Children) -> n.Behind:
        field, start, end = children
        return n.Behind(self._span(meta), field, n.Range(start.span.to(end.span), start, end))

    def write_behind(self, meta: Meta, children: Children) -> n.WriteBehind:
        return n.WriteBehind(self._span(meta), children[0], all_of(children, n.Behind))

    def pernet_type(self, meta: Meta, children: Children) -> PernetType:
        return PernetType(children[0], first_of(children, n.FieldSet))

    def write_pernet(self, meta: Meta, children: Children) -> n.WritePernet:
        area = first_of(children, PernetType)
        return n.WritePernet(
            self._span(meta), children[0], area.type if area else None, area.fields if area else None
        )

    def write_symbols(self, meta: Meta, children: Children) -> n.WriteSymbols:
        excluded = first_of(children, Excluded)
        return n.WriteSymbols(
            self._span(meta), all_of(children, n.FieldPath), excluded.elements if excluded else ()
        )

    def in_functions(self, meta: Meta, children: Children) -> n.InFunctions:
        return n.InFunctions(self._span(meta), children[0].value, tuple(children[1:]))

    def entry(self, meta: Meta, children: Children) -> n.Entry:
        clauses = first_of(children, Clauses)
        optional = first_of(children, IfPresent) is not None
        return n.Entry(
            self._span(meta), children[0], children[1], clauses.clauses if clauses else (), optional
        )

    def gate(self, meta: Meta, children: Children) -> n.Gate:
        clauses = first_of(children, Clauses)
        optional = first_of(children, IfPresent) is not None
        return n.Gate(
            self._span(meta), children[0], children[1], clauses.clauses if clauses else (), optional
        )

    def if_present(self, meta: Meta, children: Children) -> IfPresent:
        return IfPresent()

    def ops_fields(self, meta: Meta, children: Children) -> n.OpsFields:
        return n.OpsFields(self._span(meta), children[0], first_of(children, n.FieldSet))

    def entries(self, meta: Meta, children: Children) -> n.Entries:
        return n.Entries(self._span(meta), tuple(children))

    def call(self, meta: Meta, children: Children) -> n.Call:
        return n.Call(self._span(meta), children[0])

    def self_target(self, meta: Meta, children: Children) -> n.SelfTarget:
        return n.SelfTarget(self._span(meta))

    def of_modules(self, meta: Meta, children: Children) -> Modules:
        return Modules(tuple(children))

    def ops_target(self, meta: Meta, children: Children) -> n.OpsTarget:
        modules = first_of(children, Modules)
        return n.OpsTarget(self._span(meta), children[0], modules.names if modules else ())

    def module_string(self, meta: Meta, children: Children) -> ModuleString:
        return ModuleString(children[0])

    def icall(self, meta: Meta, children: Children) -> n.IndirectCall:
        excluded = first_of(children, Excluded)
        targets: list[Any] = []
        for target in self._flat(children):
            if not isinstance(target, ModuleString):
                targets.append(target)
                continue
            last = targets[-1] if targets else None
            if isinstance(last, n.OpsTarget) and last.modules:
                span = last.span.to(target.name.span)
                targets[-1] = n.OpsTarget(span, last.type, (*last.modules, target.name))
            else:
                self.problems.add(
                    error(
                        "O2C0115",
                        f'`"{target.name.text}"` does not say what it names',
                        target.name.span,
                        "a module name belongs after `of modules`",
                        help="write functions in braces, as in `icall { my_callback }`",
                    )
                )
        return n.IndirectCall(self._span(meta), tuple(targets), excluded.elements if excluded else ())

    def accept_payload(self, meta: Meta, children: Children) -> n.AcceptPayload:
        return n.AcceptPayload(self._span(meta), tuple(children))

    def accept_own(self, meta: Meta, children: Children) -> n.AcceptOwn:
        return n.AcceptOwn(self._span(meta), tuple(self._name(token) for token in children))

    def audition_block(
        self, meta: Meta, children: Children
    ) -> list[n.Require | n.AcceptPayload | n.AcceptOwn]:
        return list(children)

    def audition(self, meta: Meta, children: Children) -> n.Audition:
        items = first_of(children, list) or []
        return n.Audition(self._span(meta), children[0], all_of(children, n.Moment), tuple(items))

    def until_quiescent(self, meta: Meta, children: Children) -> n.UntilQuiescent:
        quiet_for = children[0] if children else None
        if quiet_for is not None:
            self._want_unit(quiet_for, time=True, what="the quiet time")
        return n.UntilQuiescent(self._span(meta), quiet_for)

    def at_most(self, meta: Meta, children: Children) -> n.AtMost:
        self._want_unit(children[0], time=True, what="the longest transition")
        return n.AtMost(self._span(meta), children[0])

    def transition(self, meta: Meta, children: Children) -> n.Transition:
        return n.Transition(self._span(meta), tuple(children))

    def on_missed(self, meta: Meta, children: Children) -> n.OnMissed:
        return n.OnMissed(self._span(meta), one_of(children, n.Action))

    def probes(self, meta: Meta, children: Children) -> n.Probes:
        return n.Probes(self._span(meta), one_of(children, n.ProbeMode))

    # -------------------------------------------------------------- tests

    def test_of(self, meta: Meta, children: Children) -> OfTest:
        return OfTest(children[0])

    def test(self, meta: Meta, children: Children) -> n.Test:
        of = first_of(children, OfTest)
        steps = tuple(child for child in children[1:] if not isinstance(child, OfTest))
        return n.Test(self._span(meta), children[0], of.name if of else None, steps)

    def field_value(self, meta: Meta, children: Children) -> n.FieldValue:
        return n.FieldValue(self._span(meta), children[0], children[1])

    def field_values(self, meta: Meta, children: Children) -> FieldValues:
        return FieldValues(tuple(children))

    def given_object(self, meta: Meta, children: Children) -> n.GivenObject:
        values = first_of(children, FieldValues)
        return n.GivenObject(
            self._span(meta),
            children[0],
            children[1],
            one_of(children, n.ObjectState),
            self._capability(children),
            values.values if values else (),
        )

    def given_value(self, meta: Meta, children: Children) -> n.GivenValue:
        return n.GivenValue(self._span(meta), children[0], children[1])

    def site(self, meta: Meta, children: Children) -> n.SiteRef:
        offset = self._integer(children[2]) if len(children) > 1 else None
        return n.SiteRef(self._span(meta), children[0], offset)

    def store_size(self, meta: Meta, children: Children) -> StoreSize:
        return StoreSize(children[0])

    def store(self, meta: Meta, children: Children) -> n.StoreStep:
        size = first_of(children, StoreSize)
        return n.StoreStep(self._span(meta), children[0], children[1], size.size if size else None)

    def arguments(self, meta: Meta, children: Children) -> Arguments:
        return Arguments(tuple(children))

    def bind_result(self, meta: Meta, children: Children) -> BindResult:
        return BindResult(children[0])

    def step_call(self, meta: Meta, children: Children) -> n.CallStep:
        result = first_of(children, BindResult)
        return n.CallStep(self._span(meta), children[0], children[1].values, result.name if result else None)

    def step_gate(self, meta: Meta, children: Children) -> n.GateStep:
        result = first_of(children, BindResult)
        return n.GateStep(self._span(meta), children[0], children[1].values, result.name if result else None)

    def step_icall(self, meta: Meta, children: Children) -> n.IndirectCallStep:
        return n.IndirectCallStep(self._span(meta), children[0], children[1])

    def enter(self, meta: Meta, children: Children) -> n.EnterStep:
        return n.EnterStep(self._span(meta), children[0], children[1].values)

    def leave(self, meta: Meta, children: Children) -> n.LeaveStep:
        return n.LeaveStep(self._span(meta))

    def phase(self, meta: Meta, children: Children) -> n.PhaseStep:
        return n.PhaseStep(self._span(meta), one_of(children, n.PhaseName))

    def expect(self, meta: Meta, children: Children) -> n.ExpectStep:
        return n.ExpectStep(self._span(meta), one_of(children, n.Outcome))

    # -------------------------------------------------------------- top level

    def use(self, meta: Meta, children: Children) -> n.Use:
        return n.Use(self._span(meta), children[0])

    def const(self, meta: Meta, children: Children) -> n.Const:
        return n.Const(self._span(meta), children[0], children[1])

    def set_def(self, meta: Meta, children: Children) -> n.SetDef:
        return n.SetDef(self._span(meta), children[0], children[1])

    def shared_types(self, meta: Meta, children: Children) -> n.SharedTypes:
        return n.SharedTypes(self._span(meta), tuple(children))

    def start(self, meta: Meta, children: Children) -> tuple[n.Item, ...]:
        return tuple(children)
