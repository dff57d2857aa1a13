# SPDX-License-Identifier: Apache-2.0
"""The tables of an object: initial rows in its file, live ones in the data maps of a loaded compartment."""

from __future__ import annotations

import io
import mmap
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from elftools.elf.elffile import ELFFile

from o2cc.bpf.info import ObjectInfo, TableInfo
from o2cc.bpf.layout import rows_name
from o2cc.runtime import kernel_calls

Row = Mapping[str, int]


def table(info: ObjectInfo, name: str) -> TableInfo | None:
    """The table of that name; None when the object needs none."""
    return next((item for item in info.tables if item.name == name), None)


def decode_row(layout: TableInfo, image: bytes | mmap.mmap, row: int) -> Row:
    """The columns of a row of a table, out of its section's bytes; zero where the section ends before."""
    start = layout.offset + row * layout.stride
    return {
        name: int.from_bytes(image[start + offset : start + offset + size], "little")
        for name, offset, size in layout.columns
    }


def decode_rows(layout: TableInfo, image: bytes | mmap.mmap) -> tuple[Row, ...]:
    """All rows of a table."""
    return tuple(decode_row(layout, image, row) for row in range(layout.length))


def initial_rows(data: bytes, layout: TableInfo) -> tuple[Row, ...]:
    """The rows as they are in the object file (a section without content is all zero)."""
    section = ELFFile(io.BytesIO(data)).get_section_by_name(layout.section)
    image = section.data() if section is not None and section["sh_type"] != "SHT_NOBITS" else b""
    return decode_rows(layout, image)


class LiveTables:
    """The writable tables of a loaded compartment, mapped from the pins of its data maps.

    Data maps are made mappable by libbpf (BPF_F_MMAPABLE), so that a word is read and written without touching its
    neighbours, which programs change at the same time.
    """

    def __init__(self, info: ObjectInfo, sections: Mapping[str, mmap.mmap]) -> None:
        self._info = info
        self._sections = sections

    def rows(self, name: str) -> tuple[Row, ...]:
        """All rows of a table; none when it is not there."""
        layout = table(self._info, name)
        if layout is None or layout.section not in self._sections:
            return ()
        return decode_rows(layout, self._sections[layout.section])

    def set(self, name: str, row: int, column: str, value: int) -> None:
        """Change one word.  Raises KeyError when there is no such table or column."""
        layout = table(self._info, name)
        if layout is None or layout.section not in self._sections:
            raise KeyError(name)
        offset, size = {n: (o, s) for n, o, s in layout.columns}[column]
        start = layout.offset + row * layout.stride + offset
        self._sections[layout.section][start : start + size] = value.to_bytes(size, "little")


def _resized(info: ObjectInfo) -> set[str]:
    """Sections of resizable tables: the kernel's own, and libbpf makes no mappable map of what BTF does not describe."""
    names = {item.name for item in info.tables}
    return {item.section for item in info.tables if rows_name(item.name) in names}


@contextmanager
def live(info: ObjectInfo, maps: Path) -> Iterator[LiveTables]:
    """The live tables of a compartment whose maps are pinned in a directory.  Raises OSError."""
    sections: dict[str, mmap.mmap] = {}
    try:
        for section in sorted({item.section for item in info.tables} - {".rodata"} - _resized(info)):
            descriptor = kernel_calls.get_pinned(maps / section.replace(".", "_"))
            try:
                size = kernel_calls.map_value_size(descriptor)
                pages = -(-size // mmap.PAGESIZE) * mmap.PAGESIZE
                sections[section] = mmap.mmap(descriptor, pages, mmap.MAP_SHARED)
            finally:
                os.close(descriptor)
        yield LiveTables(info, sections)
    finally:
        for mapped in sections.values():
            mapped.close()
