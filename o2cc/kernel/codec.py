# SPDX-License-Identifier: Apache-2.0
"""Descriptions as bytes: canonical JSON in columns, compressed with zstd, behind a header.

The header is ``O2K`` and a newline, the format version (u16), the length of the JSON text (u32) and its CRC-32,
all little-endian; a zstd frame follows. Equal descriptions give equal bytes.

The JSON holds one table for each class that occurs often (operands, probes, sites, ...), as one array a field;
references to other objects are indices into their tables, equal objects are stored once. Reading checks the type
of every value against the classes in `o2cc.kernel.description`, so that a file of any origin gives a description
or a `DiagnosticError` (O2C0410, O2C0411, O2C0412).
"""

import dataclasses
import json
import struct
import types
import typing
import zlib
from collections.abc import Callable, Mapping
from typing import Any, get_args, get_origin, get_type_hints

import zstandard

from o2cc.diagnostics import DiagnosticError
from o2cc.kernel import description as model
from o2cc.kernel import type_table
from o2cc.kernel.collection import without_collection
from o2cc.kernel.description import FORMAT_VERSION, Description
from o2cc.kernel.errors import BROKEN_DESCRIPTION, NOT_DESCRIPTION, OTHER_VERSION, failure

MAGIC = b"O2K\n"
_ELF = b"\x7fELF"
_HEADER = struct.Struct("<4sHII")
_SIZE_LIMIT = 512 << 20
_LEVEL = 10

# Every class whose objects live in tables, each after those that it refers to.
_CLASSES: tuple[type[Any], ...] = (
    model.StaticAddress, model.Operand, model.ValueSource, model.Probe, type_table.TypeReference,
    type_table.Parameter, type_table.Prototype, model.Argument, model.Site, model.Block, model.PatchSite,
    model.Function, type_table.Member, type_table.Struct, type_table.Enum, type_table.TypeTable, model.Symbol,
    model.OpsTable, model.Section, model.Target, model.Field, model.KernelFacts, model.Description,
)  # fmt: skip


class _Corrupt(Exception):
    pass


def encode(description: Description, level: int = _LEVEL) -> bytes:
    """The bytes of a description; the same for equal ones.  ``level`` is zstd's."""
    with without_collection():
        writer = _Writer()
        writer.put(description, Description)
        tables = {cls.__name__: writer.columns(cls) for cls in _CLASSES}
    text = json.dumps(tables, separators=(",", ":"), sort_keys=True, ensure_ascii=True).encode("ascii")
    compressed = zstandard.ZstdCompressor(level=level, write_checksum=False).compress(text)
    return _HEADER.pack(MAGIC, FORMAT_VERSION, len(text), zlib.crc32(text)) + compressed


def decode(data: bytes, path: str) -> Description:
    """The description in ``data``. Raises DiagnosticError O2C0410, O2C0411 or O2C0412; ``path`` for the message."""
    if len(data) < _HEADER.size or data[:4] != MAGIC:
        help = "`o2c scan` makes one of a module" if data[:4] == _ELF or ".ko" in path else None
        raise failure(NOT_DESCRIPTION, "not a description: it does not begin as `.o2k` files do", path, help)
    _, version, size, checksum = _HEADER.unpack_from(data)
    if version != FORMAT_VERSION:
        message = f"a description of format version {version}; this program reads version {FORMAT_VERSION}"
        raise failure(OTHER_VERSION, message, path, "make it again with `o2c scan`")
    try:
        if size > _SIZE_LIMIT:
            raise _Corrupt("it claims to be larger than any description")
        text = zstandard.ZstdDecompressor().decompress(data[_HEADER.size :], max_output_size=size)
        if len(text) != size or zlib.crc32(text) != checksum:
            raise _Corrupt("the checksum is wrong")
        with without_collection():
            return _read(json.loads(text))
    except (_Corrupt, zstandard.ZstdError, ValueError, RecursionError, MemoryError) as problem:
        raise _broken(path, problem) from None


def _broken(path: str, problem: BaseException) -> DiagnosticError:
    message = f"a truncated or corrupt description: {problem}"
    return failure(BROKEN_DESCRIPTION, message, path, "make it again with `o2c scan`")


_FIELDS: dict[type[Any], tuple[tuple[str, Any], ...]] = {}


