# SPDX-License-Identifier: Apache-2.0
"""Reads BTF (``Documentation/bpf/btf.rst``), whole or split, as little as needed and strictly.

`read_btf` walks the type section once and remembers where each type is; everything else is decoded when asked
for. A module's BTF is split: its type ids and string offsets go on where those of the kernel's end. Whatever
does not add up is a `DiagnosticError` (O2C0405); cycles that no C type can have end at a depth limit.
"""

import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from o2cc.diagnostics import DiagnosticError
from o2cc.kernel.errors import BROKEN_BTF, failure

INT, PTR, ARRAY, STRUCT, UNION, ENUM, FWD, TYPEDEF, VOLATILE, CONST, RESTRICT = range(1, 12)
FUNC, FUNC_PROTO, VAR, DATASEC, FLOAT, DECL_TAG, TYPE_TAG, ENUM64 = range(12, 20)

MODIFIERS = frozenset({VOLATILE, CONST, RESTRICT, TYPE_TAG})
_STRIPPED = MODIFIERS | {TYPEDEF}

_HEADER = struct.Struct("<HBBIIIII")
_TYPE = struct.Struct("<III")
_MEMBER = struct.Struct("<III")
_PARAMETER = struct.Struct("<II")
_ENUMERATOR = struct.Struct("<Ii")
_ENUMERATOR64 = struct.Struct("<III")
_ARRAY = struct.Struct("<III")

# Bytes after the common three words: (fixed, for each of vlen).
_EXTRA = {
    INT: (4, 0), PTR: (0, 0), ARRAY: (12, 0), STRUCT: (0, 12), UNION: (0, 12), ENUM: (0, 8), FWD: (0, 0),
    TYPEDEF: (0, 0), VOLATILE: (0, 0), CONST: (0, 0), RESTRICT: (0, 0), FUNC: (0, 0), FUNC_PROTO: (0, 8),
    VAR: (4, 0), DATASEC: (0, 12), FLOAT: (0, 0), DECL_TAG: (4, 0), TYPE_TAG: (0, 0), ENUM64: (0, 12),
}  # fmt: skip
_EXTRA_TABLE = tuple(_EXTRA.get(kind, (-1, 0)) for kind in range(32))

# Deeper than any chain of modifiers, typedefs and array dimensions in C.
DEPTH_LIMIT = 64


@dataclass(frozen=True, slots=True)
class BtfType:
    """The common part of a type; ``reference`` is its size or the type it refers to, by ``kind``."""

    id: int
    kind: int
    name: str
    vlen: int
    flag: bool
    reference: int


@dataclass(frozen=True, slots=True)
class BtfMember:
    name: str
    type: int
    offset_bits: int
    bitfield_size: int


