# SPDX-License-Identifier: Apache-2.0
"""The types of a description: structs, enums and prototypes, as BTF has them, and the look-up of fields by path."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

TypeKind = Literal[
    "void", "int", "float", "pointer", "array", "struct", "union", "enum", "function", "unknown"
]


@dataclass(frozen=True, slots=True)
class TypeReference:
    """A type as it is used: aggregates and enums by name, pointers and arrays with their ``element``.

    ``size`` is in bytes (0: incomplete or void). ``typedef`` is the outermost typedef's name, if any.
    """

    kind: TypeKind
    name: str | None = None
    size: int = 0
    element: "TypeReference | None" = None
    count: int = 0
    signed: bool = False
    const: bool = False
    typedef: str | None = None

    @property
    def pointee_struct(self) -> str | None:
        """The struct's name if this is a pointer to a named struct, else None."""
        if self.kind == "pointer" and self.element is not None and self.element.kind == "struct":
            return self.element.name
        return None

    @property
    def is_function_pointer(self) -> bool:
        return self.kind == "pointer" and self.element is not None and self.element.kind == "function"

    def __str__(self) -> str:
        if self.typedef is not None:
            return self.typedef
        prefix = "const " if self.const else ""
        if self.kind == "pointer":
            return f"{self.element} *" if self.element is not None else "void *"
        if self.kind == "array":
            return f"{self.element}[{self.count}]"
        if self.kind in ("struct", "union", "enum"):
            return f"{prefix}{self.kind} {self.name or '(anonymous)'}"
        return f"{prefix}{self.name or self.kind}"


@dataclass(frozen=True, slots=True)
class Parameter:
    name: str
    type: TypeReference


@dataclass(frozen=True, slots=True)
class Prototype:
    name: str
    parameters: tuple[Parameter, ...]
    returns: TypeReference
    variadic: bool = False


@dataclass(frozen=True, slots=True)
class Member:
    """A member; ``offset_bits`` from the aggregate's start, ``bitfield_size`` in bits (0: no bit field).

    ``name`` is empty for an anonymous struct or union, whose members count as the outer one's.
    """

    name: str
    offset_bits: int
    type: TypeReference
    bitfield_size: int = 0


@dataclass(frozen=True, slots=True)
class Struct:
    """A struct or union (``kind``). Anonymous ones have generated names, unique in the table."""

    name: str
    kind: Literal["struct", "union"]
    size: int
    members: tuple[Member, ...]


@dataclass(frozen=True, slots=True)
class Enum:
    name: str
    values: tuple[tuple[str, int], ...]


@dataclass(frozen=True, slots=True)
class FieldPlace:
    """Where a member path leads: bytes from the outer struct's start (bits too for a bit field)."""

    offset: int
    size: int
    type: TypeReference
    bit_offset: int = 0
    bitfield_size: int = 0


@dataclass(frozen=True)
class TypeTable:
    """The part of BTF that a policy for this target can name."""

    structs: tuple[Struct, ...] = ()
    enums: tuple[Enum, ...] = ()
    prototypes: tuple[Prototype, ...] = ()

    @cached_property
    def struct_by_name(self) -> Mapping[str, Struct]:
        return {item.name: item for item in self.structs}

    @cached_property
    def prototype_by_name(self) -> Mapping[str, Prototype]:
        return {item.name: item for item in self.prototypes}

    def find_field(self, struct: str, path: str) -> FieldPlace | None:
        """Resolve ``path`` (``"sctp.local_addr_list"``), looking through anonymous members.

        None if the struct is not in the table or has no such member.
        """
        offset_bits = 0
        place: FieldPlace | None = None
        current: str | None = struct
        for name in path.split("."):
            found = self._member(current, name) if current is not None else None
            if found is None:
                return None
            bits, member = found
            offset_bits += bits
            place = FieldPlace(
                offset=offset_bits // 8,
                size=(member.bitfield_size + offset_bits % 8 + 7) // 8
                if member.bitfield_size
                else member.type.size,
                type=member.type,
                bit_offset=offset_bits % 8,
                bitfield_size=member.bitfield_size,
            )
            current = member.type.name if member.type.kind in ("struct", "union") else None
        return place

    def field_names(self, struct: str) -> tuple[str, ...]:
        """The member names that a policy may write after ``struct``, anonymous levels flattened."""
        outer = self.struct_by_name.get(struct)
        if outer is None:
            return ()
        names: list[str] = []
        for member in outer.members:
            if member.name:
                names.append(member.name)
            elif member.type.name is not None:
                names.extend(self.field_names(member.type.name))
        return tuple(names)

    def _member(self, struct: str | None, name: str) -> tuple[int, Member] | None:
        outer = self.struct_by_name.get(struct) if struct is not None else None
        if outer is None:
            return None
        for member in outer.members:
            if member.name == name:
                return member.offset_bits, member
        for member in outer.members:
            if not member.name and member.type.kind in ("struct", "union"):
                inner = self._member(member.type.name, name)
                if inner is not None:
                    return member.offset_bits + inner[0], inner[1]
        return None
