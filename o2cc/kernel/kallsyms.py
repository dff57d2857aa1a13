# SPDX-License-Identifier: Apache-2.0
"""Reads the symbol tables that a kernel carries inside itself (``kernel/kallsyms.c``, ``scripts/kallsyms.c``).

Debian's System.map is a stub and the kernel in a boot image has no symbol table, so these are the only source.
The tables have no header; they are found by what is certain about them:

* ``kallsyms_token_table`` is 256 strings, among them the ten digits in a row, and ``kallsyms_token_index`` right
  behind it holds the 256 offsets of these strings: no other data matches both.
* ``kallsyms_num_syms`` comes before ``kallsyms_names``, whose entries expand to a type letter and a name, and
  after the last of which ``kallsyms_markers`` repeats the position of every 256th entry.
* ``kallsyms_offsets`` and ``kallsyms_relative_base`` come before ``kallsyms_num_syms`` up to 6.3 and after
  ``kallsyms_token_index`` since 6.4.

Addresses follow CONFIG_KALLSYMS_ABSOLUTE_PERCPU (x86-64, up to 6.14): a non-negative offset is the address itself,
a negative one counts down from ``kallsyms_relative_base - 1``.
"""

import struct
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt

from o2cc.kernel.errors import BROKEN_KALLSYMS, failure

_DIGITS = b"".join(bytes((48 + digit, 0)) for digit in range(10))
_TYPE_LETTERS = frozenset(b"ABDRTVWabdrtvw")
_SYMBOL_LIMIT = 2_000_000


@dataclass(frozen=True)
class KernelSymbols:
    """All symbols of a kernel, ordered by address as the kernel has them.

    ``names`` are without the type letter, ``types`` are the letters as in ``/proc/kallsyms``, ``addresses`` those
    that the kernel was linked for (per-CPU symbols: offsets in the per-CPU area).
    """

    names: tuple[str, ...]
    types: bytes
    addresses: npt.NDArray[np.uint64]

    @cached_property
    def index(self) -> Mapping[str, tuple[int, ...]]:
        """The positions of every name."""
        found: dict[str, tuple[int, ...]] = {}
        for position, name in enumerate(self.names):
            before = found.get(name)
            found[name] = (position,) if before is None else (*before, position)
        return found

    @cached_property
    def name_set(self) -> frozenset[str]:
        return frozenset(self.names)

    def address(self, name: str) -> int | None:
        """The address of the only symbol of that name; None if there is none or several."""
        if name not in self.name_set or self.names.count(name) > 1:
            return None
        return int(self.addresses[self.names.index(name)])

    def covering(self, address: int) -> int | None:
        """The position of the last symbol at or below ``address``; None if it lies below all."""
        position = int(np.searchsorted(self.addresses, np.uint64(address), side="right")) - 1
        return position if position >= 0 else None


def read_kallsyms(image: bytes, path: str) -> KernelSymbols:
    """Find and decode the tables in a kernel's ELF file (or any part that holds them).

    Raises DiagnosticError O2C0406 if they are not there or do not add up.
    """
    try:
        table_at, tokens, index_end = _find_tokens(image)
        count, lengths, starts, before = _find_names(image, table_at, tokens)
        addresses = _find_addresses(image, count, before, index_end)
    except (_NotFound, struct.error, IndexError, ValueError) as problem:
        message = f"the kernel's symbol tables cannot be read: {problem}"
        raise failure(BROKEN_KALLSYMS, message, path) from None
    names, types = _expand(image, tokens, starts, lengths)
    order = np.argsort(addresses, kind="stable")
    if not np.array_equal(order, np.arange(count)):
        positions = order.tolist()
        names = [names[position] for position in positions]
        types = bytes(types[position] for position in positions)
        addresses = addresses[order]
    return KernelSymbols(tuple(names), types, addresses)


class _NotFound(Exception):
    pass


def _find_tokens(image: bytes) -> tuple[int, list[bytes], int]:
    """(start of the token table, the 256 tokens, end of the token index)."""
    at = image.find(_DIGITS)
    while at >= 0:
        start = at
        for _ in range(48):
            start = image.rfind(b"\0", 0, start - 1) + 1
            if start <= 0 or at - start > 48 * 64:
                break
        else:
            # Padding before the table looks like empty strings: the first token is not empty.
            end = start
            tokens: list[bytes] = []
            offsets: list[int] = []
            for _ in range(256):
                stop = image.find(b"\0", end, end + 128)
                if stop < 0:
                    break
                offsets.append(end - start)
                tokens.append(image[end:stop])
                end = stop + 1
            if len(tokens) == 256:
                wanted = struct.pack("<256H", *offsets) if offsets[-1] < 65536 else b"-"
                found = image.find(wanted, end, end + len(wanted) + 64)
                if found >= 0:
                    return start, tokens, found + len(wanted)
        at = image.find(_DIGITS, at + 1)
    raise _NotFound("no token table")


