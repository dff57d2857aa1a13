# SPDX-License-Identifier: Apache-2.0
"""Reads BTF and BTF.ext and checks what the kernel checks.  Format: kernel Documentation/bpf/btf.rst (6.1)."""

from __future__ import annotations

import struct
from dataclasses import dataclass, field

KINDS = {
    1: "int",
    2: "ptr",
    3: "array",
    4: "struct",
    7: "fwd",
    12: "func",
    13: "proto",
    14: "var",
    15: "datasec",
}


@dataclass
class Type:
    """One type; ``rows`` are members, parameters or variables as (name, type, offset or size...)."""

    kind: str
    name: str
    size_or_type: int
    vlen: int
    rows: list[tuple[int | str, ...]] = field(default_factory=list)


@dataclass
class Btf:
    """All types; number 0 is void."""

    types: list[Type]
    strings: bytes

    def string(self, offset: int) -> str:
        return self.strings[offset : self.strings.index(0, offset)].decode()

    def named(self, kind: str, name: str) -> tuple[int, Type]:
        (found,) = [(n, t) for n, t in enumerate(self.types) if (t.kind, t.name) == (kind, name)]
        return found


def read_btf(data: bytes) -> Btf:
    """Parses a section and checks every reference."""
    magic, version, flags, header, types_at, types_len, strings_at, strings_len = struct.unpack_from(
        "<HBBIIIII", data
    )
    assert (magic, version, flags, header) == (0xEB9F, 1, 0, 24)
    assert types_at == 0
    assert strings_at == types_len
    assert header + strings_at + strings_len == len(data)
    strings = data[header + strings_at :]
    assert strings[0] == 0
    assert strings[-1] == 0
    btf = Btf([Type("void", "", 0, 0)], strings)
    at, end = header, header + types_len
    while at < end:
        name, info, value = struct.unpack_from("<III", data, at)
        at += 12
        kind, vlen = KINDS[info >> 24 & 0x1F], info & 0xFFFF
        type_ = Type(kind, btf.string(name), value, vlen)
        rows = {"int": 1, "array": 1, "struct": vlen, "proto": vlen, "var": 1, "datasec": vlen}.get(kind, 0)
        width = {"int": 4, "array": 12, "struct": 12, "proto": 8, "var": 4, "datasec": 12}.get(kind, 0)
        for _ in range(rows):
            words: tuple[int | str, ...] = struct.unpack_from(f"<{width // 4}I", data, at)
            if kind in ("struct", "proto"):
                assert isinstance(words[0], int)
                words = (btf.string(words[0]), *words[1:])
            type_.rows.append(words)
            at += width
        btf.types.append(type_)
    assert at == end
    count = len(btf.types)
    for type_ in btf.types:
        refers = [type_.size_or_type] if type_.kind in ("ptr", "func", "proto", "var") else []
        index = {"array": 0, "struct": 1, "proto": 1, "datasec": 0}.get(type_.kind)
        if index is not None:
            refers += [int(row[index]) for row in type_.rows]
        assert all(0 <= r < count for r in refers), type_
        if type_.kind == "proto":
            assert all(row[0] for row in type_.rows), "a parameter has no name"
        if type_.kind == "func":
            assert btf.types[type_.size_or_type].kind == "proto"
        if type_.kind == "datasec" and type_.name != ".ksyms":
            position = 0
            for _, offset, size in type_.rows:
                assert int(offset) >= position
                position = int(offset) + int(size)
            assert 0 < position <= type_.size_or_type
    return btf


@dataclass
class Section:
    """What BTF.ext says about a code section: (offset, type) and (offset, file, text, line, column)."""

    functions: list[tuple[int, int]] = field(default_factory=list)
    lines: list[tuple[int, str, str, int, int]] = field(default_factory=list)


def read_ext(data: bytes, btf: Btf) -> dict[str, Section]:
    """Parses .BTF.ext."""
    magic, version, flags, header, funcs_at, funcs_len, lines_at, lines_len = struct.unpack_from(
        "<HBBIIIII", data
    )
    assert (magic, version, flags, header) == (0xEB9F, 1, 0, 24)
    assert header + lines_at + lines_len == len(data)
    found: dict[str, Section] = {}
    for start, length, size in ((funcs_at, funcs_len, 8), (lines_at, lines_len, 16)):
        at = header + start
        end = at + length
        (record,) = struct.unpack_from("<I", data, at)
        assert record == size
        at += 4
        while at < end:
            name, count = struct.unpack_from("<II", data, at)
            assert count > 0
            at += 8
            section = found.setdefault(btf.string(name), Section())
            for _ in range(count):
                if size == 8:
                    offset, type_ = struct.unpack_from("<II", data, at)
                    assert btf.types[type_].kind == "func"
                    section.functions.append((offset, type_))
                else:
                    offset, file, text, position = struct.unpack_from("<IIII", data, at)
                    section.lines.append(
                        (offset, btf.string(file), btf.string(text), position >> 10, position & 1023)
                    )
                at += size
        assert at == end
    return found
