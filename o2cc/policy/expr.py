# SPDX-License-Identifier: Apache-2.0
"""Typed, resolved expressions: what guards, lengths and conditions of a checked policy compute.

Struct names are those of BTF without the word ``struct``; offsets and sizes are bytes.  ``ArgumentValue(0)`` is the
first argument of the gate or entry; in a capability, a grant behind a pointer and a struct's guard it is the object
itself.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from o2cc.diagnostics import Span

# --- types of expressions ---------------------------------------------------------------------------------


class TypeKind(StrEnum):
    INTEGER = "integer"  # also enumerations, booleans of C
    BOOLEAN = "boolean"  # what comparisons and predicates give
    POINTER = "pointer"  # to the struct `struct`, or to anything (None)
    FUNCTION_POINTER = "function pointer"
    OTHER = "other"  # a struct or array by value; only its address can be used
    UNKNOWN = "unknown"  # a 64-bit word of which nothing tells the type


@dataclass(frozen=True, slots=True)
class ValueType:
    """Type of an expression, an argument or a member.

    ``struct`` names what a pointer points to (or what OTHER is), None for `void *` and pointers to scalars.
    ``pointee_size`` is the size in bytes of what a pointer points to, None when unknown.
    """

    kind: TypeKind
    struct: str | None = None
    size: int = 8
    signed: bool = False
    pointee_size: int | None = None

    def __str__(self) -> str:
        if self.kind is TypeKind.POINTER:
            return f"struct {self.struct} *" if self.struct else "pointer"
        if self.kind is TypeKind.OTHER and self.struct:
            return f"struct {self.struct}"
        return self.kind.value


# --- expressions ------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Const:
    """A number; negative numbers as Python's."""

    value: int
    type: ValueType
    span: Span


@dataclass(frozen=True, slots=True)
class ArgumentValue:
    """The argument at ``index`` (from 0; the first six are in rdi, rsi, rdx, rcx, r8, r9), or the object itself."""

    index: int
    name: str
    type: ValueType
    span: Span


@dataclass(frozen=True, slots=True)
class ResultValue:
    """What the gate returned; only in effects and their conditions, which apply after the return."""

    type: ValueType
    span: Span


@dataclass(frozen=True, slots=True)
class GlobalAddress:
    """Address of a symbol of the kernel or of the compartment's module."""

    symbol: str
    type: ValueType
    span: Span


@dataclass(frozen=True, slots=True)
class LoadField:
    """Value of ``size`` bytes at ``base + offset``; ``text`` is how the policy wrote it (`skb.len`)."""

    base: Expr
    offset: int
    size: int
    signed: bool
    type: ValueType
    text: str
    span: Span


@dataclass(frozen=True, slots=True)
class AddressOfField:
    """``base + offset``: the address of a member that is a struct or an array, or of an object's part."""

    base: Expr
    offset: int
    size: int
    type: ValueType
    text: str
    span: Span


class BinaryOperation(StrEnum):
    """Unsigned 64-bit arithmetic; comparisons are signed when either side is a signed value (``signed``)."""

    ADD = "+"
    SUBTRACT = "-"
    MULTIPLY = "*"
    DIVIDE = "/"
    MODULO = "%"
    BIT_AND = "&"
    BIT_OR = "|"
    BIT_XOR = "^"
    SHIFT_LEFT = "<<"
    SHIFT_RIGHT = ">>"
    EQUAL = "=="
    NOT_EQUAL = "!="
    LESS = "<"
    LESS_EQUAL = "<="
    GREATER = ">"
    GREATER_EQUAL = ">="
    AND = "and"
    OR = "or"


@dataclass(frozen=True, slots=True)
class BinaryExpr:
    operation: BinaryOperation
    left: Expr
    right: Expr
    type: ValueType
    span: Span
    signed: bool = False


class UnaryOperation(StrEnum):
    NOT = "not"
    NEGATE = "-"
    COMPLEMENT = "~"


@dataclass(frozen=True, slots=True)
class UnaryExpr:
    operation: UnaryOperation
    operand: Expr
    type: ValueType
    span: Span


class PredicateKind(StrEnum):
    """Questions about memory.  ``p`` is the first operand; a null pointer satisfies none of them.

    OWNED     the object at p is the compartment's own (its heap, data, per-CPU data or stack)
    HELD      a capability for the object that starts at p is held; with ``capability`` that one: the object is
              certainly of its type, or its memory is held and everything that its ranges cover *now* is held too (a
              packet whose `head` was forged is not held)
    SHARED    p is a kernel address in memory that the compartment cannot write (neither own nor held), so that
              nothing there can be of its making: for objects that the kernel shares, such as `struct net`
    WRITABLE  the n bytes (second operand) at p may be written: owned, held or granted
    GRANTED   p points to the start of a granted struct of type ``type_id`` whose type is certain
    FREEABLE  p is the start of a heap object that is owned or held; with ``capability`` one of its struct
    LINKED    the node of a hash list (``struct hlist_node``) at p is in no list, or what its links lead to leads back
              to it, so that nothing but a list's own pointers is written when it is taken out
    SIZE      (an integer) usable size in bytes of the heap object at p, 0 when it is none
    ENTRY     p is the address of an entry of the compartment, or one of the policy's ``kernel_callbacks`` (for
              function pointers handed to the kernel)
    """

    OWNED = "owned"
    HELD = "held"
    SHARED = "shared"
    WRITABLE = "writable"
    GRANTED = "granted"
    FREEABLE = "freeable"
    LINKED = "linked"
    SIZE = "size"
    ENTRY = "entry"


@dataclass(frozen=True, slots=True)
class Predicate:
    kind: PredicateKind
    operands: tuple[Expr, ...]
    type: ValueType
    span: Span
    type_id: int | None = None
    capability: str | None = None


Expr = (
    Const
    | ArgumentValue
    | ResultValue
    | GlobalAddress
    | LoadField
    | AddressOfField
    | BinaryExpr
    | UnaryExpr
    | Predicate
)
