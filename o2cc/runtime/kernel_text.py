# SPDX-License-Identifier: Apache-2.0
"""Reads the kernel's own text through /proc/kcore, an ELF core file that maps kernel addresses (fs/proc/kcore.c).

Root only; refused under lockdown *confidentiality*, allowed under *integrity*.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

KCORE = Path("/proc/kcore")
_HEADER_SIZE = 64
_SEGMENT_SIZE = 56
_LOAD = 1  # PT_LOAD


@dataclass(frozen=True)
class Segment:
    """A range of addresses and where it is in the file."""

    address: int
    size: int
    offset: int


def parse_segments(header: bytes, table: bytes) -> tuple[Segment, ...]:
    """The loadable segments of a 64-bit ELF core file.  Raises ValueError when it is none."""
    if header[:5] != b"\x7fELF\x02" or len(header) < _HEADER_SIZE:
        raise ValueError("not a 64-bit ELF file")
    found = []
    for at in range(0, len(table) - _SEGMENT_SIZE + 1, _SEGMENT_SIZE):
        kind, _, offset, address, _, size = struct.unpack_from("<IIQQQQ", table, at)
        if kind == _LOAD:
            found.append(Segment(address, size, offset))
    return tuple(found)


def locate(segments: Sequence[Segment], address: int, size: int) -> tuple[int, int] | None:
    """Offset in the file, and how many of the bytes are there; None when the address is in no segment."""
    for segment in segments:
        if segment.address <= address < segment.address + segment.size:
            inside = address - segment.address
            return segment.offset + inside, min(size, segment.size - inside)
    return None


class KernelText:
    """The kernel's memory, to read.  Use as a context manager.  Raises OSError when it cannot be opened."""

    def __init__(self, path: Path = KCORE) -> None:
        self._file = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            header = os.pread(self._file, _HEADER_SIZE, 0)
            start, count = struct.unpack_from("<Q", header, 32)[0], struct.unpack_from("<H", header, 56)[0]
            self._segments = parse_segments(header, os.pread(self._file, count * _SEGMENT_SIZE, start))
        except (OSError, ValueError, struct.error):
            os.close(self._file)
            raise OSError("the kernel's memory cannot be read") from None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, problem: BaseException | None, trace: TracebackType | None
    ) -> None:
        os.close(self._file)

    def read(self, address: int, size: int) -> bytes:
        """Up to ``size`` bytes; fewer where the mapping ends, none where there is nothing."""
        place = locate(self._segments, address, size)
        if place is None:
            return b""
        try:
            return os.pread(self._file, place[1], place[0])
        except OSError:
            return b""
