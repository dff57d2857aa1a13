# SPDX-License-Identifier: Apache-2.0
"""The state that interpreted IR works on: kernel memory, maps, tables and facts about the moment.

Everything is plain and open, so that tests and policy tests can set up any state and look at it afterwards.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from o2cc.ir import nodes as ir
from o2cc.ir.walk import MASK

_PAGE = 4096

# Error numbers that maps answer with (include/uapi/asm-generic/errno-base.h), as 64-bit words.
NO_ENTRY = -2 & MASK
TOO_BIG = -7 & MASK
EXISTS = -17 & MASK

_RECORD_HEADER = 8  # BPF_RINGBUF_HDR_SZ, include/uapi/linux/bpf.h


class Memory:
    """Bytes at 64-bit addresses; what was not written is not mapped, and reading it faults."""

    def __init__(self) -> None:
        self._pages: dict[int, tuple[bytearray, bytearray]] = {}

    def write(self, address: int, data: bytes) -> None:
        """Map and fill a range."""
        for position, byte in enumerate(data):
            place = (address + position) & MASK
            page = self._pages.setdefault(place // _PAGE, (bytearray(_PAGE), bytearray(_PAGE)))
            page[0][place % _PAGE] = byte
            page[1][place % _PAGE] = 1

    def write_word(self, address: int, value: int, size: int = 8) -> None:
        """Map and fill a little-endian number of `size` bytes."""
        self.write(address, (value & ((1 << 8 * size) - 1)).to_bytes(size, "little"))

    def unmap(self, address: int, size: int) -> None:
        """Make a range fault."""
        for place in range(address, address + size):
            page = self._pages.get((place & MASK) // _PAGE)
            if page is not None:
                page[1][place % _PAGE] = 0

    def read(self, address: int, size: int) -> int | None:
        """A little-endian number; None if any of its bytes is not mapped or the range passes 2^64."""
        if address + size > MASK + 1:
            return None
        offset = address % _PAGE
        page = self._pages.get(address // _PAGE)
        if page is not None and offset + size <= _PAGE:
            if not all(page[1][offset : offset + size]):
                return None
            return int.from_bytes(page[0][offset : offset + size], "little")
        parts = [self.read(address + position, 1) for position in range(size)] if size > 1 else [None]
        if any(part is None for part in parts):
            return None
        return sum((part or 0) << 8 * position for position, part in enumerate(parts))

    def ranges(self) -> Iterator[tuple[int, bytes]]:
        """The mapped ranges in order: address and content."""
        start: int | None = None
        content = bytearray()
        for number in sorted(self._pages):
            data, present = self._pages[number]
            for offset in range(_PAGE):
                place = number * _PAGE + offset
                if start is not None and (not present[offset] or place != start + len(content)):
                    yield start, bytes(content)
                    start = None
                if present[offset]:
                    if start is None:
                        start, content = place, bytearray()
                    content.append(data[offset])
        if start is not None:
            yield start, bytes(content)


class MapState:
    """A hash map.  Entries are lists of words, so that a handle sees what is written later.

    `LRU_HASH` drops the entry that was looked up or written longest ago; the kernel's is only near to that.
    """

    def __init__(self, definition: ir.Map) -> None:
        self.definition = definition
        self.entries: dict[tuple[int, ...], list[int]] = {}

    def lookup(self, key: tuple[int, ...]) -> list[int] | None:
        """The entry, or None."""
        found = self.entries.get(key)
        if found is not None and self.definition.kind is ir.MapKind.LRU_HASH:
            self.entries[key] = self.entries.pop(key)
        return found

    def update(self, key: tuple[int, ...], fields: tuple[int, ...], *, no_replace: bool = False) -> int:
        """Make or replace an entry: 0 or an error word."""
        if key in self.entries:
            if no_replace:
                return EXISTS
            del self.entries[key]
        elif len(self.entries) >= self.definition.capacity:
            if self.definition.kind is not ir.MapKind.LRU_HASH:
                return TOO_BIG
            del self.entries[next(iter(self.entries))]
        self.entries[key] = list(fields)
        return 0

    def delete(self, key: tuple[int, ...]) -> int:
        """Take an entry away: 0 or an error word."""
        return NO_ENTRY if self.entries.pop(key, None) is None else 0

    def snapshot(self) -> dict[tuple[int, ...], dict[str, int]]:
        """The entries by key, each as its fields by name."""
        names = self.definition.fields
        return {key: dict(zip(names, entry, strict=True)) for key, entry in self.entries.items()}


class TableState:
    """A table.  Only rows that were written are held beside those it begins with, so that long tables cost nothing.

    A resizable table is as long as the machine needs it."""

    def __init__(self, definition: ir.Table) -> None:
        self.definition = definition
        self._columns = {name: number for number, (name, _) in enumerate(definition.columns)}
        self._masks = tuple((1 << 8 * size) - 1 for _, size in definition.columns)
        self._written: dict[int, list[int]] = {}

    @property
    def rows(self) -> dict[int, tuple[int, ...]]:
        """The rows that the table begins with, as they are now, and all others that were written, by number."""
        written = {number: tuple(row) for number, row in self._written.items()}
        return {**dict(enumerate(self.definition.rows)), **written}

    def load(self, index: int, column: str) -> int:
        """A word; 0 out of bounds."""
        row = self._written.get(index) or self._initial(index)
        return row[self._columns[column]] if row else 0

    def store(self, index: int, column: str, value: int) -> None:
        """Write a word, cut to its column's size; out of bounds nothing happens."""
        if index < self.definition.length or self.definition.resizable:
            number = self._columns[column]
            row = self._written.get(index)
            if row is None:
                row = self._written[index] = list(self._initial(index) or [0] * len(self._masks))
            row[number] = value & self._masks[number]

    def _initial(self, index: int) -> tuple[int, ...]:
        """What a row begins with; nothing where that is zeros."""
        rows = self.definition.rows
        return rows[index] if 0 <= index < len(rows) else ()


