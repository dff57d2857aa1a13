# SPDX-License-Identifier: Apache-2.0
"""Making expressions, with constants folded as they are put together."""

from __future__ import annotations

from o2cc.diagnostics import Span
from o2cc.policy.expr import (
    BinaryExpr,
    BinaryOperation,
    Const,
    Expr,
    UnaryExpr,
    UnaryOperation,
    ValueType,
)
from o2cc.policy.structs import BOOLEAN, WORD

WORD_LIMIT = 1 << 64


def constant(value: int, span: Span, type_: ValueType = WORD) -> Const:
    """A constant expression."""
    return Const(value, type_, span)


def is_constant(expr: Expr, value: int) -> bool:
    """Whether an expression is this constant."""
    return isinstance(expr, Const) and expr.value == value


def either(left: Expr, right: Expr) -> Expr:
    """``left or right``, folded when one of them is constant."""
    for one, other in ((left, right), (right, left)):
        if isinstance(one, Const):
            return one if one.value else other
    return BinaryExpr(BinaryOperation.OR, left, right, BOOLEAN, left.span)


def compare(operation: BinaryOperation, left: Expr, right: Expr, span: Span) -> Expr:
    """An unsigned comparison, folded when both sides are constant."""
    return fold(BinaryExpr(operation, left, right, BOOLEAN, span))


def add(left: Expr, right: Expr, span: Span) -> Expr:
    """``left + right``, folded."""
    if is_constant(right, 0):
        return left
    return fold(BinaryExpr(BinaryOperation.ADD, left, right, left.type, span))


def subtract(left: Expr, right: Expr, span: Span) -> Expr:
    """``left - right``, folded."""
    if is_constant(right, 0):
        return left
    return fold(BinaryExpr(BinaryOperation.SUBTRACT, left, right, WORD, span))


def fold(expr: BinaryExpr | UnaryExpr) -> Expr:
    if isinstance(expr, UnaryExpr):
        if not isinstance(expr.operand, Const):
            return expr
        value = expr.operand.value
        match expr.operation:
            case UnaryOperation.NOT:
                value = int(not value)
            case UnaryOperation.NEGATE:
                value = -value
            case UnaryOperation.COMPLEMENT:
                value = ~value & (WORD_LIMIT - 1)
        return Const(value, expr.type, expr.span)
    if not isinstance(expr.left, Const) or not isinstance(expr.right, Const):
        return expr
    folded = _calculate(expr.operation, expr.left.value, expr.right.value)
    return expr if folded is None else Const(folded, expr.type, expr.span)


def _calculate(operation: BinaryOperation, left: int, right: int) -> int | None:
    match operation:
        case BinaryOperation.ADD:
            return left + right
        case BinaryOperation.SUBTRACT:
            return left - right
        case BinaryOperation.MULTIPLY:
            return left * right
        case BinaryOperation.DIVIDE:
            return left // right if right else None
        case BinaryOperation.MODULO:
            return left % right if right else None
        case BinaryOperation.BIT_AND:
            return left & right
        case BinaryOperation.BIT_OR:
            return left | right
        case BinaryOperation.BIT_XOR:
            return left ^ right
        case BinaryOperation.SHIFT_LEFT:
            return left << right if 0 <= right < 64 else None
        case BinaryOperation.SHIFT_RIGHT:
            return left >> right if 0 <= right < 64 else None
        case BinaryOperation.EQUAL:
            return int(left == right)
        case BinaryOperation.NOT_EQUAL:
            return int(left != right)
        case BinaryOperation.LESS:
            return int(left < right)
        case BinaryOperation.LESS_EQUAL:
            return int(left <= right)
        case BinaryOperation.GREATER:
            return int(left > right)
        case BinaryOperation.GREATER_EQUAL:
            return int(left >= right)
        case BinaryOperation.AND:
            return int(bool(left) and bool(right))
        case BinaryOperation.OR:
            return int(bool(left) or bool(right))