def _fields(cls: type[Any]) -> tuple[tuple[str, Any], ...]:
    """(name, type) of a class's fields; resolving annotations is slow enough to be done once."""
    found = _FIELDS.get(cls)
    if found is None:
        hints = get_type_hints(cls)
        found = _FIELDS[cls] = tuple((field.name, hints[field.name]) for field in dataclasses.fields(cls))
    return found


class _Writer:
    """Interns objects, each class in a table of its own."""

    def __init__(self) -> None:
        self.rows: dict[type[Any], list[tuple[Any, ...]]] = {cls: [] for cls in _CLASSES}
        self.found: dict[type[Any], dict[tuple[Any, ...], int]] = {cls: {} for cls in _CLASSES}
        self.known: dict[int, int] = {}
        self.keep: list[Any] = []
        self.plans = {
            cls: tuple((name, _putter(self, hint)) for name, hint in _fields(cls)) for cls in _CLASSES
        }

    def put(self, item: Any, cls: type[Any]) -> int:
        index = self.known.get(id(item))
        if index is None:
            row = tuple(
                getattr(item, name) if put is None else put(getattr(item, name))
                for name, put in self.plans[cls]
            )
            table = self.found[cls]
            index = table.get(row)
            if index is None:
                index = table[row] = len(self.rows[cls])
                self.rows[cls].append(row)
            self.known[id(item)] = index
            self.keep.append(item)
        return index

    def columns(self, cls: type[Any]) -> dict[str, list[Any]]:
        rows = self.rows[cls]
        names = [name for name, _ in _fields(cls)]
        return {name: [row[position] for row in rows] for position, name in enumerate(names)}


def _putter(writer: _Writer, hint: Any) -> Callable[[Any], Any] | None:
    """What turns a value of that type into JSON; None if it is JSON already. Results are hashable."""
    if dataclasses.is_dataclass(hint):
        return lambda item: writer.put(item, typing.cast(type[Any], hint))
    origin = get_origin(hint)
    arguments = get_args(hint)
    if origin in (types.UnionType, typing.Union):
        inner = _putter(writer, _without_none(arguments))
        return None if inner is None else lambda item: None if item is None else inner(item)
    if origin is tuple:
        if len(arguments) == 2 and arguments[1] is Ellipsis:
            element = _putter(writer, arguments[0])
            return None if element is None else lambda items: tuple(element(item) for item in items)
        return None
    if origin is frozenset:
        return lambda items: tuple(sorted(items))
    if origin is Mapping:
        value = _putter(writer, arguments[1])
        return lambda items: tuple(
            (key, items[key] if value is None else value(items[key])) for key in sorted(items)
        )
    return None


def _without_none(arguments: tuple[Any, ...]) -> Any:
    return next(argument for argument in arguments if argument is not types.NoneType)


def _read(document: Any) -> Description:
    if type(document) is not dict or set(document) != {cls.__name__ for cls in _CLASSES}:
        raise _Corrupt("its tables are not those of a description")
    objects: dict[type[Any], list[Any]] = {}
    for cls in _CLASSES:
        table = document[cls.__name__]
        names = [name for name, _ in _fields(cls)]
        if type(table) is not dict or sorted(table) != sorted(names):
            raise _Corrupt(f"the table of {cls.__name__} has other columns")
        columns = [table[name] for name in names]
        if (
            any(type(column) is not list for column in columns)
            or len({len(column) for column in columns}) > 1
        ):
            raise _Corrupt(f"the columns of {cls.__name__} do not match")
        objects[cls] = made = []
        if cls is type_table.TypeReference:
            # A type refers to types before it, which must be there when it is made.
            getters = [_getter(objects, hint) for _, hint in _fields(cls)]
            for row in zip(*columns, strict=True):
                made.append(
                    cls(
                        *(
                            cell if get is None else get([cell])[0]
                            for get, cell in zip(getters, row, strict=True)
                        )
                    )
                )
            _check(columns, cls)
            continue
        values = []
        for column, (_, hint) in zip(columns, _fields(cls), strict=True):
            get = _getter(objects, hint)
            _check_column(column, hint, cls)
            values.append(column if get is None else get(column))
        made.extend(map(cls, *values))
    if len(objects[Description]) != 1:
        raise _Corrupt("it does not hold one description")
    found = objects[Description][0]
    if found.format_version != FORMAT_VERSION:
        raise _Corrupt("its two format versions differ")
    return typing.cast(Description, found)