@dataclass(frozen=True, slots=True)
class Event:
    """A record that was written to a ring buffer."""

    map: str
    fields: tuple[int, ...]


class RingState:
    """A ring buffer with nobody reading until `drain`.  Full as in kernel/bpf/ringbuf.c, 6.1 and 6.12."""

    def __init__(self, definition: ir.Map) -> None:
        self.definition = definition
        self.records: list[tuple[int, ...]] = []
        self._used = 0

    def emit(self, fields: tuple[int, ...]) -> int:
        """1, or 0 when there is no room."""
        size = _RECORD_HEADER + 8 * len(fields)
        if self._used + size > self.definition.capacity - 1:
            return 0
        self._used += size
        self.records.append(fields)
        return 1

    def drain(self) -> tuple[tuple[int, ...], ...]:
        """Take all records out."""
        taken = tuple(self.records)
        self.records.clear()
        self._used = 0
        return taken


@dataclass
class Machine:
    """Everything that a program can see or change, for one module.

    `symbols` are addresses of kernel symbols; one that is absent reads as 0, as a weak symbol does.  Times are
    in nanoseconds.  `killed` holds the `pid_tgid` of each KILL; `kill_result` is what the helper answers.
    """

    module: ir.Module
    memory: Memory = field(default_factory=Memory)
    symbols: Mapping[str, int] = field(default_factory=dict)
    now: int = 0
    cpu: int = 0
    task: int = 0
    pid_tgid: int = 0
    kill_result: int = 0
    killed: list[int] = field(default_factory=list)
    maps: dict[str, MapState] = field(init=False)
    rings: dict[str, RingState] = field(init=False)
    tables: dict[str, TableState] = field(init=False)
    events: list[Event] = field(default_factory=list)

    def __post_init__(self) -> None:
        ring = ir.MapKind.RING_BUFFER
        self.maps = {m.name: MapState(m) for m in self.module.maps if m.kind is not ring}
        self.rings = {m.name: RingState(m) for m in self.module.maps if m.kind is ring}
        self.tables = {t.name: TableState(t) for t in self.module.tables}

    def named_events(self) -> list[dict[str, int]]:
        """The events with their fields by name, in the order they were written."""
        return [
            dict(zip(self.rings[event.map].definition.fields, event.fields, strict=True))
            for event in self.events
        ]
