# SPDX-License-Identifier: Apache-2.0
"""Types that an allocation may have, from what its result is used as, and the choice among them by size.

`TypeFacts` says of one type what the choice needs.  They come from BTF (`BtfTypes`) or DWARF (`DwarfTypes`), the same
for the same type.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from o2cc.kernel import btf as kinds
from o2cc.kernel.btf import Btf
from o2cc.profile.dwarf import DebugInfo, Type

_DEPTH = 16


@dataclass(frozen=True, slots=True)
class TypeFacts:
    """A type that a pointer to the object has.

    ``name``: tag of a struct or union, `struct T *` for a pointer, the name of a scalar.  ``flexible``: it ends in an
    array without a length.  ``first``: structs and unions that lie at its beginning, from the outermost inwards.
    """

    name: str
    kind: str
    size: int
    flexible: bool = False
    first: tuple[str, ...] = ()

    @property
    def is_aggregate(self) -> bool:
        return self.kind in ("struct", "union")


@dataclass(frozen=True, slots=True)
class Choice:
    """``name``: the label, None if no type fits; ``conflict``: types that fit equally well, more than one."""

    name: str | None
    conflict: tuple[str, ...] = ()


NOTHING = Choice(None)


def choose(candidates: Sequence[TypeFacts], size: int, slack: int, *, array: bool) -> Choice:
    """The type among ``candidates`` of an object of ``size`` bytes.

    ``slack``: bytes by which a cache's objects may be larger than the type; ``array``: the code says that it
    allocates an array.
    """
    aggregates = [item for item in candidates if item.is_aggregate and item.name and item.size]
    exact = [item for item in aggregates if item.size <= size <= item.size + slack]
    if exact and not (array and size > max(item.size for item in exact)):
        return _outermost(exact)
    elements = [item for item in candidates if item.size and size % item.size == 0 and item.kind != "void"]
    structs = [item for item in elements if item.is_aggregate and not item.flexible]
    if array and structs:
        found = _outermost(structs)
        return Choice(f"{found.name}[]") if found.name else found
    smaller = [item for item in aggregates if item.size <= size]
    longer = [item for item in smaller if item.flexible]
    if longer and max(item.size for item in longer) == max(item.size for item in smaller):
        return _outermost(longer)
    if aggregates:
        # Something lies behind the type that nothing is known of, or it is a part of another type.
        return NOTHING
    names = sorted({item.name for item in elements if item.kind in ("pointer", "scalar")})
    if len(names) == 1:
        return Choice(f"{names[0]}[]")
    return Choice(None, tuple(f"{name}[]" for name in names))


def _outermost(found: Sequence[TypeFacts]) -> Choice:
    """Of types one of which begins with all others that one; else a conflict."""
    names = {item.name for item in found}
    for item in found:
        if names - {item.name} <= set(item.first):
            return Choice(item.name)
    return Choice(None, tuple(sorted(names)))


def scalar_name(name: str, size: int) -> str:
    """One name for all bytes (`char`); integers by their size, since BTF and DWARF differ in typedefs."""
    return "char" if size == 1 else f"int{8 * size}"


class BtfTypes:
    """Types of a kernel or module by BTF."""

    def __init__(self, btf: Btf, own: bool) -> None:
        self._btf = btf
        self._known: dict[int, TypeFacts | None] = {}
        self._prototypes: dict[str, tuple[tuple[int, ...], int] | None] = {}

    def prototype(self, function: str) -> tuple[tuple[int, ...], int] | None:
        """(types of the parameters, type of the result) of a function; None where registers do not follow simply
        from them: structs by value, and what the compiler changed (`.isra.0`, `.constprop.0`)."""
        if function not in self._prototypes:
            self._prototypes[function] = self._prototype(function) if "." not in function else None
        return self._prototypes[function]

    def _prototype(self, name: str) -> tuple[tuple[int, ...], int] | None:
        btf = self._btf
        id = btf.find(name, kinds.FUNC)
        if id is None:
            return None
        proto = btf.type(id).reference
        if btf.kind(proto) != kinds.FUNC_PROTO:
            return None
        parameters = tuple(type for _, type in btf.parameters(proto))
        for type in parameters:
            if type and btf.kind(btf.strip(type)) in (kinds.STRUCT, kinds.UNION, kinds.FLOAT):
                return None  # by value: in other registers
        return parameters, btf.type(proto).reference

    def pointee_id(self, id: int) -> int | None:
        """What a pointer type points to; None for another type and for `void *`."""
        found = self._btf.strip(id)
        if not found or self._btf.kind(found) != kinds.PTR:
            return None
        target = self._btf.strip(self._btf.reference(found))
        if target and self._btf.kind(target) == kinds.FWD:
            item = self._btf.type(target)
            return self._btf.find(item.name, kinds.UNION if item.flag else kinds.STRUCT)
        return target or None

    def facts(self, id: int) -> TypeFacts | None:
        """What is known of the type behind a pointer."""
        if id not in self._known:
            self._known[id] = self._facts(id)
        return self._known[id]

    def _facts(self, id: int) -> TypeFacts | None:
        btf = self._btf
        id = btf.strip(id)
        kind = btf.kind(id)
        if kind in (kinds.STRUCT, kinds.UNION):
            item = btf.type(id)
            which = "struct" if kind == kinds.STRUCT else "union"
            return TypeFacts(
                item.name, which, item.reference, self._flexible(id, 0), tuple(self._first(id, 0))
            )
        if kind == kinds.PTR:
            target = btf.strip(btf.reference(id))
            if not target:
                return TypeFacts("void *", "pointer", 8)
            prefix = {kinds.STRUCT: "struct ", kinds.UNION: "union ", kinds.FWD: "struct "}.get(
                btf.kind(target)
            )
            return TypeFacts(f"{prefix}{btf.type(target).name} *", "pointer", 8) if prefix else None
        if kind == kinds.INT:
            item = btf.type(id)
            return TypeFacts(scalar_name(item.name, item.reference), "scalar", item.reference)
        return None

    def _flexible(self, id: int, depth: int) -> bool:
        btf = self._btf
        members = btf.members(id)
        if not members or depth > _DEPTH:
            return False
        last = members if btf.kind(id) == kinds.UNION else members[-1:]
        for member in last:
            inner = btf.strip(member.type)
            kind = btf.kind(inner)
            if kind == kinds.ARRAY and btf.array(inner)[1] == 0:
                return True
            if kind in (kinds.STRUCT, kinds.UNION) and self._flexible(inner, depth + 1):
                return True
        return False

    def _first(self, id: int, depth: int) -> Iterator[str]:
        btf = self._btf
        if depth > _DEPTH:
            return
        for member in btf.members(id):
            if member.offset_bits:
                if btf.kind(id) == kinds.STRUCT:
                    return
                continue
            inner = btf.strip(member.type)
            while inner and btf.kind(inner) == kinds.ARRAY:
                inner = btf.strip(btf.array(inner)[0])
            if btf.kind(inner) in (kinds.STRUCT, kinds.UNION):
                name = btf.type(inner).name
                if name:
                    yield name
                yield from self._first(inner, depth + 1)

    def field(self, id: int, offset: int) -> int | None:
        """The type of the scalar member at an offset of a struct, or of what a pointer points to; None between members
        and in a union of different ones."""
        found = self._fields(id, offset, 0)
        return next(iter(found.values())) if len(found) == 1 else None

    def _fields(self, id: int, offset: int, depth: int) -> dict[int, int]:
        """The types at an offset, by what they point to."""
        btf = self._btf
        id = btf.strip(id)
        kind = btf.kind(id)
        if depth > _DEPTH:
            return {}
        if kind == kinds.ARRAY:
            element, count = btf.array(id)
            size = btf.size(element)
            if not size or (count and offset >= size * count):
                return {}
            return self._fields(element, offset % size, depth + 1)
        if kind not in (kinds.STRUCT, kinds.UNION):
            return {self.pointee_id(id) or id: id} if id and not offset else {}
        found: dict[int, int] = {}
        for member in btf.members(id):
            start = member.offset_bits
            if not member.bitfield_size and start <= 8 * offset < start + 8 * btf.size(member.type):
                found.update(self._fields(member.type, offset - start // 8, depth + 1))
        return found


class DwarfTypes:
    """Types by DWARF."""

    def __init__(self, info: DebugInfo) -> None:
        self._info = info
        self._known: dict[int, TypeFacts | None] = {}

    def facts(self, type: Type) -> TypeFacts | None:
        """What is known of the type behind a pointer; None for `void` and functions."""
        if type.offset not in self._known:
            self._known[type.offset] = self._facts(type)
        return self._known[type.offset]

    def _facts(self, type: Type) -> TypeFacts | None:
        if type.kind in ("struct", "union"):
            return TypeFacts(
                type.name, type.kind, type.size, self._flexible(type, 0), tuple(self._first(type, 0))
            )
        if type.kind == "pointer":
            return TypeFacts(f"{type.name} *", "pointer", 8)
        if type.kind == "scalar" and type.name:
            return TypeFacts(scalar_name(type.name, type.size), "scalar", type.size)
        return None

    def _flexible(self, type: Type, depth: int) -> bool:
        members = list(self._info.members(type))
        if not members or depth > _DEPTH:
            return False
        for _, _, inner, _ in members if type.kind == "union" else members[-1:]:
            if inner.kind == "array" and inner.size == 0:
                return True
            if inner.kind in ("struct", "union") and self._flexible(inner, depth + 1):
                return True
        return False

    def _first(self, type: Type, depth: int) -> Iterator[str]:
        if depth > _DEPTH:
            return
        for _, offset, inner, _ in self._info.members(type):
            if offset:
                if type.kind == "struct":
                    return
                continue
            if inner.kind in ("struct", "union"):
                if inner.name:
                    yield inner.name
                yield from self._first(inner, depth + 1)

    def pointer_at(self, type: Type, offset: int) -> Type | None:
        """What the pointer at an offset of a struct, or behind a pointer, points to; None in a union of pointers to
        different types."""
        if type.kind == "pointer":
            return self._info.member_pointee(type.offset) if not offset else None
        found = self._pointers_at(type, offset, 0)
        return next(iter(found.values())) if len(found) == 1 else None

    def _pointers_at(self, type: Type, offset: int, depth: int) -> dict[tuple[str, str], Type]:
        found: dict[tuple[str, str], Type] = {}
        if depth > _DEPTH:
            return found
        for _, at, inner, reference in self._info.members(type):
            if not at <= offset < at + inner.size:
                continue
            if inner.kind in ("struct", "union"):
                found.update(self._pointers_at(inner, offset - at, depth + 1))
            elif inner.kind == "pointer" and at == offset:
                target = self._info.member_pointee(reference)
                if target is not None:
                    found[target.kind, target.name] = target
        return found
