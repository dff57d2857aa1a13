# SPDX-License-Identifier: Apache-2.0
"""Unpacks compressed modules and the kernel inside a ``vmlinuz``.

Debian packs modules with xz (6.12) or not at all (6.1), and the kernel inside the boot image with xz (6.1) or
zstd (6.12); gzip, bzip2, lzma and lz4's legacy frames are the kernel's other choices (``lib/decompress.c``).
The boot image says where the packed kernel is: ``setup_sects``, ``payload_offset`` and ``payload_length`` of
its header (``Documentation/arch/x86/boot.rst``).
"""

import bz2
import io
import lzma
import struct
import zlib

import zstandard

from o2cc.kernel.errors import BROKEN_COMPRESSION, NO_KERNEL_IMAGE, failure

MODULE_SUFFIXES = (".ko", ".ko.xz", ".ko.zst", ".ko.gz")

# A limit against archives that unpack to all of memory: Debian's kernels need 66 MB.
SIZE_LIMIT = 1 << 30
_PIECE = 1 << 20

_LZ4_LEGACY = b"\x02\x21\x4c\x18"


def decompress(data: bytes | memoryview, path: str) -> bytes:
    """Unpack ``data`` by its magic number; what has none of the known ones comes back as it is.

    Trailing bytes after the packed stream are ignored (the kernel appends the size to its payload). Raises
    DiagnosticError O2C0403 for a stream that is truncated, corrupt or too large.
    """
    try:
        if data[:6] == b"\xfd7zXZ\0" or data[:3] == b"\x5d\0\0":
            return _bounded(lzma.LZMADecompressor(), data, path)
        if data[:4] == b"\x28\xb5\x2f\xfd":
            return _zstd(data, path)
        if data[:2] == b"\x1f\x8b":
            return _bounded_zlib(data, path)
        if data[:3] == b"BZh":
            return _bounded(bz2.BZ2Decompressor(), data, path)
        if data[:4] == _LZ4_LEGACY:
            return _lz4_legacy(data, path)
    except (
        lzma.LZMAError,
        zstandard.ZstdError,
        zlib.error,
        OSError,
        EOFError,
        ValueError,
        IndexError,
    ) as problem:
        raise failure(
            BROKEN_COMPRESSION, f"the compressed data cannot be unpacked: {problem}", path
        ) from None
    return bytes(data)


def kernel_image(data: bytes, path: str) -> bytes:
    """The kernel's ELF file: of a boot image (``vmlinuz``), of a packed ELF file, or the file itself.

    Raises DiagnosticError O2C0403 or O2C0404.
    """
    if data[0x202:0x206] == b"HdrS" and len(data) >= 0x250:
        sectors = data[0x1F1] or 4
        offset, length = struct.unpack_from("<II", data, 0x248)
        start = (sectors + 1) * 512 + offset
        if length == 0 or start + length > len(data):
            raise failure(
                NO_KERNEL_IMAGE, "the boot image is truncated: its kernel lies outside the file", path
            )
        image = decompress(memoryview(data)[start : start + length], path)
    else:
        image = decompress(data, path)
    if image[:4] != b"\x7fELF":
        raise failure(NO_KERNEL_IMAGE, "no kernel found in this file", path)
    return image


def _bounded(
    unpacker: "lzma.LZMADecompressor | bz2.BZ2Decompressor", data: bytes | memoryview, path: str
) -> bytes:
    # In pieces: what it is given and has not used yet the unpacker copies, and what it gives out it joins.
    result = io.BytesIO()
    view = memoryview(data)
    for start in range(0, len(view), _PIECE):
        result.write(unpacker.decompress(view[start : start + _PIECE], _PIECE))
        while not (unpacker.needs_input or unpacker.eof) and result.tell() < SIZE_LIMIT:
            result.write(unpacker.decompress(b"", _PIECE))
        if unpacker.eof or result.tell() >= SIZE_LIMIT:
            break
    _require(unpacker.eof, path)
    return result.getvalue()


def _bounded_zlib(data: bytes | memoryview, path: str) -> bytes:
    unpacker = zlib.decompressobj(31)
    result = unpacker.decompress(data, SIZE_LIMIT)
    _require(unpacker.eof, path)
    return result


def _zstd(data: bytes | memoryview, path: str) -> bytes:
    # The kernel's build appends the unpacked size; with it the result needs no second copy.
    size = int.from_bytes(data[-4:], "little")
    if size <= SIZE_LIMIT:
        try:
            return zstandard.ZstdDecompressor(max_window_size=1 << 30).decompress(data, max_output_size=size)
        except zstandard.ZstdError:
            pass  # what is appended is no size, or nothing is
    unpacker = zstandard.ZstdDecompressor(max_window_size=1 << 30).decompressobj()
    pieces: list[bytes] = []
    size = 0
    view = memoryview(data)
    for start in range(0, len(data), 1 << 20):
        piece = unpacker.decompress(view[start : start + (1 << 20)])
        pieces.append(piece)
        size += len(piece)
        if size > SIZE_LIMIT:
            raise ValueError("it unpacks to more than a kernel can be")
        if unpacker.eof:
            break
    _require(unpacker.eof, path)
    return b"".join(pieces)


def _lz4_legacy(data: bytes | memoryview, path: str) -> bytes:
    """Frames of lz4's legacy format: after the magic, blocks of (size, data), each at most 8 MiB unpacked."""
    result = bytearray()
    position = 4
    # The last four bytes are the unpacked size that the kernel's build appends.
    while position + 4 < len(data):
        (size,) = struct.unpack_from("<I", data, position)
        position += 4
        if size == 0x184C2102:
            continue
        if size == 0 or position + size > len(data):
            break
        _lz4_block(data[position : position + size], result)
        position += size
        if len(result) > SIZE_LIMIT:
            raise ValueError("it unpacks to more than a kernel can be")
    _require(bool(result), path)
    return bytes(result)


def _lz4_block(block: bytes | memoryview, result: bytearray) -> None:
    position = 0
    start = len(result)
    while position < len(block):
        token = block[position]
        position += 1
        literals, position = _lz4_length(block, position, token >> 4)
        if position + literals > len(block):
            raise ValueError("a literal run passes the block's end")
        result += block[position : position + literals]
        position += literals
        if position >= len(block):
            return
        distance = block[position] | block[position + 1] << 8
        position += 2
        length, position = _lz4_length(block, position, token & 15)
        length += 4
        if distance == 0 or distance > len(result) - start:
            raise ValueError("a match lies before the block's start")
        if distance >= length:
            at = len(result) - distance
            result += result[at : at + length]
        else:
            pattern = bytes(result[-distance:])
            result += (pattern * (length // distance + 1))[:length]


def _lz4_length(block: bytes | memoryview, position: int, length: int) -> tuple[int, int]:
    if length == 15:
        while True:
            more = block[position]
            position += 1
            length += more
            if more != 255:
                break
    return length, position


def _require(complete: bool, path: str) -> None:
    if not complete:
        raise failure(BROKEN_COMPRESSION, "the compressed data ends too early or unpacks to too much", path)
