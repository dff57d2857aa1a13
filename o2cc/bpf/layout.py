# SPDX-License-Identifier: Apache-2.0
"""How the data of a module lies in memory: registers, tables, map entries.

The loader, the LLVM text and the BTF all take their offsets from here, so that they cannot disagree.
All sizes and offsets are in bytes.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from enum import StrEnum

from o2cc.ir import nodes

WORD = 8


class Layout(StrEnum):
    """How sites become programs."""

    SITE = "site"  # a program a site, in a section that names the place: any libbpf loader attaches it
    SHAPE = "shape"  # a program a check, told by its attach cookie which site it runs for: our loader only


# Offsets into struct pt_regs on x86-64 (arch/x86/include/asm/ptrace.h, Linux 6.1 and 6.12; it is ABI).
REGISTER_OFFSETS: dict[str, int] = {
    name: WORD * index
    for index, name in enumerate(
        [
            "r15",
            "r14",
            "r13",
            "r12",
            "rbp",
            "rbx",
            "r11",
            "r10",
            "r9",
            "r8",
            "rax",
            "rcx",
            "rdx",
            "rsi",
            "rdi",
            "orig_rax",
            "rip",
            "cs",
            "flags",
            "rsp",
            "ss",
        ]
    )
}


def rows_name(table: str) -> str:
    """Name of the constant that tells how many rows a resizable table has."""
    return f"{table}_rows"


@dataclass(frozen=True, slots=True)
class TableLayout:
    """A table in its section: like a C array of structs, every column naturally aligned.

    Natural alignment because BPF's code generator takes an under-aligned access apart into bytes, and
    because atomic additions want it.
    """

    offsets: dict[str, int]
    sizes: dict[str, int]
    stride: int
    alignment: int
    length: int

    @property
    def size(self) -> int:
        """Bytes of the whole table."""
        return self.stride * self.length


def table_layout(table: nodes.Table) -> TableLayout:
    """Places the columns of a table in their order.  Raises ValueError for a column of a strange size."""
    offsets: dict[str, int] = {}
    sizes: dict[str, int] = {}
    position, alignment = 0, 1
    for name, size in table.columns:
        if size not in (1, 2, 4, 8):
            raise ValueError(f"column `{name}` has {size} bytes")
        position = -(-position // size) * size
        offsets[name], sizes[name] = position, size
        position += size
        alignment = max(alignment, size)
    return TableLayout(offsets, sizes, -(-position // alignment) * alignment, alignment, table.length)


def table_bytes(table: nodes.Table) -> bytes:
    """The initial content, little endian.  Values are cut to their column, as a store would."""
    layout = table_layout(table)
    if not table.rows:
        return bytes(layout.size)
    codes = {1: "B", 2: "H", 4: "I", 8: "Q"}
    columns = [name for name, _ in table.columns]
    pattern, position = "<", 0
    for name in columns:
        pattern += "x" * (layout.offsets[name] - position) + codes[layout.sizes[name]]
        position = layout.offsets[name] + layout.sizes[name]
    packer = struct.Struct(pattern + "x" * (layout.stride - position))
    masks = [(1 << 8 * layout.sizes[name]) - 1 for name in columns]
    content = b"".join(
        packer.pack(*(v & m for v, m in zip(row, masks, strict=True))) for row in table.rows[: table.length]
    )
    return content + bytes(layout.size - len(content))
