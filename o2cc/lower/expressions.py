# SPDX-License-Identifier: Apache-2.0
"""Guards and effects: checked expressions to IR.

``and``, ``or`` and ``not`` become branches, so that the second side of ``p == 0 || held(p)`` is not asked about a
null pointer; everything else becomes straight code.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from o2cc.ir import nodes as ir
from o2cc.ir.builder import Builder
from o2cc.kernel.description import Description
from o2cc.lower.places import symbol_address
from o2cc.lower.rules import Types
from o2cc.policy import model

ARGUMENT_REGISTERS = ("rdi", "rsi", "rdx", "rcx", "r8", "r9")

ABOUT = "about"
"""Variable that holds the address which a failing requirement is about."""

_OPERATORS = {
    model.BinaryOperation.ADD: ir.BinaryOperator.ADD,
    model.BinaryOperation.SUBTRACT: ir.BinaryOperator.SUB,
    model.BinaryOperation.MULTIPLY: ir.BinaryOperator.MUL,
    model.BinaryOperation.DIVIDE: ir.BinaryOperator.UDIV,
    model.BinaryOperation.MODULO: ir.BinaryOperator.UMOD,
    model.BinaryOperation.BIT_AND: ir.BinaryOperator.AND,
    model.BinaryOperation.BIT_OR: ir.BinaryOperator.OR,
    model.BinaryOperation.BIT_XOR: ir.BinaryOperator.XOR,
    model.BinaryOperation.SHIFT_LEFT: ir.BinaryOperator.SHL,
    model.BinaryOperation.SHIFT_RIGHT: ir.BinaryOperator.LSHR,
    model.BinaryOperation.EQUAL: ir.BinaryOperator.EQ,
    model.BinaryOperation.NOT_EQUAL: ir.BinaryOperator.NE,
    model.BinaryOperation.LESS: ir.BinaryOperator.ULT,
    model.BinaryOperation.LESS_EQUAL: ir.BinaryOperator.ULE,
    model.BinaryOperation.GREATER: ir.BinaryOperator.UGT,
    model.BinaryOperation.GREATER_EQUAL: ir.BinaryOperator.UGE,
}
_SIGNED = {
    ir.BinaryOperator.ULT: ir.BinaryOperator.SLT,
    ir.BinaryOperator.ULE: ir.BinaryOperator.SLE,
    ir.BinaryOperator.UGT: ir.BinaryOperator.SGT,
    ir.BinaryOperator.UGE: ir.BinaryOperator.SGE,
    ir.BinaryOperator.LSHR: ir.BinaryOperator.ASHR,
}

# Functions that change such an object keep the pointers in it as they should be (lib/rhashtable.c, 6.1 and 6.12).
_KEPT_STRUCTS = frozenset({"rhashtable", "rhltable"})


def _struct_of(expression: model.Expr) -> str | None:
    return expression.type.struct if isinstance(expression, model.ArgumentValue) else None


def sized(code: Builder, value: ir.Operand, size: int, signed: bool) -> ir.Operand:
    """The low ``size`` bytes of a word, extended to 64 bits; the rest of a register holds anything."""
    if size >= 8:
        return value
    if not signed:
        return code.binary(ir.BinaryOperator.AND, value, (1 << 8 * size) - 1)
    shift = 64 - 8 * size
    return code.binary(ir.BinaryOperator.ASHR, code.binary(ir.BinaryOperator.SHL, value, shift), shift)


@dataclass(frozen=True)
class Place:
    """What expressions can refer to: arguments and result of the call, and the site's number, stack pointer and rbp."""

    argument: Callable[[int], ir.Operand]
    result: ir.Operand | None
    site: ir.Operand
    sp: ir.Operand
    bp: ir.Operand