def _check(columns: list[list[Any]], cls: type[Any]) -> None:
    for column, (_, hint) in zip(columns, _fields(cls), strict=True):
        _check_column(column, hint, cls)


def _check_column(column: list[Any], hint: Any, cls: type[Any]) -> None:
    """Check plain values; references are checked when they are followed."""
    found = set(map(type, column))
    origin = get_origin(hint)
    arguments = get_args(hint)
    if origin in (types.UnionType, typing.Union):
        inner = _without_none(arguments)
        found.discard(types.NoneType)
        if not dataclasses.is_dataclass(inner) and get_origin(inner) is None and found - {inner}:
            raise _Corrupt(f"a value of {cls.__name__} has the wrong type")
        if get_origin(inner) is typing.Literal and (
            found - {str} or not {item for item in column if item is not None} <= set(get_args(inner))
        ):
            raise _Corrupt(f"a value of {cls.__name__} is none of those allowed")
        return
    if origin is typing.Literal:
        if not found <= {str} or not set(column) <= set(arguments):
            raise _Corrupt(f"a value of {cls.__name__} is none of those allowed")
    elif origin is None and not dataclasses.is_dataclass(hint) and found - {hint}:
        raise _Corrupt(f"a value of {cls.__name__} has the wrong type")


def _getter(objects: dict[type[Any], list[Any]], hint: Any) -> Callable[[list[Any]], list[Any]] | None:
    """What turns a column of JSON values into one of that type; None if nothing is to be done."""
    if dataclasses.is_dataclass(hint):
        cls = typing.cast(type[Any], hint)
        return lambda column: _follow(objects, cls, column)
    origin = get_origin(hint)
    arguments = get_args(hint)
    if origin in (types.UnionType, typing.Union):
        inner = _without_none(arguments)
        get = _getter(objects, inner)
        if get is None:
            return None
        one = get

        def optional(column: list[Any]) -> list[Any]:
            there = iter(one([item for item in column if item is not None]))
            return [None if item is None else next(there) for item in column]

        return optional
    if origin is tuple:
        if len(arguments) == 2 and arguments[1] is Ellipsis:
            return _sequence(objects, arguments[0])
        return lambda column: [_fixed(item, arguments) for item in column]
    if origin is frozenset:
        sequence = _sequence(objects, arguments[0])
        return lambda column: [frozenset(items) for items in sequence(column)]
    if origin is not None and origin is not typing.Literal:
        return _mapping(objects, arguments[1])
    return None


def _follow(objects: dict[type[Any], list[Any]], cls: type[Any], column: list[Any]) -> list[Any]:
    table = objects.get(cls, [])
    if column and (set(map(type, column)) != {int} or min(column) < 0 or max(column) >= len(table)):
        raise _Corrupt(f"a reference to {cls.__name__} leads nowhere")
    return [table[index] for index in column]


def _sequence(objects: dict[type[Any], list[Any]], hint: Any) -> Callable[[list[Any]], list[Any]]:
    get = _getter(objects, hint)

    def sequence(column: list[Any]) -> list[Any]:
        if set(map(type, column)) - {list}:
            raise _Corrupt("a list is missing")
        flat = [item for items in column for item in items]
        _check_column(flat, hint, Description)
        flat = flat if get is None else get(flat)
        result = []
        position = 0
        for items in column:
            end = position + len(items)
            result.append(tuple(flat[position:end]))
            position = end
        return result

    return sequence


def _fixed(item: Any, hints: tuple[Any, ...]) -> tuple[Any, ...]:
    if type(item) is not list or len(item) != len(hints):
        raise _Corrupt("a pair is missing")
    for part, hint in zip(item, hints, strict=True):
        if type(part) is not hint:
            raise _Corrupt("a part of a pair has the wrong type")
    return tuple(item)


def _mapping(objects: dict[type[Any], list[Any]], hint: Any) -> Callable[[list[Any]], list[Any]]:
    get = _getter(objects, hint)

    def mapping(column: list[Any]) -> list[Any]:
        result = []
        for items in column:
            if type(items) is not list or any(
                type(item) is not list or len(item) != 2 or type(item[0]) is not str for item in items
            ):
                raise _Corrupt("a mapping is missing")
            values = [item[1] for item in items]
            _check_column(values, hint, Description)
            values = values if get is None else get(values)
            result.append(dict(zip((item[0] for item in items), values, strict=True)))
        return result

    return mapping
