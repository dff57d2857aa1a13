# SPDX-License-Identifier: Apache-2.0
"""The system calls that libbpf has no function for, or whose function wants a name where we have an address.

Numbers and structs: include/uapi/linux/bpf.h, include/uapi/linux/perf_event.h, x86-64 syscall table (6.1).
"""

from __future__ import annotations

import ctypes
import os
import struct
from dataclasses import dataclass
from pathlib import Path

_SYS_PERF_EVENT_OPEN = 298
_SYS_BPF = 321

_BPF_OBJ_PIN = 6
_BPF_OBJ_GET = 7
_BPF_PROG_TEST_RUN = 10
_BPF_PROG_GET_NEXT_ID = 11
_BPF_MAP_GET_NEXT_ID = 12
_BPF_PROG_GET_FD_BY_ID = 13
_BPF_OBJ_GET_INFO_BY_FD = 15
_BPF_RAW_TRACEPOINT_OPEN = 17
_BPF_LINK_CREATE = 28
_BPF_PERF_EVENT = 41  # enum bpf_attach_type
_PERF_FLAG_FD_CLOEXEC = 8
_PERF_ATTR_SIZE = 112  # PERF_ATTR_SIZE_VER5
_BPF_LINK_TYPE_PERF_EVENT = 7
_INFO_SIZE = 256  # more than any struct bpf_*_info of 6.12; the kernel fills what it has

_KPROBE_PMU = Path("/sys/bus/event_source/devices/kprobe")

_libc = ctypes.CDLL(None, use_errno=True)


def _syscall(number: int, *arguments: object) -> int:
    result = int(_libc.syscall(number, *arguments))
    if result < 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))
    return result


def _bpf(command: int, attributes: bytes) -> int:
    buffer = ctypes.create_string_buffer(attributes.ljust(128, b"\0"), 128)
    return _syscall(_SYS_BPF, command, ctypes.byref(buffer), 128)


def _c_string(text: str) -> ctypes.Array[ctypes.c_char]:
    return ctypes.create_string_buffer(text.encode())


def kprobe_event(address: int, *, on_return: bool = False) -> int:
    """A perf event for a kprobe at a kernel address; the descriptor.  Raises OSError."""
    kind = int((_KPROBE_PMU / "type").read_text())
    attribute = bytearray(_PERF_ATTR_SIZE)
    struct.pack_into("<IIQ", attribute, 0, kind, _PERF_ATTR_SIZE, 1 if on_return else 0)
    # config1 = 0: no name; config2 is then the address (kernel/trace/trace_event_perf.c perf_kprobe_init, 6.1).
    struct.pack_into("<QQ", attribute, 56, 0, address)
    buffer = ctypes.create_string_buffer(bytes(attribute), _PERF_ATTR_SIZE)
    return _syscall(_SYS_PERF_EVENT_OPEN, ctypes.byref(buffer), -1, 0, -1, _PERF_FLAG_FD_CLOEXEC)


def link_perf_event(program: int, event: int, cookie: int) -> int:
    """Attach a program to a perf event with a cookie; the link's descriptor.  Raises OSError."""
    return _bpf(_BPF_LINK_CREATE, struct.pack("<IIIIQ", program, event, _BPF_PERF_EVENT, 0, cookie))


def open_raw_tracepoint(program: int, name: str) -> int:
    """Attach a program to a raw tracepoint; the link's descriptor.  Raises OSError."""
    text = _c_string(name)
    return _bpf(_BPF_RAW_TRACEPOINT_OPEN, struct.pack("<QI", ctypes.addressof(text), program))


def run_program(program: int) -> int:
    """Run a program of type `syscall` once (BPF_PROG_TEST_RUN); its result.  Raises OSError."""
    buffer = ctypes.create_string_buffer(struct.pack("<I", program), 128)
    _syscall(_SYS_BPF, _BPF_PROG_TEST_RUN, ctypes.byref(buffer), 128)
    return int(struct.unpack_from("<I", buffer.raw, 4)[0])


def pin(descriptor: int, path: Path) -> None:
    """Give a BPF object a name in bpffs, which keeps it alive.  Raises OSError."""
    text = _c_string(str(path))
    _bpf(_BPF_OBJ_PIN, struct.pack("<QII", ctypes.addressof(text), descriptor, 0))


def get_pinned(path: Path) -> int:
    """Descriptor of a pinned BPF object.  Raises OSError."""
    text = _c_string(str(path))
    return _bpf(_BPF_OBJ_GET, struct.pack("<QII", ctypes.addressof(text), 0, 0))


@dataclass(frozen=True)
class LinkInfo:
    """Which program a link attaches, and how often kprobes skipped the probe (None: this kernel does not say)."""

    program: int
    missed: int | None


def _information(descriptor: int) -> bytes:
    buffer = ctypes.create_string_buffer(_INFO_SIZE)
    _bpf(_BPF_OBJ_GET_INFO_BY_FD, struct.pack("<IIQ", descriptor, _INFO_SIZE, ctypes.addressof(buffer)))
    return buffer.raw


def map_id(descriptor: int) -> int:
    """The id of a map (``bpf_map_info.id``).  Raises OSError."""
    return int(struct.unpack_from("<I", _information(descriptor), 4)[0])


def map_value_size(descriptor: int) -> int:
    """Bytes of a map's value (``bpf_map_info.value_size``).  Raises OSError."""
    return int(struct.unpack_from("<I", _information(descriptor), 12)[0])


def link_info(descriptor: int) -> LinkInfo:
    """What the kernel says of a link.  ``bpf_link_info.perf_event.kprobe.missed`` is there from 6.7 on, and only then
    the kernel fills the event's type in front of it.  Raises OSError."""
    raw = _information(descriptor)
    kind, _, program = struct.unpack_from("<III", raw)
    event = struct.unpack_from("<I", raw, 16)[0]
    kprobe = kind == _BPF_LINK_TYPE_PERF_EVENT and event in (3, 4)  # BPF_PERF_EVENT_KPROBE, _KRETPROBE
    return LinkInfo(program, struct.unpack_from("<Q", raw, 48)[0] if kprobe and _has_missed() else None)


def _has_missed() -> bool:
    numbers = os.uname().release.split("-")[0].split(".")
    return (int(numbers[0]), int(numbers[1])) >= (6, 7)


def missed_runs(program: int) -> int:
    """How often the program of that id did not run because another BPF program was active on the processor.

    ``bpf_prog_info.recursion_misses``; 6.1 does not count it for kprobes.  Raises OSError.
    """
    descriptor = _bpf(_BPF_PROG_GET_FD_BY_ID, struct.pack("<I", program))
    try:
        return int(struct.unpack_from("<Q", _information(descriptor), 208)[0])
    finally:
        os.close(descriptor)


def _count(command: int) -> int:
    total, last = 0, 0
    while True:
        # struct { start_id; next_id; open_flags }: what comes behind start_id
        attributes = ctypes.create_string_buffer(struct.pack("<I", last), 128)
        try:
            _syscall(_SYS_BPF, command, ctypes.byref(attributes), 128)
        except FileNotFoundError:
            return total
        total += 1
        last = struct.unpack_from("<I", attributes.raw, 4)[0]


def count_programs() -> int:
    """BPF programs in the kernel, everyone's.  Raises OSError."""
    return _count(_BPF_PROG_GET_NEXT_ID)


def count_maps() -> int:
    """BPF maps in the kernel, everyone's.  Raises OSError."""
    return _count(_BPF_MAP_GET_NEXT_ID)
