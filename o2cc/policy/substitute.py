# SPDX-License-Identifier: Apache-2.0
"""Put an expression in the place of argument 0 of another."""

from __future__ import annotations

from dataclasses import replace

from o2cc.diagnostics import Span
from o2cc.policy.model import (
    AddressOfField,
    ArgumentValue,
    BinaryExpr,
    Const,
    Expr,
    GlobalAddress,
    LoadField,
    Predicate,
    ResultValue,
    UnaryExpr,
)

_NOWHERE = Span("", 0, 0)


def substitute_argument(expr: Expr, value: Expr) -> Expr:
    """``expr`` with ``value`` for every ``ArgumentValue(0)``; spans stay those of ``expr``."""
    match expr:
        case ArgumentValue(index=0):
            return value
        case Const() | ArgumentValue() | ResultValue() | GlobalAddress():
            return expr
        case LoadField() | AddressOfField():
            return replace(expr, base=substitute_argument(expr.base, value))
        case BinaryExpr():
            return replace(
                expr,
                left=substitute_argument(expr.left, value),
                right=substitute_argument(expr.right, value),
            )
        case UnaryExpr():
            return replace(expr, operand=substitute_argument(expr.operand, value))
        case Predicate():
            return replace(
                expr, operands=tuple(substitute_argument(operand, value) for operand in expr.operands)
            )


def mentions_result(expr: Expr) -> bool:
    """Whether an expression reads the result of the call."""
    match expr:
        case ResultValue():
            return True
        case LoadField() | AddressOfField():
            return mentions_result(expr.base)
        case BinaryExpr():
            return mentions_result(expr.left) or mentions_result(expr.right)
        case UnaryExpr():
            return mentions_result(expr.operand)
        case Predicate():
            return any(mentions_result(operand) for operand in expr.operands)
        case Const() | ArgumentValue() | GlobalAddress():
            return False


def mentioned_arguments(expr: Expr) -> frozenset[int]:
    """Indices of the arguments that an expression reads."""
    match expr:
        case ArgumentValue():
            return frozenset({expr.index})
        case LoadField() | AddressOfField():
            return mentioned_arguments(expr.base)
        case BinaryExpr():
            return mentioned_arguments(expr.left) | mentioned_arguments(expr.right)
        case UnaryExpr():
            return mentioned_arguments(expr.operand)
        case Predicate():
            return frozenset().union(*(mentioned_arguments(operand) for operand in expr.operands))
        case Const() | ResultValue() | GlobalAddress():
            return frozenset()


def same_expression(left: Expr, right: Expr) -> bool:
    """Whether two expressions are equal wherever they stand in the source."""
    return _without_span(left) == _without_span(right)


def _without_span(expr: Expr) -> Expr:
    blank = replace(expr, span=_NOWHERE)
    match blank:
        case Const() | ArgumentValue() | ResultValue() | GlobalAddress():
            return blank
        case LoadField() | AddressOfField():
            return replace(blank, base=_without_span(blank.base), text="")
        case BinaryExpr():
            return replace(blank, left=_without_span(blank.left), right=_without_span(blank.right))
        case UnaryExpr():
            return replace(blank, operand=_without_span(blank.operand))
        case Predicate():
            return replace(blank, operands=tuple(_without_span(operand) for operand in blank.operands))
