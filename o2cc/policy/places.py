# SPDX-License-Identifier: Apache-2.0
"""Places of clauses (`p[n]`, `p whole`, `skb.head[a .. b]`, `lock`) to a pointer and a length.

Two readings of a place without an extent: for a clause about memory (`writes`, `reads`, `caps`) a bare parameter is
what it points to, and a field is that field itself; for a clause about an object (`frees`, `gives`, `takes`, ...) a
field that is a pointer is what it points to.
"""

from __future__ import annotations

from dataclasses import dataclass

from o2cc.diagnostics import Diagnostic, Span, error
from o2cc.policy.expressions import Checker
from o2cc.policy.folding import add, constant, subtract
from o2cc.policy.model import AddressOfField, Expr, LoadField, TypeKind
from o2cc.policy.structs import pointer_to
from o2cc.syntax import nodes


@dataclass(frozen=True, slots=True)
class ResolvedPlace:
    """``length`` bytes at ``pointer``; None when nothing tells the length.  ``explicit``: the policy gave it."""

    pointer: Expr
    length: Expr | None
    explicit: bool


def unknown_length(path: str, span: Span, otherwise: str = "") -> Diagnostic:
    """What is said (O2C0301) where nothing tells how much lies behind a pointer; ``otherwise``: a further remedy."""
    return error(
        "O2C0301",
        f"the size of what `{path}` points to is not known",
        span,
        help=f"write `{path}[n]`{otherwise}",
    )


def resolve_place(checker: Checker, place: nodes.Place, *, pointee: bool) -> ResolvedPlace | None:
    """Resolve a place; ``pointee`` selects the reading for clauses about objects.  None after a diagnostic."""
    typed = checker.path(place.path)
    if typed is None:
        return None
    value = typed.expr
    extent = place.extent
    if isinstance(value, AddressOfField):
        pointer: Expr = value
        size: int | None = value.size
        if value.type.struct is not None:
            pointer = AddressOfField(
                value.base,
                value.offset,
                value.size,
                pointer_to(value.type.struct, value.size),
                value.text,
                value.span,
            )
    elif isinstance(value, LoadField) and extent is None and not pointee:
        pointer = AddressOfField(value.base, value.offset, value.size, value.type, value.text, value.span)
        return ResolvedPlace(pointer, constant(value.size, place.span), False)
    else:
        if value.type.kind in (TypeKind.BOOLEAN, TypeKind.OTHER):
            checker.report(
                "O2C0218",
                f"`{place.path.text}` is not a pointer",
                place.path.span,
                f"this is of type {value.type}",
            )
            return None
        pointer, size = value, value.type.pointee_size
    whole = constant(size, place.span) if size is not None else None
    match extent:
        case None | nodes.Whole():
            return ResolvedPlace(pointer, whole, extent is not None)
        case nodes.Length():
            length = checker.length(extent.size)
            return None if length is None else ResolvedPlace(pointer, length, True)
        case nodes.Range():
            start, end = checker.length(extent.start), checker.length(extent.end)
            if start is None or end is None:
                return None
            return ResolvedPlace(add(pointer, start, place.span), subtract(end, start, place.span), True)
