# SPDX-License-Identifier: Apache-2.0
"""What a policy wants to know of C types: value types, members along a path, and members that are too powerful.

Works on the ``TypeTable`` of a description; no description means an empty table.  Nothing here reports
diagnostics: a name that is not found gives None, and the caller says where it was written.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from o2cc.kernel.type_table import TypeReference, TypeTable
from o2cc.policy.model import TypeKind, ValueType

_DEPTH_LIMIT = 16
_OPS_SUFFIXES = ("_ops", "_operations", "_protocol", "_funcs", "_vtable")

BOOLEAN = ValueType(TypeKind.BOOLEAN, size=1)
WORD = ValueType(TypeKind.INTEGER, size=8)
POINTER = ValueType(TypeKind.POINTER)
UNKNOWN = ValueType(TypeKind.UNKNOWN)


def value_type(reference: TypeReference) -> ValueType:
    """How a policy sees a C type."""
    if reference.is_function_pointer:
        return ValueType(TypeKind.FUNCTION_POINTER)
    if reference.kind == "pointer":
        element = reference.element
        size = element.size if element is not None and element.size else None
        aggregate = element is not None and element.kind in ("struct", "union")
        name = element.name if element is not None and aggregate else None
        return ValueType(TypeKind.POINTER, struct=name, pointee_size=size)
    if reference.kind in ("int", "enum"):
        return ValueType(TypeKind.INTEGER, size=reference.size or 4, signed=reference.signed)
    if reference.kind in ("struct", "union"):
        return ValueType(TypeKind.OTHER, struct=reference.name, size=reference.size)
    return ValueType(TypeKind.OTHER, size=reference.size)


def pointer_to(struct: str, size: int | None) -> ValueType:
    """A pointer to that struct."""
    return ValueType(TypeKind.POINTER, struct=struct, pointee_size=size)


@dataclass(frozen=True, slots=True)
class PowerfulMember:
    """A member that a forged value turns into control of the kernel or of foreign memory.

    ``why`` is "function pointer", "buffer pointer" or "pointer to a table of functions".
    """

    path: str
    offset: int
    size: int
    why: str


def leaves(table: TypeTable, struct: str) -> Iterator[tuple[str, int, TypeReference, int]]:
    """Every member of a struct that is not itself a struct or union: (path, byte offset, type, bit field size).

    Anonymous levels are flattened; arrays of structs give the members of each element's type once, with
    ``path[]`` and the offset of the first element.
    """
    yield from _leaves(table, struct, "", 0, 0)


def _leaves(
    table: TypeTable, struct: str, prefix: str, base_bits: int, depth: int
) -> Iterator[tuple[str, int, TypeReference, int]]:
    outer = table.struct_by_name.get(struct)
    if outer is None or depth > _DEPTH_LIMIT:
        return
    for member in outer.members:
        bits = base_bits + member.offset_bits
        inner = member.type
        suffix = ""
        while inner.kind == "array" and inner.element is not None and inner.element.kind != "int":
            inner = inner.element
            suffix = "[]"
        if inner.kind in ("struct", "union") and inner.name in table.struct_by_name:
            deeper = f"{prefix}{member.name}{suffix}." if member.name else prefix
            yield from _leaves(table, inner.name or "", deeper, bits, depth + 1)
        elif member.name:
            yield f"{prefix}{member.name}{suffix}", bits // 8, inner, member.bitfield_size


def is_ops_struct(table: TypeTable, name: str) -> bool:
    """Whether a struct is a table of functions: most of its members are function pointers.

    A struct that the table does not hold is judged by its name.
    """
    struct = table.struct_by_name.get(name)
    if struct is None or not struct.members:
        return name.endswith(_OPS_SUFFIXES)
    functions = sum(1 for member in struct.members if member.type.is_function_pointer)
    return functions * 2 >= len(struct.members) or (functions > 0 and name.endswith(_OPS_SUFFIXES))


def _is_buffer(reference: TypeReference) -> bool:
    if reference.kind != "pointer":
        return False
    element = reference.element
    return element is None or element.kind == "void" or (element.kind == "int" and element.size == 1)


def powerful_members(table: TypeTable, struct: str) -> tuple[PowerfulMember, ...]:
    """Members that a grant of the whole struct must name: function, buffer and ops-table pointers."""
    found: dict[str, PowerfulMember] = {}
    for path, offset, reference, _ in leaves(table, struct):
        why: str | None = None
        if reference.is_function_pointer:
            why = "function pointer"
        elif reference.kind == "pointer" and reference.element is not None and reference.pointee_struct:
            if is_ops_struct(table, reference.pointee_struct):
                why = "pointer to a table of functions"
        elif _is_buffer(reference):
            why = "buffer pointer"
        if why is not None:
            found.setdefault(path, PowerfulMember(path, offset, reference.size or 8, why))
    return tuple(sorted(found.values(), key=lambda member: (member.offset, member.path)))
