# SPDX-License-Identifier: Apache-2.0
"""Records of the ring buffer, decoded."""

from __future__ import annotations

import struct
from dataclasses import dataclass

from o2cc.profile.program import WORDS

_MOMENTS = {1: "live", 2: "free", 3: "access"}
_HEAD = 11
RECORD = struct.Struct(f"<{_HEAD + WORDS}Q")


@dataclass(frozen=True, slots=True)
class Sample:
    """One object at one moment.  ``asked``: bytes that kmalloc was asked for, 0 for an object of a named cache;
    ``references``: caches that share this one, 1 when nothing was merged into it."""

    moment: str
    site: int
    asked: int
    address: int
    cache_address: int
    cache: str
    size: int
    flags: int
    references: int
    words: tuple[int, ...]


def decode(record: bytes) -> Sample | None:
    """A record as a sample; None when the kernel recorded nothing that makes sense (a size of 0)."""
    words = RECORD.unpack_from(record)
    moment, site, asked, address, cache, size, flags, references = words[:8]
    if size == 0 or moment not in _MOMENTS:
        return None
    name = b"".join(word.to_bytes(8, "little") for word in words[8:_HEAD]).split(b"\0")[0]
    known = min(WORDS, size // 8)
    return Sample(
        _MOMENTS[moment],
        site,
        asked,
        address,
        cache,
        name.decode("ascii", "replace"),
        size,
        flags,
        references,
        words[_HEAD : _HEAD + known],
    )