@dataclass(frozen=True)
class Btf:
    """An indexed BTF section; ``base`` is the kernel's if this is a module's."""

    types: bytes
    strings: bytes
    positions: tuple[int, ...]
    path: str
    base: "Btf | None" = None
    _cache: dict[int, BtfType] = field(default_factory=dict, repr=False)

    @cached_property
    def first_id(self) -> int:
        """The id of this section's first type (0 is void, in the base)."""
        return self.base.end_id if self.base is not None else 1

    @cached_property
    def end_id(self) -> int:
        return self.first_id + len(self.positions)

    @cached_property
    def first_string(self) -> int:
        return self.base.end_string if self.base is not None else 0

    @cached_property
    def end_string(self) -> int:
        return self.first_string + len(self.strings)

    def string(self, offset: int) -> str:
        """The string at an offset of the joined string table."""
        if offset < self.first_string and self.base is not None:
            return self.base.string(offset)
        local = offset - self.first_string
        end = self.strings.find(b"\0", local) if local < len(self.strings) else -1
        if end < 0:
            raise self._broken(f"string offset {offset} lies outside the strings")
        return self.strings[local:end].decode("utf-8", "replace")

    def type(self, id: int) -> BtfType:
        """The type with this id, which must not be 0 (void)."""
        found = self._cache.get(id)
        if found is not None:
            return found
        if id < self.first_id and self.base is not None:
            return self.base.type(id)
        name, info, reference = _TYPE.unpack_from(self.types, self._position(id))
        found = BtfType(id, info >> 24 & 31, self.string(name), info & 0xFFFF, bool(info >> 31), reference)
        self._cache[id] = found
        return found

    @cached_property
    def _words(self) -> npt.NDArray[np.uint32]:
        """The three common words of every type of this section, a row a type."""
        places = np.array(self.positions, np.int64).reshape(-1, 1) + np.arange(_TYPE.size)
        words: npt.NDArray[np.uint32] = np.frombuffer(self.types, np.uint8)[places].view("<u4")
        return words

    @cached_property
    def _own_kinds(self) -> npt.NDArray[np.uint8]:
        """The kind of every type of this section."""
        return (self._words[:, 1] >> 24 & 31).astype(np.uint8)

    @cached_property
    def kinds(self) -> bytes:
        """The kind of every type by its id, the base's included; 0 for void."""
        return (self.base.kinds if self.base is not None else b"\0") + self._own_kinds.tobytes()

    @cached_property
    def references(self) -> list[int]:
        """The last of the three common words of every type by its id: size, or the type that it refers to."""
        own: list[int] = self._words[:, 2].tolist()
        return (self.base.references if self.base is not None else [0]) + own

    def kind(self, id: int) -> int:
        """The kind of a type, 0 for void."""
        try:
            return self.kinds[id]
        except IndexError:
            raise self._broken(f"there is no type {id}") from None

    def reference(self, id: int) -> int:
        """The type that ``id`` refers to, or its size, by its kind."""
        try:
            return self.references[id]
        except IndexError:
            raise self._broken(f"there is no type {id}") from None

    def strip(self, id: int) -> int:
        """``id`` without modifiers and typedefs; 0 for void."""
        all_kinds, references = self.kinds, self.references
        try:
            for _ in range(DEPTH_LIMIT):
                if all_kinds[id] not in _STRIPPED:
                    return id
                id = references[id]
        except IndexError:
            raise self._broken(f"there is no type {id}") from None
        raise self._broken(f"type {id} refers to itself")

    def members(self, id: int) -> tuple[BtfMember, ...]:
        """The members of a struct or union."""
        owner = self.owner(id)
        flag = owner.types[owner._position(id) + 7] & 0x80
        result = []
        for name, type_id, offset in owner.member_rows(id):
            bits = offset >> 24 if flag else 0
            result.append(BtfMember(owner.string(name), type_id, offset & 0xFFFFFF if flag else offset, bits))
        return tuple(result)

    def member_rows(self, id: int) -> Iterator[tuple[int, int, int]]:
        """(name offset, type, offset word) of the members: `members` without what costs."""
        owner = self.owner(id)
        position = owner._position(id)
        count = owner.types[position + 4] | owner.types[position + 5] << 8
        position += _TYPE.size
        return _MEMBER.iter_unpack(owner.types[position : position + count * _MEMBER.size])

    def offset_bits(self, id: int, word: int) -> int:
        """The bit offset in the offset word of a member of ``id``."""
        owner = self.owner(id)
        return word & 0xFFFFFF if owner.types[owner._position(id) + 7] & 0x80 else word

    def parameters(self, id: int) -> tuple[tuple[str, int], ...]:
        """(name, type) of each parameter of a FUNC_PROTO; a last one of type 0 means variadic."""
        owner = self.owner(id)
        position = owner._position(id) + _TYPE.size
        result = []
        for _ in range(owner.type(id).vlen):
            name, type_id = _PARAMETER.unpack_from(owner.types, position)
            position += _PARAMETER.size
            result.append((owner.string(name), type_id))
        return tuple(result)

    def enumerators(self, id: int) -> tuple[tuple[str, int], ...]:
        """(name, value) of an ENUM or ENUM64."""
        owner = self.owner(id)
        item = owner.type(id)
        position = owner._position(id) + _TYPE.size
        result = []
        for _ in range(item.vlen):
            if item.kind == ENUM64:
                name, low, high = _ENUMERATOR64.unpack_from(owner.types, position)
                value = high << 32 | low
                value -= (1 << 64) if item.flag and value >> 63 else 0
                position += _ENUMERATOR64.size
            else:
                name, value = _ENUMERATOR.unpack_from(owner.types, position)
                value += (1 << 32) if not item.flag and value < 0 else 0
                position += _ENUMERATOR.size
            result.append((owner.string(name), value))
        return tuple(result)

    def array(self, id: int) -> tuple[int, int]:
        """(element type, count) of an ARRAY."""
        owner = self.owner(id)
        element, _, count = _ARRAY.unpack_from(owner.types, owner._position(id) + _TYPE.size)
        return element, count

    def integer(self, id: int) -> tuple[bool, int, int]:
        """(signed, bit offset, bits) of an INT."""
        owner = self.owner(id)
        (word,) = struct.unpack_from("<I", owner.types, owner._position(id) + _TYPE.size)
        return bool(word >> 24 & 1), word >> 16 & 255, word & 255

    def size(self, id: int) -> int:
        """Bytes of a type; 0 for void, functions and incomplete types."""
        count = 1
        for _ in range(DEPTH_LIMIT):
            id = self.strip(id)
            kind = self.kind(id)
            if kind == PTR:
                return 8 * count
            if kind in (INT, STRUCT, UNION, ENUM, ENUM64, FLOAT, DATASEC):
                return self.reference(id) * count
            if kind != ARRAY:
                return 0
            id, dimension = self.array(id)
            count *= dimension
        raise self._broken(f"type {id} refers to itself")

    @cached_property
    def ids_by_kind(self) -> Mapping[int, tuple[int, ...]]:
        """The ids of this section only, by kind."""
        kinds = self._own_kinds
        return {
            int(kind): tuple((np.nonzero(kinds == kind)[0] + self.first_id).tolist())
            for kind in np.unique(kinds)
        }

    @cached_property
    def structs_by_size(self) -> Mapping[int, tuple[int, ...]]:
        """The structs of this section only, by size."""
        found: dict[int, list[int]] = {}
        for id in self.ids_by_kind.get(STRUCT, ()):
            found.setdefault(self.reference(id), []).append(id)
        return {size: tuple(ids) for size, ids in found.items()}

    @cached_property
    def notes(self) -> dict[tuple[str, int], Any]:
        """Room for what others derive from types of this section and want to keep."""
        return {}

    @cached_property
    def _names(self) -> dict[int, Mapping[str, int]]:
        return {}

    def named(self, kind: int) -> Mapping[str, int]:
        """The first type of each name among those of ``kind`` in this section (not its base)."""
        found = self._names.get(kind)
        if found is None:
            names: dict[str, int] = {}
            strings, base = self.strings, self.first_string
            offsets = self._words[self._own_kinds == kind, 0].tolist()
            for id, offset in zip(self.ids_by_kind.get(kind, ()), offsets, strict=True):
                if offset >= base:
                    end = strings.find(b"\0", offset - base)
                    name = strings[offset - base : end].decode("utf-8", "replace") if end >= 0 else ""
                else:
                    name = self.string(offset)
                if name:
                    names.setdefault(name, id)
            self._names[kind] = found = names
        return found

    def find(self, name: str, *kinds: int) -> int | None:
        """The first type of that name and of one of the kinds, in this section and then in its base."""
        for kind in kinds:
            found = self.named(kind).get(name)
            if found is not None:
                return found
        return self.base.find(name, *kinds) if self.base is not None else None

    def owner(self, id: int) -> "Btf":
        """The section that a type is in: this one or its base."""
        return self.base.owner(id) if self.base is not None and id < self.first_id else self

    def _position(self, id: int) -> int:
        index = id - self.first_id
        if not 0 <= index < len(self.positions):
            raise self._broken(f"there is no type {id}")
        return self.positions[index]

    def _broken(self, message: str) -> DiagnosticError:
        return failure(BROKEN_BTF, f"broken BTF: {message}", self.path)


