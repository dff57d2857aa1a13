# SPDX-License-Identifier: Apache-2.0
"""A thin binding to libbpf (1.1 or newer): objects, programs, maps, ring buffers."""

from __future__ import annotations

import ctypes
import ctypes.util
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from types import TracebackType

from o2cc.diagnostics import DiagnosticError, error

_PRINT = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_int, ctypes.c_char_p, ctypes.c_void_p)
_SAMPLE = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_size_t)

_INFO = 1  # enum libbpf_print_level (tools/lib/bpf/libbpf.h): warnings are 0, what is for debugging is 2

_log: list[str] = []


def _collect(level: int, template: bytes, arguments: int) -> int:
    if level > _INFO:  # several for each program and map
        return 0
    buffer = ctypes.create_string_buffer(1 << 16)
    ctypes.CDLL(None).vsnprintf(buffer, len(buffer), template, ctypes.c_void_p(arguments))
    _log.append(buffer.value.decode(errors="replace").rstrip("\n"))
    return 0


_collect_callback = _PRINT(_collect)


@cache
def _library() -> ctypes.CDLL:
    name = ctypes.util.find_library("bpf") or "libbpf.so.1"
    try:
        library = ctypes.CDLL(name, use_errno=True)
    except OSError:
        raise DiagnosticError(
            error("O2C0801", "libbpf is not installed", help="install it: apt-get install libbpf1")
        ) from None
    pointer, text, integer = ctypes.c_void_p, ctypes.c_char_p, ctypes.c_int
    signatures: dict[str, tuple[object, list[object]]] = {
        "bpf_object__open_mem": (pointer, [pointer, ctypes.c_size_t, pointer]),
        "bpf_object__load": (integer, [pointer]),
        "bpf_object__close": (None, [pointer]),
        "bpf_object__next_program": (pointer, [pointer, pointer]),
        "bpf_object__next_map": (pointer, [pointer, pointer]),
        "bpf_program__name": (text, [pointer]),
        "bpf_program__fd": (integer, [pointer]),
        "bpf_program__set_autoload": (integer, [pointer, ctypes.c_bool]),
        "bpf_map__name": (text, [pointer]),
        "bpf_map__fd": (integer, [pointer]),
        "bpf_map_lookup_elem": (integer, [integer, pointer, pointer]),
        "bpf_map_update_elem": (integer, [integer, pointer, pointer, ctypes.c_uint64]),
        "bpf_map_delete_elem": (integer, [integer, pointer]),
        "bpf_map_get_next_key": (integer, [integer, pointer, pointer]),
        "ring_buffer__new": (pointer, [integer, _SAMPLE, pointer, pointer]),
        "ring_buffer__poll": (integer, [pointer, integer]),
        "ring_buffer__free": (None, [pointer]),
        "libbpf_set_print": (pointer, [_PRINT]),
    }
    for function, (result, arguments) in signatures.items():
        entry = getattr(library, function)
        entry.restype = result
        entry.argtypes = arguments
    library.libbpf_set_print(_collect_callback)
    return library


def _fail(what: str) -> OSError:
    code = ctypes.get_errno()
    return OSError(code, f"{what}: {os.strerror(code).lower()}")


class LoadError(Exception):
    """The kernel or libbpf refused an object; ``log`` is what libbpf said, the verifier's words included."""

    def __init__(self, code: int, log: tuple[str, ...]) -> None:
        super().__init__(os.strerror(code).lower())
        self.code = code
        self.log = log


@dataclass(frozen=True)
class Program:
    """A program of an object; ``descriptor`` is valid once it is loaded and until the object is closed."""

    name: str
    descriptor: int


class BpfObject:
    """An object file in libbpf's hands.  Use as a context manager; closing it closes every descriptor."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._handle: int | None = None

    def __enter__(self) -> BpfObject:
        _log.clear()
        handle = _library().bpf_object__open_mem(self._data, len(self._data), None)
        if not handle:
            raise LoadError(ctypes.get_errno(), tuple(_log))
        self._handle = handle
        return self

    def __exit__(
        self, kind: type[BaseException] | None, problem: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._handle is not None:
            _library().bpf_object__close(self._handle)
            self._handle = None

    def _programs(self) -> Iterator[int]:
        at = _library().bpf_object__next_program(self._handle, None)
        while at:
            yield at
            at = _library().bpf_object__next_program(self._handle, at)

    def load(self, wanted: Callable[[str], bool] = lambda name: True) -> None:
        """Verify and load the programs whose name is wanted, and all maps.  Raises LoadError."""
        library = _library()
        for program in self._programs():
            library.bpf_program__set_autoload(program, wanted(library.bpf_program__name(program).decode()))
        _log.clear()
        status = library.bpf_object__load(self._handle)
        if status != 0:
            raise LoadError(-status, tuple(_log))

    def programs(self) -> dict[str, Program]:
        """The loaded programs by name."""
        library = _library()
        found: dict[str, Program] = {}
        for program in self._programs():
            descriptor = library.bpf_program__fd(program)
            if descriptor >= 0:
                name = library.bpf_program__name(program).decode()
                found[name] = Program(name, descriptor)
        return found

    def maps(self) -> dict[str, int]:
        """Descriptors of the maps by name; those of data sections under the section's name (``.bss``)."""
        library = _library()
        found: dict[str, int] = {}
        at = library.bpf_object__next_map(self._handle, None)
        while at:
            name = library.bpf_map__name(at).decode()
            found[name[name.index(".") :] if "." in name else name] = library.bpf_map__fd(at)
            at = library.bpf_object__next_map(self._handle, at)
        return found


def lookup(descriptor: int, key: bytes, size: int) -> bytes | None:
    """The entry of ``size`` bytes under a key, or None."""
    value = ctypes.create_string_buffer(size)
    status = _library().bpf_map_lookup_elem(descriptor, key, value)
    return value.raw if status == 0 else None


def update(descriptor: int, key: bytes, value: bytes) -> None:
    """Set the entry under a key.  Raises OSError."""
    if _library().bpf_map_update_elem(descriptor, key, value, 0) != 0:
        raise _fail("a map cannot be changed")


def keys(descriptor: int, size: int) -> Iterator[bytes]:
    """The keys of ``size`` bytes that are there; entries that change meanwhile may be missed."""
    following = ctypes.create_string_buffer(size)
    current: bytes | None = None
    while _library().bpf_map_get_next_key(descriptor, current, following) == 0:
        current = following.raw
        yield current


class RingBuffer:
    """Reads the records of a ring buffer map.  Use as a context manager."""

    def __init__(self, descriptor: int, receive: Callable[[bytes], None]) -> None:
        def sample(context: int, data: int, size: int) -> int:
            receive(ctypes.string_at(data, size))
            return 0

        self._callback = _SAMPLE(sample)  # libbpf keeps the pointer: it must not be collected
        self._handle = _library().ring_buffer__new(descriptor, self._callback, None, None)
        if not self._handle:
            raise _fail("the event buffer cannot be opened")

    def __enter__(self) -> RingBuffer:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, problem: BaseException | None, trace: TracebackType | None
    ) -> None:
        _library().ring_buffer__free(self._handle)

    def poll(self, milliseconds: int) -> int:
        """Wait for records and hand them over; how many there were (negative when interrupted)."""
        return int(_library().ring_buffer__poll(self._handle, milliseconds))
