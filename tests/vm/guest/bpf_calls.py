# SPDX-License-Identifier: Apache-2.0
"""bpf(2) as far as the tests of objects need it: pinned programs and maps, test runs, ring buffers.

Command numbers and structures: include/uapi/linux/bpf.h (6.1), ABI.
"""

from __future__ import annotations

import ctypes
import mmap
import os
import struct
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

_NR_BPF = 321  # x86-64
_NR_PERF_EVENT_OPEN = 298
_MAP_LOOKUP, _MAP_NEXT_KEY, _OBJ_GET, _TEST_RUN, _LINK_CREATE = 1, 4, 7, 10, 28
_BPF_PERF_EVENT = 41
_KPROBE_TYPE = Path("/sys/bus/event_source/devices/kprobe/type")
_BPFFS = Path("/sys/fs/bpf")
_PAGE = 4096
_BUSY, _DISCARDED, _LENGTH = 1 << 31, 1 << 30, (1 << 30) - 1

_libc = ctypes.CDLL(None, use_errno=True)


def _bpf(command: int, attributes: bytes) -> tuple[int, bytes]:
    """The call; returns its result and the attributes as the kernel left them.  Raises OSError."""
    buffer = ctypes.create_string_buffer(attributes, max(len(attributes), 128))
    result = _libc.syscall(_NR_BPF, command, buffer, len(buffer))
    if result < 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))
    return result, buffer.raw


def _open_pinned(path: Path) -> int:
    name = ctypes.create_string_buffer(os.fsencode(path))
    return _bpf(_OBJ_GET, struct.pack("<QII", ctypes.addressof(name), 0, 0))[0]


@dataclass(frozen=True)
class Loaded:
    """An object that bpftool loaded and pinned; ``log`` is what bpftool wrote."""

    directory: Path
    log: str

    def programs(self) -> list[str]:
        """Names of the pinned programs."""
        return sorted(path.name for path in (self.directory / "programs").iterdir())

    def _map(self, name: str) -> int:
        (path,) = [p for p in (self.directory / "maps").iterdir() if p.name == name or p.name.endswith(name)]
        return _open_pinned(path)

    @contextmanager
    def attached(self, program: str, function: str, offset: int, cookie: int = 0) -> Iterator[None]:
        """Attaches a kprobe program, as libbpf does: a perf event of the kprobe type, and a link with a cookie."""
        name = ctypes.create_string_buffer(function.encode())
        attribute = ctypes.create_string_buffer(
            128
        )  # struct perf_event_attr, include/uapi/linux/perf_event.h
        struct.pack_into("<II", attribute, 0, int(_KPROBE_TYPE.read_text()), len(attribute))
        struct.pack_into("<QQ", attribute, 56, ctypes.addressof(name), offset)
        event = _libc.syscall(_NR_PERF_EVENT_OPEN, attribute, -1, 0, -1, 8)
        if event < 0:
            raise OSError(ctypes.get_errno(), f"cannot probe {function}+{offset:#x}")
        descriptor = _open_pinned(self.directory / "programs" / program)
        link, _ = _bpf(_LINK_CREATE, struct.pack("<IIIIQ", descriptor, event, _BPF_PERF_EVENT, 0, cookie))
        try:
            yield
        finally:
            for number in (link, event, descriptor):
                os.close(number)

    def run(self, program: str, context: bytes) -> int:
        """Runs a program of type `syscall` once and returns its 32-bit result."""
        descriptor = _open_pinned(self.directory / "programs" / program)
        try:
            buffer = ctypes.create_string_buffer(context, len(context))
            attributes = bytearray(80)
            struct.pack_into("<I", attributes, 0, descriptor)
            struct.pack_into("<I", attributes, 40, len(context))
            struct.pack_into("<Q", attributes, 48, ctypes.addressof(buffer))
            _, out = _bpf(_TEST_RUN, bytes(attributes))
            return int(struct.unpack_from("<I", out, 4)[0])
        finally:
            os.close(descriptor)

    def entries(self, name: str, key_words: int, value_words: int) -> dict[tuple[int, ...], tuple[int, ...]]:
        """All entries of a map of words."""
        descriptor = self._map(name)
        found: dict[tuple[int, ...], tuple[int, ...]] = {}
        key = ctypes.create_string_buffer(8 * key_words)
        following = ctypes.create_string_buffer(8 * key_words)
        value = ctypes.create_string_buffer(8 * value_words)
        address = 0
        try:
            while True:
                try:
                    _bpf(
                        _MAP_NEXT_KEY,
                        struct.pack("<IIQQ", descriptor, 0, address, ctypes.addressof(following)),
                    )
                except FileNotFoundError:
                    return found
                key.raw = following.raw
                address = ctypes.addressof(key)
                _bpf(_MAP_LOOKUP, struct.pack("<IIQQQ", descriptor, 0, address, ctypes.addressof(value), 0))
                found[struct.unpack(f"<{key_words}Q", key.raw)] = struct.unpack(f"<{value_words}Q", value.raw)
        finally:
            os.close(descriptor)

    def section(self, name: str, size: int) -> bytes:
        """The content of a data section."""
        descriptor = self._map(name.replace(".", "_"))
        try:
            key = ctypes.create_string_buffer(4)
            value = ctypes.create_string_buffer(size)
            _bpf(
                _MAP_LOOKUP,
                struct.pack("<IIQQQ", descriptor, 0, ctypes.addressof(key), ctypes.addressof(value), 0),
            )
            return value.raw
        finally:
            os.close(descriptor)

    def records(self, name: str, size: int) -> list[bytes]:
        """The records of a ring buffer of ``size`` bytes, oldest first; they stay in it."""
        descriptor = self._map(name)
        try:
            with mmap.mmap(
                descriptor, _PAGE + 2 * size, mmap.MAP_SHARED, mmap.PROT_READ, offset=_PAGE
            ) as ring:
                (end,) = struct.unpack_from("<Q", ring, 0)
                found, position = [], 0
                while position < end:
                    start = _PAGE + (position & (size - 1))
                    (header,) = struct.unpack_from("<I", ring, start)
                    length = header & _LENGTH
                    if not header & (_BUSY | _DISCARDED):
                        found.append(bytes(ring[start + 8 : start + 8 + length]))
                    position += -(-(length + 8) // 8) * 8
                return found
        finally:
            os.close(descriptor)


@contextmanager
def loaded(data: bytes, directory: Path, name: str = "object") -> Iterator[Loaded]:
    """Loads an object with bpftool, as any user would, and removes it again.

    Raises AssertionError with bpftool's log, the verifier's included, when the kernel refuses it.
    """
    file = directory / f"{name}.bpf.o"
    file.write_bytes(data)
    pins = _BPFFS / f"o2c_test_{name}"
    command = ["bpftool", "prog", "loadall", str(file), str(pins / "programs"), "pinmaps", str(pins / "maps")]
    pins.mkdir()
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=100)
        assert done.returncode == 0, done.stderr[-6000:]
        yield Loaded(pins, done.stdout + done.stderr)
    finally:
        for path in sorted(pins.rglob("*"), reverse=True):
            path.rmdir() if path.is_dir() else path.unlink()
        pins.rmdir()
