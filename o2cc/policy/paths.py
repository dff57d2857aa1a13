# SPDX-License-Identifier: Apache-2.0
"""What names mean in an expression, and where a path of fields leads.

Codes: O2C0212 bit field, O2C0218 fields of what has none.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum

from o2cc.diagnostics import error
from o2cc.policy.context import Context
from o2cc.policy.model import AddressOfField, ArgumentValue, Expr, LoadField, ResultValue, TypeKind, ValueType
from o2cc.policy.names import ParsedModule
from o2cc.policy.structs import value_type
from o2cc.syntax import nodes


class Unit(StrEnum):
    """What a number counts."""

    PLAIN = "plain number"
    SIZE = "size"
    TIME = "time"


@dataclass(frozen=True, slots=True)
class Typed:
    """A checked expression with its unit."""

    expr: Expr
    unit: Unit = Unit.PLAIN

    @property
    def type(self) -> ValueType:
        """Type of the expression."""
        return self.expr.type


@dataclass(frozen=True)
class Scope:
    """What names mean in an expression.

    ``parameters``: index and type by name.  ``result``: type of the result where there is one.  ``implicit``: the
    struct whose fields can be named without a base, which is argument 0.
    """

    module: ParsedModule
    parameters: Mapping[str, tuple[int, ValueType]] = field(default_factory=dict)
    result: ValueType | None = None
    implicit: str | None = None


def follow(
    context: Context, base: Expr, parts: tuple[nodes.Name, ...], node: nodes.Path, start: int
) -> Typed | None:
    """Go from ``base`` along the fields ``parts`` of a path; None after a diagnostic.

    ``start`` is 0 where the path begins with a field of the base.
    """
    current = base
    text = node.parts[0].text if start else ""
    pending = 0  # offset of the embedded struct that we are in, from `current`
    struct = base.type.struct if base.type.kind is TypeKind.POINTER else None
    for position, part in enumerate(parts):
        span = node.parts[0].span.to(part.span)
        if struct is None:
            if not context.has_target:
                return None
            _no_fields(context, text, current, part)
            return None
        owner = struct
        place = context.field(owner, part.text, part.span)
        if place is None:
            return None
        text = f"{text}.{part.text}" if text else part.text
        kind = value_type(place.type)
        if place.bitfield_size:
            context.collector.add(
                error(
                    "O2C0212",
                    f"`{text}` is a bit field",
                    part.span,
                    help="bit fields cannot be read in a policy; use a predicate or another field",
                )
            )
            return None
        offset = pending + place.offset
        last = position == len(parts) - 1
        if place.type.kind in ("struct", "union", "array"):
            struct, pending = place.type.name if place.type.kind != "array" else None, offset
            if last:
                return Typed(AddressOfField(current, offset, place.size, kind, text, span))
            continue
        current = LoadField(current, offset, place.size, kind.signed, kind, text, span)
        struct, pending = kind.struct, 0
    return Typed(current)


def _no_fields(context: Context, text: str, base: Expr, part: nodes.Name) -> None:
    untyped = isinstance(base, ArgumentValue | ResultValue)
    context.collector.add(
        error(
            "O2C0218",
            f"`{text}` has no fields",
            part.span,
            f"`{text}` is of type {base.type}",
            help=f"give it a type: `{text}: struct T`" if untyped else None,
        )
    )