def read_btf(data: bytes, path: str, base: Btf | None = None) -> Btf:
    """Check the header and index the types. Raises DiagnosticError O2C0405."""
    if len(data) < _HEADER.size:
        raise failure(BROKEN_BTF, "broken BTF: it ends within its header", path)
    magic, version, _, header_size, type_at, type_size, string_at, string_size = _HEADER.unpack_from(data)
    if magic != 0xEB9F or version != 1:
        raise failure(BROKEN_BTF, "broken BTF: it does not begin with the magic number of version 1", path)
    if (
        header_size < _HEADER.size
        or header_size + type_at + type_size > len(data)
        or header_size + string_at + string_size > len(data)
    ):
        raise failure(BROKEN_BTF, "broken BTF: a section lies outside the data", path)
    types = data[header_size + type_at : header_size + type_at + type_size]
    strings = data[header_size + string_at : header_size + string_at + string_size]
    # A module without a name of its own has no strings of its own.
    if (strings and strings[-1] != 0) or (not strings and base is None):
        raise failure(BROKEN_BTF, "broken BTF: the strings do not end", path)
    positions: list[int] = []
    append = positions.append
    position = 0
    size = len(types)
    table = _EXTRA_TABLE
    try:
        while position < size:
            append(position)
            fixed, each = table[types[position + 7] & 31]
            if fixed < 0:
                raise failure(BROKEN_BTF, f"broken BTF: unknown kind {types[position + 7] & 31}", path)
            if each:
                fixed = each * (types[position + 4] | types[position + 5] << 8)
            position += 12 + fixed
    except IndexError:
        position = size + 1
    if position != size:
        raise failure(BROKEN_BTF, "broken BTF: the last type passes the end of the types", path)
    return Btf(types, strings, tuple(positions), path, base)
