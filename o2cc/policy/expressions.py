# SPDX-License-Identifier: Apache-2.0
"""Expressions of the language to typed, resolved expressions; constants folded, units checked.

An expression has a type and a *unit*: bytes, time, or neither (plain numbers go with both).  Numbers are scaled to
bytes and nanoseconds.  Paths follow pointers and embedded structs with the target's type information.

Codes: O2C0202 unknown name, O2C0207 constant that needs itself, O2C0220 wrong type, O2C0221 wrong unit, O2C0222 unknown
predicate or wrong number of operands, O2C0223 not a constant, O2C0224 out of range, O2C0225 `result` where there is none.
"""

from __future__ import annotations

from o2cc.diagnostics import Span, did_you_mean, error
from o2cc.policy.base_types import base_size, base_type_names
from o2cc.policy.context import Context
from o2cc.policy.folding import WORD_LIMIT, constant, fold, is_constant
from o2cc.policy.model import (
    AddressOfField,
    ArgumentValue,
    BinaryExpr,
    BinaryOperation,
    Const,
    Expr,
    LoadField,
    Predicate,
    PredicateKind,
    ResultValue,
    TypeKind,
    UnaryExpr,
    UnaryOperation,
    ValueType,
)
from o2cc.policy.names import ParsedModule
from o2cc.policy.paths import Scope, Typed, Unit, follow
from o2cc.policy.structs import BOOLEAN, POINTER, WORD, pointer_to
from o2cc.syntax import nodes

_COMPARISONS = {
    nodes.BinaryOperator.EQUAL: BinaryOperation.EQUAL,
    nodes.BinaryOperator.NOT_EQUAL: BinaryOperation.NOT_EQUAL,
    nodes.BinaryOperator.LESS: BinaryOperation.LESS,
    nodes.BinaryOperator.LESS_EQUAL: BinaryOperation.LESS_EQUAL,
    nodes.BinaryOperator.GREATER: BinaryOperation.GREATER,
    nodes.BinaryOperator.GREATER_EQUAL: BinaryOperation.GREATER_EQUAL,
}
_LOGIC = {nodes.BinaryOperator.AND: BinaryOperation.AND, nodes.BinaryOperator.OR: BinaryOperation.OR}
_ARITHMETIC = {
    nodes.BinaryOperator.ADD: BinaryOperation.ADD,
    nodes.BinaryOperator.SUBTRACT: BinaryOperation.SUBTRACT,
    nodes.BinaryOperator.MULTIPLY: BinaryOperation.MULTIPLY,
    nodes.BinaryOperator.DIVIDE: BinaryOperation.DIVIDE,
    nodes.BinaryOperator.REMAINDER: BinaryOperation.MODULO,
    nodes.BinaryOperator.BIT_AND: BinaryOperation.BIT_AND,
    nodes.BinaryOperator.BIT_OR: BinaryOperation.BIT_OR,
    nodes.BinaryOperator.BIT_XOR: BinaryOperation.BIT_XOR,
    nodes.BinaryOperator.SHIFT_LEFT: BinaryOperation.SHIFT_LEFT,
    nodes.BinaryOperator.SHIFT_RIGHT: BinaryOperation.SHIFT_RIGHT,
}
_VALUE_AT = "value_at"  # no question about memory, but a number in it
_ARITY = {
    PredicateKind.OWNED: 1,
    PredicateKind.HELD: 1,
    PredicateKind.SHARED: 1,
    PredicateKind.WRITABLE: 2,
    PredicateKind.GRANTED: 1,
    PredicateKind.FREEABLE: 1,
    PredicateKind.LINKED: 1,
    PredicateKind.SIZE: 1,
    PredicateKind.ENTRY: 1,
}