def _find_names(
    image: bytes, table_at: int, tokens: list[bytes]
) -> tuple[int, npt.NDArray[np.int64], npt.NDArray[np.int64], int]:
    """(number of symbols, length and start in the file of each packed name, place of ``kallsyms_num_syms``)."""
    # The names end shortly before the token table (markers, in some versions 3 bytes a symbol, between).
    window = max(0, table_at - (32 << 20)) & ~7
    words = np.frombuffer(image, "<u4", count=(table_at - window) // 4, offset=window)
    candidates = np.nonzero((words[:-2] >= 1024) & (words[:-2] <= _SYMBOL_LIMIT))[0]
    first_letters = np.array([bool(token) and token[0] in _TYPE_LETTERS for token in tokens])
    data = np.frombuffer(image, np.uint8)
    places = window + candidates * 4
    places = places[places % 8 == 0]
    # The first entry: a short length and a token that begins with a type letter.
    lengths = data[places + 8]
    places = places[(lengths >= 2) & (lengths < 128) & first_letters[data[places + 9]]]
    for place in places.tolist():
        count = int.from_bytes(image[place : place + 4], "little")
        if _plausible(image, place + 8, tokens):
            walked = _walk(image, place + 8, count, table_at)
            if walked is not None:
                return count, walked[0], walked[1], place
    raise _NotFound("no table of names")


def _plausible(image: bytes, position: int, tokens: list[bytes]) -> bool:
    """Whether the next entries all begin with a type letter."""
    for _ in range(32):
        length, position = _entry(image, position)
        first = tokens[image[position]]
        if length < 1 or not first or first[0] not in _TYPE_LETTERS:
            return False
        position += length
    return True


def _entry(image: bytes, position: int) -> tuple[int, int]:
    """Packed length of the name at ``position``, and where it begins: lengths over 127 take two bytes (since 6.1)."""
    length = image[position]
    if length < 128:
        return length, position + 1
    return (length & 127) | image[position + 1] << 7, position + 2


def _walk(
    image: bytes, position: int, count: int, limit: int
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]] | None:
    first = position
    lengths: list[int] = []
    starts: list[int] = []
    for _ in range(count):
        if position >= limit:
            return None
        length, position = _entry(image, position)
        lengths.append(length)
        starts.append(position)
        position += length
    markers = position + 7 & ~7
    step = 256
    expected = [
        start - first - (1 if length < 128 else 2)
        for start, length in zip(starts[::step], lengths[::step], strict=True)
    ]
    for place in (markers, position + 3 & ~3):
        found = image[place : place + 4 * len(expected)]
        if found == struct.pack(f"<{len(expected)}I", *expected):
            return np.array(lengths, np.int64), np.array(starts, np.int64)
    return None


def _find_addresses(image: bytes, count: int, before: int, index_end: int) -> npt.NDArray[np.uint64]:
    size = 4 * count
    old_base = before - 8
    old_offsets = old_base - (size + 7 & ~7)
    new_offsets = index_end + 7 & ~7
    new_base = new_offsets + size + 7 & ~7
    for base_at, offsets_at in ((new_base, new_offsets), (old_base, old_offsets)):
        if offsets_at < 0 or base_at + 8 > len(image):
            continue
        (base,) = struct.unpack_from("<Q", image, base_at)
        # The kernel is linked into the top 2 GiB, at a multiple of its page size.
        if base >> 31 != 0x1FFFFFFFF or base & 0xFFF:
            continue
        offsets = np.frombuffer(image, "<i4", count, offsets_at).astype(np.int64)
        wrapped = np.where(offsets >= 0, offsets, base - (1 << 64) - 1 - offsets)
        return wrapped.astype(np.uint64)
    raise _NotFound("no table of addresses")


def _expand(
    image: bytes, tokens: list[bytes], starts: npt.NDArray[np.int64], lengths: npt.NDArray[np.int64]
) -> tuple[list[str], bytes]:
    """Expand all packed names at once: gather each byte's token, with a separator after each name."""
    # 32 bits are enough for places in an image, and halve what is otherwise the peak of a scan's memory.
    data = np.frombuffer(image, np.uint8)
    ends = np.cumsum(lengths + 1)
    total = int(ends[-1])
    positions = np.ones(total, np.int32)
    positions[0] = starts[0]
    # Runs of consecutive positions, one a name, each followed by a slot for the separator (token 256).
    positions[ends[:-1]] = starts[1:] - (starts[:-1] + lengths[:-1])
    np.cumsum(positions, out=positions)
    np.minimum(positions, len(data) - 1, out=positions)
    packed = data[positions].astype(np.int16)
    packed[ends - 1] = 256
    table = [*tokens, b"\0"]
    sizes = np.array([len(token) for token in table], np.int32)
    offsets = np.concatenate(([0], np.cumsum(sizes)[:-1])).astype(np.int32)
    blob = np.frombuffer(b"".join(table), np.uint8)
    out_sizes = sizes[packed]
    out_ends = np.cumsum(out_sizes, dtype=np.int32)
    shift = np.repeat(offsets[packed] - (out_ends - out_sizes), out_sizes)
    shift += np.arange(len(shift), dtype=np.int32)
    text = blob[shift].tobytes()
    items = text.decode("utf-8", "replace").split("\0")[:-1]
    types = bytes(ord(item[0]) & 255 if item else 63 for item in items)
    return [item[1:] for item in items], types
