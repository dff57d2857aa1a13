# SPDX-License-Identifier: Apache-2.0
"""From an offset in a struct to the fields that lie there, as a policy names them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from o2cc.kernel.type_table import Member, Struct, TypeReference, TypeTable

_DEPTH = 16  # structs inside each other


@dataclass(frozen=True, slots=True)
class FieldAt:
    """A field: its path (`cork.base.dst`, elements of arrays as `name[3]`), the first byte that it occupies from the outer
    struct's start and how many, and its type.  ``bits``: width of a bit field, else 0."""

    path: str
    offset: int
    size: int
    type: TypeReference
    bits: int = 0


def fields_at(table: TypeTable, struct: str, offset: int) -> tuple[FieldAt, ...]:
    """The innermost fields that hold the byte at ``offset`` of a struct of the table: several in a union or where bit fields
    share a byte, none in padding."""
    layout = table.struct_by_name.get(struct)
    return () if layout is None else tuple(_inside(table, layout, "", 0, offset, _DEPTH))


def members_of(table: TypeTable, struct: str) -> tuple[FieldAt, ...]:
    """The fields of a struct in their order, those of anonymous members as its own."""
    layout = table.struct_by_name.get(struct)
    return () if layout is None else tuple(_members(table, layout, 0, _DEPTH))


def _members(table: TypeTable, layout: Struct, start: int, depth: int) -> Iterator[FieldAt]:
    for member in layout.members:
        place, size = _extent(member)
        inner = table.struct_by_name.get(member.type.name or "") if not member.name else None
        if inner is not None and depth:
            yield from _members(table, inner, start + place, depth - 1)
        elif member.name:
            yield FieldAt(member.name, start + place, size, member.type, member.bitfield_size)


def _inside(
    table: TypeTable, layout: Struct, prefix: str, start: int, offset: int, depth: int
) -> Iterator[FieldAt]:
    for member in layout.members:
        place, size = _extent(member)
        place += start
        if not place <= offset < place + size:
            continue
        path = f"{prefix}.{member.name}" if prefix and member.name else prefix or member.name
        yield from _narrowed(table, member, member.type, path, place, offset, depth)


def _narrowed(
    table: TypeTable, member: Member, type_: TypeReference, path: str, start: int, offset: int, depth: int
) -> Iterator[FieldAt]:
    """The field itself, or what lies inside it."""
    if type_.kind == "array" and type_.element is not None and type_.element.size:
        index = (offset - start) // type_.element.size
        place = start + index * type_.element.size
        yield from _narrowed(table, member, type_.element, f"{path}[{index}]", place, offset, depth)
        return
    inner = table.struct_by_name.get(type_.name or "") if type_.kind in ("struct", "union") else None
    if inner is not None and inner.members and depth:
        yield from _inside(table, inner, path, start, offset, depth - 1)
        return
    size = _extent(member)[1] if member.bitfield_size else type_.size
    yield FieldAt(path, start, size, type_, member.bitfield_size)


def _extent(member: Member) -> tuple[int, int]:
    """First byte and number of bytes."""
    start = member.offset_bits // 8
    if member.bitfield_size:
        return start, (member.offset_bits % 8 + member.bitfield_size + 7) // 8
    return start, member.type.size