class Checker:
    """Checks expressions in one scope; returns None after a diagnostic."""

    def __init__(self, context: Context, scope: Scope) -> None:
        self.context = context
        self.scope = scope

    def report(self, code: str, message: str, span: Span, label: str = "", help: str | None = None) -> None:
        """Add an error."""
        self.context.collector.add(error(code, message, span, label, help=help))

    # --- what the checker's other parts ask for

    def condition(self, node: nodes.Expression) -> Expr | None:
        """A truth value."""
        typed = self.expression(node)
        if typed is None:
            return None
        if typed.type.kind is not TypeKind.BOOLEAN:
            self.report(
                "O2C0220",
                "a condition must be a comparison or a predicate",
                node.span,
                f"this is of type {typed.type}",
                help="compare it, for example with `!= 0`",
            )
            return None
        return typed.expr

    def length(self, node: nodes.Expression) -> Expr | None:
        """A number of bytes, plain or with a unit of size."""
        return self._number(node, Unit.SIZE, "a size")

    def duration(self, node: nodes.Expression) -> int | None:
        """A constant number of nanoseconds; must have a unit."""
        typed = self.expression(node)
        if typed is None:
            return None
        if typed.unit is not Unit.TIME:
            self.report(
                "O2C0221",
                "a time is needed here",
                node.span,
                help="write a unit, for example `60 s` or `500 ms`",
            )
            return None
        return self._constant_value(typed, node)

    def constant_size(self, node: nodes.Expression) -> int | None:
        """A constant number of bytes; must have a unit of size."""
        typed = self.expression(node)
        if typed is None:
            return None
        if typed.unit is not Unit.SIZE:
            self.report(
                "O2C0221",
                "a size is needed here",
                node.span,
                help="write a unit, for example `64 MiB` or `512 B`",
            )
            return None
        return self._constant_value(typed, node)

    def constant(self, node: nodes.Expression) -> int | None:
        """A constant number of any unit."""
        typed = self.expression(node)
        return None if typed is None else self._constant_value(typed, node)

    def _constant_value(self, typed: Typed, node: nodes.Node) -> int | None:
        if isinstance(typed.expr, Const):
            return typed.expr.value
        self.report("O2C0223", "a constant is needed here", node.span)
        return None

    def _number(self, node: nodes.Expression, unit: Unit, what: str) -> Expr | None:
        typed = self.expression(node)
        if typed is None:
            return None
        if typed.unit not in (unit, Unit.PLAIN):
            self.report("O2C0221", f"{what} is needed here", node.span, f"this is a {typed.unit}")
            return None
        if typed.type.kind not in (TypeKind.INTEGER, TypeKind.UNKNOWN):
            self.report("O2C0220", f"{what} is needed here", node.span, f"this is of type {typed.type}")
            return None
        return typed.expr

    # --- expressions

    def expression(self, node: nodes.Expression) -> Typed | None:
        """Check any expression."""
        match node:
            case nodes.Integer():
                return self._integer(node)
            case nodes.Ratio():
                self.report("O2C0220", "a fraction has no meaning here", node.span)
                return None
            case nodes.Path():
                return self.path(node)
            case nodes.FunctionCall():
                return self._predicate(node)
            case nodes.SizeOf():
                return self._size_of(node)
            case nodes.Unary():
                return self._unary(node)
            case nodes.Binary():
                return self._binary(node)

    def _integer(self, node: nodes.Integer) -> Typed | None:
        if node.scaled >= WORD_LIMIT:
            self.report("O2C0224", "this number does not fit into 64 bits", node.span)
            return None
        unit = Unit.PLAIN if node.unit is None else Unit.TIME if node.unit.is_time else Unit.SIZE
        return Typed(constant(node.scaled, node.span), unit)

    def _size_of(self, node: nodes.SizeOf) -> Typed | None:
        if isinstance(node.type, nodes.StructType):
            struct = self.context.struct(node.type)
            return None if struct is None else Typed(constant(struct.size, node.span), Unit.SIZE)
        size = base_size(node.type.text)
        if size is None:
            self.report(
                "O2C0210",
                f"unknown type `{node.type.text}`",
                node.type.span,
                help=did_you_mean(node.type.text, base_type_names())
                or f"a struct is written `struct {node.type.text}`",
            )
            return None
        return Typed(constant(size, node.span), Unit.SIZE)

    def _unary(self, node: nodes.Unary) -> Typed | None:
        operand = self.expression(node.operand)
        if operand is None:
            return None
        if node.operator is nodes.UnaryOperator.NOT:
            if operand.type.kind is not TypeKind.BOOLEAN:
                self.report(
                    "O2C0220", "`!` needs a truth value", node.operand.span, f"this is of type {operand.type}"
                )
                return None
            return Typed(fold(UnaryExpr(UnaryOperation.NOT, operand.expr, BOOLEAN, node.span)))
        if operand.type.kind not in (TypeKind.INTEGER, TypeKind.UNKNOWN):
            self.report(
                "O2C0220",
                f"`{node.operator}` needs a number",
                node.operand.span,
                f"this is of type {operand.type}",
            )
            return None
        operation = (
            UnaryOperation.NEGATE
            if node.operator is nodes.UnaryOperator.NEGATE
            else UnaryOperation.COMPLEMENT
        )
        signed = ValueType(TypeKind.INTEGER, size=8, signed=operation is UnaryOperation.NEGATE)
        return Typed(fold(UnaryExpr(operation, operand.expr, signed, node.span)), operand.unit)

    def _binary(self, node: nodes.Binary) -> Typed | None:
        left, right = self.expression(node.left), self.expression(node.right)
        if left is None or right is None:
            return None
        if node.operator in _LOGIC:
            for side, written in ((left, node.left), (right, node.right)):
                if side.type.kind is not TypeKind.BOOLEAN:
                    self.report(
                        "O2C0220",
                        f"`{node.operator}` needs truth values",
                        written.span,
                        f"this is of type {side.type}",
                        help="compare it, for example with `!= 0`",
                    )
                    return None
            return Typed(fold(BinaryExpr(_LOGIC[node.operator], left.expr, right.expr, BOOLEAN, node.span)))
        for side, written in ((left, node.left), (right, node.right)):
            if side.type.kind is TypeKind.BOOLEAN or (
                side.type.kind is TypeKind.OTHER and not isinstance(side.expr, AddressOfField)
            ):
                self.report(
                    "O2C0220",
                    f"`{node.operator}` needs numbers or addresses",
                    written.span,
                    f"this is of type {side.type}",
                )
                return None
        if not self._units_agree(node, left, right):
            return None
        if node.operator in _COMPARISONS:
            signed = left.type.signed or right.type.signed
            return Typed(
                fold(
                    BinaryExpr(_COMPARISONS[node.operator], left.expr, right.expr, BOOLEAN, node.span, signed)
                )
            )
        return self._arithmetic(node, left, right)

    def _arithmetic(self, node: nodes.Binary, left: Typed, right: Typed) -> Typed | None:
        operation = _ARITHMETIC[node.operator]
        if operation in (BinaryOperation.DIVIDE, BinaryOperation.MODULO) and is_constant(right.expr, 0):
            self.report("O2C0224", "division by zero", node.span)
            return None
        unit = left.unit if left.unit is not Unit.PLAIN else right.unit
        if operation is BinaryOperation.DIVIDE and left.unit is right.unit:
            unit = Unit.PLAIN
        address = left.type.kind is TypeKind.POINTER
        offset = right.type.kind is TypeKind.POINTER
        if (operation is BinaryOperation.ADD and address != offset) or (
            operation is BinaryOperation.SUBTRACT and address and not offset
        ):
            result = POINTER
        else:
            result = ValueType(TypeKind.INTEGER, signed=left.type.signed or right.type.signed)
        folded = fold(BinaryExpr(operation, left.expr, right.expr, result, node.span))
        if isinstance(folded, Const) and not -(WORD_LIMIT // 2) <= folded.value < WORD_LIMIT:
            self.report("O2C0224", "the value does not fit into 64 bits", node.span)
            return None
        return Typed(folded, unit)

    def _units_agree(self, node: nodes.Binary, left: Typed, right: Typed) -> bool:
        units = {left.unit, right.unit} - {Unit.PLAIN}
        operator = node.operator
        if operator in (nodes.BinaryOperator.SHIFT_LEFT, nodes.BinaryOperator.SHIFT_RIGHT):
            units = {right.unit} - {Unit.PLAIN}
            if units:
                self.report("O2C0221", "a shift count has no unit", node.right.span)
                return False
            return True
        if len(units) == 2:
            self.report(
                "O2C0221",
                f"`{operator}` between a {left.unit} and a {right.unit}",
                node.span,
            )
            return False
        if operator is nodes.BinaryOperator.MULTIPLY and left.unit is right.unit is not Unit.PLAIN:
            self.report("O2C0221", f"the product of two {left.unit}s has no meaning", node.span)
            return False
        return True

    # --- names

    def path(self, node: nodes.Path) -> Typed | None:
        """The value that a path names; for a struct or an array by value its address."""
        first = node.parts[0]
        base = self._base(first)
        if base is not None:
            return follow(self.context, base, node.parts[1:], node, len(node.parts[0].text))
        if first.text == "result":
            self.report("O2C0225", "there is no `result` here", first.span)
            return None
        if self.scope.implicit is not None and self.context.table.find_field(self.scope.implicit, first.text):
            struct = self.context.table.struct_by_name[self.scope.implicit]
            argument = ArgumentValue(0, "", pointer_to(struct.name, struct.size), first.span)
            return follow(self.context, argument, node.parts, node, 0)
        return self._constant_path(node)

    def _base(self, name: nodes.Name) -> Expr | None:
        found = self.scope.parameters.get(name.text)
        if found is not None:
            return ArgumentValue(found[0], name.text, found[1], name.span)
        if name.text == "result" and self.scope.result is not None:
            return ResultValue(self.scope.result, name.span)
        return None

    def _constant_path(self, node: nodes.Path) -> Typed | None:
        program = self.context.program
        found = program.find(self.scope.module, nodes.Const, node)
        if len(found) == 1 and isinstance(found[0].node, nodes.Const):
            return self._constant_definition(found[0].node, found[0].module, node)
        if len(found) > 1:
            self.report(
                "O2C0203",
                f"`{node.text}` is ambiguous",
                node.span,
                help=f"write `{found[0].module.name}.{node.text}`",
            )
            return None
        if len(node.parts) == 1:
            for enum in self.context.table.enums:
                for name, value in enum.values:
                    if name == node.text:
                        return Typed(
                            constant(value, node.span, ValueType(TypeKind.INTEGER, signed=value < 0))
                        )
        known = [*self.scope.parameters, *program.visible(self.scope.module, nodes.Const)]
        if self.scope.implicit is not None:
            known.extend(self.context.table.field_names(self.scope.implicit))
        if not self.context.has_target and (self.scope.implicit is not None or len(node.parts) == 1):
            return None  # a field, or an enumerator
        first = node.parts[0]
        self.report(
            "O2C0202", f"unknown name `{first.text}`", first.span, help=did_you_mean(first.text, known)
        )
        return None

    def _constant_definition(
        self, definition: nodes.Const, module: ParsedModule, use: nodes.Path
    ) -> Typed | None:
        constants = self.context.constants
        if id(definition) not in constants:
            constants[id(definition)] = self._constant_in(definition, module)
        found = constants[id(definition)]
        if found is None:
            return None
        value, type_, unit = found
        return Typed(constant(value, use.span, type_), Unit(unit))

    def _constant_in(
        self, definition: nodes.Const, module: ParsedModule
    ) -> tuple[int, ValueType, str] | None:
        """Value, type and unit of a constant; None after a diagnostic, which comes once."""
        what = f"constant `{definition.name.text}`"
        with self.context.resolving_definition(definition, what, definition.span) as possible:
            typed = Checker(self.context, Scope(module)).expression(definition.value) if possible else None
        if typed is None:
            return None
        if not isinstance(typed.expr, Const):
            self.report("O2C0223", f"`{definition.name.text}` is not a constant", definition.value.span)
            return None
        return typed.expr.value, typed.type, typed.unit.value

    # --- predicates

    def _predicate(self, node: nodes.FunctionCall) -> Typed | None:
        name = node.function.text
        if name == _VALUE_AT:
            return self._value_at(node)
        try:
            kind = PredicateKind(name)
        except ValueError:
            self.report(
                "O2C0222",
                f"unknown predicate `{name}`",
                node.function.span,
                help=did_you_mean(name, [*(kind.value for kind in PredicateKind), _VALUE_AT]),
            )
            return None
        arguments = node.arguments
        capability: str | None = None
        if kind is PredicateKind.HELD and len(arguments) == 2 and isinstance(arguments[1], nodes.Path):
            capability = self._capability_name(arguments[1])
            if capability is None:
                return None
            arguments = arguments[:1]
        if len(arguments) != _ARITY[kind]:
            self.report(
                "O2C0222",
                f"`{name}` takes {_ARITY[kind]} operand{'s' if _ARITY[kind] > 1 else ''}, not {len(arguments)}",
                node.span,
            )
            return None
        operands: list[Expr] = []
        for index, argument in enumerate(arguments):
            operand = self.length(argument) if index == 1 else self._address(argument)
            if operand is None:
                return None
            operands.append(operand)
        return self._make_predicate(kind, tuple(operands), capability, node.span)

    def _value_at(self, node: nodes.FunctionCall) -> Typed | None:
        """`value_at(p)`, `value_at(p, n)`: the number behind a pointer, of the size that its type or the policy says."""
        if not 1 <= len(node.arguments) <= 2:
            self.report("O2C0222", f"`{_VALUE_AT}` takes a pointer, and a size", node.span)
            return None
        pointer = self._address(node.arguments[0])
        if pointer is None:
            return None
        stated = self.constant(node.arguments[1]) if len(node.arguments) == 2 else None
        if stated is None and len(node.arguments) == 2:
            return None
        size = pointer.type.pointee_size if stated is None else stated
        if size not in (1, 2, 4, 8):
            if stated is not None or self.context.has_target:
                self.report(
                    "O2C0224" if stated is not None else "O2C0220",
                    f"`{_VALUE_AT}` reads a number of 1, 2, 4 or 8 bytes",
                    node.span,
                    help=f"give its size: `{_VALUE_AT}(p, 8)`" if stated is None else None,
                )
            return None
        type_ = ValueType(TypeKind.INTEGER, size=size)
        return Typed(LoadField(pointer, 0, size, False, type_, f"what `{_VALUE_AT}` reads", node.span))

    def _make_predicate(
        self, kind: PredicateKind, operands: tuple[Expr, ...], capability: str | None, span: Span
    ) -> Typed | None:
        struct = operands[0].type.struct
        type_id: int | None = None
        if kind is PredicateKind.GRANTED:
            if struct is None:
                if self.context.has_target:
                    self.report(
                        "O2C0220",
                        "`granted` needs a pointer to a struct",
                        span,
                        f"this is a {operands[0].type}",
                    )
                return None
            type_id = self.context.types.number(struct)
        result = WORD if kind is PredicateKind.SIZE else BOOLEAN
        unit = Unit.SIZE if kind is PredicateKind.SIZE else Unit.PLAIN
        if kind is PredicateKind.HELD and capability is None and struct is not None:
            fitting = self.context.finder.fitting(self.context, self.scope.module, struct)
            if len(fitting) == 1:
                capability = fitting[0].name
        if kind is PredicateKind.HELD and struct is not None:
            type_id = self.context.types.number(struct)
        return Typed(Predicate(kind, operands, result, span, type_id, capability), unit)

    def _capability_name(self, path: nodes.Path) -> str | None:
        found = self.context.finder.named(
            self.context, self.scope.module, nodes.QualifiedName(path.span, path.parts)
        )
        return found.name if found is not None else None

    def _address(self, node: nodes.Expression) -> Expr | None:
        typed = self.expression(node)
        if typed is None:
            return None
        if typed.type.kind is TypeKind.BOOLEAN or typed.unit is Unit.TIME:
            self.report("O2C0220", "an address is needed here", node.span, f"this is of type {typed.type}")
            return None
        return typed.expr