@dataclass(frozen=True)
class Expressions:
    """Emits expressions into ``code`` as they are meant at ``place``."""

    code: Builder
    place: Place
    policy: model.CheckedPolicy
    description: Description
    types: Types

    def at(self, argument: ir.Operand) -> Expressions:
        """The same with ``argument`` as the only argument: for the ranges of a capability."""
        place = Place(lambda index: argument, None, self.place.site, self.place.sp, self.place.bp)
        return Expressions(self.code, place, self.policy, self.description, self.types)

    def value(self, expression: model.Expr) -> ir.Operand:
        """A word that holds the expression's value; booleans are 0 or 1."""
        code = self.code
        match expression:
            case model.Const():
                return ir.Constant(expression.value & (2**64 - 1))
            case model.ArgumentValue():
                kind = expression.type
                is_integer = kind.kind in (model.TypeKind.INTEGER, model.TypeKind.BOOLEAN)
                word = self.place.argument(expression.index)
                return sized(code, word, kind.size, kind.signed) if is_integer else word
            case model.ResultValue():
                if self.place.result is None:
                    raise ValueError("the result is not known before the call")
                kind = expression.type
                is_integer = kind.kind in (model.TypeKind.INTEGER, model.TypeKind.BOOLEAN)
                return (
                    sized(code, self.place.result, kind.size, kind.signed)
                    if is_integer
                    else self.place.result
                )
            case model.GlobalAddress():
                return symbol_address(code, self.description, expression.symbol) or ir.Constant(0)
            case model.LoadField():
                address = code.add(self.value(expression.base), expression.offset)
                word = code.read(expression.size, address)
                return sized(code, word, expression.size, True) if expression.signed else word
            case model.AddressOfField():
                return code.add(self.value(expression.base), expression.offset)
            case model.UnaryExpr(operation=model.UnaryOperation.NEGATE):
                return code.binary(ir.BinaryOperator.SUB, 0, self.value(expression.operand))
            case model.UnaryExpr(operation=model.UnaryOperation.COMPLEMENT):
                return code.binary(ir.BinaryOperator.XOR, self.value(expression.operand), -1)
            case model.BinaryExpr() if expression.operation in _OPERATORS:
                operator = _OPERATORS[expression.operation]
                if expression.signed:
                    operator = _SIGNED.get(operator, operator)
                return code.binary(operator, self.value(expression.left), self.value(expression.right))
            case model.Predicate() if expression.kind is model.PredicateKind.SIZE:
                return code.call("size_of_object", self.value(expression.operands[0]))
            case _:
                return self._boolean(expression)

    def _boolean(self, expression: model.Expr) -> ir.Operand:
        code = self.code
        yes, no, end = code.label("true"), code.label("false"), code.label("both")
        variable = code.label("truth")
        self.branch(expression, yes, no)
        code.start(yes)
        code.assign(variable, 1)
        code.jump(end)
        code.start(no)
        code.assign(variable, 0)
        code.jump(end)
        code.start(end)
        return ir.Variable(variable)

    def branch(self, condition: model.Expr, if_true: str, if_false: str) -> None:
        """End the block: to ``if_true`` when the condition holds, else to ``if_false``."""
        code = self.code
        match condition:
            case model.BinaryExpr(operation=model.BinaryOperation.AND):
                middle = code.label("and")
                self.branch(condition.left, middle, if_false)
                code.start(middle)
                self.branch(condition.right, if_true, if_false)
            case model.BinaryExpr(operation=model.BinaryOperation.OR):
                middle = code.label("or")
                self.branch(condition.left, if_true, middle)
                code.start(middle)
                self.branch(condition.right, if_true, if_false)
            case model.UnaryExpr(operation=model.UnaryOperation.NOT):
                self.branch(condition.operand, if_false, if_true)
            case model.Predicate() if condition.kind is not model.PredicateKind.SIZE:
                self._predicate(condition, if_true, if_false)
            case _:
                code.branch(self.value(condition), if_true, if_false)

    def _predicate(self, predicate: model.Predicate, if_true: str, if_false: str) -> None:
        code, site, sp, bp = self.code, self.place.site, self.place.sp, self.place.bp
        operands = [self.value(operand) for operand in predicate.operands]
        pointer = operands[0]
        kinds = model.PredicateKind
        match predicate.kind:
            case kinds.OWNED:
                answer = code.call("is_owned", pointer, site, sp, bp)
            case kinds.HELD:
                self._held(predicate, pointer, if_true, if_false)
                return
            case kinds.SHARED:
                answer = code.call("is_shared", pointer, site, sp, bp)
            case kinds.WRITABLE:
                kept = _struct_of(predicate.operands[0]) in _KEPT_STRUCTS
                name = "is_writable_or_own" if kept else "is_writable"
                answer = code.call(name, pointer, operands[1], site, sp, bp)
            case kinds.GRANTED:
                answer = code.call("is_granted", pointer, self._mask(predicate.type_id), site, sp)
            case kinds.FREEABLE if predicate.type_id is not None:
                mask = self._mask(predicate.type_id)
                answer = code.call("is_movable", pointer, mask, self._size(predicate.type_id), site)
            case kinds.LINKED:
                answer = code.call("is_linked", pointer)
            case kinds.FREEABLE:
                answer = code.call("is_freeable", pointer, site, sp)
            case _:
                answer = code.call("is_entry", pointer)
        code.branch(answer, if_true, if_false)

    def _held(self, predicate: model.Predicate, pointer: ir.Operand, if_true: str, if_false: str) -> None:
        """The object, and everything that the capability's ranges cover now: a forged buffer is not held.  A capability
        without ranges is held of an object of its type, whoever may write what of it."""
        code, site, sp = self.code, self.place.site, self.place.sp
        capability = self.policy.capability(predicate.capability) if predicate.capability else None
        mask = self._mask(predicate.type_id if capability is None else capability.type_id)
        if capability is not None and not capability.ranges:
            code.branch(code.call("is_granted", pointer, mask, site, sp), if_true, if_false)
            return
        held = code.call("is_held", pointer, mask, site, sp, self.place.bp)
        if capability is not None:
            typed = code.label("typed")
            code.branch(held, typed, if_false)
            code.start(typed)
            held = code.call("fits_type", pointer, mask)
        for part in capability.ranges if capability else ():
            following = code.label("held")
            code.branch(held, following, if_false)
            code.start(following)
            inner = self.at(pointer)
            start = inner.value(part.start)
            code.assign(ABOUT, start)
            length = code.binary(ir.BinaryOperator.SUB, inner.value(part.end), start)
            length = code.select(start, length, 0)  # a buffer that is not there is an empty range
            held = code.call("is_covered", start, length, self.place.site, self.place.sp, self.place.bp)
        code.branch(held, if_true, if_false)

    def _size(self, type_id: int) -> int:
        return next((t.size for t in self.policy.types if t.number == type_id), 0)

    def _mask(self, type_id: int | None) -> int:
        struct = next((t.struct for t in self.policy.types if t.number == type_id), None)
        return self.types.bits.get(struct, 0) if struct else 0
