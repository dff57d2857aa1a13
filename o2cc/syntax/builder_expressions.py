# SPDX-License-Identifier: Apache-2.0
"""The builder's methods for names, literals, expressions, types, sets, fields and places."""

from __future__ import annotations

from dataclasses import replace
from fractions import Fraction
from typing import Any

from lark import Token, v_args
from lark.tree import Meta
from lark.visitors import Transformer_NonRecursive

from o2cc.diagnostics import Collector, SourceFile, Span, error
from o2cc.syntax import nodes as n
from o2cc.syntax.parts import Children, Elements, Excluded, all_of, first_of

MAX_EXPRESSION_DEPTH = 64
LARGEST_INTEGER = (1 << 64) - 1


@v_args(meta=True)
class ExpressionBuilder(Transformer_NonRecursive[Token, Any]):
    """State of a build, and the lower half of the grammar."""

    def __init__(self, source: SourceFile) -> None:
        super().__init__(visit_tokens=False)
        self.source = source
        # lark makes a wrapper each time that a rule's method is looked up, which takes longer than most of the methods.
        for name in dir(self):
            method = None if name.startswith("_") else getattr(self, name)
            if hasattr(method, "visit_wrapper"):
                setattr(self, name, method)
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

    def name(self, meta: Meta, children: Children) -> n.Name:
        return self._name(children[0])

    symbol = name

    def string(self, meta: Meta, children: Children) -> n.StringLiteral:
        return n.StringLiteral(self._span(meta), children[0].value[1:-1])

    def qname(self, meta: Meta, children: Children) -> n.QualifiedName:
        return n.QualifiedName(self._span(meta), tuple(children))

    def path(self, meta: Meta, children: Children) -> n.Expression:
        return self._expression(n.Path(self._span(meta), tuple(children)))

    def unit(self, meta: Meta, children: Children) -> n.Unit:
        return n.Unit(children[0].value)

    def integer(self, meta: Meta, children: Children) -> n.Expression:
        span = self._span(meta)
        value = self._integer(children[0])
        unit = first_of(children, n.Unit)
        if unit is not None and value * unit.factor > LARGEST_INTEGER:
            self.problems.add(error("O2C0111", "number does not fit 64 bits", span, "too large"))
            value = 0
        return self._expression(n.Integer(span, value, unit))

    def ratio(self, meta: Meta, children: Children) -> n.Expression:
        span = self._span(meta)
        text = children[0].value
        if len(text) > 40:
            self.problems.add(error("O2C0111", "number has too many digits", span, "too long"))
            text = "0.0"
        return self._expression(n.Ratio(span, Fraction(text)))

    # -------------------------------------------------------------- expressions

    def function_call(self, meta: Meta, children: Children) -> n.Expression:
        arguments = tuple(children[1:])
        return self._expression(n.FunctionCall(self._span(meta), children[0], arguments), *arguments)

    def size_of(self, meta: Meta, children: Children) -> n.Expression:
        return self._expression(n.SizeOf(self._span(meta), children[0]))

    def parens(self, meta: Meta, children: Children) -> n.Expression:
        inner: n.Expression = children[0]
        return inner

    def unary_op(self, meta: Meta, children: Children) -> n.Expression:
        node = n.Unary(self._span(meta), n.UnaryOperator(children[0].value), children[1])
        return self._expression(node, children[1])

    def _binary(self, meta: Meta, children: Children) -> n.Expression:
        left, token, right = children
        node = n.Binary(self._span(meta), n.BinaryOperator(token.value), left, right)
        return self._expression(node, left, right)

    or_op = and_op = compare_op = bits_or_op = bits_xor_op = bits_and_op = _binary
    shift_op = sum_op = product_op = _binary

    # -------------------------------------------------------------- types

    def struct_type(self, meta: Meta, children: Children) -> n.StructType:
        return n.StructType(self._span(meta), str(children[0]), children[1])

    def named_type(self, meta: Meta, children: Children) -> n.NamedType:
        return n.NamedType(self._span(meta), children[0])

    def buffer_type(self, meta: Meta, children: Children) -> n.BufferType:
        return n.BufferType(self._span(meta), children[0])

    # -------------------------------------------------------------- sets

    def symbol_pattern(self, meta: Meta, children: Children) -> n.SymbolPattern:
        return n.SymbolPattern(self._span(meta), self._name(children[0]).text)

    one_symbol = symbol_pattern

    def optional_symbol(self, meta: Meta, children: Children) -> n.SymbolPattern:
        (pattern,) = children
        assert isinstance(pattern, n.SymbolPattern)
        return replace(pattern, optional=True)

    def dotted(self, meta: Meta, children: Children) -> n.SetRef:
        span = self._span(meta)
        return n.SetRef(span, n.QualifiedName(span, tuple(children)))

    def set_ref(self, meta: Meta, children: Children) -> n.SetRef:
        return n.SetRef(self._span(meta), children[0])

    def imports(self, meta: Meta, children: Children) -> n.Imports:
        return n.Imports(self._span(meta))

    def braces(self, meta: Meta, children: Children) -> Elements:
        return Elements(tuple(children))

    def _flat(self, children: Children) -> tuple[Any, ...]:
        flat: list[Any] = []
        for child in children:
            if isinstance(child, Elements):
                flat.extend(child.elements)
            elif not isinstance(child, Excluded):
                flat.append(child)
        return tuple(flat)

    def set_except(self, meta: Meta, children: Children) -> Excluded:
        return Excluded(self._flat(children))

    def set_expr(self, meta: Meta, children: Children) -> n.SetExpression:
        excluded = first_of(children, Excluded)
        return n.SetExpression(self._span(meta), self._flat(children), excluded.elements if excluded else ())

    # -------------------------------------------------------------- fields

    def field_path(self, meta: Meta, children: Children) -> n.FieldPath:
        return n.FieldPath(self._span(meta), tuple(self._name(token) for token in children))

    symbol_path = field_path

    def optional_field(self, meta: Meta, children: Children) -> n.FieldPath:
        (path,) = children
        assert isinstance(path, n.FieldPath)
        return replace(path, optional=True)

    optional_path = optional_field

    def whole(self, meta: Meta, children: Children) -> n.Whole:
        return n.Whole(self._span(meta))

    def fields_except(self, meta: Meta, children: Children) -> Excluded:
        return Excluded(tuple(children))

    symbols_except = fields_except

    def field_set(self, meta: Meta, children: Children) -> n.FieldSet:
        excluded = first_of(children, Excluded)
        return n.FieldSet(
            self._span(meta),
            first_of(children, n.Whole) is not None,
            all_of(children, n.FieldPath),
            excluded.elements if excluded else (),
        )

    # -------------------------------------------------------------- places

    def plain_place(self, meta: Meta, children: Children) -> n.Place:
        return n.Place(self._span(meta), children[0], None)

    def whole_place(self, meta: Meta, children: Children) -> n.Place:
        span = self._span(meta)
        return n.Place(span, children[0], n.Whole(Span(span.source, span.end - len("whole"), span.end)))

    def sized_place(self, meta: Meta, children: Children) -> n.Place:
        path, size = children
        return n.Place(self._span(meta), path, n.Length(size.span, size))

    def range_place(self, meta: Meta, children: Children) -> n.Place:
        path, start, end = children
        return n.Place(self._span(meta), path, n.Range(start.span.to(end.span), start, end))
