# SPDX-License-Identifier: Apache-2.0
"""From lark's parse tree to the AST; one method a grammar rule, named after it.

The methods also check what the grammar cannot say: sizes of numbers, units where only one kind makes
sense, depth of expressions. Such problems go to the collector, and the tree is still built.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, TypeVar

from lark import Token, v_args
from lark.tree import Meta
from lark.visitors import Transformer_NonRecursive

from o2cc.diagnostics import Collector, SourceFile, Span, error
from o2cc.syntax import nodes as n

MAX_EXPRESSION_DEPTH = 64
LARGEST_INTEGER = (1 << 64) - 1

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class _When:
    condition: n.Expression


@dataclass(frozen=True, slots=True)
class _AsCapability:
    name: n.QualifiedName


@dataclass(frozen=True, slots=True)
class _AsEntry:
    name: n.QualifiedName


@dataclass(frozen=True, slots=True)
class _Kinds:
    kinds: tuple[n.ViolationKind, ...]


@dataclass(frozen=True, slots=True)
class _OfTest:
    name: n.Name


class _UntilReturn:
    pass


class _Variadic:
    pass


class _Vmlinux:
    pass


@dataclass(frozen=True, slots=True)
class _Modules:
    names: tuple[n.StringLiteral, ...]


@dataclass(frozen=True, slots=True)
class _Excluded:
    elements: tuple[Any, ...]


@dataclass(frozen=True, slots=True)
class _Elements:
    elements: tuple[n.SymbolPattern | n.SetRef, ...]


@dataclass(frozen=True, slots=True)
class _Clauses:
    clauses: tuple[n.Clause, ...]


@dataclass(frozen=True, slots=True)
class _Functions:
    value: n.SetExpression


@dataclass(frozen=True, slots=True)
class _PernetType:
    type: n.StructType
    fields: n.FieldSet | None


@dataclass(frozen=True, slots=True)
class _Arguments:
    values: tuple[n.Expression, ...]


@dataclass(frozen=True, slots=True)
class _BindResult:
    name: n.Name


@dataclass(frozen=True, slots=True)
class _StoreSize:
    size: n.Expression


@dataclass(frozen=True, slots=True)
class _FieldValues:
    values: tuple[n.FieldValue, ...]


@dataclass(frozen=True, slots=True)
class _ModuleString:
    name: n.StringLiteral


def _all(children: Sequence[object], kind: type[T]) -> tuple[T, ...]:
    return tuple(child for child in children if isinstance(child, kind))


def _first(children: Sequence[object], kind: type[T]) -> T | None:
    return next((child for child in children if isinstance(child, kind)), None)


def _one(children: Sequence[object], kind: type[T]) -> T:
    found = _first(children, kind)
    if found is None:
        raise AssertionError(f"the grammar promises a {kind.__name__}")
    return found


_EXPRESSIONS = (n.Integer, n.Ratio, n.Path, n.FunctionCall, n.SizeOf, n.Unary, n.Binary)
_Children = Sequence[Any]


def _expressions(children: Sequence[object]) -> list[n.Expression]:
    return [child for child in children if isinstance(child, _EXPRESSIONS)]


@v_args(meta=True)
class AstBuilder(Transformer_NonRecursive[Token, Any]):
    """Builds the AST of one source. `problems` holds what is wrong beyond the grammar."""

    def __init__(self, source: SourceFile) -> None:
        super().__init__()
        self.source = source
        self.problems = Collector()
        # Depth of expression nodes by identity; the nodes live as long as this builder does.
        self._depth: dict[int, int] = {}
        self._kept: list[n.Expression] = []
        self._too_deep = False

    # -------------------------------------------------------------- helpers

    def _span(self, meta: Meta) -> Span:
        if meta.empty:
            return Span(self.source.name, 0, 0)
        return Span(self.source.name, meta.start_pos, meta.end_pos)

    def _token_span(self, token: Token) -> Span:
        return Span(self.source.name, token.start_pos or 0, token.end_pos or 0)

    def _name(self, token: Token) -> n.Name:
        text = token.value[1:-1] if token.type == "STRING" else str(token.value)
        return n.Name(self._token_span(token), text)

    def _integer(self, token: Token) -> int:
        digits = token.value.replace("_", "")
        hexadecimal = digits[:2].lower() == "0x"
        body = digits[2:] if hexadecimal else digits
        # Checked before converting: Python refuses decimal texts of thousands of digits.
        if len(body.lstrip("0")) > 20:
            value = LARGEST_INTEGER + 1
        elif not body:
            value = 0
            self.problems.add(
                error("O2C0111", f"`{token.value}` has no digits", self._token_span(token), "not a number")
            )
        else:
            value = int(body, 16 if hexadecimal else 10)
        if value > LARGEST_INTEGER:
            self.problems.add(
                error("O2C0111", "number does not fit 64 bits", self._token_span(token), "too large")
            )
            return 0
        return value

    def _expression(self, node: n.Expression, *below: n.Expression) -> n.Expression:
        depth = 1 + max((self._depth.get(id(child), 1) for child in below), default=0)
        self._depth[id(node)] = depth
        self._kept.append(node)
        if depth > MAX_EXPRESSION_DEPTH and not self._too_deep:
            self._too_deep = True
            self.problems.add(
                error(
                    "O2C0109",
                    f"expression is nested more than {MAX_EXPRESSION_DEPTH} levels deep",
                    Span(self.source.name, node.span.start, node.span.start),
                    "begins here",
                    help="name parts of it with `const`",
                )
            )
        return node

    @property
    def too_deep(self) -> bool:
        """Whether an expression is deeper than later stages can be expected to recurse."""
        return self._too_deep

    def _want_unit(self, value: n.Expression, *, time: bool, what: str) -> None:
        if not isinstance(value, n.Integer):
            return
        kind = "time" if time else "size"
        example = "60 s" if time else "64 KiB"
        units = "`ns`, `us`, `ms`, `s` or `min`" if time else "`B`, `KiB`, `MiB` or `GiB`"
        if value.unit is None:
            self.problems.add(
                error(
                    "O2C0110",
                    f"{what} needs a unit",
                    value.span,
                    f"{kind} without a unit",
                    help=f"write one of {units}, as in `{example}`",
                )
            )
        elif value.unit.is_time != time:
            self.problems.add(
                error(
                    "O2C0110",
                    f"{what} is a {kind}, but `{value.unit}` is not a unit of {kind}",
                    value.span,
                    f"expected a {kind}",
                    help=f"write one of {units}, as in `{example}`",
                )
            )

    # -------------------------------------------------------------- names and literals

    def name(self, meta: Meta, children: _Children) -> n.Name:
        return self._name(children[0])

    symbol = name

    def string(self, meta: Meta, children: _Children) -> n.StringLiteral:
        return n.StringLiteral(self._span(meta), children[0].value[1:-1])

    def qname(self, meta: Meta, children: _Children) -> n.QualifiedName:
        return n.QualifiedName(self._span(meta), tuple(children))

    def path(self, meta: Meta, children: _Children) -> n.Expression:
        return self._expression(n.Path(self._span(meta), tuple(children)))

    def unit(self, meta: Meta, children: _Children) -> n.Unit:
        return n.Unit(children[0].value)

    def integer(self, meta: Meta, children: _Children) -> n.Expression:
        span = self._span(meta)
        value = self._integer(children[0])
        unit = _first(children, n.Unit)
        if unit is not None and value * unit.factor > LARGEST_INTEGER:
            self.problems.add(error("O2C0111", "number does not fit 64 bits", span, "too large"))
            value = 0
        return self._expression(n.Integer(span, value, unit))

    def ratio(self, meta: Meta, children: _Children) -> n.Expression:
        span = self._span(meta)
        text = children[0].value
        if len(text) > 40:
            self.problems.add(error("O2C0111", "number has too many digits", span, "too long"))
            text = "0.0"
        return self._expression(n.Ratio(span, Fraction(text)))

    # -------------------------------------------------------------- expressions

    def function_call(self, meta: Meta, children: _Children) -> n.Expression:
        arguments = tuple(children[1:])
        return self._expression(n.FunctionCall(self._span(meta), children[0], arguments), *arguments)

    def size_of(self, meta: Meta, children: _Children) -> n.Expression:
        return self._expression(n.SizeOf(self._span(meta), children[0]))

    def parens(self, meta: Meta, children: _Children) -> n.Expression:
        return children[0]  # type: ignore[no-any-return]

    def unary_op(self, meta: Meta, children: _Children) -> n.Expression:
        node = n.Unary(self._span(meta), n.UnaryOperator(children[0].value), children[1])
        return self._expression(node, children[1])

    def _binary(self, meta: Meta, children: _Children) -> n.Expression:
        left, token, right = children
        node = n.Binary(self._span(meta), n.BinaryOperator(token.value), left, right)
        return self._expression(node, left, right)

    or_op = and_op = compare_op = bits_or_op = bits_xor_op = bits_and_op = _binary
    shift_op = sum_op = product_op = _binary

    # -------------------------------------------------------------- types

    def struct_type(self, meta: Meta, children: _Children) -> n.StructType:
        return n.StructType(self._span(meta), str(children[0]), children[1])

    def named_type(self, meta: Meta, children: _Children) -> n.NamedType:
        return n.NamedType(self._span(meta), children[0])

    def buffer_type(self, meta: Meta, children: _Children) -> n.BufferType:
        return n.BufferType(self._span(meta), children[0])

    # -------------------------------------------------------------- sets

    def symbol_pattern(self, meta: Meta, children: _Children) -> n.SymbolPattern:
        return n.SymbolPattern(self._span(meta), self._name(children[0]).text)

    one_symbol = symbol_pattern

    def dotted(self, meta: Meta, children: _Children) -> n.SetRef:
        span = self._span(meta)
        return n.SetRef(span, n.QualifiedName(span, tuple(children)))

    def set_ref(self, meta: Meta, children: _Children) -> n.SetRef:
        return n.SetRef(self._span(meta), children[0])

    def imports(self, meta: Meta, children: _Children) -> n.Imports:
        return n.Imports(self._span(meta))

    def braces(self, meta: Meta, children: _Children) -> _Elements:
        return _Elements(tuple(children))

    def _flat(self, children: _Children) -> tuple[Any, ...]:
        flat: list[Any] = []
        for child in children:
            if isinstance(child, _Elements):
                flat.extend(child.elements)
            elif not isinstance(child, _Excluded):
                flat.append(child)
        return tuple(flat)

    def set_except(self, meta: Meta, children: _Children) -> _Excluded:
        return _Excluded(self._flat(children))

    def set_expr(self, meta: Meta, children: _Children) -> n.SetExpression:
        excluded = _first(children, _Excluded)
        return n.SetExpression(self._span(meta), self._flat(children), excluded.elements if excluded else ())

    # -------------------------------------------------------------- fields

    def field_path(self, meta: Meta, children: _Children) -> n.FieldPath:
        return n.FieldPath(self._span(meta), tuple(self._name(token) for token in children))

    symbol_path = field_path

    def whole(self, meta: Meta, children: _Children) -> n.Whole:
        return n.Whole(self._span(meta))

    def fields_except(self, meta: Meta, children: _Children) -> _Excluded:
        return _Excluded(tuple(children))

    symbols_except = fields_except

    def field_set(self, meta: Meta, children: _Children) -> n.FieldSet:
        excluded = _first(children, _Excluded)
        return n.FieldSet(
            self._span(meta),
            _first(children, n.Whole) is not None,
            _all(children, n.FieldPath),
            excluded.elements if excluded else (),
        )

    # -------------------------------------------------------------- places

    def plain_place(self, meta: Meta, children: _Children) -> n.Place:
        return n.Place(self._span(meta), children[0], None)

    def whole_place(self, meta: Meta, children: _Children) -> n.Place:
        span = self._span(meta)
        return n.Place(span, children[0], n.Whole(Span(span.source, span.end - len("whole"), span.end)))

    def sized_place(self, meta: Meta, children: _Children) -> n.Place:
        path, size = children
        return n.Place(self._span(meta), path, n.Length(size.span, size))

    def range_place(self, meta: Meta, children: _Children) -> n.Place:
        path, start, end = children
        return n.Place(self._span(meta), path, n.Range(start.span.to(end.span), start, end))

    # -------------------------------------------------------------- clauses

    def when(self, meta: Meta, children: _Children) -> _When:
        return _When(children[0])

    def as_cap(self, meta: Meta, children: _Children) -> _AsCapability:
        return _AsCapability(children[0])

    def as_entry(self, meta: Meta, children: _Children) -> _AsEntry:
        return _AsEntry(children[0])

    def until_return(self, meta: Meta, children: _Children) -> _UntilReturn:
        return _UntilReturn()

    @staticmethod
    def _when(children: _Children) -> n.Expression | None:
        found = _first(children, _When)
        return found.condition if found else None

    @staticmethod
    def _capability(children: _Children) -> n.QualifiedName | None:
        found = _first(children, _AsCapability)
        return found.name if found else None

    @staticmethod
    def _entry_kind(children: _Children) -> n.QualifiedName | None:
        found = _first(children, _AsEntry)
        return found.name if found else None

    def writes(self, meta: Meta, children: _Children) -> n.Writes:
        return n.Writes(self._span(meta), _all(children, n.Place), self._when(children))

    def reads(self, meta: Meta, children: _Children) -> n.Reads:
        return n.Reads(self._span(meta), _all(children, n.Place), self._when(children))

    def shares(self, meta: Meta, children: _Children) -> n.Shares:
        return n.Shares(self._span(meta), _all(children, n.Place), self._when(children))

    def frees(self, meta: Meta, children: _Children) -> n.Frees:
        return n.Frees(self._span(meta), children[0], self._capability(children), self._when(children))

    def allocates(self, meta: Meta, children: _Children) -> n.Allocates:
        return n.Allocates(self._span(meta), children[0], self._when(children))

    def gives(self, meta: Meta, children: _Children) -> n.Gives:
        until = _first(children, _UntilReturn) is not None
        return n.Gives(self._span(meta), children[0], self._capability(children), until, self._when(children))

    def takes(self, meta: Meta, children: _Children) -> n.Takes:
        return n.Takes(self._span(meta), children[0], self._capability(children), self._when(children))

    def lends(self, meta: Meta, children: _Children) -> n.Lends:
        until = _first(children, _UntilReturn) is not None
        return n.Lends(self._span(meta), children[0], self._capability(children), until, self._when(children))

    def transfer(self, meta: Meta, children: _Children) -> n.Transfer:
        return n.Transfer(
            self._span(meta),
            children[0],
            self._capability(children),
            _one(children, n.Party),
            self._when(children),
        )

    def returns(self, meta: Meta, children: _Children) -> n.Returns:
        return n.Returns(self._span(meta), _one(children, n.Right), _first(children, n.Path))

    def stores_callback(self, meta: Meta, children: _Children) -> n.StoresCallback:
        return n.StoresCallback(self._span(meta), children[0], self._entry_kind(children))

    def calls_callback(self, meta: Meta, children: _Children) -> n.CallsCallback:
        return n.CallsCallback(self._span(meta), children[0], self._entry_kind(children))

    def pure(self, meta: Meta, children: _Children) -> n.Pure:
        return n.Pure(self._span(meta))

    def require(self, meta: Meta, children: _Children) -> n.Require:
        return n.Require(self._span(meta), children[0])

    def on_deny(self, meta: Meta, children: _Children) -> n.OnDeny:
        return n.OnDeny(self._span(meta), children[0])

    def violation_kinds(self, meta: Meta, children: _Children) -> _Kinds:
        return _Kinds(tuple(children))

    def on_violation(self, meta: Meta, children: _Children) -> n.OnViolation:
        kinds = _first(children, _Kinds)
        return n.OnViolation(self._span(meta), kinds.kinds if kinds else (), _one(children, n.Action))

    def clauses(self, meta: Meta, children: _Children) -> _Clauses:
        return _Clauses(tuple(children))

    clause_block = clauses

    # -------------------------------------------------------------- closed sets of words

    def party(self, meta: Meta, children: _Children) -> n.Party:
        return n.Party(children[0].value)

    def right(self, meta: Meta, children: _Children) -> n.Right:
        return n.Right(children[0].value)

    def moment(self, meta: Meta, children: _Children) -> n.Moment:
        return n.Moment(children[0].value)

    def action(self, meta: Meta, children: _Children) -> n.Action:
        return n.Action(children[0].value)

    def violation_kind(self, meta: Meta, children: _Children) -> n.ViolationKind:
        return n.ViolationKind(children[0].value)

    def probe_mode(self, meta: Meta, children: _Children) -> n.ProbeMode:
        return n.ProbeMode(children[0].value)

    def object_state(self, meta: Meta, children: _Children) -> n.ObjectState:
        return n.ObjectState(children[0].value)

    def phase_name(self, meta: Meta, children: _Children) -> n.PhaseName:
        return n.PhaseName(children[0].value)

    def outcome(self, meta: Meta, children: _Children) -> n.Outcome:
        return n.Outcome(children[0].value)

    # -------------------------------------------------------------- functions and capabilities

    def variadic(self, meta: Meta, children: _Children) -> _Variadic:
        return _Variadic()

    def param(self, meta: Meta, children: _Children) -> n.Parameter:
        return n.Parameter(self._span(meta), children[0], children[1] if len(children) > 1 else None)

    def params(self, meta: Meta, children: _Children) -> n.Parameters:
        variadic = any(isinstance(child, _Variadic) for child in children)
        if any(isinstance(child, _Variadic) for child in children[:-1]):
            self.problems.add(error("O2C0113", "`...` is not the last parameter", self._span(meta)))
        return n.Parameters(self._span(meta), _all(children, n.Parameter), variadic)

    def extern_names(self, meta: Meta, children: _Children) -> tuple[n.SymbolPattern | n.SetRef, ...]:
        return self._flat(children)

    def extern_fn(self, meta: Meta, children: _Children) -> n.ExternFunction:
        names = children[0]
        if isinstance(names, n.SymbolPattern):
            names = (names,)
        return n.ExternFunction(self._span(meta), names, children[1], children[2].clauses)

    def named_entry(self, meta: Meta, children: _Children) -> n.Name:
        return children[0]  # type: ignore[no-any-return]

    def ops_entry(self, meta: Meta, children: _Children) -> tuple[n.StructType, n.FieldPath]:
        return children[0], children[1]

    def extern_entry(self, meta: Meta, children: _Children) -> n.ExternEntry:
        kind, parameters, clauses = children
        name = kind if isinstance(kind, n.Name) else None
        table, field = kind if isinstance(kind, tuple) else (None, None)
        return n.ExternEntry(self._span(meta), name, table, field, parameters, clauses.clauses)

    def cap_item(self, meta: Meta, children: _Children) -> n.CapItem:
        return n.CapItem(self._span(meta), children[0], _first(children, n.QualifiedName))

    def caps_def(self, meta: Meta, children: _Children) -> n.CapsDef:
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
        return n.CapsDef(self._span(meta), children[0], parameters, _all(children, n.CapItem))

    # -------------------------------------------------------------- rules

    def compartment(self, meta: Meta, children: _Children) -> n.Compartment:
        return n.Compartment(self._span(meta), children[0], tuple(children[1:]))

    def code_modules(self, meta: Meta, children: _Children) -> n.CodeModules:
        return n.CodeModules(self._span(meta), tuple(children))

    def functions(self, meta: Meta, children: _Children) -> _Functions:
        return _Functions(children[0])

    def vmlinux(self, meta: Meta, children: _Children) -> _Vmlinux:
        return _Vmlinux()

    def modules(self, meta: Meta, children: _Children) -> _Modules:
        return _Modules(tuple(children))

    def code_functions(self, meta: Meta, children: _Children) -> n.CodeFunctions:
        functions, image = children
        modules = image.names if isinstance(image, _Modules) else None
        return n.CodeFunctions(self._span(meta), functions.value, modules)

    def heap_private(self, meta: Meta, children: _Children) -> n.HeapPrivate:
        self._want_unit(children[0], time=False, what="the private heap's size")
        return n.HeapPrivate(self._span(meta), children[0])

    def heap_tracked(self, meta: Meta, children: _Children) -> n.HeapTracked:
        return n.HeapTracked(self._span(meta))

    def stack_private(self, meta: Meta, children: _Children) -> n.StackPrivate:
        self._want_unit(children[0], time=False, what="the private stack's size")
        return n.StackPrivate(self._span(meta), children[0])

    def write_struct(self, meta: Meta, children: _Children) -> n.WriteStruct:
        return n.WriteStruct(self._span(meta), children[0], _first(children, n.FieldSet))

    def behind_object(self, meta: Meta, children: _Children) -> n.Behind:
        return n.Behind(self._span(meta), children[0], None)

    def behind_sized(self, meta: Meta, children: _Children) -> n.Behind:
        field, size = children
        return n.Behind(self._span(meta), field, n.Length(size.span, size))

    def behind_range(self, meta: Meta, children: _Children) -> n.Behind:
        field, start, end = children
        return n.Behind(self._span(meta), field, n.Range(start.span.to(end.span), start, end))

    def write_behind(self, meta: Meta, children: _Children) -> n.WriteBehind:
        return n.WriteBehind(self._span(meta), children[0], _all(children, n.Behind))

    def pernet_type(self, meta: Meta, children: _Children) -> _PernetType:
        return _PernetType(children[0], _first(children, n.FieldSet))

    def write_pernet(self, meta: Meta, children: _Children) -> n.WritePernet:
        area = _first(children, _PernetType)
        return n.WritePernet(
            self._span(meta), children[0], area.type if area else None, area.fields if area else None
        )

    def write_symbols(self, meta: Meta, children: _Children) -> n.WriteSymbols:
        excluded = _first(children, _Excluded)
        return n.WriteSymbols(
            self._span(meta), _all(children, n.FieldPath), excluded.elements if excluded else ()
        )

    def in_functions(self, meta: Meta, children: _Children) -> n.InFunctions:
        return n.InFunctions(self._span(meta), children[0].value, tuple(children[1:]))

    def entry(self, meta: Meta, children: _Children) -> n.Entry:
        clauses = _first(children, _Clauses)
        return n.Entry(self._span(meta), children[0], children[1], clauses.clauses if clauses else ())

    def gate(self, meta: Meta, children: _Children) -> n.Gate:
        clauses = _first(children, _Clauses)
        return n.Gate(self._span(meta), children[0], children[1], clauses.clauses if clauses else ())

    def ops_fields(self, meta: Meta, children: _Children) -> n.OpsFields:
        return n.OpsFields(self._span(meta), children[0], _first(children, n.FieldSet))

    def entries(self, meta: Meta, children: _Children) -> n.Entries:
        return n.Entries(self._span(meta), tuple(children))

    def call(self, meta: Meta, children: _Children) -> n.Call:
        return n.Call(self._span(meta), children[0])

    def self_target(self, meta: Meta, children: _Children) -> n.SelfTarget:
        return n.SelfTarget(self._span(meta))

    def of_modules(self, meta: Meta, children: _Children) -> _Modules:
        return _Modules(tuple(children))

    def ops_target(self, meta: Meta, children: _Children) -> n.OpsTarget:
        modules = _first(children, _Modules)
        return n.OpsTarget(self._span(meta), children[0], modules.names if modules else ())

    def module_string(self, meta: Meta, children: _Children) -> _ModuleString:
        return _ModuleString(children[0])

    def icall(self, meta: Meta, children: _Children) -> n.IndirectCall:
        excluded = _first(children, _Excluded)
        targets: list[Any] = []
        for target in self._flat(children):
            if not isinstance(target, _ModuleString):
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

    def accept_payload(self, meta: Meta, children: _Children) -> n.AcceptPayload:
        return n.AcceptPayload(self._span(meta), tuple(children))

    def audition_block(self, meta: Meta, children: _Children) -> list[n.Require | n.AcceptPayload]:
        return list(children)

    def audition(self, meta: Meta, children: _Children) -> n.Audition:
        items = _first(children, list) or []
        return n.Audition(self._span(meta), children[0], _all(children, n.Moment), tuple(items))

    def until_quiescent(self, meta: Meta, children: _Children) -> n.UntilQuiescent:
        quiet_for = children[0] if children else None
        if quiet_for is not None:
            self._want_unit(quiet_for, time=True, what="the quiet time")
        return n.UntilQuiescent(self._span(meta), quiet_for)

    def at_most(self, meta: Meta, children: _Children) -> n.AtMost:
        self._want_unit(children[0], time=True, what="the longest transition")
        return n.AtMost(self._span(meta), children[0])

    def transition(self, meta: Meta, children: _Children) -> n.Transition:
        return n.Transition(self._span(meta), tuple(children))

    def on_missed(self, meta: Meta, children: _Children) -> n.OnMissed:
        return n.OnMissed(self._span(meta), _one(children, n.Action))

    def probes(self, meta: Meta, children: _Children) -> n.Probes:
        return n.Probes(self._span(meta), _one(children, n.ProbeMode))

    # -------------------------------------------------------------- tests

    def test_of(self, meta: Meta, children: _Children) -> _OfTest:
        return _OfTest(children[0])

    def test(self, meta: Meta, children: _Children) -> n.Test:
        of = _first(children, _OfTest)
        steps = tuple(child for child in children[1:] if not isinstance(child, _OfTest))
        return n.Test(self._span(meta), children[0], of.name if of else None, steps)

    def field_value(self, meta: Meta, children: _Children) -> n.FieldValue:
        return n.FieldValue(self._span(meta), children[0], children[1])

    def field_values(self, meta: Meta, children: _Children) -> _FieldValues:
        return _FieldValues(tuple(children))

    def given_object(self, meta: Meta, children: _Children) -> n.GivenObject:
        values = _first(children, _FieldValues)
        return n.GivenObject(
            self._span(meta),
            children[0],
            children[1],
            _one(children, n.ObjectState),
            self._capability(children),
            values.values if values else (),
        )

    def given_value(self, meta: Meta, children: _Children) -> n.GivenValue:
        return n.GivenValue(self._span(meta), children[0], children[1])

    def site(self, meta: Meta, children: _Children) -> n.SiteRef:
        offset = self._integer(children[2]) if len(children) > 1 else None
        return n.SiteRef(self._span(meta), children[0], offset)

    def store_size(self, meta: Meta, children: _Children) -> _StoreSize:
        return _StoreSize(children[0])

    def store(self, meta: Meta, children: _Children) -> n.StoreStep:
        size = _first(children, _StoreSize)
        return n.StoreStep(self._span(meta), children[0], children[1], size.size if size else None)

    def arguments(self, meta: Meta, children: _Children) -> _Arguments:
        return _Arguments(tuple(children))

    def bind_result(self, meta: Meta, children: _Children) -> _BindResult:
        return _BindResult(children[0])

    def step_call(self, meta: Meta, children: _Children) -> n.CallStep:
        result = _first(children, _BindResult)
        return n.CallStep(self._span(meta), children[0], children[1].values, result.name if result else None)

    def step_gate(self, meta: Meta, children: _Children) -> n.GateStep:
        result = _first(children, _BindResult)
        return n.GateStep(self._span(meta), children[0], children[1].values, result.name if result else None)

    def step_icall(self, meta: Meta, children: _Children) -> n.IndirectCallStep:
        return n.IndirectCallStep(self._span(meta), children[0], children[1])

    def enter(self, meta: Meta, children: _Children) -> n.EnterStep:
        return n.EnterStep(self._span(meta), children[0], children[1].values)

    def leave(self, meta: Meta, children: _Children) -> n.LeaveStep:
        return n.LeaveStep(self._span(meta))

    def phase(self, meta: Meta, children: _Children) -> n.PhaseStep:
        return n.PhaseStep(self._span(meta), _one(children, n.PhaseName))

    def expect(self, meta: Meta, children: _Children) -> n.ExpectStep:
        return n.ExpectStep(self._span(meta), _one(children, n.Outcome))

    # -------------------------------------------------------------- top level

    def use(self, meta: Meta, children: _Children) -> n.Use:
        return n.Use(self._span(meta), children[0])

    def const(self, meta: Meta, children: _Children) -> n.Const:
        return n.Const(self._span(meta), children[0], children[1])

    def set_def(self, meta: Meta, children: _Children) -> n.SetDef:
        return n.SetDef(self._span(meta), children[0], children[1])

    def shared_types(self, meta: Meta, children: _Children) -> n.SharedTypes:
        return n.SharedTypes(self._span(meta), tuple(children))

    def start(self, meta: Meta, children: _Children) -> tuple[n.Item, ...]:
        return tuple(children)
