# SPDX-License-Identifier: Apache-2.0
"""Names, literals, types and expressions."""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction

from o2cc.syntax.nodes.base import Node
from o2cc.syntax.nodes.words import BinaryOperator, UnaryOperator, Unit


@dataclass(frozen=True, slots=True)
class Name(Node):
    """An identifier, or a kernel symbol (which may be quoted in the source, and then hold any text)."""

    text: str


@dataclass(frozen=True, slots=True)
class QualifiedName(Node):
    """`a.b.c`: a module, set, capability or constant."""

    parts: tuple[Name, ...]

    @property
    def text(self) -> str:
        """With its dots."""
        return ".".join(part.text for part in self.parts)


@dataclass(frozen=True, slots=True)
class StringLiteral(Node):
    """Text between double quotes, without them."""

    text: str


@dataclass(frozen=True, slots=True)
class StructType(Node):
    """`struct T` or `union T`."""

    kind: str  # "struct" or "union"
    name: Name

    @property
    def text(self) -> str:
        """As written."""
        return f"{self.kind} {self.name.text}"


@dataclass(frozen=True, slots=True)
class NamedType(Node):
    """A base type or typedef, as `u32`."""

    name: Name

    @property
    def text(self) -> str:
        """As written."""
        return self.name.text


@dataclass(frozen=True, slots=True)
class BufferType(Node):
    """`buffer SIZE`: untyped bytes, only in tests."""

    size: Expression


Type = StructType | NamedType


@dataclass(frozen=True, slots=True)
class Integer(Node):
    """An integer as written, 0 to 2^64 - 1 also when scaled; `scaled` is in bytes or nanoseconds."""

    value: int
    unit: Unit | None

    @property
    def scaled(self) -> int:
        """The value times its unit."""
        return self.value * (self.unit.factor if self.unit else 1)


@dataclass(frozen=True, slots=True)
class Ratio(Node):
    """A decimal fraction such as 0.99, exactly."""

    value: Fraction


@dataclass(frozen=True, slots=True)
class Path(Node):
    """`skb.sk.sk_err`: a parameter, object or constant, then fields, through pointers where needed."""

    parts: tuple[Name, ...]

    @property
    def text(self) -> str:
        """With its dots."""
        return ".".join(part.text for part in self.parts)


@dataclass(frozen=True, slots=True)
class FunctionCall(Node):
    """`held(skb)` and the like."""

    function: Name
    arguments: tuple[Expression, ...]


@dataclass(frozen=True, slots=True)
class SizeOf(Node):
    """`sizeof(struct T)`."""

    type: Type


@dataclass(frozen=True, slots=True)
class Unary(Node):
    """Prefix operator and operand."""

    operator: UnaryOperator
    operand: Expression


@dataclass(frozen=True, slots=True)
class Binary(Node):
    """Infix operator and operands."""

    operator: BinaryOperator
    left: Expression
    right: Expression


Expression = Integer | Ratio | Path | FunctionCall | SizeOf | Unary | Binary
